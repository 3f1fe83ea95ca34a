"""The operator with its own planners against a real API server; the pods' part is played: their status, and a master.

The master is a real HTTPS server with the job's certificates, whose report a test says.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from base64 import b64decode
from typing import TYPE_CHECKING, Any, Self

import pytest
from aiohttp import web

from mms_cluster.ports import free_ports
from mms_operator import main
from mms_operator.api import names
from mms_operator.engine.polls import Polls
from mms_workloads.contract import Activity, CheckpointRef, Desired, Gone, Outcome, StatusReport
from mms_workloads.sync import tls
from tests.api.operating import SECONDS, Cluster, Object, Replica, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mms_cluster.apionly import ApiOnly

pytestmark = pytest.mark.api

CHECKPOINT = CheckpointRef(
    uri="s3://models/words/runs/1/checkpoints/9", step=9, digest="sha256:" + "0" * 64, time="2026-01-01T00:00:00Z"
)
PARTS = {
    "task": {"wordEmbedding": {"dimensions": 16}},
    "data": {"uri": "https://example.com/text.txt"},
    "storage": {"uri": "file:///mnt/models"},
    "sync": {"mode": "ParameterServer", "parameterServer": {"shards": 2, "replicas": 2}},
    "workers": {"replicas": 2, "minReplicas": 1},
}


class Master:
    """Says what a test lets it say, to whoever has the operator's certificate of the job."""

    def __init__(self, port: int) -> None:
        self.port, self.uid = port, ""
        self.told: list[Desired] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def says(self, activity: Activity = Activity.TRAINING, **fields: Any) -> None:
        usual = {"epoch": 1, "workersReady": 2, "shardsReady": 2, "step": 12, "percent": 40, "checkpoint": CHECKPOINT}
        self.report = StatusReport.model_validate(
            {"uid": self.uid, "run": 1, "attempt": 1, "activity": activity, **usual, **fields}
        )

    def serve(self, uid: str, folder: Path) -> Self:
        self.uid = uid
        self.says()
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._serve(folder), self._loop).result(SECONDS)
        return self

    def stop(self) -> None:
        if not self._thread.is_alive():
            return
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(SECONDS)
        self._loop.close()

    async def _serve(self, folder: Path) -> None:
        app = web.Application()
        app.add_routes([web.get("/v1/status", self._status), web.put("/v1/desired", self._desired)])
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=tls.server_context(folder)).start()

    async def _status(self, _: web.Request) -> web.Response:
        return web.Response(body=self.report.model_dump_json())

    async def _desired(self, request: web.Request) -> web.Response:
        self.told.append(Desired.model_validate_json(await request.read()))
        return web.Response(body=self.report.model_dump_json())


class Pods:
    """What scheduler and kubelets would do."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def run(self, name: str, node: str) -> None:
        pod = self.cluster.there("Pod", name)
        binding = {"kind": "Binding", "metadata": {"name": name}, "target": {"kind": "Node", "name": node}}
        path = self.cluster.path("Pod", name, "binding")
        status, answer = self.cluster.server.api.request("POST", path, binding)
        assert status == 201, answer
        container = pod["spec"]["containers"][0]
        state = {"name": container["name"], "image": "x", "imageID": "", "ready": True, "restartCount": 0}
        self._says(
            name,
            {
                "phase": "Running",
                "podIP": "127.0.0.1",
                "podIPs": [{"ip": "127.0.0.1"}],
                "containerStatuses": [{**state, "state": {"running": {}}}],
            },
        )

    def wait(self, name: str) -> None:
        self.cluster.there("Pod", name)
        said = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes: no cpu."}
        self._says(name, {"conditions": [said]})

    def live(self) -> set[str]:
        found = self.cluster.items("Pod")
        return {pod["metadata"]["name"] for pod in found if "deletionTimestamp" not in pod["metadata"]}

    def _says(self, name: str, status: Object) -> None:
        self.cluster.patch("Pod", name, {"status": status}, "status")


@pytest.fixture
def cluster(apiserver: ApiOnly, crds: object, kubeconfig: Path, namespace: str) -> Cluster:
    return Cluster(apiserver, namespace)


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    """Where the operator looks for the master."""
    (found,) = free_ports(1)
    monkeypatch.setattr(main, "Polls", functools.partial(Polls, port=found))
    monkeypatch.setattr("mms_operator.engine.polls.PERIOD", 0.1)
    return found


@pytest.fixture
def server(port: int) -> Iterator[Master]:
    """Stops after the operator, whose connections are closed then."""
    master = Master(port)
    yield master
    master.stop()


@pytest.fixture
def operator(cluster: Cluster, server: Master) -> Iterator[Replica]:
    with Replica(cluster, (cluster.namespace,), main.PLANNERS) as replica:
        yield replica.leads()


@pytest.fixture
def master(cluster: Cluster, operator: Replica, server: Master, tmp_path: Path) -> Master:
    """Of a training that runs: two workers and two shards on two nodes."""
    made = cluster.create(
        {"apiVersion": names.API_VERSION, "kind": names.TRAINING, "metadata": {"name": "words"}, "spec": PARTS}
    )
    secret = cluster.there("Secret", "words-master-tls")
    for file, text in secret["data"].items():
        (tmp_path / file).write_bytes(b64decode(text))
    pods = Pods(cluster)
    for number, node in enumerate(("one", "two")):
        for role in ("worker", "shard"):
            pods.run(f"words-{role}-{number}-1", node)
    pods.run("words-master-0-1", "one")
    return server.serve(made["metadata"]["uid"], tmp_path)


def phase(cluster: Cluster) -> str | None:
    found: str | None = cluster.status(names.TRAINING, "words").get("phase")
    return found


def condition(cluster: Cluster, kind: str) -> Object:
    conditions = cluster.status(names.TRAINING, "words").get("conditions") or []
    return next((found for found in conditions if found["type"] == kind), {"status": None})


def held(cluster: Cluster) -> bool:
    return names.FINALIZER in (cluster.there(names.TRAINING, "words")["metadata"].get("finalizers") or [])


def test_a_training_with_shards_runs_and_is_held(cluster: Cluster, master: Master) -> None:
    until(lambda: phase(cluster) == "Running", "phase Running")
    until(lambda: held(cluster), "the finalizer")
    assert master.told == [Desired(workers=2, minWorkers=1, shards=2)]
    assert {secret["metadata"]["name"] for secret in cluster.items("Secret")} == {
        "words-ca", "words-master-tls", "words-worker-tls", "words-shard-tls", "words-reader-tls",
    }  # fmt: skip
    status = cluster.status(names.TRAINING, "words")
    assert (status["shards"], status["workers"]["ready"]) == ({"ready": 2}, 2)


def test_ranks_that_are_not_heard_of_are_replaced_elsewhere(cluster: Cluster, master: Master) -> None:
    until(lambda: phase(cluster) == "Running", "phase Running")
    gone = [Gone(role=role, rank=1, incarnation=1, seconds=3.5) for role in ("worker", "shard")]
    master.says(gone=gone, workersReady=1, shardsReady=1)
    for role in ("worker", "shard"):
        spec = cluster.there("Pod", f"words-{role}-1-2")["spec"]
        (term,) = spec["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
        assert term["preference"]["matchFields"] == [{"key": "metadata.name", "operator": "NotIn", "values": ["two"]}]
        # No kubelet ends it, as on a node that is lost.
        until(lambda role=role: f"words-{role}-1-1" not in Pods(cluster).live(), "its deletion is asked for")
        assert cluster.get("Pod", f"words-{role}-1-1")
    assert phase(cluster) == "Restarting"
    for role in ("worker", "shard"):
        Pods(cluster).run(f"words-{role}-1-2", "one")
    master.says(epoch=2)
    until(lambda: phase(cluster) == "Running", "phase Running again")
    status = cluster.status(names.TRAINING, "words")
    assert (status["restarts"], status["incidentCounts"]) == (0, {"NodeUnreachable": 2})


def test_kubectl_scale_while_it_runs_and_a_worker_without_a_node(cluster: Cluster, master: Master) -> None:
    until(lambda: phase(cluster) == "Running", "phase Running")
    cluster.patch(names.TRAINING, "words", {"spec": {"replicas": 3}}, "scale")
    until(lambda: master.told[-1].workers == 3, "the master hears of three workers")
    Pods(cluster).wait("words-worker-2-1")
    until(lambda: condition(cluster, "Degraded")["status"] == "True", "condition Degraded")
    assert "no cpu" in condition(cluster, "Degraded")["message"]
    until(lambda: master.told[-1].workers == 2, "the master waits for no third")
    assert phase(cluster) == "Running"
    Pods(cluster).run("words-worker-2-1", "one")
    master.says(epoch=2, workersReady=3)
    until(lambda: condition(cluster, "Degraded")["status"] == "False", "there is room")
    until(lambda: master.told[-1].workers == 3, "the master waits for the third again")
    cluster.patch(names.TRAINING, "words", {"spec": {"replicas": 1}}, "scale")
    left = {"words-master-0-1", "words-worker-0-1", "words-shard-0-1", "words-shard-1-1"}
    until(lambda: Pods(cluster).live() == left, "one worker")


def test_a_shard_less_goes_when_its_parameters_are_elsewhere(cluster: Cluster, master: Master) -> None:
    until(lambda: phase(cluster) == "Running", "phase Running")
    spec = {"sync": {"parameterServer": {"shards": 3}}}
    cluster.patch(names.TRAINING, "words", {"spec": spec})
    Pods(cluster).run("words-shard-2-1", "one")
    master.says(shardsReady=3)
    until(lambda: master.told[-1].shards == 3, "the master hears of three shards")
    until(lambda: cluster.status(names.TRAINING, "words").get("shards") == {"ready": 3}, "three shards")
    spec["sync"]["parameterServer"]["shards"] = 2
    cluster.patch(names.TRAINING, "words", {"spec": spec})
    until(lambda: master.told[-1].shards == 2, "the master hears of two shards")
    master.says(shardsReady=3, step=13, percent=50, epoch=2)
    until(lambda: cluster.status(names.TRAINING, "words")["progress"]["step"] == 13, "it still has three")
    assert "words-shard-2-1" in Pods(cluster).live()
    master.says(epoch=3)
    until(lambda: "words-shard-2-1" not in Pods(cluster).live(), "the third shard goes")


@pytest.mark.parametrize("how", ["its checkpoint is written", "its pods are deleted with everything else"])
def test_a_deleted_training_waits_for_its_last_checkpoint(cluster: Cluster, master: Master, how: str) -> None:
    until(lambda: held(cluster), "the finalizer")
    cluster.delete(names.TRAINING, "words")
    until(lambda: master.told[-1].suspend, "the master is asked for a checkpoint")
    until(lambda: phase(cluster) == "Suspending", "phase Suspending")
    assert condition(cluster, "Ready")["reason"] == "Deleting"
    assert len(Pods(cluster).live()) == 5
    if how == "its checkpoint is written":
        outcome = Outcome(result="Suspended", reason="Suspended", checkpoint=CHECKPOINT, step=9)
        master.says(Activity.DONE, outcome=outcome)
    else:
        status, answer = cluster.server.api.request("DELETE", f"/api/v1/namespaces/{cluster.namespace}")
        assert status == 200, answer
        for pod in Pods(cluster).live():
            cluster.delete("Pod", pod)
    until(lambda: cluster.get(names.TRAINING, "words") is None, "it goes")
    assert not [pod for pod in cluster.items("Pod") if not pod["metadata"]["name"].endswith("-1")], "nothing is made"
