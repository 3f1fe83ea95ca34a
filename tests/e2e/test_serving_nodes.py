"""A service on two nodes, one of which is lost: from when Kubernetes knows, no request fails."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from mms_cluster import faults, images
from tests.e2e.clients import asking
from tests.e2e.kube import Kube, service, training
from tests.e2e.test_contract import ready
from tests.e2e.test_training_nodes import AWAY, HOME, kubectl, nodes, without

if TYPE_CHECKING:
    from mms_cluster.provider import Own
    from tests.e2e.conftest import Corpora

pytestmark = [pytest.mark.e2e, pytest.mark.slow]  # Kubernetes takes most of a minute to give a node up
__all__ = ("nodes",)  # of its module, for this one

RATE = 10.0  # requests a second of each way
DETECTED_SECONDS = (
    90.0  # Kubernetes gives a node up when it has been silent for 40 s or so, and then tells its Services
)
AFTER_SECONDS = 15


def test_a_node_is_lost(kube: Kube, corpora: Corpora, nodes: Own) -> None:
    nodes.load(images.build(("server",)))
    kube.apply(training("words", corpora.small))
    kube.wait_phase("words", "Complete")
    kubectl("uncordon", AWAY)
    made = service("words")
    kube.apply({**made, "spec": {**made["spec"], "replicas": 2}})
    ready(kube, 2)
    pods = {pod["spec"]["nodeName"]: pod for pod in kube.list("pods", "mms.dev/service=words")}
    assert set(pods) == {HOME, AWAY}, "replicas are spread over the nodes"
    kubectl("cordon", AWAY)  # the client is to outlive it
    before = time.monotonic()
    with without(nodes, faults.kill):
        with asking(kube, "words", rate=RATE) as during:
            kube.wait("modelservice", "words", lambda s: s["status"]["readyReplicas"] == 1, 120, "on one pod")
            detected = time.monotonic() - before
        with asking(kube, "words", rate=RATE) as after:
            time.sleep(AFTER_SECONDS)  # what is measured: who answers in that time
    assert detected < DETECTED_SECONDS
    # Half of them are sent there, each on a connection of its own.
    assert during.failures("close") < 0.75 * RATE * detected, during.ways
    assert after.failures("close") == after.failures("keep") == after.failures("grpc") == 0, after.ways
    assert after.ways["close"]["sent"] > AFTER_SECONDS, after.ways
    ready(kube, 2)
