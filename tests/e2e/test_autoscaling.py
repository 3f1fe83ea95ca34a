"""Replicas by an objective, to zero and back through the activator, with clients that do not retry."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.clients import asking
from tests.e2e.kube import Kube, service, training

if TYPE_CHECKING:
    from tests.e2e.conftest import Corpora

pytestmark = pytest.mark.e2e

SYSTEM = "mms-system"
# So little that one client makes a pod busy. Throttled to a fifth of the time, an answer takes a tenth of a second.
SMALL = {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"cpu": "200m"}}
OBJECTIVE = {"latencyP99Milliseconds": 400}


def scaled(name: str = "words", **scaling: Any) -> dict[str, Any]:
    made = service(name)
    autoscaling = {"mode": "Objective", "maxReplicas": 3, **scaling}
    made["spec"] |= {"objective": OBJECTIVE, "autoscaling": autoscaling}
    return made


def trained(kube: Kube, corpora: Corpora) -> None:
    kube.apply(training("words", corpora.small))
    kube.wait_phase("words", "Complete")


def more_pods(kube: Kube, least: int, seconds: float = 120) -> dict[str, Any]:
    def reached(found: dict[str, Any]) -> bool:
        return found["spec"]["replicas"] == found["status"].get("readyReplicas", 0) >= least

    return kube.wait("modelservice", "words", reached, seconds, f"on {least} pods")


def test_as_many_as_the_objective_takes(kube: Kube, corpora: Corpora) -> None:
    trained(kube, corpora)
    made = scaled()
    made["spec"]["server"] = {"resources": SMALL}
    kube.apply(made)
    kube.wait_condition("modelservice", "words", "Ready", "True", seconds=180)
    # The pod tells its curve to whoever asks it next, and it is asked every few seconds.
    found = kube.wait("modelservice", "words", lambda s: s["status"]["autoscaling"].get("capacity"), 60, "measured")
    (capacity,) = found["status"]["autoscaling"]["capacity"]
    rate = float(capacity["requestsPerSecond"])
    assert rate > 1
    assert len(capacity["curve"]) >= 3
    assert kube.get("modelservice", "words")["spec"]["replicas"] == 1
    with asking(kube, "words", rate=0.45 * rate) as asked:  # of each of three ways
        status = more_pods(kube, 2)["status"]["autoscaling"] if rate < 1e9 else {}
        kube.wait(
            "modelservice", "words", lambda s: s["status"]["autoscaling"].get("latencyP99Milliseconds"), 60, "p99"
        )
    assert status["history"][0]["replicas"] >= 2
    assert asked.failures("close") == asked.failures("grpc") == 0, asked.ways
    events = [event["message"] for event in kube.events("words") if event["reason"] == "Scaled"]
    assert any(message.startswith("from 1 to ") for message in events)
    numbers = kube.get("modelservice", "words")["status"]["autoscaling"]
    assert float(numbers["coldStartSeconds"]) > 0


def test_to_zero_and_back_without_a_failed_request(kube: Kube, corpora: Corpora) -> None:
    trained(kube, corpora)
    kube.apply(scaled(scaleToZeroAfterSeconds=10))
    kube.wait_condition("modelservice", "words", "Ready", "True", seconds=180)
    slept(kube)
    with asking(kube, "words", rate=4) as asked:
        kube.wait("modelservice", "words", lambda s: s["status"].get("readyReplicas"), 60, "awake")
        took = woke_in(kube)
    assert asked.ways["close"]["sent"] > 0
    for way in ("close", "keep", "grpc"):
        assert asked.failures(way) == 0, (way, asked.ways)
    assert took < 20, asked.ways  # benchmarks/coldstart.py measures it
    slept(kube)
    assert kube.get("modelservice", "words")["status"]["url"]


@pytest.mark.slow
def test_activators_and_the_operator_may_end_while_somebody_waits(kube: Kube, corpora: Corpora) -> None:
    trained(kube, corpora)
    kube.apply(scaled(scaleToZeroAfterSeconds=10))
    kube.wait_condition("modelservice", "words", "Ready", "True", seconds=180)
    slept(kube)
    system = Kube(SYSTEM)
    # Nothing starts a pod while there is no operator: whoever asks is held.
    system.run("scale", "deployment/mms-operator", "--replicas=0")
    kube.wait("modelservice", "words", lambda _: not operators(system), 60, "without an operator")
    try:
        with asking(kube, "words", rate=1) as asked:
            time.sleep(3)  # so that some are held
            system.run("rollout", "restart", "deployment/mms-activator")
            time.sleep(2)
            system.run("scale", "deployment/mms-operator", "--replicas=2")
            kube.wait("modelservice", "words", lambda s: s["status"].get("readyReplicas"), 90, "awake")
    finally:
        system.run("scale", "deployment/mms-operator", "--replicas=2")
    for way in ("close", "keep", "grpc"):
        assert asked.failures(way) == 0, (way, asked.ways)
    system.run("rollout", "status", "deployment/mms-activator", "--timeout=180s")


@pytest.mark.slow
def test_what_scales_from_outside_is_left_alone(kube: Kube, corpora: Corpora) -> None:
    trained(kube, corpora)
    made = scaled()
    made["spec"]["autoscaling"] = {"mode": "External"}
    kube.apply(made)
    kube.wait_condition("modelservice", "words", "Ready", "True", seconds=180)
    kube.run("scale", "modelservice", "words", "--replicas=0")
    slept(kube)
    with asking(kube, "words", rate=2) as asked:
        time.sleep(3)
        assert kube.get("modelservice", "words")["spec"]["replicas"] == 0
        kube.run("scale", "modelservice", "words", "--replicas=1")
        kube.wait("modelservice", "words", lambda s: s["status"].get("readyReplicas"), 60, "awake")
    for way in ("close", "keep", "grpc"):
        assert asked.failures(way) == 0, (way, asked.ways)


def operators(system: Kube) -> list[dict[str, Any]]:
    return system.list("pods", "app.kubernetes.io/component=operator")


def slept(kube: Kube) -> None:
    """No pod is left, and the Service leads to the activators."""

    def gone(_: dict[str, Any]) -> bool:
        return not kube.list("pods", "mms.dev/service=words")

    kube.wait("modelservice", "words", gone, 120, "without pods")
    slices = kube.list("endpointslices", "kubernetes.io/service-name=words")
    mine = [one for one in slices if one["metadata"]["name"] == "words-activator"]
    assert len(mine) == 1
    assert len(mine[0]["endpoints"]) == 2


def woke_in(kube: Kube) -> float:
    """Seconds from the decision to the pod's readiness."""
    found = kube.get("modelservice", "words")["status"]["autoscaling"]["history"][0]
    assert "wait for a pod" in found["reason"]
    (pod,) = kube.list("pods", "mms.dev/service=words")
    ready = next(one for one in pod["status"]["conditions"] if one["type"] == "Ready")
    began = datetime.fromisoformat(found["time"])
    return (datetime.fromisoformat(ready["lastTransitionTime"]) - began).total_seconds()
