"""Samples per second and accuracy of each task, against a plain loop of one process. `make bench-tasks`.

Both have the same network, the same samples, and make as many steps. Ours: workers as processes of this machine, with a
master, leases, the ring, its guard and its checkpoints, reading files. Beside: a loop in PyTorch over samples that lie
in memory, with torch.optim.AdamW. Each runs with one thread for each worker; sides take turns, and the ratio is the
median of those of the pairs. With two workers what counts is the rate of each at the plain loop's batch, so that the
global batch is twice as large; the plain loop runs twice at once, so that both sides have both processors, of which the
master takes its part from ours.

The metric is that on the same held-out blocks, over the seeds: ours must not be worse by more than the task's margin.
The tasks, their data and margins are those of tests/unit/tasks/cases.py, which test_equality.py holds to be equal in
loss curve and metric at the same global batch. Their networks are small: a step takes 1 to 27 ms.
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
from tests.unit.tasks import cases, plain
from tests.unit.tasks.cases import CASES

PAIRS = int(os.environ.get("MMS_BENCH_PAIRS", "3"))
WORKERS = [int(one) for one in os.environ.get("MMS_BENCH_WORKERS", "1,2").split(",")]
ONLY = os.environ.get("MMS_BENCH_TASKS", "")
SECONDS = 600.0
WARM = 5  # steps before the clock starts
CHECKPOINT = {"intervalSeconds": 3600, "keep": 1}
# Times the epochs of the task's case: the plain loop then takes about eight seconds.
LONGER = {
    "image-classification": 8,
    "object-detection": 2,
    "image-generation": 5,
    "video-understanding": 2,
    "text-classification": 5,
    "token-classification": 16,
    "text-matching": 16,
    "speech-recognition": 4,
    "language-model": 3,
}
# Times the bytes of a block, which are few in the cases, as leases are what those are about. One is held out at least.
LARGER = dict.fromkeys(LONGER, 4) | {"token-classification": 2}


def ours(training: JobFile, folder: Path) -> tuple[float, dict[str, float]]:
    """Samples a second of each worker, after the first WARM steps; the metrics."""
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
            time.sleep(0.1)
        outcome = run.outcome(SECONDS)
    if outcome.result != "Complete" or outcome.artifact is None or first is None:
        raise SystemExit(f"{outcome}")
    rate = (last[1] - first[1]) * training.optimizer.globalBatchSize / (last[0] - first[0]) / training.workers
    return rate, outcome.artifact.metrics


def job(name: str, folder: Path, uri: str, *, seed: int, workers: int) -> JobFile:
    """The steps of one worker's run, and the batch of each of its workers, are the same for any number of them."""
    found = cases.training(name, folder, uri, seed=seed, workers=workers, checkpoint=CHECKPOINT)
    given = found.optimizer
    optimizer = given.model_copy(
        update={
            "epochs": given.epochs * LONGER[name] * workers,
            "globalBatchSize": given.globalBatchSize * workers,
        }
    )
    data = found.data.model_copy(update={"blockBytes": found.data.blockBytes * LARGER[name]})
    return found.model_copy(update={"optimizer": optimizer, "data": data})


def main() -> int:
    failed = False
    for name in CASES:
        for workers in WORKERS:
            if not ONLY or name in ONLY.split(","):
                failed |= not compared(name, workers)
    return int(failed)


def compared(name: str, workers: int) -> bool:
    """Prints the result; whether ours is as good."""
    case = CASES[name]
    rates: list[tuple[float, float]] = []
    scores: list[tuple[float, float]] = []
    for pair in range(PAIRS):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            uri = case.data(folder / "data")
            rate, metrics = ours(job(name, folder, uri, seed=pair + 1, workers=workers), folder)
            (folder / "job.json").write_text(
                job(name, folder, uri, seed=pair + 1, workers=1).model_dump_json(exclude_none=True)
            )
            found = beside(folder, workers)
        rates.append((rate, statistics.mean(one["rate"] for one in found)))
        scores.append((metrics[case.metric], found[0]["metrics"][case.metric]))
        (mine, plain), (score, other) = rates[-1], scores[-1]
        speed = f"{mine:.0f} and {plain:.0f} samples/s a worker"
        print(f"{name} {workers}: {speed}, {case.metric} {score:.3f} and {other:.3f}", flush=True)
    means = [statistics.mean(one[side] for one in scores) for side in (0, 1)]
    worse = means[0] - means[1] if case.less else means[1] - means[0]
    scored = f"{means[0]:.4f} and {means[1]:.4f}"
    print(f"  {case.metric} over {PAIRS} seeds: {scored}; at most {case.margin} worse is wanted")
    mine, plain = (statistics.median(one[side] for one in rates) for side in (0, 1))
    ratio = statistics.median(a / b for a, b in rates)
    print(f"RESULT {name}-{workers} {mine:.0f} samples/s vs plain PyTorch {plain:.0f} samples/s: {ratio:.2f}x")
    return worse <= case.margin


def beside(folder: Path, count: int) -> list[dict[str, Any]]:
    """So many plain loops of job.json at once, each on one thread: their rates and metrics."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    program = [sys.executable, __file__, "plain", str(folder / "job.json")]
    loops = [subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(count)]
    return [json.loads(loop.communicate()[0].splitlines()[-1]) for loop in loops]


def alone(path: Path) -> None:
    """The loop, on one thread."""
    training = JobFile.model_validate_json(path.read_bytes())
    torch.set_num_threads(1)
    found = plain.loop(training, path.parent, warm=WARM)
    print(json.dumps({"rate": found.rate, "metrics": found.metrics}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["plain"]:
        alone(Path(sys.argv[2]))
        sys.exit(0)
    sys.exit(main())
