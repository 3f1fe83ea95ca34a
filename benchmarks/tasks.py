"""Samples per second and accuracy of the tasks, against a plain loop of one process. `make bench-tasks`.

Both have the same network, the same samples in the same batches' size and the same number of steps. Ours: workers as
processes of this machine, with a master, leases, the ring, its guard and its checkpoints, reading files. Beside: a loop in
PyTorch over samples that lie in memory, with torch.optim.AdamW. Each runs with one thread for each worker; sides take
turns, and the ratio is the median of those of the pairs. With two workers what counts is the rate of each, and the plain
loop runs twice at once, so that both sides have both processors.

The accuracy is that on the same held-out blocks, over the seeds: ours must not be lower by more than MARGIN.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from tests.unit.tasks import datasets

from mms_workloads.contract import Activity, JobFile
from mms_workloads.pod import Pod
from mms_workloads.sync import checkpoints, plan as plans
from mms_workloads.store import JobError
from mms_workloads.tasks import making
from mms_workloads.train.learner import decayed
from mms_workloads.train.local import LocalRun
from mms_workloads import store as stores

PAIRS = int(os.environ.get("MMS_BENCH_PAIRS", "3"))
WORKERS = [int(one) for one in os.environ.get("MMS_BENCH_WORKERS", "1,2").split(",")]
ONLY = os.environ.get("MMS_BENCH_TASKS", "")
MARGIN = 0.02
SECONDS = 600.0
WARM = 5  # steps before the clock starts

TASKS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "image-classification": (
        {"imageClassification": {"height": 8, "width": 8, "channels": 1}}, "accuracy", {"epochs": 8, "globalBatchSize": 64},
    ),
    "text-classification": (
        {"textClassification": {"dimensions": 64, "maxLength": 128}}, "accuracy", {"epochs": 2, "globalBatchSize": 32},
    ),
    "video-understanding": (
        {"videoUnderstanding": {"height": 20, "width": 20, "channels": 1, "frames": 6}}, "accuracy",
        {"epochs": 8, "globalBatchSize": 16},
    ),
}  # fmt: skip


def data_of(name: str, folder: Path) -> tuple[str, int]:
    """The URI of the data set, and the size of its blocks."""
    if name == "image-classification":
        return datasets.image_folder(folder / "digits"), 8 << 10
    if name == "video-understanding":
        return datasets.tar_of(folder / "videos", datasets.videos(300)), 32 << 10
    return datasets.opinions(folder / "opinions", 4000), 16 << 10


def job(name: str, folder: Path, uri: str, block: int, *, workers: int, seed: int) -> JobFile:
    task, _, optimizer = TASKS[name]
    return JobFile.model_validate(
        {
            "job": {"namespace": "b", "name": name, "uid": "b", "run": 1},
            "task": task,
            "data": {"store": {"uri": uri}, "blockBytes": block},
            "optimizer": {"name": "AdamW", "learningRate": 0.002, "seed": seed, **optimizer},
            "evaluation": {"split": 0.2},
            "checkpoint": {"intervalSeconds": 3600, "keep": 1},
            "workers": workers,
            "storage": {"uri": f"file://{folder}/storage"},
            "masterHost": "127.0.0.1",
        }
    )


def ours(training: JobFile, folder: Path) -> tuple[float, float]:
    """Samples a second of each worker, after the first WARM steps; the metric."""
    os.environ["OMP_NUM_THREADS"] = "1"
    first: tuple[float, int] | None = None
    last = (0.0, 0)
    with LocalRun(folder / "run", training) as run:
        run.start()
        while True:
            report = run.status()
            now = time.perf_counter()
            if report and report.activity == Activity.TRAINING and report.step >= WARM:
                first = first or (now, report.step)
                if report.step > last[1]:
                    last = now, report.step
            if report and report.outcome:
                break
            time.sleep(0.02)
        outcome = run.outcome(SECONDS)
    if outcome.result != "Complete" or outcome.artifact is None or first is None:
        raise SystemExit(f"{outcome}")
    rate = (last[1] - first[1]) * training.optimizer.globalBatchSize / (last[0] - first[0]) / training.workers
    return rate, outcome.artifact.metrics[TASKS[training.job.name][1]]


def main() -> int:
    failed = False
    for name in TASKS:
        if ONLY and name not in ONLY.split(","):
            continue
        for workers in WORKERS:
            ratios, rates, beside, scores = [], [], [], []
            for pair in range(PAIRS):
                with tempfile.TemporaryDirectory() as place:
                    folder = Path(place)
                    uri, block = data_of(name, folder)
                    training = job(name, folder, uri, block, workers=workers, seed=pair + 1)
                    rate, score = ours(training, folder)
                    plan = folder / "plan.bin"
                    (folder / "job.json").write_text(training.model_dump_json(exclude_none=True))
                    program = [sys.executable, __file__, "plain", str(folder / "job.json"), str(plan)]
                    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
                    loops = [
                        subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env=environment)
                        for _ in range(workers)
                    ]
                    found = [json.loads(loop.communicate()[0].splitlines()[-1]) for loop in loops]
                    plain = statistics.mean(one["rate"] for one in found)
                    ratios.append(rate / plain)
                    rates.append(rate)
                    beside.append(plain)
                    scores.append((score, found[0]["score"]))
                    print(f"{name} {workers}: {rate:.0f} and {plain:.0f} samples/s a worker, {score:.3f} and {found[0]['score']:.3f}", flush=True)
            mean = [statistics.mean(one[side] for one in scores) for side in (0, 1)]
            failed |= mean[0] < mean[1] - MARGIN
            print(
                f"RESULT {name}-{workers} {statistics.median(rates):.0f} samples/s vs plain PyTorch "
                f"{statistics.median(beside):.0f} samples/s: {statistics.median(ratios):.2f}x"
            )
            print(f"  {TASKS[name][1]} over {PAIRS} seeds: {mean[0]:.4f} and {mean[1]:.4f}")
    return int(failed)


def plain(path: Path) -> None:
    """The loop: all in memory, one process, torch.optim."""
    from mms_workloads.contract import Data  # noqa: F401, PLC0415
    from mms_workloads.data.records import count as survey  # noqa: PLC0415
    from mms_workloads.sync.counting import Counting  # noqa: PLC0415

    training = JobFile.model_validate_json(path.read_bytes())
    torch.set_num_threads(1)
    learner = making.make(training, counted(training, path.parent), path.parent / "plain")
    network = learner.start().module
    blocks = {block: learner._prepared(block) for block in learner.trained_on}  # noqa: SLF001
    names = list(next(iter(blocks.values())))
    widest = {name: max((b[name].shape[1] for b in blocks.values() if b[name].dim() > 1), default=0) for name in names}

    def padded(name: str, tensor: torch.Tensor) -> torch.Tensor:
        short = widest[name] - tensor.shape[1] if tensor.dim() == 2 else 0
        return torch.nn.functional.pad(tensor, (0, short)) if short else tensor

    whole = {name: torch.cat([padded(name, b[name]) for b in blocks.values()]) for name in names}
    optimizer = torch.optim.AdamW(
        [p for p in network.parameters() if p.requires_grad], lr=training.optimizer.learningRate, weight_decay=0.0
    )
    size, count = training.optimizer.globalBatchSize, len(next(iter(whole.values())))
    generator = torch.Generator().manual_seed(training.optimizer.seed)
    steps, began, taken = 0, 0.0, 0
    total = training.optimizer.epochs * count
    seen = 0
    for _ in range(training.optimizer.epochs):
        order = torch.randperm(count, generator=generator)
        for start in range(0, count, size):
            if steps == WARM:
                began, taken = time.perf_counter(), 0
            chosen = order[start : start + size]
            batch = {name: tensor[chosen] for name, tensor in whole.items()}
            for group in optimizer.param_groups:
                group["lr"] = decayed(training.optimizer.learningRate, seen / total)
            optimizer.zero_grad()
            loss = learner.task.loss(network, batch, generator) / len(chosen)
            loss.backward()
            optimizer.step()
            steps += 1
            taken += len(chosen)
            seen += len(chosen)
    rate = taken / (time.perf_counter() - began)
    network.eval()
    with torch.no_grad():
        metrics = learner.task.measure(network, learner._evaluated(list(learner.held_out), []))  # noqa: SLF001
    print(json.dumps({"rate": rate, "score": metrics[TASKS[training.job.name][1]]}))


def counted(training: JobFile, folder: Path) -> plans.Plan:
    """The plan of a run, as the counting pass makes it."""
    from mms_workloads.data import records  # noqa: PLC0415
    from mms_workloads.sync.counting import Counting  # noqa: PLC0415

    counting = Counting.start(stores.glob(training.data.store), training.data)
    while not counting.complete():
        number = counting.take(0)
        assert number is not None
        assert counting.format is not None
        survey, sizes = records.count(
            training.data, counting.uris(number), list(counting.tasks[number]), counting.format, folder
        )
        counting.add_survey(number, survey, sizes)
    return counting.plan(None, training.data.blockBytes)


if __name__ == "__main__":
    if sys.argv[1:2] == ["plain"]:
        plain(Path(sys.argv[2]))
        sys.exit(0)
    sys.exit(main())
