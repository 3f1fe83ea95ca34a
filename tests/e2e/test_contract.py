"""What clients see while a service changes or breaks: three ways of asking, none of which retries.

Without a proxy beside Triton: no request fails of clients that open a connection for each, nor over gRPC, whose
channels are told to leave before their pod does. A kept HTTP connection sees one error at most, when Triton cuts it.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from tests.e2e.clients import asking
from tests.e2e.kube import Kube, RefusedError, condition, service, training
from tests.e2e.published import with_other_weights
from tests.e2e.test_rollout import serve

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.e2e.conftest import Corpora

pytestmark = pytest.mark.e2e

SLOW = 1.0  # seconds of 99 of 100 answers: two processors for the cluster, its pods and the client
CUT = 3  # kept connections that can be cut in a change: those of HTTP clients that are open at a time


def ready(kube: Kube, pods: int) -> None:
    def reached(found: dict[str, Any]) -> bool:
        """Those that end have ended, too: what they still answer is the point."""
        status = found["status"]
        there = len(kube.list("pods", "mms.dev/service=words"))
        return status["readyReplicas"] == status["replicas"] == there == pods

    kube.wait_condition("modelservice", "words", "Ready", "True", seconds=180)
    kube.wait("modelservice", "words", reached, 180, f"on {pods} pods")


def scale(pods: int) -> Callable[[Kube], None]:
    def do(kube: Kube) -> None:
        kube.run("scale", "modelservice", "words", f"--replicas={pods}")
        ready(kube, pods)

    return do


def another_template(kube: Kube) -> None:
    kube.patch("modelservice", "words", {"server": {"podTemplate": {"metadata": {"labels": {"turn": "2"}}}}})
    kube.wait(
        "modelservice", "words", lambda _: len(kube.list("pods", "mms.dev/service=words,turn=2")) == 3, 180, "new"
    )
    ready(kube, 3)


def delete_a_pod(kube: Kube) -> None:
    kube.delete("pod", kube.list("pods", "mms.dev/service=words")[0]["metadata"]["name"])
    ready(kube, 3)


def evict_a_pod(kube: Kube) -> None:
    """As a node's drain does it, one after the other: the disruption budget holds the second back."""
    first, second = (pod["metadata"]["name"] for pod in kube.list("pods", "mms.dev/service=words")[:2])
    evict(kube, first)
    with pytest.raises(RefusedError, match="disruption budget"):
        evict(kube, second)
    ready(kube, 3)


def evict(kube: Kube, pod: str) -> None:
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": kube.namespace}}
    path = f"/api/v1/namespaces/{kube.namespace}/pods/{pod}/eviction"
    kube.run("create", "--raw", path, "-f", "-", text=json.dumps(body))


def delete_the_operator(kube: Kube) -> None:
    Kube("mms-system").run("delete", "pods", "-l", "app.kubernetes.io/component=operator", "--wait=false")
    time.sleep(5)  # what is measured: who answers in that time
    Kube("mms-system").run("rollout", "status", "deployment/mms-operator", "--timeout=120s")


PLANNED = {
    "up": scale(3),
    "another template": another_template,
    "a pod is deleted": delete_a_pod,
    "a pod is evicted": evict_a_pod,
    "the operator is away": delete_the_operator,
    "down": scale(2),
}


def test_planned_changes(kube: Kube, corpora: Corpora) -> None:
    kube.apply(training("words", corpora.small))
    kube.wait_phase("words", "Complete")
    made = service("words")
    kube.apply({**made, "spec": {**made["spec"], "replicas": 2}})
    ready(kube, 2)
    for name, change in PLANNED.items():
        with asking(kube, "words", rate=10) as asked:
            change(kube)
        asked.told(name.replace(" ", "-"))
        assert asked.failures("close") == 0, (name, asked.ways)
        assert asked.failures("grpc") == 0, (name, asked.ways)
        assert asked.failures("keep") <= CUT, (name, asked.ways)
        assert asked.ways["close"]["sent"] > 20, (name, asked.ways)
        assert max(asked.p99("close"), asked.p99("grpc")) < SLOW, (name, asked.ways)


def test_versions(kube: Kube, artifacts: list[dict[str, str]]) -> None:
    """Those that never answer a client, and one that is good."""
    first, second = artifacts
    how = {"replicas": 2}
    serve(kube, first, **how)
    ready(kube, 2)
    for name, artifact, reason in (
        ("a corrupt artifact", {**second, "digest": "sha256:" + "0" * 64}, "ArtifactCorrupt"),
        ("a model that cannot be loaded", with_other_weights(second, lambda _: b"no weights"), "ArtifactCorrupt"),
        ("a model that answers otherwise", with_other_weights(second, reversed_rows), "GoldenMismatch"),
        ("another version", second, "Available"),
    ):
        good = artifact == second
        with asking(kube, "words", rate=10) as asked:
            serve(kube, artifact, **how)
            seen = kube.wait(
                "modelservice",
                "words",
                lambda s, pin=artifact, why=reason: stands(s, pin, why),
                120,
                f"{name}: {reason}",
            )
            time.sleep(5)  # what is measured: who answers in that time
        asked.told(name.replace(" ", "-"))
        assert asked.failures("close") == 0, (name, asked.ways)
        assert asked.failures("grpc") == 0, (name, asked.ways)
        assert asked.failures("keep") <= CUT, (name, asked.ways)
        assert max(asked.p99("close"), asked.p99("grpc")) < SLOW, (name, asked.ways)
        assert seen["status"]["versions"]["stable"]["digest"] == (second if good else first)["digest"], seen


def stands(found: dict[str, Any], artifact: dict[str, str], reason: str) -> bool:
    """Whether that is said of the artifact."""
    versions = found["status"]["versions"]
    about = versions["stable"] if reason == "Available" else versions.get("next") or {}
    return condition(found, "Ready")["reason"] == reason and about.get("digest") == artifact["digest"]


def reversed_rows(weights: bytes) -> bytes:
    """Each word has the vectors of another one."""
    return save({name: np.ascontiguousarray(matrix[::-1]) for name, matrix in load(weights).items()})
