"""Real trainings whose parameters are followed by models that really map."""

from __future__ import annotations

import os
import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mms_workloads.contract import (
    ArtifactPin,
    Batching,
    Desired,
    LiveOrders,
    LivePhase,
    LiveSource,
    ServeFile,
    Store,
    live_digest,
)
from mms_workloads.serve import fetch, follow, live_fetch, vectors_file
from mms_workloads.serve.follow import Follower
from mms_workloads.serve.layout import Layout
from mms_workloads.serve.repository import MODELS
from mms_workloads.serve.shelf import Shelf
from mms_workloads.store import JobError
from tests.unit.train import runs
from tests.unit.train.quick import QuickRun

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from mms_workloads.train.local import LocalRun

ORDERS = LiveOrders(maxStalenessMilliseconds=300)
LIVE = LiveSource(masterHost="127.0.0.1", uid="u", run=1, orders=ORDERS)
LONG = {"epochs": 100_000}


class Pod:
    """What a serving pod has, without Triton."""

    def __init__(self, folder: Path, run: LocalRun) -> None:
        self.layout = Layout(folder / "models")
        self.layout.models.mkdir()
        environment = {"MMS_MASTER_PORT": str(run.master_port), "MMS_READER_TLS_DIR": ""}
        pin = ArtifactPin(uri="file:///none", digest=live_digest("u", 1))
        serve = ServeFile(namespace="default", name="words", artifact=pin, storage=Store(uri=pin.uri), live=LIVE)
        manifest = live_fetch.fetch(serve, LIVE, self.layout, environment)
        fetch.prepare_pod(manifest, pin.digest, self.layout, Batching())
        self.shelves = [
            Shelf(self.layout.generations, f"{model}_0", lambda one: vectors_file.load(one, unit=False))
            for model in MODELS
        ]
        self.follower = Follower(LIVE, self.layout, follow.source_of(LIVE, environment), lambda: ORDERS)

    def follow(self, seconds: float) -> list[LivePhase]:
        """The phases that it went through."""
        deadline, phases = time.monotonic() + seconds, []
        while time.monotonic() < deadline:
            rest = self.follower.step()
            phases.append(self.follower.report.phase)
            time.sleep(rest)
        return phases

    def vectors(self) -> NDArray[np.float32]:
        found: NDArray[np.float32] = np.array(self.shelves[0].view.serving.content.rows)
        return found


@contextmanager
def serving(folder: Path, run: LocalRun) -> Iterator[Pod]:
    pod = Pod(folder, run)
    try:
        yield pod
    finally:
        pod.follower.source.close()
        for shelf in pod.shelves:
            shelf.close()


def test_the_last_parameters_are_the_artifact_s(tmp_path: Path) -> None:
    """A training of one worker is followed to its end: what is served then is what it publishes, to BF16's rounding."""
    with QuickRun(tmp_path / "run", runs.job(tmp_path, optimizer={"epochs": 300})) as run:
        run.start()
        with serving(tmp_path, run) as pod:
            first = pod.vectors()
            served = [first]
            while LivePhase.UNREACHABLE not in pod.follow(0.1):
                served.append(pod.vectors())
            outcome = run.outcome(runs.SECONDS)
            report = pod.follower.report
            last = pod.vectors()
    _, vectors = runs.artifact(tmp_path, outcome)
    assert not np.allclose(first, last, atol=0.1)
    assert report.taken > 3
    assert report.quality is not None
    assert report.quality > 0.8
    # Between the last look and the end some rounds may have been trained, at a rate near 0.
    difference = np.abs(last - vectors.numpy()) / np.abs(vectors.numpy()).max()
    assert difference.max() < 0.1
    assert np.isfinite(last).all()


@pytest.mark.parametrize("dies", ["process", "pod"])
def test_the_worker_that_is_asked_dies(tmp_path: Path, dies: str) -> None:
    """Another one is asked at once, and what answers goes on getting newer."""
    with QuickRun(tmp_path / "run", runs.job(tmp_path, workers=2, optimizer=LONG)) as run:
        run.start()
        with serving(tmp_path, run) as pod:
            assert set(pod.follow(1)) == {LivePhase.FOLLOWING}
            source = pod.follower.source
            trainer = next(one for one in source._who().trainers if one.address == source._asked_last)
            name = f"worker-{trainer.rank}"
            if dies == "pod":
                run.kill(name)
            else:
                os.kill(runs.child(run.processes[name].pid), signal.SIGKILL)
            began = time.monotonic()
            taken = pod.follower.report.taken
            while pod.follower.report.taken == taken or pod.follower.report.phase is not LivePhase.FOLLOWING:
                pod.follow(0.05)
                assert time.monotonic() - began < 10, pod.follower.report
            phases = pod.follow(2)
            assert phases[-1] is LivePhase.FOLLOWING


def test_a_master_that_is_replaced_is_not_missed(tmp_path: Path) -> None:
    with QuickRun(tmp_path / "run", runs.job(tmp_path, optimizer=LONG)) as run:
        run.start()
        with serving(tmp_path, run) as pod:
            pod.follow(0.5)
            run.kill("master")
            assert set(pod.follow(3)) == {LivePhase.FOLLOWING}, "workers train on without it"
            run.start_master()
            run.until(lambda report: report.activity == "Training")
            assert LivePhase.FOLLOWING in pod.follow(2)[-3:]


def test_nobody_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_fetch, "WAIT_SECONDS", 3.0)  # the master looks at its storage first
    with QuickRun(tmp_path / "run", runs.job(tmp_path, optimizer=LONG)) as run:
        run.start_master()
        run.until(lambda _: True)
        with pytest.raises(JobError, match="the training has no worker that trains now") as error:
            Pod(tmp_path, run)
        assert error.value.retryable


@pytest.mark.parametrize("consistency", ["Synchronous", "Asynchronous"])
def test_shards_have_a_part_of_the_rows_each(tmp_path: Path, consistency: str) -> None:
    """Also while one of them is replaced, and when the rows are dealt out to more of them."""
    served = {"shards": 2, "replicas": 2, "consistency": consistency}
    training = runs.job(tmp_path, workers=2, optimizer=LONG, syncMode="ParameterServer", parameterServer=served)
    with QuickRun(tmp_path / "run", training) as run:
        run.start()
        with serving(tmp_path, run) as pod:
            assert set(pod.follow(1)) == {LivePhase.FOLLOWING}
            taken = pod.follower.report.taken
            assert taken > 1
            run.kill("shard-1")
            run.start_shard(1)
            run.until(lambda report: report.shardsReady == 2 and report.activity == "Training", runs.SECONDS)
            until_taken(pod, pod.follower.report.taken + 1)
            run.start_shard(2)
            run.desire(Desired(workers=2, shards=3))
            run.until(lambda report: report.shardsReady == 3 and report.activity == "Training", runs.SECONDS)
            until_taken(pod, pod.follower.report.taken + 1)
            assert pod.vectors().shape == (runs.TOPICS * runs.WORDS_OF_TOPIC, 16)
            assert len(pod.follower.source._who().shards or ()) == 3
            assert (pod.follower.report.quality or 0) > 0.7


def until_taken(pod: Pod, count: int) -> None:
    deadline = time.monotonic() + 20
    while pod.follower.report.taken < count:
        pod.follow(0.1)
        assert time.monotonic() < deadline, pod.follower.report
