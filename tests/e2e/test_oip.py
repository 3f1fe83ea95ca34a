"""A service speaks the Open Inference Protocol: to plain HTTP and gRPC, to tritonclient and to KServe's clients.

Each requirement is a case (tests/oip); where Triton deviates, the case holds it to just that deviation.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from mms_cluster import packages
from mms_operator.cli.forward import port_forward
from tests.e2e.kube import Kube, installation_store, service, training
from tests.oip import kit, rest_http, words
from tests.oip.deviations import TRITON

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.conftest import Corpora
    from tests.e2e.kube import Object
    from tests.oip.model import Target

pytestmark = pytest.mark.e2e

NAMESPACE = "t-oip"
FILES = ("model.safetensors", "vocabulary.txt")  # of the artifact: the right answers are computed from them


@pytest.fixture(scope="module")
def target(corpora: Corpora, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    packages.ensure({"curl": "one of the clients that ask the service"})
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}
    kube = Kube(NAMESPACE)
    kube.run("delete", "namespace", NAMESPACE, "--ignore-not-found")
    kube.apply(namespace)
    try:
        kube.apply(training("words", corpora.small), service("words"))
        artifact = kube.wait_phase("words", "Complete")["status"]["artifact"]
        kube.wait_condition("modelservice", "words", "Ready", "True", seconds=180)
        folder = tmp_path_factory.mktemp("artifact")
        fetch(artifact, folder)
        with (
            port_forward(NAMESPACE, "svc/words", 8000) as http,
            port_forward(NAMESPACE, "svc/words", 8001) as grpc,
        ):
            yield words.target(
                folder, run=artifact["version"], digest=artifact["digest"], rest=f"http://{http}", grpc=grpc
            )
    finally:
        kube.run("delete", "namespace", NAMESPACE, "--wait=false")


def fetch(artifact: Object, folder: Path) -> None:
    with installation_store() as store:
        for name in FILES:
            (folder / name).write_bytes(store.cat_file(f"{artifact['uri']}/{name}"))


@pytest.mark.parametrize("case", kit.cases(), ids=str)
def test_conforms(case: kit.Case, target: Target) -> None:
    if case.client not in rest_http.RAW:
        assert case.judged(target, TRITON) == ""
        return
    # kubectl ends all of its connections when the pod resets one: here each case has a kubectl of its own.
    with port_forward(NAMESPACE, "svc/words", 8000) as http:
        assert case.judged(replace(target, rest=f"http://{http}"), TRITON) == ""
