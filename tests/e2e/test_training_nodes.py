"""A training on a cluster of two nodes, one of which is cut off or lost: nothing waits for it, nothing of it counts.

What a test wants on the second node it moves there: that node takes no other pods, and the first one none meanwhile.
"""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from mms_cluster import faults, images
from mms_cluster.provider import Own, Provider
from tests.e2e.test_training import is_training, steps
from tests.e2e.test_training_plane import epoch, free_processors, incidents, language, served, sleeper, steps_on

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mms_cluster.faults import Fault
    from tests.e2e.conftest import Corpora
    from tests.e2e.kube import Kube, Object

pytestmark = pytest.mark.e2e

HOME, AWAY = "mms-node-0", "mms-node-1"
PLACES = (("worker", 1), ("shard", 1), ("master", 0))
LOST_WITH_MASTER = 60  # its successor then waits for the others
LOST_SECONDS = 30  # Kubernetes itself gives a node's pods up after 45 s


@pytest.fixture(scope="module", autouse=True)
def nodes(installed: Provider) -> Iterator[Own]:
    if not isinstance(installed, Own):
        pytest.skip("nodes fail on request in a cluster of our own only")
    resize(installed, 2)
    installed.load(images.build(("worker",)))
    kubectl("cordon", AWAY)
    yield installed
    resize(installed, 1)


def resize(cluster: Own, nodes: int) -> None:
    cluster.want(nodes=nodes)
    cluster.up()


def kubectl(*arguments: str) -> None:
    subprocess.run(["kubectl", *arguments], check=True, capture_output=True)


@contextmanager
def away() -> Iterator[None]:
    """Pods that are made meanwhile run on the second node."""
    kubectl("cordon", HOME)
    kubectl("uncordon", AWAY)
    try:
        yield
    finally:
        kubectl("cordon", AWAY)
        kubectl("uncordon", HOME)


@contextmanager
def without(cluster: Own, fault: Fault) -> Iterator[None]:
    """The second node is cut off or lost."""
    cluster.inject(fault, AWAY)
    try:
        yield
    finally:
        cluster.up()  # mends a link, and boots a node
        kubectl("wait", "--for=condition=Ready", "--timeout=60s", f"node/{AWAY}")


def newest(kube: Kube, name: str, role: str, rank: int = 0) -> Object:
    pods = kube.list("pods", f"mms.dev/training={name},mms.dev/role={role},mms.dev/rank={rank}")
    return max(pods, key=lambda pod: int(pod["metadata"]["labels"]["mms.dev/incarnation"]))


def move_away(kube: Kube, name: str, role: str, rank: int = 0) -> str:
    """The pod's successor, once it trains. A worker's end is an epoch, and that its successor joins is another one: a
    status of before would look whole, too.
    """
    old = newest(kube, name, role, rank)["metadata"]
    joined = epoch(kube.get("modeltraining", name)) + (2 if role == "worker" else 1)
    with away():
        kube.delete("pod", old["name"], "--wait=false", "--grace-period=1")
        kube.wait("modeltraining", name, lambda _: runs(newest(kube, name, role, rank), old["uid"]), 90, "moved")
        kube.wait("modeltraining", name, lambda t: is_whole(t) and epoch(t) >= joined, 90, "whole")
        steps_on(kube, name, 3)
    pod = newest(kube, name, role, rank)
    assert pod["spec"]["nodeName"] == AWAY
    return pod["metadata"]["name"]


def runs(pod: Object, old: str) -> bool:
    return pod["metadata"]["uid"] != old and pod["status"]["phase"] == "Running"


def is_whole(found: Object) -> bool:
    status = found["status"]
    return is_training(found) and status["workers"]["ready"] == found["spec"]["workers"]["replicas"]


def replaced(kube: Kube, name: str, role: str, rank: int, old: str) -> Callable[[Object], bool]:
    """Its successor runs: when that has only been made, the status may still be the one before."""

    def of(found: Object) -> bool:
        pod = newest(kube, name, role, rank)
        return is_whole(found) and pod["metadata"]["name"] != old and pod["status"]["phase"] == "Running"

    return of


def test_a_node_that_is_cut_off_holds_nothing_up_and_changes_nothing_when_it_is_back(
    kube: Kube, corpora: Corpora, nodes: Own
) -> None:
    kube.apply(language("ring", corpora.small))
    kube.wait("modeltraining", "ring", is_training, 120, "training")
    old = move_away(kube, "ring", "worker", 1)
    before = kube.get("modeltraining", "ring")
    with without(nodes, faults.partition):
        after = kube.wait("modeltraining", "ring", replaced(kube, "ring", "worker", 1, old), LOST_SECONDS, "whole")
        assert steps(after) >= steps(before), "no step that was finished may be lost"
        assert "NodeUnreachable" in incidents(after)
        assert newest(kube, "ring", "worker", 1)["spec"]["nodeName"] == HOME
        alone_and_whole = epoch(before) + 2
        kube.wait("modeltraining", "ring", lambda t: epoch(t) >= alone_and_whole, 30, "together again")
        settled = steps_on(kube, "ring", 20)
    kube.run("wait", "--for=delete", "--timeout=90s", f"pod/{old}")
    later = steps_on(kube, "ring", 20)
    news = later["status"]["incidents"][len(settled["status"]["incidents"]) :]
    assert (epoch(later), news) == (epoch(settled), []), "nobody took notice of it"
    assert later["status"].get("restarts", 0) == 0, "a node's loss is not the program's failure"


@pytest.mark.slow
def test_a_node_is_drained(kube: Kube, corpora: Corpora, nodes: Own) -> None:
    """A worker leaves at the end of a step, by the API of evictions, and is replaced on the other node."""
    kube.apply(language("ring", corpora.small))
    kube.wait("modeltraining", "ring", is_training, 120, "training")
    old = move_away(kube, "ring", "worker", 1)
    before = kube.get("modeltraining", "ring")
    kubectl("drain", AWAY, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=120s")
    after = kube.wait("modeltraining", "ring", replaced(kube, "ring", "worker", 1, old), 90, "whole")
    assert steps(after) >= steps(before), "no step that was finished may be lost"
    assert newest(kube, "ring", "worker", 1)["spec"]["nodeName"] == HOME
    assert incidents(after) >= {"PodDrained", "WorkerLost"}
    assert after["status"].get("restarts", 0) == 0, "a drain is not the program's failure"
    joined = epoch(before) + 2
    kube.wait("modeltraining", "ring", lambda t: is_whole(t) and epoch(t) >= joined, 60, "together again")
    steps_on(kube, "ring", 20)


@contextmanager
def of_priority(kube: Kube) -> Iterator[str]:
    """A PriorityClass above that of pods which have none."""
    metadata = {"name": kube.namespace}
    made = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": metadata, "value": 1000}
    kube.apply(made)
    try:
        yield kube.namespace
    finally:
        kube.delete("priorityclass", kube.namespace)


@pytest.mark.slow
def test_a_worker_is_preempted(kube: Kube, corpora: Corpora, nodes: Own) -> None:
    """The scheduler ends it for a pod that matters more. The other one goes on, and it is back when there is room."""
    room = free_processors(kube)
    workers = {"replicas": 2, "minReplicas": 1, "resources": {"requests": {"cpu": f"{room * 2 // 5}m"}}}
    kube.apply(language("ring", corpora.small, workers=workers))
    before = kube.wait("modeltraining", "ring", is_whole, 120, "training")
    with of_priority(kube) as priority:
        kube.apply(sleeper("urgent", room * 35 // 100, priorityClassName=priority))
        kube.run("wait", "pod/urgent", "--for=condition=Ready", "--timeout=90s")
        after = kube.wait("modeltraining", "ring", lambda t: "PodPreempted" in incidents(t), 60, "aware of the reason")
        kube.wait_condition("modeltraining", "ring", "Degraded", "True", "Unschedulable")
        alone = steps_on(kube, "ring", 20)
        assert alone["status"]["workers"]["ready"] == 1
        assert steps(alone) > steps(after) >= steps(before), "no step that was finished may be lost"
        kube.delete("pod", "urgent", "--wait=false")
        kube.wait("modeltraining", "ring", is_whole, 120, "whole again")
    assert steps_on(kube, "ring", 20)["status"].get("restarts", 0) == 0, "it is not the program's failure"


@pytest.mark.slow
def test_a_node_is_lost_with_the_master_a_worker_and_a_shard(kube: Kube, corpora: Corpora, nodes: Own) -> None:
    kube.apply(language("served", corpora.small, sync=served()))
    kube.wait("modeltraining", "served", is_training, 120, "training")
    old = {role: move_away(kube, "served", role, rank) for role, rank in PLACES}
    before = kube.get("modeltraining", "served")
    with without(nodes, faults.kill):
        away = [replaced(kube, "served", role, rank, old[role]) for role, rank in PLACES]
        after = kube.wait("modeltraining", "served", lambda t: all(one(t) for one in away), LOST_WITH_MASTER, "whole")
        assert steps(after) >= steps(before), "the shards' replicas are on the other node"
        assert {newest(kube, "served", role, rank)["spec"]["nodeName"] for role, rank in PLACES} == {HOME}
        steps_on(kube, "served", 20)
    kube.run("wait", "--for=delete", "--timeout=90s", *(f"pod/{name}" for name in old.values()))
    steps_on(kube, "served", 20)
