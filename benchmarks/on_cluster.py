"""What the benchmarks on a cluster share: the cluster with the operator, a training of two capped workers, its pods."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from mms_cluster import corpus, images, install, paths, provider
from mms_cluster.report import Reporter
from mms_operator.cli import cluster_store

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

RESULTS = Path(os.environ.get("MMS_RESULTS", Path(__file__).parent / "results"))
NAMESPACE = "bench-training"
HOME, AWAY = "mms-node-0", "mms-node-1"
CORPUS = "s3://corpora/sotu/*.txt"
PYTHON = "/opt/venv/bin/python"
SAMPLES = 8  # of a worker in a step, which is short: what is measured is the recovery
# A survivor must not take the dead one's share of the processors, or it flatters the figure.
LIMIT = {"cpu": "500m", "memory": "1Gi"}
TASK = {"languageModel": {"dimensions": 64, "layers": 2, "heads": 2, "contextLength": 64}}
_KILL_CHILD = """
import os, signal, time
child = int(open('/proc/1/task/1/children').read().split()[0])
print(time.time()); os.kill(child, signal.SIGKILL)
"""


def kubectl(*arguments: str, text: str | None = None, check: bool = True) -> str:
    command = ["kubectl", "--namespace", NAMESPACE, *arguments]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {done.stderr}")
    return done.stdout


def apply(*manifests: dict[str, Any]) -> None:
    kubectl("apply", "-f", "-", text=yaml.safe_dump_all(manifests))


def listed(kind: str, labels: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(kubectl("get", kind, "-l", labels, "-o", "json"))["items"]
    return found


def until(what: str, look: Callable[[], T | None], seconds: float = 180.0) -> T:
    deadline = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.1)
    return found


def prepare(nodes: int = 1) -> tuple[str, bytes]:
    """A cluster with the operator and a corpus, and a namespace; the image of workers and a part of the corpus."""
    reporter = Reporter()
    cluster = provider.choose(reporter)
    cluster.up()
    if nodes > 1:
        machine("up", "--nodes", str(nodes))
    os.environ["KUBECONFIG"] = str(cluster.kubeconfig)
    os.environ["PATH"] = f"{cluster.tools()}:{os.environ['PATH']}"
    if nodes > 1:
        only(HOME)  # the operator and the store, too
    cluster.load(images.build(("operator", "worker", "server", "store"), reporter))
    install.install(cluster.images)
    whole = corpus.speeches(paths.cache_folder())
    cluster_store.put([whole], "s3://corpora/sotu/", namespace=install.NAMESPACE, release=install.RELEASE)
    kubectl("wait", f"namespace/{NAMESPACE}", "--for=delete", "--timeout=180s", check=False)  # of a benchmark before
    kubectl("create", "namespace", NAMESPACE)
    return cluster.images["worker"].reference, whole.read_bytes()[:200_000]


def only(node: str) -> None:
    """New pods go there, of the two nodes."""
    kubectl("cordon", HOME if node == AWAY else AWAY)
    kubectl("uncordon", node)


def machine(*arguments: str) -> None:
    """A verb of the cluster tool, on the nodes of a cluster of our own."""
    subprocess.run([sys.executable, "-m", "mms_cluster", *arguments], check=True, stdout=subprocess.DEVNULL)


def words() -> dict[str, Any]:
    """A quick training whose artifact is served."""
    return {
        "apiVersion": "mms.dev/v1alpha1", "kind": "ModelTraining", "metadata": {"name": "words"},
        "spec": {"task": {"wordEmbedding": {"dimensions": 100}}, "data": {"uri": CORPUS}, "optimizer": {"epochs": 1},
                 "workers": {"replicas": 1}},
    }  # fmt: skip


def train(name: str, standby: int = 0, **spec: Any) -> None:
    """Starts it and waits until it steps, and until those that stand by do."""
    apply({
        "apiVersion": "mms.dev/v1alpha1", "kind": "ModelTraining", "metadata": {"name": name},
        "spec": {
            "task": TASK, "data": {"uri": CORPUS},
            "optimizer": {"name": "AdamW", "learningRate": "0.001", "globalBatchSize": 2 * SAMPLES, "epochs": 10000},
            "workers": {
                "replicas": 2, "standby": standby,
                "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": LIMIT},
            },
            "checkpoint": {"intervalSeconds": 10},
            "runPolicy": {"backoffLimit": 100},
            **spec,
        },
    })  # fmt: skip
    until("training", lambda: step(name) > 50 and ready(name) == (2, standby))


def status(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(kubectl("get", f"mt/{name}", "-o", "json")).get("status", {})
    return found


def ready(name: str) -> tuple[int, int]:
    """Workers that train, and that stand by."""
    workers = status(name).get("workers", {})
    return workers.get("ready", 0), workers.get("standby", 0)


def step(name: str) -> int:
    return int(status(name).get("progress", {}).get("step", 0))


def pod(name: str, role: str, rank: int = 0) -> str:
    """The pod that has this place now, or "" where none runs."""
    labels = f"mms.dev/training={name},mms.dev/role={role},mms.dev/rank={rank}"
    found = json.loads(kubectl("get", "pods", "-l", labels, "--sort-by=.metadata.creationTimestamp", "-o", "json"))
    live = [
        p for p in found["items"] if not p["metadata"].get("deletionTimestamp") and p["status"]["phase"] == "Running"
    ]
    return str(live[-1]["metadata"]["name"]) if live else ""


def inside(name: str) -> list[int]:
    """Ranks of the membership epoch that was announced last, oldest first."""
    ranks: list[int] = events(pod(name, "master"), "membership epoch")[-1][1]["ranks"]
    return ranks


def gone(name: str) -> bool:
    return not kubectl("get", "pod", name, "--ignore-not-found")


def delete_pod(name: str) -> float:
    """Without grace; when."""
    at = time.time()
    kubectl("delete", "pod", name, "--grace-period=0", "--force", "--wait=false")
    return at


def kill_process(name: str, script: str = _KILL_CHILD) -> float:
    """SIGKILL to the process that the pod's supervisor has forked, or whatever the script kills; when."""
    return float(kubectl("exec", name, "--", PYTHON, "-c", script).split()[0])


def events(name: str, kind: str, lines: int = 400) -> list[tuple[float, dict[str, Any]]]:
    """Lines of this kind in a pod's log, with their times."""
    text = kubectl("logs", name, f"--tail={lines}", check=False).splitlines()
    found = [json.loads(line) for line in text if line.startswith("{") and f'"{kind}"' in line]
    return [(datetime.fromisoformat(e["timestamp"]).timestamp(), e) for e in found]


def stepping(name: str, after: float, members: int) -> tuple[float, int] | None:
    """When a worker first finished a step of an epoch of so many members that began after that time; and which."""
    begun = {e["epoch"]: len(e["ranks"]) for _, e in events(name, "epoch begins") if "ranks" in e}
    found = [(t, e["step"]) for t, e in events(name, "stepping") if t > after and begun.get(e["epoch"], 0) >= members]
    return min(found, default=None)
