"""Replicas by an objective, to zero and back through the activator, with clients that do not retry."""

from __future__ import annotations

import json
import time
import urllib.request
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from mms_operator.api import names
from mms_operator.cli.forward import port_forward
from mms_workloads.contract import TRITON_HTTP_PORT
from tests.e2e.clients import asking
from tests.e2e.kube import Kube, service, training

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    fall_asleep(kube, corpora)
    with without_operators(kube) as system, asking(kube, "words", rate=1) as asked:
        time.sleep(3)  # so that some are held
        system.run("rollout", "restart", "deployment/mms-activator")
        time.sleep(2)
        wake(kube, system)
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


@pytest.mark.slow
def test_no_faster_than_is_allowed(kube: Kube, corpora: Corpora) -> None:
    """A schedule wants three, one more in a minute; when it is over nobody asks, and one goes in a minute."""
    trained(kube, corpora)
    now = datetime.now(UTC)
    times = {"start": f"{now - timedelta(minutes=5):%H:%M}", "end": f"{now + timedelta(hours=2):%H:%M}"}
    kube.apply(scaled(upPerMinute=1, downPerMinute=1, schedules=[{**times, "replicas": 3}]))
    kube.wait("modelservice", "words", lambda s: decisions(s)[:1] == [2], 180, "two by the schedule")
    kube.wait("modelservice", "words", lambda s: decisions(s)[:1] == [3], 120, "three by the schedule")
    more_pods(kube, 3)
    kube.patch("modelservice", "words", {"autoscaling": {"schedules": []}})
    # Until it knows better it takes nothing away: a minute, and what a pod takes to start.
    found = kube.wait("modelservice", "words", lambda s: decisions(s) == [1, 2, 3, 2], 300, "back on one")
    moments = [datetime.fromisoformat(one["time"]) for one in found["status"]["autoscaling"]["history"]]
    assert moments[0] - moments[1] >= timedelta(seconds=59)
    assert moments[2] - moments[3] >= timedelta(seconds=59)
    said = [one["reason"] for one in found["status"]["autoscaling"]["history"]]
    assert "a schedule wants 3" in said[2]
    assert said[3].startswith("upPerMinute allows 2; a schedule wants 3")
    assert said[1].startswith("downPerMinute allows 2")
    kube.wait("modelservice", "words", lambda s: s["status"]["readyReplicas"] == 1, 60, "on one pod")


@pytest.mark.slow
def test_autotune(kube: Kube, corpora: Corpora) -> None:
    """The first pod finds out how it does the most, and says so in two minutes; the next one begins with that."""
    trained(kube, corpora)
    made = scaled()
    made["spec"]["server"] = {"batching": {"autotune": True}}
    kube.apply(made)
    kube.wait_condition("modelservice", "words", "Ready", "True", "Available", seconds=180)
    found = kube.wait("modelservice", "words", lambda s: s["status"]["autoscaling"].get("capacity"), 60, "measured")
    (capacity,) = found["status"]["autoscaling"]["capacity"]
    assert capacity["instances"] >= 1
    kube.patch("modelservice", "words", {"autoscaling": {"minReplicas": 2}})
    more_pods(kube, 2)
    templates = {
        pod["metadata"]["annotations"].get(names.ANNOTATION_CAPACITY)
        for pod in kube.list("pods", "mms.dev/service=words")
    }
    assert templates == {capacity["template"]}, "one has measured, for both"
    configs = []
    for pod in kube.list("pods", "mms.dev/service=words"):
        with (
            port_forward(kube.namespace, f"pod/{pod['metadata']['name']}", TRITON_HTTP_PORT) as address,
            urllib.request.urlopen(f"http://{address}/v2/models/neighbours/config", timeout=10) as answer,
        ):
            said = json.load(answer)
        batching = said.get("dynamic_batching", {})
        configs.append((said["instance_group"][0]["count"], batching.get("max_queue_delay_microseconds")))
    assert configs[0] == configs[1]
    assert configs[0][0] == capacity["instances"]


def decisions(found: dict[str, Any]) -> list[int]:
    """The last first."""
    return [one["replicas"] for one in ((found.get("status") or {}).get("autoscaling") or {}).get("history", ())]


def operators(system: Kube) -> list[dict[str, Any]]:
    return system.list("pods", "app.kubernetes.io/component=operator")


def fall_asleep(kube: Kube, corpora: Corpora) -> None:
    trained(kube, corpora)
    kube.apply(scaled(scaleToZeroAfterSeconds=10))
    kube.wait_condition("modelservice", "words", "Ready", "True", seconds=180)
    slept(kube)


@contextmanager
def without_operators(kube: Kube) -> Iterator[Kube]:
    """Nothing starts a pod meanwhile: whoever asks is held. Gives the namespace of the installation."""
    system = Kube(SYSTEM)
    system.run("scale", "deployment/mms-operator", "--replicas=0")
    try:
        kube.wait("modelservice", "words", lambda _: not operators(system), 60, "without an operator")
        yield system
    finally:
        system.run("scale", "deployment/mms-operator", "--replicas=2")


def wake(kube: Kube, system: Kube) -> None:
    system.run("scale", "deployment/mms-operator", "--replicas=2")
    kube.wait("modelservice", "words", lambda s: s["status"].get("readyReplicas"), 90, "awake")


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
