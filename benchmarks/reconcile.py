"""1,000 ModelTrainings at once: the operator against a bare loop that writes the same objects. `make bench-reconcile`.

A real kube-apiserver with etcd and nothing else, a fresh one for each side of each round. On both sides this process
creates the custom resources, 16 at a time, and looks how many children there are; another process makes the children,
with the same client and 16 writes in flight: the operator as it is shipped, or the loop at the end of this file, which
is told what to write. Then the operator is left alone for two minutes.

The raw samples are in reconcile.json; `python benchmarks/reconcile.py --results FILE` computes the lines again from it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mms_cluster.apionly import ApiOnly
from mms_cluster.ports import free_ports
from mms_operator.engine.apply import PARALLEL_WRITES
from mms_operator.engine.kubeapi import ApiError, KubeApi, load_configuration
from mms_operator.engine.resources import BY_KIND, CHILDREN, EVENT, TRAINING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

ROOT = Path(__file__).parents[1]
CRDS = ROOT / "crds"
TRAININGS = int(os.environ.get("MMS_BENCH_TRAININGS", "1000"))
ROUNDS = int(os.environ.get("MMS_BENCH_ROUNDS", "3"))
SETTLED_SECONDS = float(os.environ.get("MMS_BENCH_SETTLED_SECONDS", "120"))
OPERATOR = os.environ.get("MMS_BENCH_OPERATOR", f"{sys.executable} -m mms_operator").split()
NAMESPACE, SYSTEM = "bench", "mms-system"
LOOK_SECONDS = 0.2
LIMIT_SECONDS = 300.0
MANIFEST_KEYS = ("name", "namespace", "labels", "annotations", "ownerReferences")
TICKS = os.sysconf("SC_CLK_TCK")

Object = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, help="print the lines of this file instead of measuring")
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        asyncio.run(bare_loop(json.loads(arguments.bare.read_text())))
        return
    if arguments.results:
        report(json.loads(arguments.results.read_text()))
        return
    rounds = []
    for number in range(ROUNDS):
        print(f"round {number + 1} of {ROUNDS}", file=sys.stderr)
        rounds.append(one_round(settle=number == ROUNDS - 1))
    samples = {"trainings": TRAININGS, "rounds": rounds}
    file = Path(os.environ.get("MMS_RESULTS", "benchmarks/results")) / "reconcile.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(samples, indent=1))
    report(samples)
    print(f"samples: {file}")


def report(samples: Object) -> None:
    """The lines, from the raw samples alone."""
    rounds, trainings = samples["rounds"], samples["trainings"]
    ours = [sample["ours"]["seconds"] for sample in rounds]
    bare = [sample["bare"]["seconds"] for sample in rounds]
    ratio = statistics.median(one / other for one, other in zip(ours, bare, strict=True))
    print(
        f"RESULT reconcile_{trainings}_trainings {statistics.median(ours):.2f} s "
        f"vs bare_loop {statistics.median(bare):.2f} s: {ratio:.2f}x"
    )
    made = statistics.median(sum(sample["ours"]["writes"].values()) / trainings for sample in rounds)
    needed = statistics.median(sum(sample["ours"]["needed"].values()) for sample in rounds)
    print(
        f"RESULT reconcile_writes {made:.2f} writes/training "
        f"vs bare_loop {needed:.2f} writes/training: {made / needed:.2f}x"
    )
    print(f"RESULT reconcile_peak_memory {max(sample['ours']['peak_kib'] for sample in rounds) / 1024:.1f} MiB")
    settled = rounds[-1]["ours"]["settled"]
    other = sum(settled["writes"].values())
    print(f"RESULT reconcile_settled_writes_beyond_lease {other:.0f} writes/{settled['seconds']:.0f}s")
    print(f"RESULT reconcile_settled_cpu {100 * settled['cpu_seconds'] / settled['seconds']:.2f} % of a core")


def one_round(*, settle: bool) -> Object:
    with ApiOnly() as server:
        ours, written = asyncio.run(against_operator(server, settle=settle))
    with ApiOnly() as server, tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "objects.json"
        file.write_text(json.dumps(written))
        bare = asyncio.run(against_bare_loop(server, file, ours["needed"]))
    return {"ours": ours, "bare": bare}


async def against_operator(server: ApiOnly, *, settle: bool) -> tuple[Object, Object]:
    """(samples, what was written for one training)."""
    api = await connect(server)
    port = free_ports(1)[0]
    environment = {
        **os.environ,
        "KUBECONFIG": str(server.kubeconfig),
        "MMS_HEALTH_PORT": str(port),
        "MMS_WORKER_IMAGE": "localhost/mms-worker:bench",
        "MMS_SERVER_IMAGE": "localhost/mms-server:bench",
        "MMS_STORE_URI": "s3://mms",
        "MMS_STORE_ENDPOINT": "http://store.mms-system.svc:8333",
        "MMS_LOG_LEVEL": "WARNING",
    }
    with ExitStack() as stack:
        process = stack.enter_context(child(OPERATOR, environment))
        await until(lambda: ready(port), "the operator is not ready")
        probe = await api.create(TRAINING, NAMESPACE, training(0))
        await until(lambda: has_pods(api), "the first training has no pods")
        await quiet(port, 3.0)
        expected = await count(api)
        written = await written_for(api, probe)
        before = writes(port)
        began = time.monotonic()
        await create(api, lambda *_: None)
        seconds = await all_there(api, {kind: number * (TRAININGS + 1) for kind, number in expected.items()}, began)
        await quiet(port, 5.0)
        sample: Object = {
            "seconds": seconds,
            "writes": minus(writes(port), before),
            "needed": {**expected, "status": 1, "events": len(written["events"])},
            "peak_kib": peak_kib(process.pid),
            "cpu_seconds": cpu_seconds(process.pid),
        }
        if settle:
            sample["settled"] = await settled(process.pid, port)
        sample["errors"] = [line for line in metrics(port) if line.startswith("mms_errors_total")]
    await api.close()
    return sample, written


async def against_bare_loop(server: ApiOnly, file: Path, needed: Object) -> Object:
    api = await connect(server)
    environment = {**os.environ, "KUBECONFIG": str(server.kubeconfig)}
    command = [sys.executable, str(Path(__file__)), "--bare", str(file)]
    with child(command, environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        ask, ready = process.stdin, process.stdout
        await asyncio.to_thread(ready.readline)  # it is ready
        expected = {kind: number * TRAININGS for kind, number in needed.items() if kind not in ("status", "events")}

        def made(obj: Object) -> None:
            metadata = obj["metadata"]
            line = json.dumps([metadata["name"], metadata["uid"], metadata["resourceVersion"]])
            ask.write(line.encode() + b"\n")
            ask.flush()

        began = time.monotonic()
        await create(api, made)
        process.stdin.close()
        seconds = await all_there(api, expected, began)
        used = json.loads(await asyncio.to_thread(process.stdout.readline))
    await api.close()
    return {"seconds": seconds, **used}


async def bare_loop(written: Object) -> None:
    """Writes what the operator wrote, for each training whose name, uid and resourceVersion come on stdin."""
    api = KubeApi(await load_configuration())
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    slots = asyncio.Semaphore(PARALLEL_WRITES)
    text = json.dumps(written)
    print("ready", flush=True)

    async def write(line: bytes) -> None:
        name, uid, version = json.loads(line)
        mine = json.loads(text.replace(written["name"], name).replace(written["uid"], uid))
        owner = {"metadata": {"name": name, "namespace": NAMESPACE, "uid": uid, "resourceVersion": version}}
        works: list[Awaitable[Any]] = [api.write_status(TRAINING, owner, mine["status"])]
        for obj in mine["objects"]:
            resource = BY_KIND[obj["kind"]]
            pod = obj["kind"] == "Pod"
            works.append(api.create(resource, NAMESPACE, obj) if pod else api.apply(resource, obj, None))
        works.extend(api.create(EVENT, NAMESPACE, event) for event in mine["events"])
        for work in works:
            await work

    async def limited(line: bytes) -> None:
        async with slots:
            await write(line)

    async with asyncio.TaskGroup() as group:
        while line := await reader.readline():
            group.create_task(limited(line))
    print(json.dumps({"peak_kib": peak_kib(os.getpid()), "cpu_seconds": cpu_seconds(os.getpid())}), flush=True)
    await api.close()


def training(number: int) -> Object:
    return {
        "apiVersion": TRAINING.api_version,
        "kind": TRAINING.kind,
        "metadata": {"name": f"training-{number:05}", "namespace": NAMESPACE},
        "spec": {
            "task": {"wordEmbedding": {"dimensions": 100}},
            "data": {"uri": "s3://corpora/text/*.txt"},
            "workers": {"replicas": 2},
        },
    }


async def create(api: KubeApi, made: Callable[[Object], None]) -> None:
    """All trainings but number 0, 16 at a time."""
    slots = asyncio.Semaphore(PARALLEL_WRITES)

    async def one(number: int) -> None:
        async with slots:
            made(await api.create(TRAINING, NAMESPACE, training(number)))

    async with asyncio.TaskGroup() as group:
        for number in range(1, TRAININGS + 1):
            group.create_task(one(number))


async def connect(server: ApiOnly) -> KubeApi:
    """A client of a new API server, with the CRDs and the namespaces in place."""
    for file in sorted(CRDS.glob("*.yaml")):
        crd = yaml.safe_load(file.read_text())
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd['metadata']['name']}"
        assert not (said := server.api.apply(path, crd)), said
    for name in (NAMESPACE, SYSTEM):
        manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        assert not (said := server.api.apply(f"/api/v1/namespaces/{name}", manifest)), said
    os.environ["KUBECONFIG"] = str(server.kubeconfig)
    api = KubeApi(await load_configuration())
    await until(lambda: served(api), "the CRDs are not served")
    return api


async def served(api: KubeApi) -> bool:
    try:
        return [chunk async for chunk, _ in api.list(TRAINING, NAMESPACE, "", metadata=True)] == [[]]
    except ApiError:
        return False


async def count(api: KubeApi) -> dict[str, int]:
    """Children by kind."""
    found: dict[str, int] = {}
    for resource in CHILDREN:
        async for chunk, _ in api.list(resource, NAMESPACE, "", metadata=True, chunk=500):
            found[resource.kind] = found.get(resource.kind, 0) + len(chunk)
    return {kind: number for kind, number in found.items() if number}


async def all_there(api: KubeApi, expected: dict[str, int], began: float) -> float:
    """Seconds until there are so many children of each kind. The count of a list is asked for, not the list."""
    missing = dict(expected)
    while missing:
        kind = next(iter(missing))
        if await api.count(BY_KIND[kind], NAMESPACE) >= missing[kind]:
            del missing[kind]
            continue
        assert time.monotonic() - began < LIMIT_SECONDS, f"{missing} are not there after {LIMIT_SECONDS} s"
        await asyncio.sleep(LOOK_SECONDS)
    return time.monotonic() - began


async def has_pods(api: KubeApi) -> bool:
    return await api.count(BY_KIND["Pod"], NAMESPACE) > 0


async def written_for(api: KubeApi, owner: Object) -> Object:
    """What the operator wrote for one training, as it can be written again for another."""
    objects, kept = [], set(MANIFEST_KEYS)
    for resource in CHILDREN:
        async for chunk, _ in api.list(resource, NAMESPACE, "", metadata=False):
            for item in chunk:
                metadata = {key: value for key, value in item["metadata"].items() if key in kept}
                obj = {**item, "apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata}
                obj.pop("status", None)
                objects.append(obj)
    events = []
    async for chunk, _ in api.list(EVENT, NAMESPACE, "", metadata=False):
        for item in chunk:
            metadata = {"name": item["metadata"]["name"], "namespace": NAMESPACE}
            event = {**item, "apiVersion": EVENT.api_version, "kind": EVENT.kind, "metadata": metadata}
            events.append({key: value for key, value in event.items() if not key.startswith("deprecated")})
    live = await api.get(TRAINING, NAMESPACE, owner["metadata"]["name"])
    return {
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "status": live["status"],
        "objects": objects,
        "events": events,
    }


async def settled(pid: int, port: int) -> Object:
    before, used, began = writes(port), cpu_seconds(pid), time.monotonic()
    await asyncio.sleep(SETTLED_SECONDS)
    seconds = time.monotonic() - began
    return {"seconds": seconds, "writes": minus(writes(port), before), "cpu_seconds": cpu_seconds(pid) - used}


async def quiet(port: int, seconds: float) -> None:
    """Waits until the operator has written nothing for so long."""
    last, since = writes(port), time.monotonic()
    while time.monotonic() - since < seconds:
        await asyncio.sleep(LOOK_SECONDS)
        if (now := writes(port)) != last:
            last, since = now, time.monotonic()


async def until(true: Callable[[], Awaitable[bool]], otherwise: str) -> None:
    began = time.monotonic()
    while not await true():
        assert time.monotonic() - began < LIMIT_SECONDS, otherwise
        await asyncio.sleep(LOOK_SECONDS)


async def ready(port: int) -> bool:
    try:
        return any(line.startswith("mms_leader 1") for line in metrics(port))
    except OSError:
        return False


def metrics(port: int) -> list[str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
    return text.splitlines()


def writes(port: int) -> dict[str, int]:
    """Writes by resource, without those of the Lease."""
    found: dict[str, int] = {}
    for line in metrics(port):
        if line.startswith("mms_api_writes_total"):
            resource = line.split('resource="')[1].split('"')[0]
            if resource != "leases":
                found[resource] = found.get(resource, 0) + int(float(line.rsplit(" ", 1)[1]))
    return found


def minus(now: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    return {key: value - before.get(key, 0) for key, value in now.items()}


@contextmanager
def child(command: list[str], environment: dict[str, str], **pipes: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Is killed when the block ends."""
    path = os.pathsep.join(str(ROOT / folder) for folder in ("operator", "workloads", "cluster"))
    with subprocess.Popen(command, env={**environment, "PYTHONPATH": path}, cwd=ROOT, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def peak_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


if __name__ == "__main__":
    main()
