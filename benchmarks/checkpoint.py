"""Checkpoints: what they cost a training, how fast they are, and suspension. `make bench-checkpoint`.

Two ranks, each a process with one thread, started by torchrun; checkpoint_rank.py is what they do. The state is that of
a transformer with AdamW: parameters and two slots of each, of which each rank saves a half.

checkpoint-stall: how long the loop is blocked in `Checkpointer.save`, which copies the rank's part, as a part of the
time at one save per 30 s. checkpoint-slowdown: all that a save takes from training, which fills the processors while
the copy is written: steps with a save against as many without.

checkpoint-save and checkpoint-restore: MB/s of the whole state, against torch.distributed.checkpoint
(FileSystemWriter and FileSystemReader with one thread a rank, its default; the same tensors by name, each saved once).
Both are durable: each side calls fsync for its files. Ours has BLAKE3 of every file, read back once after writing and
checked when loaded; the peer has torch.save's CRC-32. "undigested" is ours without digests and without reading back:
the difference is their price. The kernel's copies of the files are dropped before a restore. In the object store
(SeaweedFS on this machine) the peer is FsspecWriter over the same s3fs, which cannot fsync.

suspend-to-durable: from the wish until the master reports a valid checkpoint, of a language model on two workers.
resume-to-first-step: from the start of new processes until the first step beyond it is reported.

A figure is the median over the rounds in which the machine was quiet (others.py), and a ratio the median of the ratios
within the rounds. The raw samples are in checkpoint.json; `python benchmarks/checkpoint.py --results FILE` computes
the lines again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.others import at_rest, enough, quiet, words
from mms_workloads.contract import Desired, JobFile, StatusReport
from mms_workloads.train.local import LocalRun
from tests.unit import weed

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]
RANK = Path(__file__).with_name("checkpoint_rank.py")
# MB of parameters, and the steps within which a save of so many is written.
SIZES = {64: int(os.environ.get("MMS_BENCH_STEPS_64", "12")), 256: int(os.environ.get("MMS_BENCH_STEPS_256", "8"))}
ROUNDS = int(os.environ.get("MMS_BENCH_ROUNDS", "5"))
INTERVAL_SECONDS = 30.0
RANKS = 2
WAYS = ("ours", "undigested", "peer")
POLL_SECONDS = 0.02
LIMIT_SECONDS = 120.0
TEXT_BYTES = 4 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="print the lines of this file instead of measuring")
    arguments = parser.parse_args()
    if arguments.results:
        report(json.loads(arguments.results.read_text()))
        return
    samples: dict[str, Any] = {"cores": os.cpu_count(), "stall": {}, "save": {}}
    for megabytes, steps in SIZES.items():
        print(f"{megabytes} MB of parameters", file=sys.stderr)
        samples["stall"][str(megabytes)] = in_files(megabytes, ["--window-steps", str(steps)])
        samples["save"][f"{megabytes}MB"] = in_files(megabytes, [])
    print("object store", file=sys.stderr)
    samples["save"][f"s3-{min(SIZES)}MB"] = in_object_store(min(SIZES))
    print("suspension", file=sys.stderr)
    samples["suspension"] = suspension()
    file = Path(os.environ.get("MMS_RESULTS", "benchmarks/results")) / "checkpoint.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(samples, indent=1))
    print(f"samples: {file}")
    report(samples)


def report(samples: dict[str, Any]) -> None:
    """The lines, from the raw samples alone."""
    print(f"{RANKS} ranks on {samples['cores']} cores")
    for size, run in samples["stall"].items():
        rounds = quiet(run["rounds"])
        blocked, lost = _median(rounds, "blocked"), statistics.median(r["with"] - r["without"] for r in rounds)
        every = f"of the time at one save per {INTERVAL_SECONDS:g} s"
        print(f"{size} MB of parameters: {words(run['rounds'])}; durable after {_median(rounds, 'written'):.2f} s")
        print(f"RESULT checkpoint-stall-{size}MB {blocked / INTERVAL_SECONDS:.2%} {every} ({1e3 * blocked:.0f} ms)")
        print(f"RESULT checkpoint-slowdown-{size}MB {lost / INTERVAL_SECONDS:.2%} {every} ({1e3 * lost:.0f} ms)")
    for name, run in samples["save"].items():
        rounds, megabytes = quiet(run["rounds"]), run["state_bytes"] / 1e6
        print(f"{name}, a state of {megabytes:.0f} MB: {words(run['rounds'])}")
        for what in ("save", "restore"):
            ours, undigested, peer = (megabytes / _median(rounds, f"{way}-{what}") for way in WAYS)
            ratio = statistics.median(r[f"peer-{what}"] / r[f"ours-{what}"] for r in rounds)
            price = statistics.median(r[f"ours-{what}"] / r[f"undigested-{what}"] - 1 for r in rounds)
            print(
                f"RESULT checkpoint-{what}-{name} {ours:.0f} MB/s vs torch.distributed.checkpoint {peer:.0f} MB/s: "
                f"{ratio:.2f}x (undigested {undigested:.0f} MB/s; verified it takes {price:.0%} longer)"
            )
    rounds = quiet(samples["suspension"])
    print(f"suspension: {words(samples['suspension'])}")
    print(f"RESULT suspend-to-durable {_median(rounds, 'suspend'):.2f} s")
    print(f"RESULT resume-to-first-step {_median(rounds, 'resume'):.2f} s")


def _median(rounds: list[dict[str, float]], what: str) -> float:
    return statistics.median(one[what] for one in rounds)


def in_files(megabytes: int, options: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="mms-bench-checkpoint-") as folder:
        return measure(megabytes, {"uri": f"file://{folder}/store"}, Path(folder), options, {})


def in_object_store(megabytes: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="mms-bench-checkpoint-") as name:
        folder = Path(name)
        (folder / "weed").mkdir()
        secret = folder / "credentials" / "store"
        secret.mkdir(parents=True)
        (secret / "AWS_ACCESS_KEY_ID").write_text(weed.ADMIN[0])
        (secret / "AWS_SECRET_ACCESS_KEY").write_text(weed.ADMIN[1])
        with weed.Weed(folder / "weed") as service:
            storage = {"uri": "s3://bench/run", "endpoint": service.endpoint, "credentials": "store"}
            return measure(megabytes, storage, folder, [], {"MMS_CREDENTIALS_DIR": str(secret.parent)})


def measure(
    megabytes: int, storage: dict[str, str], folder: Path, options: list[str], environment: dict[str, str]
) -> dict[str, Any]:
    out = folder / "samples.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS), str(RANK)]
    command += ["--megabytes", str(megabytes), "--storage", json.dumps(storage), "--folder", str(folder)]
    command += ["--rounds", str(ROUNDS), "--out", str(out), *options]
    path = os.pathsep.join([str(ROOT / "workloads"), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment}
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)  # the log of the saves
    samples: dict[str, Any] = json.loads(out.read_text())
    return samples


def suspension() -> list[dict[str, float]]:
    """A round: suspended processes are followed by others, which go on, and are suspended in their turn."""
    found: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="mms-bench-checkpoint-") as name:
        folder = Path(name)
        job = _job(folder)
        with LocalRun(folder / "run-1", job) as run:
            run.start().until(lambda report: report.step >= 3, LIMIT_SECONDS)
            _suspend(run)
        while not enough(found, ROUNDS):
            attempt, others = len(found) + 2, at_rest()
            with LocalRun(folder / f"run-{attempt}", job, attempt=attempt) as run:
                began = time.monotonic()
                run.start()
                held = _until(run, lambda report: report.checkpoint).checkpoint
                assert held is not None
                _until(run, lambda report, step=held.step: report.step > step)  # type: ignore[misc]
                found.append({"resume": time.monotonic() - began, "suspend": _suspend(run)})
            found[-1]["others"] = max(others, at_rest())
    return found


def _suspend(run: LocalRun) -> float:
    """Seconds until the checkpoint is durable; then waits for the processes to end."""
    began = time.monotonic()
    run.desire(Desired(suspend=True, workers=RANKS))
    _until(run, lambda report: report.outcome)
    seconds = time.monotonic() - began
    outcome = run.outcome(LIMIT_SECONDS)
    assert outcome.result == "Suspended", outcome
    assert outcome.checkpoint is not None
    return seconds


def _until(run: LocalRun, ready: Callable[[StatusReport], Any]) -> StatusReport:
    deadline = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < deadline:
        report = run.status()
        if report and ready(report):
            return report
        time.sleep(POLL_SECONDS)
    raise TimeoutError(run.logs())


def _job(folder: Path) -> JobFile:
    """A small language model on the text of Python's standard library."""
    (folder / "corpus").mkdir()
    files = sorted(Path(os.__file__).parent.glob("*.py"))
    (folder / "corpus" / "a.txt").write_bytes(b"".join(f.read_bytes() for f in files)[:TEXT_BYTES])
    fields = {
        "job": {"namespace": "bench", "name": "text", "uid": "bench", "run": 1},
        "task": {"languageModel": {"dimensions": 256, "layers": 4, "heads": 4, "contextLength": 128}},
        "data": {"store": {"uri": f"file://{folder}/corpus/*"}},
        "optimizer": {"name": "AdamW", "learningRate": 1e-3, "globalBatchSize": 16, "epochs": 100},
        "workers": RANKS,
        "checkpoint": {"intervalSeconds": 3600},
        "storage": {"uri": f"file://{folder}/storage"},
        "masterHost": "127.0.0.1",
    }
    return JobFile.model_validate(fields)


if __name__ == "__main__":
    main()
