"""Seconds from a death to the next step, on real pods: ours against torchrun elastic with a checkpoint to reload.

Both train the same small transformer with two workers in two pods, each capped at half a core by its cgroup, so that a
survivor cannot take the dead one's share. KILLS times a worker's process is killed by SIGKILL, alternating between the
two; then, POD_KILLS times, a worker's pod is deleted without grace.

- ours, survivors: until a worker that was not killed has finished a step again. all: until both have, together.
- torchrun: until both have finished a step again: every worker is started anew and loads its last checkpoint (one every
  ten seconds), so survivors and all are the same. A deleted pod is made again at once, as a Job would at best.

All times are of one machine's clock, read inside the pods and from the time stamps of their logs.
"""

from __future__ import annotations

import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from mms_cluster import corpus, images, install, paths, provider
from mms_cluster.report import Reporter
from mms_operator.cli import cluster_store

ROOT = Path(__file__).parents[1]
RESULTS = Path(os.environ.get("MMS_RESULTS", ROOT / "benchmarks" / "results")) / "recovery.json"
NAMESPACE = "bench-recovery"
CORPUS = "s3://corpora/sotu/*.txt"
KILLS = int(os.environ.get("KILLS", "30"))
POD_KILLS = int(os.environ.get("POD_KILLS", "30"))
REST_SECONDS = (1.5, 3.0)  # between a recovery and the next kill, at random: no kill meets the same moment of a step
SAMPLES = 8  # of a worker in a step, which is short: what is measured is the recovery
LIMIT = {"cpu": "500m", "memory": "1Gi"}
TASK = {"languageModel": {"dimensions": 64, "layers": 2, "heads": 2, "contextLength": 64}}
PYTHON = "/opt/venv/bin/python"
KILL_CHILD = """
import os, signal, time
child = int(open('/proc/1/task/1/children').read().split()[0])
print(time.time()); os.kill(child, signal.SIGKILL)
"""
KILL_WORKER = """
import os, signal, time
for pid in filter(str.isdigit, os.listdir('/proc')):
    try:
        line = open(f'/proc/{pid}/cmdline').read()
    except OSError:
        continue
    if '/bench/ddp.py' in line and 'torch.distributed.run' not in line:
        print(time.time()); os.kill(int(pid), signal.SIGKILL); break
"""
DDP = """
import datetime, os, time, torch, torch.distributed as dist
from mms_workloads.contract import LanguageModel
from mms_workloads.language.learner import cross_entropy
from mms_workloads.language.transformer import Transformer
torch.set_num_threads(1)
dist.init_process_group('gloo', timeout=datetime.timedelta(seconds=20))
task = LanguageModel(dimensions=64, layers=2, heads=2, contextLength=64)
model = Transformer(task, 1)
ddp = torch.nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.AdamW(ddp.parameters(), 1e-3)
step, path = 0, '/scratch/checkpoint.pt'
if os.path.exists(path):
    saved = torch.load(path)
    model.load_state_dict(saved['model']); optimizer.load_state_dict(saved['optimizer']); step = saved['step']
steps = torch.tensor([step]); dist.all_reduce(steps, dist.ReduceOp.MIN); step = int(steps)
text = torch.tensor(list(open('/bench/text', 'rb').read()), dtype=torch.int64)
saved_at, told_at, first = time.time(), 0.0, True
while True:
    start = torch.randint(0, len(text) - 65, (int(os.environ['SAMPLES']),))
    samples = torch.stack([text[i:i + 65] for i in start])
    optimizer.zero_grad()
    (cross_entropy(ddp, samples) / samples.numel()).backward()
    optimizer.step()
    step += 1
    if first:
        print('STEPPING', time.time(), step, flush=True); first = False
    if time.time() - told_at > 1:
        print('AT', time.time(), step, flush=True); told_at = time.time()
    if time.time() - saved_at > float(os.environ['SAVE_SECONDS']):
        torch.save({'model': model.state_dict(), 'optimizer': optimizer.state_dict(), 'step': step}, path + '.tmp')
        os.replace(path + '.tmp', path); saved_at = time.time()
"""


def kubectl(*arguments: str, text: str | None = None, check: bool = True) -> str:
    command = ["kubectl", "--namespace", NAMESPACE, *arguments]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {done.stderr}")
    return done.stdout


def until(what: str, look: Any, seconds: float = 180.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.1)
    return found


def status() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(kubectl("get", "mt/words", "-o", "json")).get("status", {})
    return found


def reached(step: int) -> bool:
    return bool(status().get("progress", {}).get("step", 0) >= step)


def gone(pod: str) -> bool:
    return not kubectl("get", "pod", pod, "--ignore-not-found")


def worker(rank: int) -> str:
    labels = f"mms.dev/training=words,mms.dev/role=worker,mms.dev/rank={rank}"
    pods = json.loads(kubectl("get", "pods", "-l", labels, "-o", "json"))
    live = [
        p for p in pods["items"] if not p["metadata"].get("deletionTimestamp") and p["status"]["phase"] == "Running"
    ]
    return str(live[-1]["metadata"]["name"]) if live else ""


def events(pod: str, kind: str) -> list[tuple[float, dict[str, Any]]]:
    lines = kubectl("logs", pod, "--tail=400", check=False).splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{") and f'"{kind}"' in line]
    return [(datetime.fromisoformat(e["timestamp"]).timestamp(), e) for e in found]


def stepping(pod: str, after: float, members: int) -> float | None:
    """When the pod first finished a step of an epoch of at least so many members, after that time."""
    begun = {e["epoch"]: len(e["ranks"]) for _, e in events(pod, "epoch begins") if "ranks" in e}
    times = [t for t, e in events(pod, "stepping") if t > after and begun.get(e["epoch"], 0) >= members]
    return min(times) if times else None


def train(uri: str) -> None:
    kubectl("apply", "-f", "-", text=yaml.safe_dump({
        "apiVersion": "mms.dev/v1alpha1", "kind": "ModelTraining", "metadata": {"name": "words"},
        "spec": {
            "task": TASK, "data": {"uri": uri},
            "optimizer": {"name": "AdamW", "learningRate": "0.001", "globalBatchSize": 2 * SAMPLES, "epochs": 10000},
            "workers": {"replicas": 2, "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": LIMIT}},
            "checkpoint": {"intervalSeconds": 10},
            "runPolicy": {"backoffLimit": 100},
        },
    }))  # fmt: skip
    until("training", lambda: status().get("progress", {}).get("step", 0) > 50)


def ours(uri: str, samples: dict[str, list[float]]) -> None:
    train(uri)
    for turn in range(KILLS + POD_KILLS):
        time.sleep(random.uniform(*REST_SECONDS))
        victim = turn % 2
        pod, survivor = worker(victim), worker(1 - victim)
        step = status()["progress"]["step"]
        if turn < KILLS:
            killed, kind = float(kubectl("exec", pod, "--", PYTHON, "-c", KILL_CHILD).split()[0]), "process"
        else:
            killed, kind = time.time(), "pod"
            kubectl("delete", "pod", pod, "--grace-period=0", "--force", "--wait=false")
        alone = until("a survivor's step", partial(stepping, survivor, killed, 1))
        together = until("all ranks' step", partial(stepping, survivor, killed, 2))
        samples[f"{kind}-survivors"].append(alone - killed)
        samples[f"{kind}-all"].append(together - killed)
        after = until("the status", partial(reached, step))
        assert after, "a finished step was lost"
        print(f"{kind} {turn}: survivors {alone - killed:.3f} s, all {together - killed:.3f} s", flush=True)
    kubectl("delete", "mt/words")


def torchrun(image: str, text: bytes, save_seconds: float = 10.0) -> None:
    kubectl("apply", "-f", "-", text=yaml.safe_dump({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "bench"},
        "data": {"ddp.py": DDP, "text": text.decode()},
    }))  # fmt: skip
    kubectl("apply", "-f", "-", text=yaml.safe_dump({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "ddp"},
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {"app": "ddp"}},
    }))  # fmt: skip
    for rank in range(2):
        make_peer(image, rank, save_seconds)
    until("torchrun", lambda: peer_stepping(0, 0.0), 300)


def peer(image: str, text: bytes, samples: dict[str, list[float]]) -> None:
    torchrun(image, text)
    for turn in range(KILLS + POD_KILLS):
        time.sleep(random.uniform(*REST_SECONDS))
        # The pod of rank 0 has the rendezvous: its loss ends the job for good, so pods are only taken from rank 1.
        victim = turn % 2 if turn < KILLS else 1
        if turn < KILLS:
            killed, kind = (
                float(kubectl("exec", f"ddp-{victim}", "--", PYTHON, "-c", KILL_WORKER).split()[0]),
                "process",
            )
        else:
            killed, kind = time.time(), "pod"
            kubectl("delete", "pod", f"ddp-{victim}", "--grace-period=0", "--force", "--wait=false")
            until("its end", partial(gone, f"ddp-{victim}"))
            make_peer(image, victim)
        both = [until("torchrun's step", partial(peer_stepping, rank, killed), 300) for rank in range(2)]
        samples[f"torchrun-{kind}"].append(max(both) - killed)
        print(f"torchrun {kind} {turn}: {max(both) - killed:.3f} s", flush=True)


def make_peer(image: str, rank: int, save_seconds: float = 10.0) -> None:
    command = [
        PYTHON, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--max-restarts=1000",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=ddp-0.ddp:29500", "--rdzv-id=bench", "--rdzv-conf=last_call_timeout=1,join_timeout=300",
        "--monitor-interval=0.1", "/bench/ddp.py",
    ]  # fmt: skip
    kubectl("apply", "-f", "-", text=yaml.safe_dump({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"ddp-{rank}", "labels": {"app": "ddp"}},
        "spec": {
            "hostname": f"ddp-{rank}", "subdomain": "ddp", "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 1,
            "volumes": [{"name": "bench", "configMap": {"name": "bench"}}, {"name": "scratch", "emptyDir": {}}],
            "containers": [{
                "name": "ddp", "image": image, "command": command,
                "resources": {"limits": LIMIT, "requests": {"cpu": "100m"}},
                "env": [{"name": "TMPDIR", "value": "/scratch"}, {"name": "OMP_NUM_THREADS", "value": "1"},
                        {"name": "SAMPLES", "value": str(SAMPLES)},
                        {"name": "SAVE_SECONDS", "value": str(save_seconds)}],
                "volumeMounts": [
                    {"name": "bench", "mountPath": "/bench"}, {"name": "scratch", "mountPath": "/scratch"},
                ],
            }],
        },
    }))  # fmt: skip


def peer_stepping(rank: int, after: float) -> float | None:
    lines = kubectl("logs", f"ddp-{rank}", "--tail=200", check=False).splitlines()
    times = [float(m[1]) for line in lines if (m := re.search(r"STEPPING ([\d.]+)", line)) and float(m[1]) > after]
    return min(times) if times else None


def quantile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(part * (len(ordered) - 1)))]


def lines(samples: dict[str, list[float]]) -> list[str]:
    """The RESULT lines, from the raw samples alone."""
    said = []
    for kind, peers in (("process", "torchrun-process"), ("pod", "torchrun-pod")):
        theirs = samples[peers]
        if not theirs:
            continue
        for who in ("all", "survivors"):
            mine = samples[f"{kind}-{who}"]
            name = f"recovery-{kind}-{who}"
            for label, part in (("p99", 0.99), ("p50", 0.5)):
                a, b = quantile(mine, part), quantile(theirs, part)
                said.append(f"RESULT {name}-{label} {a:.3f} s vs torchrun {b:.3f} s: {b / a:.1f}x")
        a, b = statistics.median(samples[f"{kind}-survivors"]), statistics.median(theirs)
        said.append(f"RESULT recovery-{kind} {a:.3f} s vs torchrun {b:.3f} s: {b / a:.1f}x")
    return said


def prepare() -> tuple[str, bytes]:
    """A cluster with the operator and a corpus, and a namespace; the image of workers and the corpus."""
    reporter = Reporter()
    cluster = provider.choose(reporter)
    cluster.up()
    os.environ["KUBECONFIG"] = str(cluster.kubeconfig)
    os.environ["PATH"] = f"{cluster.tools()}:{os.environ['PATH']}"
    cluster.load(images.build(("operator", "worker", "server", "store"), reporter))
    install.install(cluster.images)
    whole = corpus.speeches(paths.cache_folder())
    cluster_store.put([whole], "s3://corpora/sotu/", namespace=install.NAMESPACE, release=install.RELEASE)
    kubectl("create", "namespace", NAMESPACE)
    return cluster.images["worker"].reference, whole.read_bytes()[:200_000]


def main() -> int:
    image, text = prepare()
    samples: dict[str, list[float]] = {
        name: []
        for name in ("process-survivors", "process-all", "pod-survivors", "pod-all", "torchrun-process", "torchrun-pod")
    }
    try:
        ours(CORPUS, samples)
        peer(image, text, samples)
    finally:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(samples), encoding="utf-8")
        kubectl("delete", "namespace", NAMESPACE, "--wait=false", check=False)
    for line in lines(samples):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
