"""What a pod can do: as its first one measures it, as clients show it, and how a canary gets its part of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.clients import asking
from tests.e2e.programs import BRIGHT, NAME, publish, take
from tests.e2e.test_rollout import mms

if TYPE_CHECKING:
    from tests.e2e.kube import Kube

pytestmark = pytest.mark.e2e

FOLDER = "measured"
SECONDS = 0.1  # of a golden question: a pod, which takes one after the other, does ten a second
PROGRAMS = {
    "usual": {"seconds": SECONDS},
    "again": {"seconds": SECONDS},
    "cheap": {"seconds": SECONDS, "bright_seconds": SECONDS / 10},
    "dear": {"seconds": SECONDS, "bright_seconds": 1.5 * SECONDS},
}
OBJECTIVE = {"latencyP99Milliseconds": 400}  # the third of three dear ones that come at once takes longer


def served(kube: Kube, name: str, most: int, **spec: Any) -> None:
    scaling = {"mode": "Objective", "maxReplicas": most}
    take(kube, FOLDER, name, objective=OBJECTIVE, autoscaling=scaling, **spec)


def capacity(found: dict[str, Any]) -> dict[str, Any]:
    """Of the version that was measured last, if one was."""
    measured = found["status"].get("autoscaling", {}).get("capacity")
    return measured[0] if measured else {}


@pytest.mark.parametrize(("name", "rate"), [("cheap", 8.0), ("dear", 1.9)])
def test_what_clients_show(kube: Kube, name: str, rate: float) -> None:
    """Requests that cost less than what was measured make the capacity more, and those that cost more make it less."""
    publish(FOLDER, PROGRAMS)
    served(kube, name, most=1)
    kube.wait_condition("modelservice", NAME, "Ready", "True", seconds=180)
    found = kube.wait("modelservice", NAME, capacity, 60, "measured")
    measured = float(capacity(found)["requestsPerSecond"])
    assert 0.5 < measured * SECONDS <= 1

    def shown(found: dict[str, Any]) -> bool:
        now = float(capacity(found)["requestsPerSecond"])
        return now > 1.2 * measured if name == "cheap" else now < 0.99 * measured

    with asking(kube, NAME, rate=rate, question=BRIGHT) as asked:  # of each of three ways
        kube.wait("modelservice", NAME, shown, 150, f"corrected from {measured}")
    assert asked.failures("close") == asked.failures("grpc") == 0, asked.ways


def test_a_canary_is_scaled(kube: Kube) -> None:
    """While it has half, half of what the traffic needs is its own; promoted, it has as many pods as both had."""
    publish(FOLDER, PROGRAMS)
    steps = {"steps": [{"percent": 50, "seconds": 3600}]}
    how = {"rollout": {"strategy": "Canary", "canary": steps}}
    served(kube, "usual", most=4, **how)
    kube.wait_condition("modelservice", NAME, "Ready", "True", seconds=180)
    kube.wait("modelservice", NAME, capacity, 60, "measured")
    served(kube, "again", most=4, **how)
    kube.wait("modelservice", NAME, lambda s: of_both(s) == (1, 1), 180, "a pod of each")
    with asking(kube, NAME, rate=7.5, question=BRIGHT) as asked:  # of each of three ways: more than two pods can do
        kube.wait("modelservice", NAME, lambda s: of_both(s) == (2, 2), 180, "two pods of each")
        mms("rollout", "promote", NAME, "-n", kube.namespace)
        kube.wait_condition("modelservice", NAME, "Ready", "True", "Available", seconds=180)
        status = kube.get("modelservice", NAME)["status"]
    assert status["versions"]["stable"]["uri"].endswith("again"), status["versions"]
    assert status["versions"]["stable"]["replicas"] == 4, status["versions"]
    assert asked.failures("close") == asked.failures("grpc") == 0, asked.ways


def of_both(found: dict[str, Any]) -> tuple[int, int]:
    """Pods that answer, of the version before and of the canary."""
    versions = found["status"].get("versions", {})
    return tuple((versions.get(name) or {}).get("replicas", 0) for name in ("stable", "next"))
