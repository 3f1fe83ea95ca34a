"""Samples per second and accuracy of the tasks, against a plain loop of one process. `make bench-tasks`.

Both have the same network, the same samples in the same batches' size and the same number of steps. Ours: workers as
processes of this machine, with a master, leases, the ring, its guard and its checkpoints, reading files. Beside: a loop
in PyTorch over samples that lie in memory, with torch.optim.AdamW. Each runs with one thread for each worker; sides
take turns, and the ratio is the median of those of the pairs. With two workers what counts is the rate of each, and the
plain loop runs twice at once, so that both sides have both processors.

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

from mms_workloads.contract import Activity, JobFile
from mms_workloads.train.local import LocalRun
from tests.unit.tasks import datasets, plain

PAIRS = int(os.environ.get("MMS_BENCH_PAIRS", "3"))
WORKERS = [int(one) for one in os.environ.get("MMS_BENCH_WORKERS", "1,2").split(",")]
ONLY = os.environ.get("MMS_BENCH_TASKS", "")
MARGIN = 0.02
SECONDS = 600.0
WARM = 5  # steps before the clock starts

TASKS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "image-classification": (
        {"imageClassification": {"height": 8, "width": 8, "channels": 1}},
        "accuracy",
        {"epochs": 8, "globalBatchSize": 64},
    ),
    "text-classification": (
        {"textClassification": {"dimensions": 64, "maxLength": 128}},
        "accuracy",
        {"epochs": 2, "globalBatchSize": 32},
    ),
    "video-understanding": (
        {"videoUnderstanding": {"height": 20, "width": 20, "channels": 1, "frames": 6}},
        "accuracy",
        {"epochs": 8, "globalBatchSize": 16},
    ),
}


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
        for workers in WORKERS:
            if not ONLY or name in ONLY.split(","):
                failed |= not compared(name, workers)
    return int(failed)


def compared(name: str, workers: int) -> bool:
    """Prints the result; whether ours is as accurate."""
    metric = TASKS[name][1]
    rates: list[tuple[float, float]] = []
    scores: list[tuple[float, float]] = []
    for pair in range(PAIRS):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            uri, block = data_of(name, folder)
            training = job(name, folder, uri, block, workers=workers, seed=pair + 1)
            (folder / "job.json").write_text(training.model_dump_json(exclude_none=True))
            rate, score = ours(training, folder)
            loops = [beside(folder) for _ in range(workers)]
            found = [json.loads(loop.communicate()[0].splitlines()[-1]) for loop in loops]
        rates.append((rate, statistics.mean(one["rate"] for one in found)))
        scores.append((score, found[0]["score"]))
        (mine, plain), (score, other) = rates[-1], scores[-1]
        print(f"{name} {workers}: {mine:.0f} and {plain:.0f} samples/s a worker, {metric} {score:.3f} and {other:.3f}")
        sys.stdout.flush()
    means = [statistics.mean(one[side] for one in scores) for side in (0, 1)]
    print(f"  {metric} over {PAIRS} seeds: {means[0]:.4f} and {means[1]:.4f}; at most {MARGIN} less is wanted")
    mine, plain = (statistics.median(one[side] for one in rates) for side in (0, 1))
    ratio = statistics.median(a / b for a, b in rates)
    print(f"RESULT {name}-{workers} {mine:.0f} samples/s vs plain PyTorch {plain:.0f} samples/s: {ratio:.2f}x")
    return means[0] >= means[1] - MARGIN


def beside(folder: Path) -> subprocess.Popen[str]:
    """A plain loop on one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    program = [sys.executable, __file__, "plain", str(folder / "job.json")]
    return subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env=environment)


def alone(path: Path) -> None:
    """The loop, on one thread."""
    training = JobFile.model_validate_json(path.read_bytes())
    torch.set_num_threads(1)
    found = plain.loop(training, path.parent, warm=WARM)
    print(json.dumps({"rate": found.rate, "score": found.metrics[TASKS[training.job.name][1]]}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["plain"]:
        alone(Path(sys.argv[2]))
        sys.exit(0)
    sys.exit(main())
