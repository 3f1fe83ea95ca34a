"""KEDA sets how many pods a service has, to none and back, by the scale subresource."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from mms_cluster import extras
from tests.e2e.clients import asking
from tests.e2e.kube import Kube, service, training
from tests.e2e.test_autoscaling import slept
from tests.e2e.test_hpa import owners, watched

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mms_cluster.provider import Provider
    from tests.e2e.conftest import Corpora

pytestmark = [pytest.mark.e2e, pytest.mark.slow]  # KEDA takes minutes to build

PODS = 2


@pytest.fixture
def keda(installed: Provider) -> Iterator[None]:
    """Gone after the test: while an API's pod is away, no namespace can be deleted."""
    extras.keda(installed)
    yield
    extras.remove(installed, "keda")


def scaled_object(*, now: bool) -> dict[str, Any]:
    """Wants PODS for all but a minute of today, or for an hour that is half a day away."""
    hour = (datetime.now(UTC).hour + 12) % 24
    times = ("0 0 * * *", "59 23 * * *") if now else (f"0 {hour} * * *", f"59 {hour} * * *")
    window = {"timezone": "UTC", "start": times[0], "end": times[1], "desiredReplicas": str(PODS)}
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {"name": "words"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "mms.dev/v1alpha1", "kind": "ModelService", "name": "words"},
            "minReplicaCount": 0,
            "maxReplicaCount": PODS,
            "pollingInterval": 2,
            "cooldownPeriod": 2,
            "triggers": [{"type": "cron", "metadata": window}],
        },
    }


def test_the_service_follows_keda_to_none_and_back(kube: Kube, corpora: Corpora, keda: None) -> None:
    kube.apply(training("words", corpora.small))
    kube.wait_phase("words", "Complete")
    made = service("words")
    made["spec"]["autoscaling"] = {"mode": "External"}
    kube.apply(made)
    kube.wait_condition("modelservice", "words", "Ready", "True", seconds=180)
    with watched(kube) as replicas:
        kube.apply(scaled_object(now=False))
        slept(kube)
        with asking(kube, "words", rate=2) as asked:
            kube.apply(scaled_object(now=True))
            kube.wait("modelservice", "words", lambda s: s["status"].get("readyReplicas") == PODS, 180, "on all pods")
        for way in ("close", "keep", "grpc"):
            assert asked.failures(way) == 0, (way, asked.ways)
        kube.apply(scaled_object(now=False))
        slept(kube)
    assert replicas in ([1, 0, 1, 2, 0], [1, 0, 2, 0]), "nobody else has set it"
    assert owners(kube) <= {"keda", "keda-operator"}
    kube.delete("scaledobject", "words")  # KEDA takes its own finalizer off
