"""What clients see when a process is killed, or has no memory: what was in flight there is lost, and then nothing is.

What comes until the endpoints know is sent to the pod that has died: a probe every second, three of them, and the time
until the proxies of the nodes have heard.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.clients import asking
from tests.e2e.kube import Kube, RefusedError, service, training
from tests.e2e.test_autoscaling import fall_asleep, wake, without_operators
from tests.e2e.test_contract import ready

if TYPE_CHECKING:
    from tests.e2e.conftest import Corpora

pytestmark = pytest.mark.e2e

# Where the kernel ends one process of a container only, it is the largest: so many small ones fill the memory.
FILL = """
import os, time
for _ in range(40):
    if not os.fork():
        kept = b"x" * (24 << 20)
        time.sleep(60)
        os._exit(0)
time.sleep(60)
"""
RATE = 20.0  # requests a second of each way
KNOWN_SECONDS = 10  # within which nobody is sent to what has died
ALL = ("close", "keep", "grpc")


def serve(kube: Kube, corpora: Corpora, replicas: int = 2, **spec: Any) -> None:
    kube.apply(training("words", corpora.small))
    kube.wait_phase("words", "Complete")
    made = service("words")
    kube.apply({**made, "spec": {**made["spec"], "replicas": replicas, **spec}})
    ready(kube, replicas)


def one_pod(kube: Kube) -> dict[str, Any]:
    return kube.list("pods", "mms.dev/service=words")[0]


def test_a_triton_that_dies(kube: Kube, corpora: Corpora) -> None:
    serve(kube, corpora)
    with asking(kube, "words", rate=RATE) as asked:
        kill(one_pod(kube), "tritonserver --model-repository")
        kube.wait("modelservice", "words", lambda s: s["status"]["readyReplicas"] < 2, 30, "without one")
        ready(kube, 2)
    asked.told("a-triton-dies")
    assert asked.ways["close"]["failed_for"] < KNOWN_SECONDS, asked.ways
    assert asked.failures("close") < KNOWN_SECONDS * RATE, asked.ways


def test_what_stands_beside_triton_dies(kube: Kube, corpora: Corpora) -> None:
    """An agent is in nobody's way; an nginx is, until the endpoints know."""
    serve(kube, corpora, traffic={"edge": "Sidecar"})
    pod = one_pod(kube)
    name = pod["metadata"]["name"]
    with asking(kube, "words", rate=RATE) as asked:
        kill(pod, "mms_workloads.serve.agent")
        kube.wait("pod", name, lambda found: restarts(found, "agent") == 1, 60, "with another agent")
        ready(kube, 2)
    asked.told("an-agent-dies")
    assert [asked.failures(way) for way in ALL] == [0, 0, 0], asked.ways
    with asking(kube, "words", rate=RATE) as asked:
        kill(pod, "nginx: master")
        kube.wait("pod", name, lambda found: restarts(found, "edge") == 1, 60, "with another nginx")
        ready(kube, 2)
    asked.told("an-nginx-dies")
    assert asked.ways["close"]["failed_for"] < KNOWN_SECONDS, asked.ways
    assert asked.failures("close") < KNOWN_SECONDS * RATE, asked.ways
    with asking(kube, "words", rate=RATE) as asked:
        time.sleep(3)  # what is measured: who answers in that time
    assert [asked.failures(way) for way in ALL] == [0, 0, 0], asked.ways


def test_an_activator_that_dies(kube: Kube, corpora: Corpora) -> None:
    """Whoever it holds is lost; the other one holds whom it holds, and those that come."""
    fall_asleep(kube, corpora)
    seconds = 4.0
    with without_operators(kube) as system, asking(kube, "words", rate=5) as asked:
        time.sleep(seconds)  # so that both hold some
        kill(system.list("pods", "app.kubernetes.io/component=activator")[0], "mms_operator.activator")
        wake(kube, system)
    asked.told("an-activator-dies")
    sent = asked.ways["close"]["sent"]
    assert 0 < asked.failures("close") < sent - 5, "some were held by the one, and some by the other"
    assert asked.ways["close"]["failed_for"] < seconds + KNOWN_SECONDS, asked.ways
    system.run("rollout", "status", "deployment/mms-activator", "--timeout=180s")


def test_one_of_three_without_memory(kube: Kube, corpora: Corpora) -> None:
    """The kernel ends its Triton, and the kubelet starts it again; the other two answer."""
    limits = {"limits": {"memory": "768Mi"}, "requests": {"memory": "256Mi", "cpu": "50m"}}
    serve(kube, corpora, 3, server={"resources": limits})
    name = one_pod(kube)["metadata"]["name"]
    with asking(kube, "words", rate=RATE) as asked:
        with pytest.raises(RefusedError, match=r"137|exit code|terminated"):
            kube.run("exec", name, "-c", "triton", "--", "python", "-c", FILL)
        kube.wait("pod", name, lambda pod: restarts(pod, "triton") == 1, 60, "restarted")
        ready(kube, 3)
    last = next(one for one in kube.get("pod", name)["status"]["containerStatuses"] if one["name"] == "triton")
    assert last["lastState"]["terminated"]["reason"] == "OOMKilled"
    asked.told("one-of-three-without-memory")
    assert asked.ways["close"]["failed_for"] < KNOWN_SECONDS, asked.ways
    assert asked.failures("close") < KNOWN_SECONDS * RATE / 3 + RATE, asked.ways  # of the third that was sent there


def restarts(pod: dict[str, Any], container: str) -> int:
    status = pod["status"]
    said = [*status["containerStatuses"], *status.get("initContainerStatuses", ())]
    return next(one["restartCount"] for one in said if one["name"] == container)


def kill(pod: dict[str, Any], program: str) -> None:
    """A process of the pod on this machine, by words of its command line."""
    uid = pod["metadata"]["uid"]
    for group in Path("/proc").glob("[0-9]*/cgroup"):
        try:
            mine = uid.replace("-", "_") in group.read_text() or uid in group.read_text()
            command = (group.parent / "cmdline").read_bytes().replace(b"\0", b" ")
        except OSError:
            continue
        if mine and program.encode() in command:
            os.kill(int(group.parent.name), signal.SIGKILL)
            return
    raise AssertionError(f"pod {uid} has no {program} on this machine")
