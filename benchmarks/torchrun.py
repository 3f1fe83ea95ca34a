"""The peer of the benchmarks on a cluster: torchrun elastic with two pods, and a checkpoint that it reloads.

Rank 0 saves it to a folder that all pods have, as to a shared file system: it outlives them.
"""

from __future__ import annotations

import re
import uuid
from functools import partial

from benchmarks.on_cluster import LIMIT, PYTHON, SAMPLES, apply, delete_pod, gone, kill_process, kubectl, until

SHARED = f"/var/tmp/mms-bench-{uuid.uuid4().hex[:8]}"
_KILL_WORKER = """
import os, signal, time
for pid in filter(str.isdigit, os.listdir('/proc')):
    try:
        line = open(f'/proc/{pid}/cmdline').read()
    except OSError:
        continue
    if '/bench/ddp.py' in line and 'torch.distributed.run' not in line:
        print(time.time()); os.kill(int(pid), signal.SIGKILL); break
else:
    print(time.time())
"""
_DDP = """
import datetime, os, time, torch, torch.distributed as dist
from mms_workloads.contract import LanguageModel
from mms_workloads.language.learner import cross_entropy
from mms_workloads.language.transformer import Transformer
torch.set_num_threads(1)
dist.init_process_group('gloo', timeout=datetime.timedelta(seconds=20))
task = LanguageModel(dimensions=64, layers=2, heads=2, contextLength=64)
model = Transformer(task, 1)
optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
path = '/shared/checkpoint.pt'
saved = [torch.load(path) if dist.get_rank() == 0 and os.path.exists(path) else {'step': 0}]
dist.broadcast_object_list(saved); step = saved[0]['step']
if step:
    model.load_state_dict(saved[0]['model']); optimizer.load_state_dict(saved[0]['optimizer'])
ddp = torch.nn.parallel.DistributedDataParallel(model)
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
    if dist.get_rank() == 0 and time.time() - saved_at > float(os.environ['SAVE_SECONDS']):
        torch.save({'model': model.state_dict(), 'optimizer': optimizer.state_dict(), 'step': step}, path + '.tmp')
        os.replace(path + '.tmp', path); saved_at = time.time()
"""


def start(image: str, text: bytes, save_seconds: float) -> None:
    """Waits until two pods step."""
    apply(
        {
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "bench"},
            "data": {"ddp.py": _DDP, "text": text.decode()},
        },
        {
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "ddp"},
            "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {"app": "ddp"}},
        },
    )  # fmt: skip
    for rank in range(2):
        make_pod(image, rank, save_seconds)
    both_stepping(0.0)


def make_pod(image: str, rank: int, save_seconds: float) -> None:
    command = [
        PYTHON, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--max-restarts=1000",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=ddp-0.ddp:29500", "--rdzv-id=bench",
        "--rdzv-conf=last_call_timeout=1,join_timeout=300,keep_alive_interval=1,keep_alive_max_attempt=3",
        "--monitor-interval=0.1", "/bench/ddp.py",
    ]  # fmt: skip
    apply({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"ddp-{rank}", "labels": {"app": "ddp"}},
        "spec": {
            "hostname": f"ddp-{rank}", "subdomain": "ddp", "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 1,
            "volumes": [
                {"name": "bench", "configMap": {"name": "bench"}}, {"name": "scratch", "emptyDir": {}},
                {"name": "shared", "hostPath": {"path": SHARED, "type": "DirectoryOrCreate"}},
            ],
            "initContainers": [{
                "name": "open", "image": image, "command": ["chmod", "777", "/shared"],
                "securityContext": {"runAsUser": 0}, "volumeMounts": [{"name": "shared", "mountPath": "/shared"}],
            }],
            "containers": [{
                "name": "ddp", "image": image, "command": command,
                "resources": {"limits": LIMIT, "requests": {"cpu": "100m"}},
                "env": [{"name": "TMPDIR", "value": "/scratch"}, {"name": "OMP_NUM_THREADS", "value": "1"},
                        {"name": "SAMPLES", "value": str(SAMPLES)},
                        {"name": "SAVE_SECONDS", "value": str(save_seconds)}],
                "volumeMounts": [
                    {"name": "bench", "mountPath": "/bench"}, {"name": "scratch", "mountPath": "/scratch"},
                    {"name": "shared", "mountPath": "/shared"},
                ],
            }],
        },
    })  # fmt: skip


def kill_worker(rank: int) -> float:
    """SIGKILL to the worker that torchrun has started in the pod, where there is one just now; when."""
    return kill_process(f"ddp-{rank}", _KILL_WORKER)


def replace_pod(image: str, save_seconds: float, rank: int = 1) -> float:
    """Deletes a pod and makes it again at once, as a Job would at best; when it was deleted.

    The pod of rank 0 has the rendezvous: its loss ends the job for good.
    """
    killed = delete_pod(f"ddp-{rank}")
    until("its end", partial(gone, f"ddp-{rank}"))
    make_pod(image, rank, save_seconds)
    return killed


def stepping(rank: int, after: float) -> float | None:
    """When a worker that was started after that time finished its first step."""
    lines = kubectl("logs", f"ddp-{rank}", "--tail=200", check=False).splitlines()
    times = [float(m[1]) for line in lines if (m := re.search(r"STEPPING ([\d.]+)", line)) and float(m[1]) > after]
    return min(times, default=None)


def both_stepping(after: float) -> float:
    """Waits until two pods do that have started a worker after that time; when the later one finished its first step.

    A third pod, where there is one, is torchrun's spare.
    """

    def two() -> float | None:
        times = sorted(time for rank in range(3) if (time := stepping(rank, after)))
        return times[1] if len(times) > 1 else None

    return until("torchrun's steps", two, 300)


def trains() -> int:
    """Which of the pods but the first one trains: the other is a spare."""
    last = {}
    for rank in (1, 2):
        found = re.findall(r"(?:AT|STEPPING) ([\d.]+)", kubectl("logs", f"ddp-{rank}", "--tail=50", check=False))
        last[float(found[-1]) if found else 0.0] = rank
    return last[max(last)]


def step() -> int:
    """What was told last, by whichever pod: after a restart it is less than before."""
    told = []
    for rank in range(3):
        lines = kubectl("logs", f"ddp-{rank}", "--tail=1000", check=False)
        told += [(float(m[1]), int(m[2])) for m in re.finditer(r"(?:AT|STEPPING) ([\d.]+) (\d+)", lines)]
    return max(told, default=(0.0, 0))[1]
