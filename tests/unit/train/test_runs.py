"""Trainings as real processes: master, supervisors, workers; killed, told to stop, brought back."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from mms_workloads.contract import Desired, JobFile, Outcome
from mms_workloads.train import local
from mms_workloads.train.local import POLL_SECONDS, LocalRun
from tests import faults
from tests.unit.train import quick, runs
from tests.unit.train.quick import QuickRun
from tests.unit.train.runs import SECONDS, kinds, rounds, until_step

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LONG = {"epochs": 100_000}  # more than any test needs to see it running
SOME = {"epochs": 12}


def wait_for(ready: Callable[[], Any], run: LocalRun) -> None:
    deadline = time.monotonic() + SECONDS
    while not ready():
        assert time.monotonic() < deadline, run.logs()
        time.sleep(POLL_SECONDS)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    folder = tmp_path_factory.mktemp("alone")
    return folder, runs.run_to_the_end(folder, runs.job(folder))


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome, LocalRun]:
    folder = tmp_path_factory.mktemp("together")
    with LocalRun(folder / "run", runs.job(folder, workers=2)) as run:
        return folder, run.start().outcome(SECONDS), run


def test_two_workers(together: tuple[Path, Outcome, LocalRun]) -> None:
    folder, outcome, run = together
    manifest, vectors = runs.artifact(folder, outcome)
    assert torch.isfinite(vectors).all()
    assert manifest.provenance.workers == 2
    assert manifest.provenance.data[0].size == len(runs.text())
    assert json.loads((folder / "storage" / "owner.json").read_text())["uid"] == "u"
    assert {name: process.returncode for name, process in run.processes.items()} == {
        "master": 0,
        "worker-0": 0,
        "worker-1": 0,
    }
    assert all(run.termination(name).result == "Complete" for name in run.processes)


def test_one_worker_makes_a_round_of_each_four_blocks(alone: tuple[Path, Outcome]) -> None:
    folder, outcome = alone
    runs.artifact(folder, outcome)
    assert outcome.step == rounds(3)


def test_the_same_seed_gives_the_same_vectors(alone: tuple[Path, Outcome], tmp_path: Path) -> None:
    _, first = runs.artifact(*alone)
    _, again = runs.artifact(tmp_path, runs.run_to_the_end(tmp_path, runs.job(tmp_path)))
    assert torch.equal(first, again)


def test_two_workers_learn_as_much_as_one(
    alone: tuple[Path, Outcome], together: tuple[Path, Outcome, LocalRun]
) -> None:
    one, two = alone[1].artifact, together[1].artifact
    assert one is not None
    assert two is not None
    assert one.metrics["contextAUC"] > 0.8
    assert two.metrics["contextAUC"] == pytest.approx(one.metrics["contextAUC"], abs=0.05)


def test_more_workers_than_blocks(tmp_path: Path) -> None:
    """One block, three data epochs: one of the two has it in each round."""
    data = {"store": {"uri": f"file://{tmp_path}/corpus/*"}, "blockBytes": 1 << 20}
    outcome = runs.run_to_the_end(tmp_path, runs.job(tmp_path, workers=2, data=data))
    runs.artifact(tmp_path, outcome)
    assert outcome.step == 3


@pytest.mark.usefixtures("paced")
def test_a_worker_process_that_crashes_is_forked_again(tmp_path: Path) -> None:
    with QuickRun(tmp_path / "run", runs.job(tmp_path, workers=2, optimizer=SOME)) as run:
        run.start()
        until_step(run, 5)
        pod = run.processes["worker-1"]
        first = runs.child(pod.pid)
        os.kill(first, signal.SIGKILL)
        report = run.until(lambda r: "WorkerJoined" in kinds(r), SECONDS)
        assert kinds(report)[:2] == ["WorkerLost", "WorkerJoined"]
        assert runs.child(pod.pid) not in {0, first}
        runs.artifact(tmp_path, run.outcome(SECONDS))
        assert [p.returncode for p in run.processes.values()] == [0, 0, 0]


def test_a_worker_process_that_hangs(tmp_path: Path) -> None:
    """It is stopped: the others go on, its supervisor writes down where it stood, and forks it again."""
    with QuickRun(tmp_path / "run", runs.job(tmp_path, workers=2, optimizer=LONG)) as run:
        run.start()
        until_step(run, 5)
        pod = run.processes["worker-1"]
        first = runs.child(pod.pid)
        os.kill(first, signal.SIGSTOP)
        lost = run.until(lambda r: "WorkerLost" in kinds(r), SECONDS)
        until_step(run, lost.step + 3)
        report = run.until(lambda r: "WorkerJoined" in kinds(r) and r.workersReady == 2, SECONDS)
        assert kinds(report)[:2] == ["WorkerLost", "WorkerJoined"]
        assert runs.child(pod.pid) not in {0, first}
        log = (run.folder / "worker-1" / "log").read_text()
        assert "worker hangs and is killed" in log
        assert "Current thread" in log or "most recent call first" in log
        assert "run_rounds" in log


def test_a_pod_is_replaced_and_its_old_incarnation_refused(tmp_path: Path) -> None:
    with QuickRun(tmp_path / "run", runs.job(tmp_path, workers=2, optimizer=LONG)) as run:
        run.start()
        until_step(run, 5)
        run.kill("worker-1")
        lost = run.until(lambda r: "WorkerLost" in kinds(r), SECONDS)
        run.start_worker(1)
        back = run.until(lambda r: r.workersReady == 2 and r.epoch > lost.epoch, SECONDS)
        joined = until_step(run, back.step + 5)
        old = run.start_worker(1, incarnation=0)
        assert old.wait(SECONDS) == 1
        refused = Outcome.model_validate_json((run.folder / "worker-1" / "termination-log").read_bytes())
        assert (refused.reason, refused.retryable) == ("StalePeer", False)
        assert "incarnation 1 of rank 1 is known" in refused.message
        after = until_step(run, joined.step + 5)
        assert (after.epoch, after.workersReady) == (joined.epoch, 2)
        assert kinds(after) == ["WorkerLost", "WorkerJoined"]


@pytest.mark.usefixtures("paced")
def test_a_master_that_is_killed(tmp_path: Path) -> None:
    """The worker keeps what it has; each block counts once: the run has exactly as many rounds as it would have had."""
    with QuickRun(tmp_path / "run", runs.job(tmp_path, optimizer=SOME)) as run:
        run.start()
        before = until_step(run, 20)
        run.kill("master")
        run.start_master()
        after = run.until(lambda r: r.epoch, SECONDS)
        assert after.step >= before.step
        assert after.epoch > before.epoch
        assert kinds(after) == ["MasterRestarted"]
        outcome = run.outcome(SECONDS)
        runs.artifact(tmp_path, outcome)
        assert outcome.step == rounds(12)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
@pytest.mark.usefixtures("paced")
def test_suspended_and_resumed(alone: tuple[Path, Outcome], tmp_path: Path, *, elsewhere: bool) -> None:
    """The result is the same, to the bit, as that of a run that was not suspended. elsewhere: in another cluster, which
    has nothing of the first one but the store, by a training that shares its storage's URI and nothing else.
    """
    training = runs.job(tmp_path)
    with QuickRun(tmp_path / "first", training) as run:
        run.start()
        run.until(lambda r: r.step >= 5, SECONDS)
        run.desire(Desired(suspend=True, workers=1))
        suspended = run.outcome(SECONDS)
        assert [p.returncode for p in run.processes.values()] == [0, 0]
    assert suspended.result == "Suspended"
    assert suspended.checkpoint is not None
    assert 5 <= suspended.checkpoint.step < rounds(3)
    if elsewhere:
        (tmp_path / "storage" / "owner.json").unlink()
        training = runs.job(tmp_path, job={"namespace": "there", "name": "moved", "uid": "another", "run": 1})
    with QuickRun(tmp_path / "second", training, attempt=1 if elsewhere else 2) as run:
        run.start_master()
        report = run.until(lambda r: r.step, SECONDS)
        assert report.step == suspended.checkpoint.step
        assert report.percent > 0
        assert report.checkpoint == suspended.checkpoint
        run.start_worker(0)
        outcome = run.outcome(SECONDS)
    assert outcome.step == rounds(3)
    _, resumed = runs.artifact(tmp_path, outcome)
    _, undisturbed = runs.artifact(*alone)
    assert torch.equal(resumed, undisturbed)


def test_a_damaged_checkpoint_costs_the_work_since_the_one_before(tmp_path: Path) -> None:
    training = runs.job(tmp_path, optimizer=LONG)
    steps = []
    for attempt in (1, 2):
        with QuickRun(tmp_path / f"run-{attempt}", training, attempt=attempt) as run:
            run.start()
            until_step(run, 5 * attempt + (steps[-1] if steps else 0))
            run.desire(Desired(suspend=True, workers=1))
            checkpoint = run.outcome(SECONDS).checkpoint
            assert checkpoint is not None
            steps.append(checkpoint.step)
    damaged = max((tmp_path / "storage" / "checkpoints").iterdir()) / "part-0-of-1.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with QuickRun(tmp_path / "run-3", training, attempt=3) as run:
        run.start()
        report = run.until(lambda r: "CheckpointInvalid" in kinds(r) and r.epoch > 1, SECONDS)
        assert report.checkpoint is not None
        assert report.checkpoint.step == steps[0]
        until_step(run, steps[0] + 3)
        assert runs.kinds(report) == ["CheckpointInvalid"]


def test_workers_that_are_told_to_stop(tmp_path: Path) -> None:
    """The first leaves at a round boundary and is no loss; the last one leaves a checkpoint behind."""
    with QuickRun(tmp_path / "run", runs.job(tmp_path, workers=2, optimizer=LONG)) as run:
        run.start()
        until_step(run, 5)
        leaver = run.processes["worker-1"]
        leaver.send_signal(signal.SIGTERM)
        assert leaver.wait(SECONDS) == 128 + signal.SIGTERM
        report = run.until(lambda r: r.workersReady == 1 and r.epoch == 2, SECONDS)
        assert report.incidents[-1].action == "it was told to stop"
        further = until_step(run, report.step + 3)
        last = run.processes["worker-0"]
        last.send_signal(signal.SIGTERM)
        assert last.wait(SECONDS) == 128 + signal.SIGTERM
        left = run.until(lambda r: r.workersReady == 0, SECONDS)
        assert left.checkpoint is not None
        assert left.checkpoint.step == left.step >= further.step
        run.start_worker(0)
        assert until_step(run, left.step + 1).epoch == 3


def test_all_pods_are_told_to_stop_at_once(tmp_path: Path) -> None:
    """As when all nodes are drained: the master stays till the checkpoint of those that leave is valid."""
    with QuickRun(tmp_path / "run", runs.job(tmp_path, workers=2, optimizer=LONG)) as run:
        run.start()
        step = until_step(run, 5).step
        assert runs.told_to_stop(run, tmp_path) >= step


def test_a_worker_is_told_to_stop_before_it_trains(tmp_path: Path) -> None:
    with QuickRun(tmp_path / "run", runs.job(tmp_path, workers=2)) as run:
        run.start_master()
        waiting = run.start_worker(0)
        run.until(lambda r: r.workersReady == 1, SECONDS)
        waiting.send_signal(signal.SIGTERM)
        assert waiting.wait(SECONDS) == 128 + signal.SIGTERM


def test_checkpoints_while_training(tmp_path: Path) -> None:
    training = runs.job(tmp_path, optimizer=LONG, checkpoint={"intervalSeconds": 1, "keep": 2})
    with QuickRun(tmp_path / "run", training) as run:
        run.start()
        first = run.until(lambda r: r.checkpoint, SECONDS).checkpoint
        assert first is not None
        later = run.until(lambda r: r.checkpoint and r.checkpoint.step > first.step, SECONDS)
        run.kill("worker-0")
        run.start_worker(0)
        back = run.until(lambda r: r.epoch > later.epoch and r.samplesPerSecond, SECONDS)
        assert back.checkpoint is not None
        assert back.step >= back.checkpoint.step >= first.step
        assert 1 <= len(list((tmp_path / "storage" / "checkpoints").glob("*/manifest.json"))) <= 3


# What cannot be trained


def no_file(folder: Path) -> None:
    (folder / "corpus" / "a.txt").unlink()


def empty_file(folder: Path) -> None:
    (folder / "corpus" / "a.txt").write_bytes(b"")


def owned(folder: Path) -> None:
    (folder / "storage").mkdir()
    owner = {"uid": "other", "namespace": "team", "name": "mine", "run": 1}
    (folder / "storage" / "owner.json").write_text(json.dumps(owner))


def one_word(folder: Path) -> None:
    (folder / "corpus" / "a.txt").write_text("word " * 1000)


def latin(folder: Path) -> None:
    (folder / "corpus" / "a.txt").write_bytes("größe ".encode("latin-1") * 1000)


def damaged(folder: Path) -> None:
    (folder / "corpus" / "a.gz").write_bytes(b"\x1f\x8b\x08 no more")


def ends(run: LocalRun, reason: str, says: str) -> None:
    outcome = run.outcome(SECONDS)
    assert (outcome.result, outcome.reason, outcome.retryable) == ("Failed", reason, False)
    assert says in outcome.message
    assert {process.returncode for process in run.processes.values()} == {1}


@pytest.mark.parametrize(
    ("spoil", "reason", "says"),
    [
        (no_file, "DataNotFound", "check the URI"),
        (empty_file, "DataEmpty", "all 1 files of the data set are empty"),
        (owned, "StorageInUse", "team/mine"),
    ],
    ids=["no file", "empty file", "storage in use"],
)
def test_what_the_master_refuses(tmp_path: Path, spoil: Callable[[Path], None], reason: str, says: str) -> None:
    training = runs.job(tmp_path)
    spoil(tmp_path)
    with QuickRun(tmp_path / "run", training) as run:
        run.start_master()
        ends(run, reason, says)


@pytest.mark.parametrize(
    ("spoil", "reason", "says"),
    [
        (one_word, "VocabularyTooSmall", "1 of 1 different words"),
        (latin, "DataUnreadable", "a.txt is not UTF-8: byte 0xf6 at offset 2"),
        (damaged, "DataUnreadable", "a.gz cannot be decompressed"),
    ],
    ids=["one word", "not utf-8", "damaged archive"],
)
def test_what_the_workers_find(tmp_path: Path, spoil: Callable[[Path], None], reason: str, says: str) -> None:
    training = runs.job(tmp_path)
    spoil(tmp_path)
    with QuickRun(tmp_path / "run", training) as run:
        run.start()
        ends(run, reason, says)
        assert run.termination("worker-0").reason == reason


def test_a_worker_that_comes_after_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It finds no master, and would look for one without end: an operator deletes the pods of a run that has ended."""
    monkeypatch.setattr(local, "HEARD_SECONDS", 0.2)
    training = runs.job(tmp_path, workers=2)
    latin(tmp_path)
    with QuickRun(tmp_path / "run", training) as run:
        run.start_master()
        run.start_worker(0)
        run.until(lambda report: report.outcome, SECONDS)
        run.processes["master"].wait(SECONDS)
        late = run.start_worker(1)
        assert run.outcome(SECONDS).reason == "DataUnreadable"
        assert late.returncode == 128 + signal.SIGTERM


def test_storage_that_cannot_be_written_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All workers try in turn: the pod that failed is gone, another one exports."""
    monkeypatch.setenv(faults.VARIABLE, json.dumps([{"kind": "impatient"}]))
    with QuickRun(tmp_path / "run", runs.job(tmp_path, workers=2)) as run:
        (tmp_path / "storage" / "artifact" / "model.safetensors").mkdir(parents=True)  # an I/O error for who writes it
        run.start()
        first = run.processes["worker-0"], run.processes["worker-1"]
        wait_for(lambda: all(p.poll() is not None for p in first), run)
        assert [p.returncode for p in first] == [75, 75]
        (tmp_path / "storage" / "artifact" / "model.safetensors").rmdir()
        run.start_worker(0)
        runs.artifact(tmp_path, run.outcome(SECONDS))


def one_dies(run: LocalRun, rng: random.Random) -> None:
    """A worker or a shard, by process or by pod, or the master, and comes back."""
    shards = run.job.parameterServer.shards if run.job.parameterServer else 0
    pods = [*(f"worker-{rank}" for rank in range(3)), *(f"shard-{rank}" for rank in range(shards))]
    victim = rng.choice(["master", *pods, "process", "process"])
    if victim == "process":
        pid = runs.child(run.processes[rng.choice(pods)].pid)
        if pid:
            os.kill(pid, signal.SIGKILL)
        return
    run.kill(victim)
    if victim == "master":
        run.start_master()
        return
    role, rank = victim.split("-")
    (run.start_worker if role == "worker" else run.start_shard)(int(rank))


def die_at_random(run: LocalRun, rng: random.Random, times: int) -> bool:
    """Whether the run has ended meanwhile."""
    for _ in range(times):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # one that has ended by itself, with the run
            one_dies(run, rng)
        report = run.until(lambda r: r.outcome or r.epoch, SECONDS)
        if not report.outcome:
            report = run.until(lambda r, step=report.step: r.outcome or r.step > step, SECONDS)  # type: ignore[misc]
        if report.outcome:
            break
    else:
        for name, process in list(run.processes.items()):
            role, _, rank = name.partition("-")
            if role != "master" and process.poll() not in {None, 0}:
                (run.start_worker if role == "worker" else run.start_shard)(int(rank))
        report = run.until(lambda r: r.outcome or r.workersReady == 3, SECONDS)
    if report.outcome:  # a pod that comes back now finds no master to tell it so: it would be deleted
        for name in run.processes.keys() - {"master"}:
            with contextlib.suppress(ProcessLookupError):
                run.kill(name)
    return bool(report.outcome)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_random_deaths(tmp_path: Path, seed: int) -> None:
    """The run ends as if nothing had happened."""
    training = runs.job(tmp_path, workers=3, optimizer={"epochs": 60}, checkpoint={"intervalSeconds": 1, "keep": 2})
    with QuickRun(tmp_path / "run", training) as run:
        run.start()
        until_step(run, 5)
        die_at_random(run, random.Random(seed), 12)
        outcome = run.outcome(2 * SECONDS)
    runs.artifact(tmp_path, outcome)
    assert outcome.artifact is not None
    assert outcome.artifact.metrics["contextAUC"] > 0.8


def campaign(mode: str, seeds: int, fast: int) -> list[Any]:
    slow = (pytest.param(mode, seed, marks=pytest.mark.slow) for seed in range(fast, seeds))
    return [*((mode, seed) for seed in range(fast)), *slow]


def counted(folder: Path, mode: str, seed: int, epochs: int) -> JobFile:
    """mode: Ring, or the consistency of a parameter server. Every second one has no replicas: a shard's loss costs the
    steps since the last checkpoint.
    """
    shards = {"shards": 2, "replicas": 2 - seed % 2, "consistency": mode, "staleness": 2}
    return runs.job(
        folder,
        workers=3,
        task={"languageModel": {}},
        optimizer={"name": "SGD", "epochs": epochs, "seed": seed},
        evaluation={"split": 0},
        checkpoint={"intervalSeconds": 1, "keep": 2},
        **({} if mode == "Ring" else {"syncMode": "ParameterServer", "parameterServer": shards}),
    )


@pytest.mark.parametrize(
    ("mode", "seed"),
    [
        *campaign("Ring", 100, 2),
        *campaign("Synchronous", 25, 1),
        *campaign("BoundedStaleness", 25, 1),
        *campaign("Asynchronous", 25, 1),
    ],
)
def test_every_sample_counts_exactly_once(
    tmp_path: Path, mode: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parameter i counts how often sample i went into the parameters: the number of data epochs, whoever died."""
    monkeypatch.setenv(quick.LEARNER, "tests.unit.train.counting")
    rng, epochs, deaths = random.Random(seed), 40, 5 if mode == "Ring" else 3
    training = counted(tmp_path, mode, seed, epochs)
    shards = training.parameterServer.shards if training.parameterServer else 0
    with QuickRun(tmp_path / "first", training) as run:
        run.start()
        until_step(run, 5)
        if not die_at_random(run, rng, deaths):
            run.desire(Desired(suspend=True, workers=3, shards=shards))
        suspended = run.outcome(2 * SECONDS)
    outcome = suspended
    if suspended.result == "Suspended":
        with QuickRun(tmp_path / "second", training, attempt=2) as run:
            run.start()
            run.until(lambda r: r.outcome or r.epoch, SECONDS)
            die_at_random(run, rng, deaths)
            outcome = run.outcome(2 * SECONDS)
    assert (outcome.result, outcome.reason) == ("Complete", "TrainingComplete"), outcome
    counts = load_file(tmp_path / "storage" / "artifact" / "model.safetensors")["counts"]
    assert counts.unique().tolist() == [epochs]
