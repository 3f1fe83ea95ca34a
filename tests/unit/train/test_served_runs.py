"""Trainings with a parameter server as real processes: its shards, workers and master die, are told to stop, change."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mms_workloads.contract import Desired, JobFile, Outcome
from tests.unit.train import runs
from tests.unit.train.quick import QuickRun
from tests.unit.train.runs import SECONDS, kinds, until_step

if TYPE_CHECKING:
    from collections.abc import Callable

LANGUAGE = {"languageModel": {"dimensions": 16, "layers": 1, "heads": 2, "contextLength": 16}}
MODES = ["Synchronous", "BoundedStaleness", "Asynchronous"]


def job(folder: Path, mode: str = "Synchronous", *, shards: int = 2, replicas: int = 1, **changes: Any) -> JobFile:
    return runs.job(
        folder,
        workers=changes.pop("workers", 2),
        syncMode="ParameterServer",
        parameterServer={"shards": shards, "replicas": replicas, "consistency": mode, "staleness": 2},
        **changes,
    )


def language(folder: Path, mode: str = "Synchronous", **changes: Any) -> JobFile:
    optimizer = {
        "name": "AdamW",
        "learningRate": 0.01,
        "globalBatchSize": 32,
        "epochs": 1,
        **changes.pop("optimizer", {}),
    }
    return job(folder, mode, task=LANGUAGE, optimizer=optimizer, **changes)


def complete(outcome: Outcome) -> dict[str, float]:
    assert (outcome.result, outcome.reason) == ("Complete", "TrainingComplete"), outcome
    assert outcome.artifact is not None
    return outcome.artifact.metrics


@pytest.mark.parametrize("mode", MODES)
def test_word_vectors(tmp_path: Path, mode: str) -> None:
    outcome = runs.run_to_the_end(tmp_path, job(tmp_path, mode))
    runs.artifact(tmp_path, outcome)
    assert complete(outcome)["contextAUC"] > 0.8


def test_more_rows_than_a_worker_has_memory_for(tmp_path: Path) -> None:
    """Shards hold them, a worker those of a round; the one that writes the artifact has the rest in files."""
    few, many = (most_memory(tmp_path / str(buckets), buckets) for buckets in (1000, 400_000))
    table = 400_000 * 160 * 4
    for worker in ("worker-0", "worker-1"):
        assert many[worker] - few[worker] < table / 4, (few, many)


def most_memory(folder: Path, buckets: int) -> dict[str, int]:
    """Bytes of its own that each process had at most: without files that are mapped."""
    task = {"wordEmbedding": {"dimensions": 160, "minCount": 1, "subwords": {"buckets": buckets}}}
    most: dict[str, int] = {}
    with QuickRun(folder / "run", job(folder, task=task, evaluation={"split": 0})) as run:
        run.start()
        while (report := run.status()) is None or report.outcome is None:
            for name in ("worker-0", "worker-1"):
                with contextlib.suppress(OSError):  # of a worker that has ended
                    status = Path(f"/proc/{runs.child(run.processes[name].pid)}/status").read_text()
                    found = int(status.partition("RssAnon:")[2].split()[0]) * 1024
                    most[name] = max(most.get(name, 0), found)
            time.sleep(0.02)
        complete(run.outcome(SECONDS))
    return most


@pytest.mark.parametrize("mode", MODES)
def test_a_language_model(tmp_path: Path, mode: str) -> None:
    assert complete(runs.run_to_the_end(tmp_path, language(tmp_path, mode)))["bitsPerByte"] < 2.6


@pytest.mark.parametrize("make", [job, partial(runs.job, workers=2)], ids=["shards", "ring"])
def test_compressed_changes_of_word_vectors(tmp_path: Path, make: Callable[..., JobFile]) -> None:
    """That they are written so, the communicators' tests see."""
    outcome = runs.run_to_the_end(tmp_path, make(tmp_path, compression="BF16"))
    assert complete(outcome)["contextAUC"] > 0.8


@pytest.mark.parametrize("wire", ["BF16", "Int8"])
def test_compressed_gradients(tmp_path: Path, wire: str) -> None:
    assert complete(runs.run_to_the_end(tmp_path, language(tmp_path, compression=wire)))["bitsPerByte"] < 2.6


@pytest.mark.parametrize("mode", MODES)
def test_a_worker_and_the_master_die(tmp_path: Path, mode: str) -> None:
    with QuickRun(tmp_path / "run", language(tmp_path, mode, optimizer={"epochs": 2})) as run:
        run.start()
        until_step(run, 20)
        os.kill(runs.child(run.processes["worker-1"].pid), signal.SIGKILL)
        report = run.until(lambda r: "WorkerLost" in kinds(r) and r.workersReady == 2, SECONDS)
        until_step(run, report.step + 10)
        run.kill("master")
        run.start_master()
        report = run.until(lambda r: r.epoch and r.workersReady == 2, SECONDS)
        assert report.step >= 30, "the shards hold what was done"
        assert complete(run.outcome(SECONDS))["bitsPerByte"] < 2.5


@pytest.mark.parametrize("mode", MODES)
def test_a_shard_with_a_replica_dies(tmp_path: Path, mode: str) -> None:
    """Its successor gets its rows from the replica: no step is lost."""
    training = language(tmp_path, mode, replicas=2, optimizer={"epochs": 2}, checkpoint={"intervalSeconds": 1000})
    with QuickRun(tmp_path / "run", training) as run:
        run.start()
        before = until_step(run, 20)
        run.kill("shard-1")
        run.start_shard(1)
        report = run.until(lambda r: "ShardLost" in kinds(r) and r.epoch > before.epoch, SECONDS)
        assert report.step >= before.step
        assert report.checkpoint is None
        os.kill(runs.child(run.processes["shard-0"].pid), signal.SIGKILL)
        until_step(run, report.step + 10)
        assert complete(run.outcome(SECONDS))["bitsPerByte"] < 2.5


def test_a_shard_without_a_replica_dies(tmp_path: Path) -> None:
    """All go back to the last checkpoint."""
    training = language(tmp_path, optimizer={"epochs": 3}, checkpoint={"intervalSeconds": 1})
    with QuickRun(tmp_path / "run", training) as run:
        run.start()
        run.until(lambda r: r.checkpoint, SECONDS)
        run.kill("shard-1")
        run.start_shard(1)
        report = run.until(lambda r: "ShardLost" in kinds(r) and r.shardsReady == 2, SECONDS)
        until_step(run, report.step + 5)
        assert complete(run.outcome(SECONDS))["bitsPerByte"] < 2.5


def leaves(run: QuickRun, name: str) -> None:
    run.processes[name].send_signal(signal.SIGTERM)
    assert run.processes[name].wait(SECONDS) == 128 + signal.SIGTERM


def test_a_shard_without_a_replica_is_told_to_stop(tmp_path: Path) -> None:
    """As in a drain: there is a checkpoint before it goes."""
    training = language(tmp_path, optimizer={"epochs": 2}, checkpoint={"intervalSeconds": 1000})
    with QuickRun(tmp_path / "run", training) as run:
        run.start()
        before = until_step(run, 20)
        leaves(run, "shard-1")
        saved = run.until(lambda r: r.checkpoint, SECONDS).checkpoint
        assert saved is not None
        assert saved.step >= before.step
        run.start_shard(1)
        until_step(run, saved.step + 10)
        assert complete(run.outcome(SECONDS))["bitsPerByte"] < 2.5


def test_a_shard_with_a_replica_is_told_to_stop(tmp_path: Path) -> None:
    """Its rows are on the other one: it leaves without a checkpoint, and no step is lost."""
    training = language(tmp_path, replicas=2, optimizer={"epochs": 2}, checkpoint={"intervalSeconds": 1000})
    with QuickRun(tmp_path / "run", training) as run:
        run.start()
        before = until_step(run, 20)
        leaves(run, "shard-1")
        run.start_shard(1)
        report = run.until(lambda r: r.epoch > before.epoch and r.shardsReady == 2, SECONDS)
        assert report.step >= before.step
        assert report.checkpoint is None
        assert complete(run.outcome(SECONDS))["bitsPerByte"] < 2.5


@pytest.mark.parametrize(("shards", "replicas"), [(2, 1), (2, 2), (1, 2)])
def test_all_pods_are_told_to_stop_at_once(tmp_path: Path, shards: int, replicas: int) -> None:
    """As when all nodes are drained: workers have left when the shards save."""
    training = language(
        tmp_path,
        shards=shards,
        replicas=replicas,
        optimizer={"epochs": 100},
        checkpoint={"intervalSeconds": 1000},
    )
    with QuickRun(tmp_path / "run", training) as run:
        run.start()
        step = until_step(run, 20).step
        assert runs.told_to_stop(run, tmp_path) >= step


@pytest.mark.parametrize(("first", "second"), [("ParameterServer", "Ring"), ("Ring", "ParameterServer")])
def test_resumed_in_the_other_mode(tmp_path: Path, first: str, second: str) -> None:
    def training(mode: str) -> JobFile:
        made = language(tmp_path, optimizer={"epochs": 2})
        served = made.parameterServer if mode == "ParameterServer" else None
        return made.model_copy(update={"syncMode": mode, "parameterServer": served})

    with QuickRun(tmp_path / "first", training(first)) as run:
        run.start()
        until_step(run, 20)
        run.desire(Desired(suspend=True, workers=2, shards=2 if first == "ParameterServer" else 0))
        suspended = run.outcome(SECONDS)
        assert [p.returncode for p in run.processes.values()] == [0] * len(run.processes)
    assert suspended.result == "Suspended"
    assert suspended.checkpoint is not None
    assert suspended.checkpoint.step >= 20
    with QuickRun(tmp_path / "second", training(second), attempt=2) as run:
        run.start()
        report = run.until(lambda r: r.epoch, SECONDS)
        assert report.step >= suspended.checkpoint.step
        assert complete(run.outcome(SECONDS))["bitsPerByte"] < 2.5


def test_shards_are_added_and_removed(tmp_path: Path) -> None:
    training = language(tmp_path, replicas=2, optimizer={"epochs": 3}, checkpoint={"intervalSeconds": 1000})
    with QuickRun(tmp_path / "run", training) as run:
        run.start()
        before = until_step(run, 20)
        run.start_shard(2)
        run.desire(Desired(workers=2, shards=3))
        report = run.until(lambda r: r.shardsReady == 3 and r.epoch > before.epoch, SECONDS)
        assert report.step >= before.step
        after = until_step(run, report.step + 10)
        run.desire(Desired(workers=2, shards=1))
        report = run.until(lambda r: r.epoch > after.epoch, SECONDS)
        assert report.step >= after.step
        until_step(run, report.step + 10)
        for rank in (1, 2):
            run.kill(f"shard-{rank}")
        report = run.until(lambda r: r.shardsReady == 1, SECONDS)
        assert report.checkpoint is None
        assert complete(run.outcome(SECONDS))["bitsPerByte"] < 2.5
