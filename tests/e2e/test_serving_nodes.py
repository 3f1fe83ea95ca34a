"""A service on two nodes: one is drained, and no request fails; one is lost, and none does from when it is known."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from mms_cluster import faults, images
from tests.e2e.clients import asking
from tests.e2e.kube import Kube, service, training
from tests.e2e.test_contract import CUT, ready
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


def spread(kube: Kube, corpora: Corpora, nodes: Own) -> None:
    """A pod on each node; others come to the first one only: the client is to outlive the second."""
    nodes.load(images.build(("server",)))
    kube.apply(training("words", corpora.small))
    kube.wait_phase("words", "Complete")
    kubectl("uncordon", AWAY)
    made = service("words")
    kube.apply({**made, "spec": {**made["spec"], "replicas": 2}})
    ready(kube, 2)
    assert on_nodes(kube) == [HOME, AWAY], "replicas are spread over the nodes"
    kubectl("cordon", AWAY)


def on_nodes(kube: Kube) -> list[str]:
    return sorted(pod["spec"]["nodeName"] for pod in kube.list("pods", "mms.dev/service=words"))


def test_a_node_is_drained(kube: Kube, corpora: Corpora, nodes: Own) -> None:
    spread(kube, corpora, nodes)
    with asking(kube, "words", rate=RATE) as asked:
        kubectl("drain", AWAY, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=120s")
        ready(kube, 2)
    asked.told("a-node-is-drained")
    assert on_nodes(kube) == [HOME, HOME]
    assert asked.failures("close") == asked.failures("grpc") == 0, asked.ways
    assert asked.failures("keep") <= CUT, asked.ways


def test_a_node_is_lost(kube: Kube, corpora: Corpora, nodes: Own) -> None:
    spread(kube, corpora, nodes)
    with ExitStack() as lost:
        with asking(kube, "words", rate=RATE) as during:  # a client that began then would have no first answer
            lost.enter_context(without(nodes, faults.kill))
            before = time.monotonic()
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
