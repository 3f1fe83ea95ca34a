"""The follower with models that really map, and a training that says what a test wants."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mms_workloads.contract import (
    ArtifactPin,
    Batching,
    LiveOrders,
    LivePhase,
    LiveSource,
    ServeFile,
    Store,
    WordEmbedding,
    live_digest,
)
from mms_workloads.serve import fetch, follow, generations, live_fetch, live_files, memory, vectors_file
from mms_workloads.serve.follow import Follower
from mms_workloads.serve.layout import Layout, read_live_report
from mms_workloads.serve.memory import NoRoomError
from mms_workloads.serve.repository import MODELS
from mms_workloads.serve.shelf import Shelf
from mms_workloads.serve.trainers import Got, UnreachableError
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

WORDS, COLUMNS = 40, 8
RUN = live_digest("u", 1)
LIVE = LiveSource(masterHost="nowhere", uid="u", run=1)
PIN = ArtifactPin(uri="s3://mms/a", digest=RUN)
SERVE = ServeFile(namespace="d", name="words", artifact=PIN, storage=Store(uri=PIN.uri), live=LIVE)


def good(seed: int = 0) -> NDArray[np.float32]:
    """Words come in pairs that are alike, which the sample asks for."""
    rows = np.random.default_rng(seed).normal(size=(WORDS // 2, COLUMNS))
    return np.repeat(rows, 2, axis=0).astype(np.float32)


SAMPLE = np.array([[2 * pair, 2 * pair + 1, (2 * pair + 3) % WORDS] for pair in range(WORDS // 2)], np.int32)


@dataclass
class Training:
    """In the place of trainers.Source."""

    rows: NDArray[np.float32] = field(default_factory=good)
    plan: str = "p1"
    step: int = 5
    copied: float = 0.0
    prefix: str = "word"
    down: bool = False
    changed: int = 0

    def get(self, what: str, *, after: str = "") -> Got:
        if self.down:
            raise UnreachableError("connection refused")
        rows = (self.rows.view(np.uint32) >> 16).astype(np.uint16)
        vocabulary = "".join(f"{self.prefix}{number}\t1\n" for number in range(len(rows)))
        tag = f"{self.plan}-{self.changed}"
        body = {
            "vocabulary": vocabulary.encode(),
            "task": WordEmbedding().model_dump_json().encode(),
            "sample": (SAMPLE % len(rows)).tobytes(),
            "parameters": rows.tobytes(),
        }[what]
        copied = self.copied or follow.time.monotonic()
        same = what == "parameters" and after == tag
        return Got(None if same else memoryview(body), self.plan, self.step, 0, *rows.shape, copied=copied, tag=tag)

    def close(self) -> None:
        """There is no connection."""

    def train(self, rows: NDArray[np.float32]) -> None:
        self.rows, self.changed, self.step = rows, self.changed + 1, self.step + 1


@dataclass
class Pod:
    layout: Layout
    training: Training
    shelves: list[Shelf]
    follower: Follower
    orders: LiveOrders = field(default_factory=LiveOrders)

    def answers(self) -> NDArray[np.float32]:
        """What all models say of the words, which must be of one digest."""
        assert len({shelf.view.serving.digest for shelf in self.shelves}) == 1
        found: NDArray[np.float32] = np.array(self.shelves[0].view.serving.content.rows)
        return found


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pod]:
    layout, training = Layout(tmp_path / "models"), Training()
    monkeypatch.setattr(live_fetch, "source_of", lambda *_: training)
    layout.models.mkdir()
    fetch.prepare_pod(live_fetch.fetch(SERVE, LIVE, layout), RUN, layout, Batching())
    shelves = [
        Shelf(layout.generations, f"{model}_0", lambda one: vectors_file.load(one, unit=False)) for model in MODELS
    ]
    found = Pod(layout, training, shelves, Follower(LIVE, layout, training, lambda: found.orders))  # type: ignore[arg-type]
    yield found
    for shelf in shelves:
        shelf.close()


def test_what_is_trained_answers(pod: Pod) -> None:
    for seed in range(1, 5):
        pod.training.train(good(seed))
        pod.follower.step()
        assert np.allclose(pod.answers(), good(seed), atol=0.02)
    report = pod.follower.report
    run, step, copied = report.digest.rsplit(":", 2)
    assert (run, int(step), report.step, report.phase) == (RUN, 9, 9, LivePhase.FOLLOWING)
    assert abs(int(copied) / 1000 - report.time) < 1
    assert (report.taken, report.withheld, report.quality) == (4, 0, 1.0)
    assert read_live_report(pod.layout) == report
    folders = sorted(folder.name for folder in pod.layout.models.glob("artifact-*"))
    assert folders == ["artifact-ur1", "artifact-ur1-2", "artifact-ur1-3"], "what answers and the one before"


def test_nothing_is_sent_twice_and_the_age_is_known(pod: Pod) -> None:
    pod.follower.step()
    taken, digest = pod.follower.report.taken, pod.follower.report.digest
    pod.training.copied = follow.time.monotonic() - 0.25
    pod.follower.step()
    assert (pod.follower.report.taken, pod.follower.report.digest) == (taken, digest)
    assert pod.follower.report.age == pytest.approx(0.25, abs=0.1)


def spoilt() -> NDArray[np.float32]:
    rows = good(1)
    rows[7] = np.nan
    return rows


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (np.random.default_rng(3).normal(size=(WORDS, COLUMNS)).astype(np.float32), "told from chance"),
        (spoilt(), "told from chance|not finite"),
        (good(1) * np.float32("inf"), "told from chance|not finite"),
    ],
    ids=["wrecked", "nan", "infinite"],
)
def test_what_is_worse_never_answers(pod: Pod, rows: NDArray[np.float32], why: str) -> None:
    pod.training.train(good(1))
    pod.follower.step()
    kept = pod.follower.report.digest
    pod.training.train(rows)
    for _ in range(2):
        pod.follower.step()
        assert np.allclose(pod.answers(), good(1), atol=0.02)
    report = pod.follower.report
    assert (report.phase, report.withheld, report.digest) == (LivePhase.WITHHELD, 2, kept)
    assert re.search(why, report.message)
    pod.training.train(good(2))
    pod.follower.step()
    assert np.allclose(pod.answers(), good(2), atol=0.02)
    assert pod.follower.report.phase is LivePhase.FOLLOWING


def test_not_finite_where_no_sample_looks(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_files.Sample, "quality", lambda *_: None)
    pod.training.train(spoilt())
    pod.follower.step()
    assert "word 7 is not finite" in pod.follower.report.message
    assert np.isfinite(pod.answers()).all()


def test_a_drop_within_the_margin_answers_and_many_do_not_add_up(pod: Pod) -> None:
    pod.orders = LiveOrders(qualityMargin=0.2)
    served = []
    for wrong in (0, 3, 5, 7):  # of 20 pairs
        rows = good(1)
        rows[1 : 2 * wrong : 2] *= -1
        pod.training.train(rows)
        pod.follower.step()
        served.append(pod.follower.report.phase)
    assert served == [LivePhase.FOLLOWING, LivePhase.FOLLOWING, LivePhase.WITHHELD, LivePhase.WITHHELD]


def test_a_training_that_is_away(pod: Pod) -> None:
    pod.training.train(good(1))
    pod.follower.step()
    pod.training.down = True
    assert pod.follower.step() == follow.RETRY_SECONDS
    report = pod.follower.report
    assert (report.phase, report.message) == (LivePhase.UNREACHABLE, "connection refused")
    assert np.allclose(pod.answers(), good(1), atol=0.02)
    before = report.age
    follow.time.sleep(0.05)
    pod.follower.tell()
    assert pod.follower.report.age >= before + 0.05


def test_a_pause_keeps_what_answers(pod: Pod) -> None:
    pod.training.train(good(1))
    pod.follower.step()
    pod.orders = LiveOrders(paused=True)
    pod.training.train(good(2))
    pod.follower.step()
    assert pod.follower.report.phase is LivePhase.PAUSED
    assert np.allclose(pod.answers(), good(1), atol=0.02)
    pod.orders = LiveOrders()
    pod.follower.step()
    assert np.allclose(pod.answers(), good(2), atol=0.02)


def test_words_that_were_counted_again(pod: Pod) -> None:
    pod.follower.step()
    pod.training.plan, pod.training.prefix = "p2", "other"
    pod.training.train(good(1)[:30])
    pod.follower.step()
    serving = pod.shelves[0].view.serving.content
    assert serving.words.rows([b"other3", b"word3"]).tolist() == [3, -1]
    assert len(serving.rows) == 30


def test_vectors_of_other_words(pod: Pod) -> None:
    pod.follower.step()
    pod.training.train(good(1)[:30])
    pod.follower.step()
    assert "30 vectors of 40 words" in pod.follower.report.message
    assert len(pod.answers()) == WORDS


def test_no_room(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise NoRoomError("it needs 3 MiB")

    pod.follower.step()
    kept = generations.read(pod.layout.generations)
    monkeypatch.setattr(memory, "admit", refuse)
    pod.training.train(good(1))
    pod.follower.step()
    assert "it needs 3 MiB" in pod.follower.report.message
    assert generations.read(pod.layout.generations) == kept
    monkeypatch.undo()
    pod.follower.step()
    assert np.allclose(pod.answers(), good(1), atol=0.02)


def test_a_follower_that_starts_again_knows_the_best(pod: Pod) -> None:
    pod.training.train(good(1))
    pod.follower.step()
    again = Follower(LIVE, pod.layout, pod.training, LiveOrders)  # type: ignore[arg-type]
    assert again.report.bestQuality == 1.0
    assert again.report.digest == pod.follower.report.digest
    pod.training.train(good(2))
    again.step()
    assert np.allclose(pod.answers(), good(2), atol=0.02)
    for one in generations.read(pod.layout.generations).held:
        assert vectors_file.load(Path(one.folder), unit=True), "what serves and what did are still there"
    pod.training.train(np.random.default_rng(3).normal(size=(WORDS, COLUMNS)).astype(np.float32))
    again.step()
    assert again.report.phase is LivePhase.WITHHELD
    other = Follower(replace_run(LIVE), pod.layout, pod.training, LiveOrders)  # type: ignore[arg-type]
    assert other.report.bestQuality is None, "another run begins anew"


def replace_run(live: LiveSource) -> LiveSource:
    return live.model_copy(update={"run": 2})


def test_a_full_disk(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    pod.follower.step()
    monkeypatch.setattr(live_files, "write_vectors", full)
    pod.training.train(good(1))
    pod.follower.step()
    assert "No space left on device" in pod.follower.report.message
    assert pod.follower.report.phase is LivePhase.WITHHELD
    assert len(list(pod.layout.models.glob("artifact-*"))) == 2, "nothing is left of it"


def test_it_asks_as_often_as_the_bound_needs(pod: Pod) -> None:
    pod.follower.step()
    pod.orders = LiveOrders(maxStalenessMilliseconds=10_000)
    assert 5 < pod.follower.step() <= follow.PART * 10
    pod.orders = LiveOrders(maxStalenessMilliseconds=100)
    assert pod.follower.step() <= follow.PART * 0.1
    assert replace(pod.training).step == 5


def test_containers_that_are_made_anew_go_on_with_what_the_pod_has(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the training gives nothing any more: nothing is lost."""
    pod.training.train(good(1))
    pod.follower.step()
    kept = generations.read(pod.layout.generations)
    pod.training.down = True
    monkeypatch.setattr(live_fetch, "WAIT_SECONDS", 0.0)
    fetch.prepare_pod(live_fetch.fetch(SERVE, LIVE, pod.layout), RUN, pod.layout, Batching())
    assert generations.read(pod.layout.generations) == kept
    other = SERVE.model_copy(update={"artifact": ArtifactPin(uri="s3://mms/a", digest=live_digest("u", 2))})
    with pytest.raises(JobError, match="connection refused"):
        live_fetch.fetch(other, replace_run(LIVE), pod.layout)
