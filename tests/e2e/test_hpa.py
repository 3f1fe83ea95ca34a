"""Kubernetes' own autoscaler, by metrics-server's figures, sets how many pods a service has."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from mms_cluster import extras
from tests.e2e.clients import asking
from tests.e2e.kube import Kube, condition, training

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mms_cluster.provider import Provider
    from tests.e2e.conftest import Corpora

pytestmark = [pytest.mark.e2e, pytest.mark.slow]  # metrics-server takes minutes to build

EXAMPLE = Path(__file__).parents[2] / "examples" / "autoscaling" / "hpa.yaml"
RATE = 40  # of each of three ways: some 170m of CPU together


@pytest.fixture
def metrics(installed: Provider) -> Iterator[None]:
    """metrics-server. Gone after the test: while an API's pod is away, no namespace can be deleted."""
    extras.metrics(installed)
    yield
    extras.remove(installed, "metrics")


@pytest.fixture
def scaled(kube: Kube, corpora: Corpora, metrics: None) -> dict[str, Any]:
    """The example's service, ready, and its autoscaler: for at most two pods, and in a hurry."""
    kube.apply(training("words", corpora.small))
    kube.wait_phase("words", "Complete")
    service, autoscaler = yaml.safe_load_all(EXAMPLE.read_text())
    service["spec"]["server"]["resources"]["requests"]["cpu"] = "100m"
    found: dict[str, Any] = autoscaler
    (of_triton,) = found["spec"]["metrics"]
    target = of_triton["containerResource"]["target"]
    found["spec"] |= {
        "maxReplicas": 2,
        "metrics": [of_triton, {"type": "Resource", "resource": {"name": "cpu", "target": target}}],
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
    }
    kube.apply(service)
    kube.wait_condition("modelservice", "words", "Ready", "True", seconds=180)
    return found


def test_the_service_follows_kubernetes_own_autoscaler(kube: Kube, scaled: dict[str, Any]) -> None:
    with watched(kube) as replicas:
        kube.apply(scaled)
        with asking(kube, "words", rate=RATE) as asked:
            kube.wait("modelservice", "words", lambda s: s["status"].get("readyReplicas") == 2, 180, "on two pods")
        seen = kube.get("hpa", "words")
        assert condition(seen, "ScalingActive")["status"] == "True"
        assert {one["type"] for one in seen["status"]["currentMetrics"]} == {"ContainerResource", "Resource"}
        assert asked.failures("close") == asked.failures("grpc") == 0, asked.ways
        kube.wait("modelservice", "words", lambda s: s["status"].get("readyReplicas") == 1, 180, "on one pod again")
    assert replicas == [1, 2, 1]
    assert owners(kube) == {"kube-controller-manager"}


@contextmanager
def watched(kube: Kube) -> Iterator[list[int]]:
    """Each value that spec.replicas takes while the context is open."""
    values: list[int] = []
    process = kube.start("get", "modelservice", "words", "--watch", "-o", "jsonpath={.spec.replicas}{'\\n'}")

    def read() -> None:
        with process:
            for line in process.stdout or ():
                if values[-1:] != [int(line)]:
                    values.append(int(line))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield values
    finally:
        process.terminate()
        reader.join()


def owners(kube: Kube) -> set[str]:
    """Whoever has set spec.replicas to what it is."""
    entries = json.loads(kube.run("get", "modelservice", "words", "-o", "json", "--show-managed-fields"))["metadata"]
    return {
        entry["manager"]
        for entry in entries["managedFields"]
        if "f:replicas" in entry["fieldsV1"].get("f:spec", {})
    }  # fmt: skip
