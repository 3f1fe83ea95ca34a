"""A worker's parameters over HTTPS: who gets them, what they are, and what they cost the worker."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from mms_workloads.contract import LiveSource, Trainer, Trainers
from mms_workloads.data.vocabulary import Vocabulary
from mms_workloads.embedding.learner import EmbeddingLearner
from mms_workloads.embedding.parameters import initial_parameters
from mms_workloads.embedding.state import EmbeddingState
from mms_workloads.pod import Pod
from mms_workloads.serve import live_files
from mms_workloads.serve.trainers import Source, UnreachableError
from mms_workloads.sync.plan import Plan
from mms_workloads.train import publisher, secured
from mms_workloads.train.publisher import Budget, Copies, Held, Publisher
from tests.unit.sync.test_master import authority
from tests.unit.train import runs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WORDS = ("gold", "silver", "höhe")
LIVE = LiveSource(masterHost="nowhere", uid="u", run=1)


@pytest.fixture
def held(tmp_path: Path) -> Held:
    job = runs.job(tmp_path)
    words = Vocabulary(WORDS, (3, 2, 1))
    task = job.task.wordEmbedding
    assert task is not None
    learner = EmbeddingLearner.of(job, task, Plan((), 1 << 20, words), tmp_path / "cache")
    state = EmbeddingState.start(initial_parameters(len(WORDS), task.dimensions, 1))
    return Held(learner, 7, "sha256:plan", lambda: state.working.vectors, step=4)


def vectors(held: Held) -> torch.Tensor:
    found = held.vectors()
    assert found is not None
    return found


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    authority(tmp_path / "tls")
    return tmp_path / "tls"


@pytest.fixture
def asked(held: Held, certificates: Path, tmp_path: Path) -> Iterator[Source]:
    """A reader of a worker that has these."""
    pod = Pod(
        "worker",
        0,
        2,
        3,
        "127.0.0.1",
        held.learner.job,
        "",
        certificates / "worker",
        tmp_path,
        tmp_path / "log",
        0,
        0,
        0,
    )
    made = Publisher(pod, lambda: held, plain=False)
    source = Source(LIVE, certificates / "reader")
    source._known = Trainers(uid="u", run=1, attempt=3, epoch=7, trainers=[Trainer(rank=0, address=made.address)])
    source._asked = time.monotonic() + 1000
    yield source
    source.close()


def test_all_that_a_reader_needs(asked: Source, held: Held) -> None:
    parameters = asked.get("parameters")
    assert (parameters.plan, parameters.step, parameters.first) == ("sha256:plan", 4, 0)
    assert parameters.body is not None
    rows = live_files.matrix(parameters.body, parameters.rows, parameters.columns)
    expected = vectors(held).bfloat16().float().numpy()
    assert np.array_equal(live_files.widened(rows), expected)
    assert 0 <= time.monotonic() - parameters.copied < 1
    assert bytes(asked.get("vocabulary").body or b"").decode() == "gold\t3\nsilver\t2\nhöhe\t1\n"
    assert b'"dimensions": 16' in bytes(asked.get("task").body or b"")


def test_what_was_had_before_is_not_sent_again(asked: Source, held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "SHARED_SECONDS", 0.0)
    first = asked.get("parameters")
    again = asked.get("parameters", after=first.tag)
    assert (again.body, again.tag) == (None, first.tag)
    assert again.copied > first.copied, "it is known to be what is trained now"
    vectors(held)[1, 2] += 1
    assert asked.get("parameters", after=first.tag).body is not None


def test_only_readers_of_this_job_are_answered(asked: Source, certificates: Path, tmp_path: Path) -> None:
    for unit, live, why in (
        ("worker", LIVE, "this needs a certificate with OU=reader"),
        ("reader", LIVE.model_copy(update={"run": 2}), "this is run 1 of job u"),
    ):
        other = Source(live, certificates / unit)
        other._known, other._asked = asked._known, asked._asked
        assert other._known is not None
        with pytest.raises(UnreachableError, match=why):
            other._ask(other._known.trainers[0], "parameters", "", "worker")
        other.close()
    authority(tmp_path / "others")
    stranger = Source(LIVE, tmp_path / "others" / "reader")
    with pytest.raises(UnreachableError, match="CERTIFICATE_VERIFY_FAILED"):
        stranger._ask(asked._known.trainers[0], "parameters", "", "worker")  # type: ignore[union-attr]
    stranger.close()


def test_who_comes_when_all_places_are_taken_is_turned_away(
    held: Held, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secured, "MOST_CONNECTIONS", 1)
    pod = Pod("worker", 0, 2, 3, "127.0.0.1", held.learner.job, "", tmp_path, tmp_path, tmp_path / "log", 0, 0, 0)
    host, _, port = Publisher(pod, lambda: held, plain=True).address.rpartition(":")

    def task() -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        connection.request("GET", "/v1/task", headers={"MMS-Job": "u/1"})
        assert connection.getresponse().read()
        return connection

    first = task()
    with pytest.raises(ConnectionError):
        task()
    first.close()
    deadline = time.monotonic() + 10
    while True:
        with contextlib.suppress(ConnectionError):
            task().close()
            break
        assert time.monotonic() < deadline, "the place of a connection that has ended is free"


def test_a_worker_of_an_older_epoch_is_not_believed(asked: Source) -> None:
    asked._known = asked._known.model_copy(update={"epoch": 8})  # type: ignore[union-attr]
    trainer = asked._known.trainers[0]  # type: ignore[union-attr]
    with pytest.raises(UnreachableError, match="membership epoch 7 and 8 has begun"):
        asked._ask(trainer, "parameters", "", "worker")


def test_no_parameters_yet(certificates: Path, tmp_path: Path, held: Held) -> None:
    pod = Pod(
        "worker",
        0,
        0,
        1,
        "127.0.0.1",
        held.learner.job,
        "",
        certificates / "worker",
        tmp_path,
        tmp_path / "log",
        0,
        0,
        0,
    )
    made = Publisher(pod, lambda: None, plain=True)
    host, _, port = made.address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port))
    connection.request("GET", "/v1/parameters", headers={"MMS-Job": "u/1"})
    assert connection.getresponse().status == 503
    connection.close()


def test_readers_of_one_moment_share_a_copy(held: Held) -> None:
    copies = Copies()
    first = copies.latest(held)
    vectors(held)[0] += 1
    assert copies.latest(held) is first
    assert Copies().latest(replace(held, vectors=lambda: None)) is None


@pytest.mark.parametrize("change", [{"plan": "sha256:other"}, {"first": 3}])
def test_another_plan_or_other_rows_are_another_copy(held: Held, change: dict[str, Any]) -> None:
    copies = Copies()
    first, second = copies.latest(held), copies.latest(replace(held, **change))
    assert first is not None
    assert second is not None
    assert (second.plan, second.first) == (change.get("plan", held.plan), change.get("first", 0))
    assert second.number != first.number


def test_readers_pay_for_what_they_take() -> None:
    budget = Budget(0.1)
    began = time.monotonic()
    for _ in range(3):
        budget.wait()
        budget.spend(0.01)
    assert time.monotonic() - began >= 0.2, "0.02 s of work in two of the three: a tenth of the time"


def test_training_goes_on_while_parameters_are_read(held: Held) -> None:
    """Whole rows come from a matrix that is written all the time: each number is of some moment, none is made up."""
    stop = threading.Event()

    def train() -> None:
        value = 0.0
        while not stop.is_set():
            value = value % 100 + 1
            vectors(held).fill_(value)

    thread = threading.Thread(target=train)
    thread.start()
    try:
        for _ in range(50):
            found = Copies().latest(held)
            assert found is not None
            values = found.rows.float()
            assert bool(torch.isin(values, torch.arange(0, 102.0)).all() | (values.abs() < 1).all())
    finally:
        stop.set()
        thread.join()
