"""A ring and a parameter server on real pods: processes and pods die, the number of workers and shards changes."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.e2e.kube import Kube, Object, RefusedError, training
from tests.e2e.test_crashes import FILL
from tests.e2e.test_slice import EXAMPLES
from tests.e2e.test_training import is_training, pod_of, steps

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.e2e.conftest import Corpora

pytestmark = pytest.mark.e2e

LANGUAGE = {"languageModel": {"dimensions": 32, "layers": 1, "heads": 2, "contextLength": 32}}
LONG = {"optimizer": {"epochs": 200}, "checkpoint": {"intervalSeconds": 600}}


def language(name: str, uri: str, **spec: Any) -> Object:
    return training(name, uri, **{"task": LANGUAGE, **LONG, **spec})


def served(shards: int = 2, replicas: int = 2) -> Object:
    return {"mode": "ParameterServer", "parameterServer": {"shards": shards, "replicas": replicas}}


def steps_on(kube: Kube, name: str, more: int, seconds: float = 90) -> Object:
    """The training once it has made `more` further steps."""
    start = steps(kube.get("modeltraining", name))
    return kube.wait("modeltraining", name, lambda t: steps(t) >= start + more, seconds, f"{more} steps further")


def incidents(found: Object) -> set[str]:
    return {incident["kind"] for incident in found["status"].get("incidents", [])}


def kill_process(kube: Kube, pod: str) -> None:
    """The process that the pod's supervisor has forked, by SIGKILL."""
    script = "import os, signal; c = open('/proc/1/task/1/children').read().split(); os.kill(int(c[0]), signal.SIGKILL)"
    subprocess.run(
        ["kubectl", "-n", kube.namespace, "exec", pod, "--", "/opt/venv/bin/python", "-c", script],
        check=True,
        capture_output=True,
    )


def test_the_examples_of_a_language_model_and_of_shards(kube: Kube, corpora: Corpora) -> None:
    for example, name, metric in (
        ("language", "language", "bitsPerByte"),
        ("parameter-server", "sharded", "contextAUC"),
    ):
        with (EXAMPLES / example / "training.yaml").open() as file:
            manifest = yaml.safe_load(file)
        manifest["spec"]["data"]["uri"] = corpora.small
        kube.apply(manifest)
        done = kube.wait_phase(name, "Complete", 300)
        assert metric in done["status"]["artifact"]["metrics"]
        kube.delete("modeltraining", name)


@pytest.mark.slow
def test_a_worker_process_and_a_worker_pod_die(kube: Kube, corpora: Corpora) -> None:
    """The survivors go on, no finished step is lost; a process is back without a new pod."""
    kube.apply(language("ring", corpora.small))
    before = kube.wait("modeltraining", "ring", is_training, 120, "training")
    pod = pod_of(kube, "ring", "worker", 1)
    kill_process(kube, pod)
    after = kube.wait("modeltraining", "ring", lambda t: "WorkerJoined" in incidents(t), 60, "whole")
    assert steps(after) >= steps(before)
    assert pod_of(kube, "ring", "worker", 1) == pod
    assert after["status"].get("restarts", 0) == 0
    kube.delete("pod", pod, "--wait=false", "--grace-period=0", "--force")
    joined = after["status"]["workers"]["epoch"]
    kube.wait(
        "modeltraining",
        "ring",
        lambda t: t["status"]["workers"]["epoch"] >= joined + 2 and t["status"]["workers"]["ready"] == 2,
        90,
        "whole again",
    )
    steps_on(kube, "ring", 20)


@pytest.mark.slow
def test_a_worker_pod_has_no_memory(kube: Kube, corpora: Corpora) -> None:
    """The kernel ends it: that is the program's own doing, and is told as what it was. The other one goes on."""
    limits = {"limits": {"memory": "768Mi"}, "requests": {"memory": "256Mi", "cpu": "50m"}}
    kube.apply(language("ring", corpora.small, workers={"replicas": 2, "resources": limits}))
    kube.wait("modeltraining", "ring", is_training, 120, "training")
    before = steps_on(kube, "ring", 20)
    pod = pod_of(kube, "ring", "worker", 1)
    with pytest.raises(RefusedError, match=r"137|exit code|terminated"):
        kube.run("exec", pod, "--", "/opt/venv/bin/python", "-c", FILL)
    kube.wait("modeltraining", "ring", lambda t: "OutOfMemory" in incidents(t), 60, "aware of the reason")
    after = kube.wait("modeltraining", "ring", whole_after(before), 90, "whole again")
    assert steps(after) >= steps(before), "no step that was finished may be lost"
    assert after["status"]["restarts"] == 1
    steps_on(kube, "ring", 20)


def whole_after(before: Object) -> Callable[[Object], bool]:
    """With two workers, after one was lost and one has joined."""
    return lambda t: t["status"]["workers"]["ready"] == 2 and epoch(t) >= epoch(before) + 2


def test_a_pod_that_stands_by_takes_a_lost_ones_place_at_once(kube: Kube, corpora: Corpora) -> None:
    kube.apply(language("ring", corpora.small, workers={"replicas": 2, "standby": 1}))
    kube.wait("modeltraining", "ring", lambda t: is_training(t) and stand_by(t) == 1, 120, "training, with a spare")
    before = steps_on(kube, "ring", 20)
    lost = pod_of(kube, "ring", "worker", members(kube, "ring")[0])
    kube.delete("pod", lost, "--wait=false", "--grace-period=0", "--force")
    after = kube.wait("modeltraining", "ring", lambda t: "WorkerLost" in incidents(t), 30, "lost")
    assert after["status"]["workers"] == {"ready": 2, "standby": 0, "epoch": epoch(before) + 1}, (
        "in the very next epoch"
    )
    later = kube.wait("modeltraining", "ring", lambda t: stand_by(t) == 1, 60, "its successor stands by")
    assert (epoch(later), later["status"]["replicas"]) == (epoch(after), 2)
    assert steps(steps_on(kube, "ring", 20)) > steps(before)


def members(kube: Kube, name: str) -> list[int]:
    """The ranks in the last membership epoch. Whoever comes last stands by, whatever its rank."""
    lines = map(json.loads, kube.run("logs", pod_of(kube, name, "master")).splitlines())
    return [line["ranks"] for line in lines if line["event"] == "membership epoch"][-1]


def stand_by(found: Object) -> int:
    return found["status"]["workers"]["standby"]


def epoch(found: Object) -> int:
    return found["status"]["workers"]["epoch"]


@pytest.mark.slow
def test_workers_come_and_go_by_scale(kube: Kube, corpora: Corpora) -> None:
    kube.apply(language("scaled", corpora.small, workers={"replicas": 1, "maxReplicas": 3}))
    kube.wait("modeltraining", "scaled", is_training, 120, "training")
    for replicas in (3, 1):
        kube.run("scale", "modeltraining/scaled", f"--replicas={replicas}")
        kube.wait(
            "modeltraining",
            "scaled",
            lambda t, n=replicas: t["status"].get("workers", {}).get("ready") == n,  # type: ignore[misc]
            120,
            f"{replicas} workers",
        )
        found = steps_on(kube, "scaled", 20)
        assert found["status"]["phase"] == "Running"
    assert found["status"].get("restarts", 0) == 0


@pytest.mark.slow
def test_a_shard_pod_dies_and_shards_are_added_and_removed(kube: Kube, corpora: Corpora) -> None:
    """Nothing is lost: there is no checkpoint to go back to, and the steps never go down."""
    kube.apply(language("served", corpora.small, sync=served()))
    before = kube.wait("modeltraining", "served", is_training, 120, "training")
    kube.delete("pod", pod_of(kube, "served", "shard", 1), "--wait=false", "--grace-period=0", "--force")
    after = kube.wait("modeltraining", "served", lambda t: "ShardLost" in incidents(t), 60, "aware of the loss")
    assert steps(after) >= steps(before)
    found = steps_on(kube, "served", 20)
    for shards in (3, 2):
        kube.patch("modeltraining", "served", {"sync": {"parameterServer": {"shards": shards}}})
        kube.wait(
            "modeltraining",
            "served",
            lambda t, n=shards: t["status"].get("shards", {}).get("ready") == n,  # type: ignore[misc]
            120,
            f"{shards} shards",
        )
        last = steps(found)
        found = steps_on(kube, "served", 20)
        assert steps(found) >= last
    assert "checkpoint" not in found["status"]


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 2])
def test_all_pods_are_told_to_stop_at_once(kube: Kube, corpora: Corpora, replicas: int) -> None:
    """As when all nodes are drained: shards save their rows, although the workers have left."""
    kube.apply(language("served", corpora.small, sync=served(replicas=replicas)))
    kube.wait("modeltraining", "served", is_training, 120, "training")
    before = steps_on(kube, "served", 20)
    assert "checkpoint" not in before["status"]
    kube.delete("pod", "--selector=mms.dev/training=served", "--wait=false")
    after = kube.wait("modeltraining", "served", lambda t: "checkpoint" in t["status"], 120, "saved")
    assert after["status"]["checkpoint"]["step"] >= steps(before)
    kube.wait(
        "modeltraining", "served", lambda t: steps(t) > after["status"]["checkpoint"]["step"] + 20, 120, "going on"
    )
    assert kube.get("modeltraining", "served")["status"].get("restarts", 0) == 0


@pytest.mark.slow
def test_suspended_with_a_ring_and_resumed_with_shards(kube: Kube, corpora: Corpora) -> None:
    kube.apply(language("both", corpora.small, optimizer={"epochs": 3}))
    kube.wait("modeltraining", "both", lambda t: steps(t) >= 20, 120, "training")
    kube.patch("modeltraining", "both", {"runPolicy": {"suspend": True}})
    suspended = kube.wait_phase("both", "Suspended")
    step = suspended["status"]["checkpoint"]["step"]
    assert step >= 20
    kube.patch("modeltraining", "both", {"sync": served(replicas=1), "runPolicy": {"suspend": False}})
    kube.wait("modeltraining", "both", lambda t: steps(t) > step, 120, "going on from its checkpoint")
    done = kube.wait_phase("both", "Complete", 240)
    assert "bitsPerByte" in done["status"]["artifact"]["metrics"]


@pytest.mark.slow
def test_a_gate_that_is_missed(kube: Kube, corpora: Corpora) -> None:
    gate = {"split": "0.1", "gate": {"metric": "bitsPerByte", "atMost": "0.1"}}
    kube.apply(language("gated", corpora.small, optimizer={"epochs": 1}, evaluation=gate))
    done = kube.wait_phase("gated", "Failed")
    failed = next(c for c in done["status"]["conditions"] if c["type"] == "Failed")
    assert failed["reason"] == "GateMissed"
    assert "evaluation.gate asks for at most 0.1" in failed["message"]
    assert "artifact" not in done["status"]


def milli(cpu: str) -> int:
    return int(cpu[:-1]) if cpu.endswith("m") else round(float(cpu) * 1000)


def free_processors(kube: Kube) -> int:
    """Thousandths of a processor that no pod of the first node asks for."""
    node = kube.list("nodes")[0]
    asked = 0
    for pod in json.loads(kube.run("get", "pods", "--all-namespaces", "-o", "json"))["items"]:
        if pod["status"]["phase"] in {"Pending", "Running"} and "deletionTimestamp" not in pod["metadata"]:
            containers = pod["spec"]["containers"]
            asked += sum(milli(c.get("resources", {}).get("requests", {}).get("cpu", "0")) for c in containers)
    return milli(node["status"]["allocatable"]["cpu"]) - asked


def sleeper(name: str, processors: int, **spec: Any) -> Object:
    """A pod that asks for so many thousandths of a processor, and does nothing."""
    operator = Kube("mms-system").list("pods", "app.kubernetes.io/component=operator")[0]
    own = operator["spec"]["containers"][0]
    container = {
        **{name: own[name] for name in ("image", "imagePullPolicy", "securityContext")},
        "name": "sleeper",
        "command": ["/opt/venv/bin/python", "-c", "import signal; signal.pause()"],
        "resources": {"requests": {"cpu": f"{processors}m"}},
    }
    whole = {
        "containers": [container],
        "securityContext": operator["spec"]["securityContext"],
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": False,
        **spec,
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": whole}


def test_it_trains_with_the_workers_that_have_room_and_grows_when_there_is_more(kube: Kube, corpora: Corpora) -> None:
    room = free_processors(kube)
    kube.apply(sleeper("other", room * 35 // 100))
    kube.run("wait", "pod/other", "--for=condition=Ready", "--timeout=60s")
    workers = {"replicas": 2, "minReplicas": 1, "resources": {"requests": {"cpu": f"{room * 2 // 5}m"}}}
    kube.apply(language("grows", corpora.small, workers=workers))
    alone = kube.wait("modeltraining", "grows", is_training, 120, "training")
    assert alone["status"]["workers"]["ready"] == 1
    kube.wait_condition("modeltraining", "grows", "Degraded", "True", "Unschedulable")
    steps_on(kube, "grows", 10)
    kube.delete("pod", "other", "--wait=false")
    kube.wait("modeltraining", "grows", lambda t: t["status"]["workers"]["ready"] == 2, 120, "whole")
    assert steps_on(kube, "grows", 10)["status"].get("restarts", 0) == 0
