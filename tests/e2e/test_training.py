"""A training loses pods, its master and the operator, is suspended and resumed, and ends with its artifact."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import pytest

from mms_cluster import install
from tests.e2e.conftest import namespace
from tests.e2e.kube import Kube, Object, condition, give_up_storage, own_storage, training

if TYPE_CHECKING:
    from tests.e2e.conftest import Corpora

pytestmark = pytest.mark.e2e

FAR = 20  # steps
LONG = {"optimizer": {"epochs": 500}, "checkpoint": {"intervalSeconds": 5}}


def is_training(found: Object) -> bool:
    """Some rounds are in the parameters, and enough are left for the test."""
    progress = found.get("status", {}).get("progress", {})
    assert progress.get("percent", 0) < 90, "the training is too short for this test"
    return progress.get("activity") == "Training" and progress.get("step", 0) >= 3


def steps(found: Object) -> int:
    return found.get("status", {}).get("progress", {}).get("step", 0)


def saved(found: Object) -> float:
    """The step of its checkpoint; without one no step is beyond it."""
    checkpoint = found.get("status", {}).get("checkpoint")
    return checkpoint["step"] if checkpoint else math.inf


def started(kube: Kube, name: str) -> Object:
    return kube.wait("modeltraining", name, is_training, 120, "training")


def pod_of(kube: Kube, name: str, role: str, rank: int = 0) -> str:
    (pod,) = kube.list("pods", f"mms.dev/training={name},mms.dev/role={role},mms.dev/rank={rank}")
    return pod["metadata"]["name"]


def test_worker_deleted(kube: Kube, corpora: Corpora) -> None:
    # Longer than any pod takes to start: it is deleted, not awaited.
    kube.apply(training("words", corpora.small, **{**LONG, "optimizer": {"epochs": 5000}}))
    before = started(kube, "words")["status"]
    kube.delete("pod", pod_of(kube, "words", "worker", 1), "--wait=false")
    after = kube.wait(
        "modeltraining",
        "words",
        lambda t: t["status"]["workers"]["epoch"] >= before["workers"]["epoch"] + 2,
        90,
        "whole",
    )["status"]
    assert after["progress"]["step"] >= before["progress"]["step"], "no step that was finished may be lost"
    assert after["restarts"] == 0, "a deletion is not the program's failure"
    assert {i["kind"] for i in after["incidents"]} >= {"WorkerLost"}
    going_on = kube.wait(
        "modeltraining", "words", lambda t: t["status"]["progress"]["step"] > after["progress"]["step"], 60, "going on"
    )
    assert going_on["status"]["workers"]["ready"] == 2


def test_master_deleted(kube: Kube, corpora: Corpora) -> None:
    kube.apply(training("words", corpora.small, **LONG))
    before = started(kube, "words")["status"]
    kube.delete("pod", pod_of(kube, "words", "master"), "--wait=false", "--grace-period=1")
    kube.wait(
        "modeltraining",
        "words",
        lambda t: t["status"]["progress"]["step"] > before["progress"]["step"] + 2,
        120,
        "going on from its step with another master",
    )
    done = kube.wait_phase("words", "Complete")
    assert done["status"]["attempt"] == 1
    assert done["status"]["restarts"] == 0


def test_operator_restarted(kube: Kube, corpora: Corpora) -> None:
    kube.apply(training("words", corpora.small, **LONG))
    started(kube, "words")
    pods = {p["metadata"]["uid"] for p in kube.list("pods", "mms.dev/training=words")}
    system = Kube(install.NAMESPACE)
    system.run("delete", "pods", "-l", "app.kubernetes.io/component=operator", "--wait=false")
    done = kube.wait_phase("words", "Complete")
    assert {p["metadata"]["uid"] for p in kube.list("pods", "mms.dev/training=words")} == pods
    assert done["status"]["restarts"] == 0


def test_suspend_and_resume(kube: Kube, corpora: Corpora) -> None:
    kube.apply(training("words", corpora.small, **LONG))
    before = started(kube, "words")["status"]["progress"]["step"]
    kube.patch("modeltraining", "words", {"runPolicy": {"suspend": True}})
    suspended = kube.wait_phase("words", "Suspended", 90)
    assert condition(suspended, "Suspended")["status"] == "True"
    assert suspended["status"]["checkpoint"]["step"] >= before
    kube.wait("modeltraining", "words", lambda _: not kube.list("pods", "mms.dev/training=words"), 60, "without pods")
    kube.patch("modeltraining", "words", {"runPolicy": {"suspend": False}})
    running = kube.wait_phase("words", "Running", 90)
    assert running["status"]["attempt"] == 2
    assert running["status"]["progress"]["step"] >= suspended["status"]["checkpoint"]["step"]
    kube.wait_phase("words", "Complete")


def test_next_run_and_scale(kube: Kube, corpora: Corpora) -> None:
    """A finished training stays finished; raising the run makes version 2 beside version 1."""
    kube.apply(training("words", corpora.small))
    first = kube.wait_phase("words", "Complete")["status"]["artifact"]
    kube.run("scale", "modeltraining", "words", "--replicas=1")
    kube.wait_condition("modeltraining", "words", "Complete", "True")
    kube.patch("modeltraining", "words", {"runPolicy": {"run": 2}, "optimizer": {"seed": 7}})
    kube.wait("modeltraining", "words", lambda t: t["status"].get("run") == 2, 30, "in run 2")
    second = kube.wait_phase("words", "Complete")["status"]["artifact"]
    assert (first["version"], second["version"]) == (1, 2)
    assert first["digest"] != second["digest"]
    assert len(kube.list("pods", "mms.dev/training=words,mms.dev/run=2,mms.dev/role=worker")) == 1


def test_deleted_training_leaves_nothing(kube: Kube, corpora: Corpora) -> None:
    kube.apply(training("words", corpora.small, **LONG))
    started(kube, "words")
    kube.delete("modeltraining", "words", "--cascade=foreground", "--timeout=60s")
    for kind in ("pods", "secrets", "configmaps", "services", "networkpolicies"):
        assert kube.list(kind, "mms.dev/training=words") == [], kind


def test_a_deleted_training_leaves_its_last_checkpoint(kube: Kube, corpora: Corpora) -> None:
    """Made again with the same storage, it goes on from there."""
    storage = own_storage(kube)
    words = training("words", corpora.small, **{**LONG, "checkpoint": {"intervalSeconds": 3600}}, storage=storage)
    kube.apply(words)
    before = kube.wait("modeltraining", "words", lambda t: steps(t) >= FAR, 120, "far")["status"]
    assert not before.get("checkpoint"), "the deletion is to make the first one"
    kube.delete("modeltraining", "words", "--timeout=90s")
    kube.wait("namespace", kube.namespace, lambda _: not kube.list("pods", "mms.dev/training=words"), 60, "empty")
    give_up_storage(kube, storage)
    kube.apply(words)
    # The checkpoint's step stands in the status before any worker goes on from it.
    kube.wait("modeltraining", "words", lambda t: steps(t) > saved(t), 120, "training")
    assert kube.get("modeltraining", "words")["status"]["attempt"] == 1
    assert first_step(kube, "words") >= before["progress"]["step"]
    kube.wait_phase("words", "Complete")


def first_step(kube: Kube, name: str) -> int:
    """At which its first worker began."""
    log = kube.run("logs", pod_of(kube, name, "worker"))
    begun = next(json.loads(line) for line in log.splitlines() if '"epoch begins"' in line)
    return int(begun["step"])


@pytest.mark.slow
def test_resumed_on_another_cluster(kube: Kube, corpora: Corpora) -> None:
    """A namespace stands for it, which has nothing of the first one. A training that shares the storage's URI and
    nothing else goes on from the step.
    """
    storage = own_storage(kube)
    kube.apply(training("words", corpora.small, **LONG, storage=storage))
    started(kube, "words")
    kube.patch("modeltraining", "words", {"runPolicy": {"suspend": True}})
    step = kube.wait_phase("words", "Suspended", 90)["status"]["checkpoint"]["step"]
    kube.delete("modeltraining", "words", "--timeout=90s")
    give_up_storage(kube, storage)
    with namespace("another-cluster") as there:
        same = {**own_storage(there), "uri": storage["uri"]}
        there.apply(training("moved", corpora.small, **LONG, storage=same))
        found = there.wait("modeltraining", "moved", lambda t: steps(t) > step, 120, "training")
        assert first_step(there, "moved") == step
        assert found["status"]["attempt"] == 1
        there.wait_phase("moved", "Complete")
