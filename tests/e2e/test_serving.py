"""A service follows its training, keeps what it serves, and refuses what is corrupt."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mms_operator.cli.forward import port_forward
from mms_workloads.serve import query
from tests.e2e.kube import Kube, condition, installation_store, service, training

if TYPE_CHECKING:
    from tests.e2e.conftest import Corpora

pytestmark = pytest.mark.e2e


def test_follows_and_outlives_its_training(kube: Kube, corpora: Corpora) -> None:
    kube.apply(service("words"))
    kube.wait_condition("modelservice", "words", "Ready", "False", "TrainingNotFound")
    kube.apply(training("words", corpora.small))
    kube.wait_condition("modelservice", "words", "Ready", "False", "TrainingNotComplete")
    kube.wait_phase("words", "Complete")
    kube.wait_condition("modelservice", "words", "Ready", "True", seconds=180)

    kube.patch("modeltraining", "words", {"runPolicy": {"run": 2}})
    kube.wait(
        "modelservice",
        "words",
        lambda s: (
            (s["status"]["versions"].get("stable") or {}).get("version") == 2
            and condition(s, "Ready")["status"] == "True"
        ),
        240,
        "serving version 2",
    )
    kube.delete("modeltraining", "words")
    with port_forward(kube.namespace, "svc/words", 8001) as address:
        assert len(query.neighbours(address, ["congress"], 3)[0].words) == 3
    kube.run("scale", "modelservice", "words", "--replicas=0")
    kube.wait_condition("modelservice", "words", "Ready", "True", "ScaledToZero")


def test_corrupt_artifact(kube: Kube, corpora: Corpora) -> None:
    """One byte of the weights is flipped in the store: no pod ever answers with them."""
    kube.apply(training("words", corpora.small))
    artifact = kube.wait_phase("words", "Complete")["status"]["artifact"]
    with installation_store() as store:
        path = f"{artifact['uri']}/model.safetensors"
        weights = bytearray(store.cat_file(path))
        weights[-1] ^= 1
        store.pipe_file(path, bytes(weights))
    kube.apply(service("words"))
    seen = kube.wait_condition("modelservice", "words", "Ready", "False", "ArtifactCorrupt")
    assert "model.safetensors" in seen["message"]


def test_rolling_to_a_bad_artifact_keeps_the_good_one(kube: Kube, corpora: Corpora) -> None:
    kube.apply(training("words", corpora.small))
    artifact = kube.wait_phase("words", "Complete")["status"]["artifact"]
    good = {"uri": artifact["uri"], "digest": artifact["digest"]}
    kube.apply(service("words", artifact=good))
    kube.wait_condition("modelservice", "words", "Ready", "True", seconds=180)
    kube.apply(service("words", artifact={**good, "digest": "sha256:" + "0" * 64}))
    kube.wait_condition("modelservice", "words", "Ready", "False", "ArtifactCorrupt")
    assert condition(kube.get("modelservice", "words"), "Available")["status"] == "True"
    with port_forward(kube.namespace, "svc/words", 8001) as address:
        assert query.neighbours(address, ["congress"], 3)
