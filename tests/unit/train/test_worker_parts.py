"""The worker's parts on their own: exchanges, what is agreed on, checkpoints, the corpus."""

from __future__ import annotations

import dataclasses
import threading
from typing import TYPE_CHECKING, Any

import pytest
import torch

from mms_workloads import artifact
from mms_workloads import store as stores
from mms_workloads.contract import ArtifactRef, DataFile, Guard, Reason, Store, Task, WordEmbedding
from mms_workloads.contract import ParameterServer as ParameterServerSpec
from mms_workloads.data import corpus, vocabulary
from mms_workloads.data.blocks import Segment
from mms_workloads.data.reader import Reader
from mms_workloads.embedding.parameters import initial_parameters
from mms_workloads.embedding.state import EmbeddingState
from mms_workloads.store import JobError
from mms_workloads.sync import again, claims, wire
from mms_workloads.sync import plan as plans
from mms_workloads.sync.control import Announcement, Superseded, file
from mms_workloads.sync.layout import Layout
from mms_workloads.sync.layout import Table as Rows
from mms_workloads.sync.leases import Progress, Slice
from mms_workloads.sync.shard_client import Unreached
from mms_workloads.train import checkpoint, process, worker
from mms_workloads.train.checkpoints import Checkpointer
from mms_workloads.train.communicator import WELL, Contribution, Stats
from mms_workloads.train.guarding import Guarding
from mms_workloads.train.learner import Place
from mms_workloads.train.parameter_server import ParameterServer
from mms_workloads.train.pulse import Pulse
from mms_workloads.train.state import agree
from mms_workloads.transport.channel import Fence, PeerLost
from tests.unit.data.words import counts_of
from tests.unit.train.deaf import Deaf
from tests.unit.train.table import Table, at_once, nothing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mms_workloads.pod import Pod
    from mms_workloads.train.ring import Wire
    from mms_workloads.train.state import Tables

# Exchanges


ODD = 1.01  # no number of BF16


def states(count: int) -> list[EmbeddingState]:
    made = [EmbeddingState.start(initial_parameters(10, 4, 1)) for _ in range(count)]
    for state in made:
        agree(state, 0, "l", Progress.none(5))
    return made


@pytest.mark.parametrize("wire", ["None", "BF16"])
def test_an_exchange_makes_all_ranks_equal(wire: Wire) -> None:
    table, ranks = Table(3), states(3)
    for rank, state in enumerate(ranks):
        state.working.vectors[rank] += (1.0 + rank) * ODD  # a row each
        state.touches.vectors[rank] = 1
        state.working.contexts[9] += 1.0  # and one together, rarely touched: the changes add up
        state.touches.contexts[9] = 1
    stats = Stats(7, 2.0, 0.5)
    given = [Contribution(slices, stats) for slices in ((Slice(0, 0, 0, 1, 1),), (), (Slice(0, 3, 0, 2, 4),))]
    before = states(1)[0].base
    found = at_once(
        *(
            lambda r=r, s=s, mine=mine: r.exchange(s, mine, 1e-6, nothing)  # type: ignore[misc]
            for r, s, mine in zip(table.rings(wire=wire), ranks, given, strict=True)
        )
    )
    for each in found:
        assert isinstance(each, list), each
        assert [dataclasses.replace(c, health=WELL) for c in each] == given
    for state in ranks:
        assert torch.equal(state.base.vectors, ranks[0].base.vectors)
        assert torch.equal(state.working.contexts, ranks[0].base.contexts)
        assert (state.agreement.step, state.agreement.progress) == (1, Progress([1, 0, 0, 0, 0], {3: (2, 4)}))
    changed = ranks[0].base.vectors[:3] - before.vectors[:3]
    whole = ODD * torch.tensor([[1.0], [2], [3]]).expand(3, 4)
    sent = whole if wire == "None" else whole.bfloat16().float()
    torch.testing.assert_close(changed, sent, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ranks[0].base.contexts[9] - before.contexts[9], torch.full((4,), 3.0))


def test_a_round_without_blocks() -> None:
    """Such as the last one of an epoch whose successor was announced."""
    table, ranks = Table(2), states(2)
    at_once(
        *(
            lambda r=r, s=s: r.exchange(s, Contribution(), 0.1, nothing)
            for r, s in zip(table.rings(), ranks, strict=True)
        )
    )  # type: ignore[misc]
    assert [state.agreement.step for state in ranks] == [1, 1]
    assert torch.equal(ranks[0].base.vectors, states(1)[0].base.vectors)


@pytest.mark.parametrize(("wire", "dtype"), [("None", torch.float32), ("BF16", torch.bfloat16)])
def test_what_is_pushed_to_shards(wire: Wire, dtype: torch.dtype) -> None:
    state = states(1)[0]
    for table, row in ((0, 1), (0, 8), (1, 4), (1, 6)):
        (state.working.vectors, state.working.contexts)[table][row] += 1.0 + row
        (state.touches.vectors, state.touches.contexts)[table][row] = 3 + row
    layout = Layout((Rows("vectors", 10, 4, sparse=True), Rows("contexts", 10, 4, sparse=True)), 2)
    clients: list[Any] = [None, None]
    communicator = ParameterServer(clients, layout, wire, Guarding(Guard()), synchronous=True)
    parts, squares = communicator._deltas(state)
    assert squares == pytest.approx(4 * (4 + 81 + 25 + 49), rel=1e-5)
    rows = [{name: delta.rows.tolist() for name, delta in part["deltas"].items()} for part in parts]
    assert rows == [{"vectors": [1], "contexts": [4]}, {"vectors": [8], "contexts": [6]}]
    for part in parts:
        for delta in part["deltas"].values():
            assert delta.values.dtype == dtype
            torch.testing.assert_close(delta.values.float(), 1.0 + delta.rows[:, None].float().expand(1, 4))
            assert delta.touches.tolist() == (3 + delta.rows).tolist()


def test_share() -> None:
    table, (first, second) = Table(2), states(2)
    second.base.vectors.add_(1)
    second.base.contexts.add_(2)
    first.touches.vectors.add_(3)
    one, two = table.rings()
    at_once(lambda: one.share(first, 1), lambda: two.share(second, 1))
    for state in (first, second):
        assert torch.equal(state.base.vectors, second.base.vectors)
        assert torch.equal(state.working.contexts, second.base.contexts)
        assert float(state.touches.vectors.sum()) == 0


def test_a_share_that_is_cut_short_leaves_the_base_alone() -> None:
    """Else its holder would report the old step with parameters that are half of another one."""
    table, (first, second) = Table(2), states(2)
    second.base.vectors.add_(1)
    before = first.base.clone()
    for seat in table.seats:
        seat.broadcasts_left = 1
    one, two = table.rings()
    results = at_once(lambda: one.share(first, 1), lambda: two.share(second, 1))
    assert all(isinstance(result, PeerLost) for result in results)
    assert torch.equal(first.base.vectors, before.vectors)
    assert torch.equal(first.base.contexts, before.contexts)


ALONE = Place(0, 1)
AWAY = JobError(Reason.STORAGE_UNREACHABLE, "away", retryable=True)


@pytest.fixture
def made(pod: Pod) -> Iterator[worker.Worker]:
    job = pod.job.model_copy(update={"task": Task(wordEmbedding=WordEmbedding(dimensions=4, minCount=1))})
    one = worker.Worker(dataclasses.replace(pod, job=job), Pulse(), plain=True)
    words = vocabulary.cut(counts_of({"a": 3, "b": 2}), WordEmbedding(minCount=1))
    one.control.inbox.plan = plans.pack(plans.Plan((), 4, words))
    one._prepare()
    yield one
    one.listener.close()


def begin(**changes: Any) -> dict[str, Any]:
    progress = {"applied": [0], "partial": []}
    return {"source": 0, "step": 0, "equal": True, "checkpoint": None, "progress": progress, "lineage": "x", **changes}


def test_what_was_not_agreed_on_is_not_held(made: worker.Worker) -> None:
    """A first state whose ring broke before it was shared must not count as anybody's."""
    table = Table(1)
    table.seats[0].broadcasts_left = 0
    (ring,) = table.rings()
    with pytest.raises(PeerLost):
        made._agree(ring, begin(step=9, equal=False))
    assert made.state is not None
    assert made._holds() == (0, None)
    table.seats[0].broadcasts_left = 2
    made._agree(ring, begin(step=9, equal=False))
    assert made._holds() == (0, 9)
    assert (made.state is not None, made._held() is made.state) == (True, True)


def test_a_checkpoint_that_cannot_be_read_now_is_not_called_damaged(
    made: worker.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = {"uri": "file:///c", "step": 3, "digest": "sha256:0", "time": "t"}
    (ring,) = Table(1).rings()
    for reason, expected in ((Reason.CREDENTIALS_INVALID, JobError), (Reason.ARTIFACT_CORRUPT, Superseded)):

        def fail(*_: object, reason: Reason = reason, **__: object) -> None:
            raise JobError(reason, "no")

        monkeypatch.setattr(checkpoint, "load", fail)
        with pytest.raises(expected):
            made._agree(ring, begin(step=3, checkpoint=reference))
        assert made.state is None, "it may hold a part of it"


def test_a_checkpoint_is_waited_for_while_the_store_is_away(
    made: worker.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = 2

    def load(*_: object, into: Tables, **__: object) -> Tables:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise AWAY
        return into

    monkeypatch.setattr(again, "pause", lambda _: 0.0)
    monkeypatch.setattr(checkpoint, "load", load)
    (ring,) = Table(1).rings()
    reference = {"uri": "file:///c", "step": 3, "digest": "sha256:0", "time": "t"}
    made._agree(ring, begin(step=3, checkpoint=reference))
    assert made._holds() == (0, 3)
    failures = 1
    made.stop()
    with pytest.raises(Superseded):
        made._agree(ring, begin(step=3, checkpoint=reference, fresh=False))
    assert made._holds() == (0, None)


def test_who_is_told_to_stop_between_two_epochs_waits_for_the_next(made: worker.Worker) -> None:
    """It may be the last that holds the parameters."""
    box = made.control.inbox
    made.stop()
    assert made._anything_to_do(box), "nothing is lost with one that holds none"
    (ring,) = Table(1).rings()
    made._agree(ring, begin(step=9))
    assert not made._anything_to_do(box)
    epoch = {"epoch": 1, "members": [[1, 0, "127.0.0.1:1"]], "urgent": False, "shards": []}
    file(box, wire.Message(wire.EPOCH, epoch))
    assert made._anything_to_do(box)
    assert not made._may_leave()
    made.given = True
    assert made._may_leave()
    made.given = False
    made._overdue()
    assert made._may_leave(), "not for longer than its pod has"


def test_which_shards_are_not_reached(made: worker.Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """All are tried: that one of them is not reached, or none, is another one's fault."""
    asked: dict[int, float] = {}

    def connect(*arguments: Any) -> Any:
        asked[arguments[1]] = arguments[-1]
        if arguments[1] in {2, 3}:
            raise PeerLost(f"no answer of {arguments[1]}")
        return closed

    class Closed:
        times = 0

        def close(self) -> None:
            self.times += 1

    closed = Closed()
    monkeypatch.setattr(worker, "connect", connect)
    made._prepare()
    said = Announcement(1, (1,), ("",), urgent=False, shards=tuple(f"h:{port}" for port in range(1, 5)))
    fence = Fence("u", 1, 1, 1)
    with pytest.raises(Unreached, match="no answer of 2; no answer of 3") as raised:
        made._connect_to_shards(said, fence, ParameterServerSpec(), 0)
    assert raised.value.shards == (1, 2)
    assert asked == {
        1: worker.FORMING_SECONDS, 2: worker.FORMING_SECONDS, 3: worker.MORE_SECONDS, 4: worker.MORE_SECONDS
    }  # fmt: skip
    assert closed.times == 2
    made.severing.abort.set()
    with pytest.raises(Unreached) as raised:
        made._connect_to_shards(said, fence, ParameterServerSpec(), 0)
    assert raised.value.shards == (), "the epoch is over"


def test_an_artifact_is_written_when_the_store_is_back(made: worker.Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = ArtifactRef(uri="file:///a", digest="sha256:0", version=1, metrics={})
    outcomes: list[JobError | ArtifactRef] = [AWAY, AWAY, ref]

    def publish(*_: object) -> ArtifactRef:
        outcome = outcomes.pop(0)
        if isinstance(outcome, JobError):
            raise outcome
        return outcome

    sent: list[str] = []
    monkeypatch.setattr(again, "pause", lambda _: 0.0)
    monkeypatch.setattr(artifact, "publish", publish)
    monkeypatch.setattr(made.control, "send", lambda kind, **_: sent.append(kind))
    made._export(states(1)[0], made.control.session)
    assert (outcomes, sent) == ([], [wire.EXPORTED])


def test_workers_of_a_replaced_master_write_no_artifact(made: worker.Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = ArtifactRef(uri="file:///a", digest="sha256:0", version=1, metrics={})
    sent: list[str] = []
    monkeypatch.setattr(artifact, "publish", lambda *given: ref if given[-1]() else None)
    monkeypatch.setattr(made.control, "send", lambda kind, **_: sent.append(kind))
    made.control.master_incarnation = 3
    claims.claim(made.pod.job, made.pod.attempt, 3)
    assert made._export(states(1)[0], made.control.session)
    claims.claim(made.pod.job, made.pod.attempt, 4)
    assert not made._export(states(1)[0], made.control.session)
    assert sent == [wire.EXPORTED]


def test_another_plan_voids_what_was_learnt(made: worker.Worker) -> None:
    (ring,) = Table(1).rings()
    made._agree(ring, begin(step=9))
    made._prepare()
    assert made._holds() == (0, 9)
    assert made.plan is not None
    made.control.inbox.plan = plans.pack(plans.Plan((), 8, made.plan.vocabulary))
    made._prepare()
    assert made._holds() == (0, None)


def test_parts_are_written_one_at_a_time(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    writing, go = threading.Event(), threading.Event()
    written = []

    def write(_: object, tables: Tables, *__: object) -> dict[str, Any]:
        writing.set()
        go.wait(10)
        written.append(float(tables["vectors"]["parameters"][0, 0]))
        raise JobError(Reason.STORAGE_DENIED, "full")

    monkeypatch.setattr(checkpoint, "write_part", write)
    control, state = Deaf(pod), states(1)[0]
    saver = Checkpointer(pod.job, control, pod.scratch)
    state.base.vectors[0] = 7.0
    saver.save(state, ALONE)
    assert writing.wait(10)
    state.base.vectors[0] = 8.0
    saver.save(state, ALONE)
    go.set()
    assert saver._thread is not None
    saver._thread.join()
    assert written == [7.0], "what is being written is as it was copied"
    (failed,) = control.sent
    assert (failed.kind, failed.fields["reason"], failed.fields["retryable"]) == (wire.FAILED, "StorageDenied", True)
    with pytest.raises(JobError, match="full"):
        saver.save_last(state, ALONE, lambda: False)


def test_the_last_part_is_tried_until_it_is_durable_or_not_wanted(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    """A suspended ring holds nothing else that the run could go on from."""
    outcomes: list[Exception | dict[str, Any]] = []

    def write(*_: object) -> dict[str, Any]:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(checkpoint, "write_part", write)
    monkeypatch.setattr(again, "pause", lambda _: 0.0)
    control, state = Deaf(pod), states(1)[0]
    saver = Checkpointer(pod.job, control, pod.scratch)
    away = JobError(Reason.STORAGE_UNREACHABLE, "away", retryable=True)
    outcomes = [away, away, {}]
    saver.save_last(state, ALONE, lambda: False)
    assert [one.kind for one in control.sent] == [wire.FAILED, wire.CHECKPOINTED]
    assert control.sent[-1].fields["final"]
    outcomes = [away, away]
    saver.save_last(state, ALONE, lambda: len(outcomes) == 0)
    assert outcomes == []


# The corpus


def test_corpus(tmp_path: Path) -> None:
    content = "a b c a\n\nb a zz\n"
    (tmp_path / "a.txt").write_text(content)
    store, task, uri = (
        Store(uri=f"file://{tmp_path}"),
        WordEmbedding(minCount=1, maxVocabulary=3),
        f"file://{tmp_path}/a.txt",
    )
    counted, sizes = corpus.count(Reader(store, [uri], tmp_path), [Segment(0, 0, len(content))], task)
    assert (counted.words(1), sizes) == ({"a": 3, "b": 2, "c": 1, "zz": 1}, {})
    words = vocabulary.cut(counted, task)
    plan = plans.Plan((DataFile(uri=uri, size=len(content)),), 8, words)
    text = corpus.Corpus(store, plan, task, tmp_path / "cache")
    assert [text.tokens(b).tolist() for b in range(2)] == [[0, 1, 2, 0, -1], [1, 0, -1]]
    (tmp_path / "a.txt").unlink()
    again = corpus.Corpus(store, plan, task, tmp_path / "cache")
    assert again.tokens(1).tolist() == [1, 0, -1]


def test_tidy(tmp_path: Path) -> None:
    for name in (f"{stores.ON_ITS_WAY}upload-x", f"{stores.ON_ITS_WAY}artifact-y", "spool", "blocks-1"):
        (tmp_path / "s" / name / "file").mkdir(parents=True)
    process.tidy(tmp_path / "s")
    assert {p.name for p in (tmp_path / "s").iterdir()} == {"spool", "blocks-1"}
