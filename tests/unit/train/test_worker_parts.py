"""The worker's parts on their own: what arrives, leases, exchanges, the corpus."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.unit.test_contract import JOB_FILE
from tests.unit.train.table import Table, at_once, nothing

from mms_workloads.contract import DataFile, Guard, JobFile, Reason, Store, Task, WordEmbedding
from mms_workloads.data import corpus, vocabulary
from mms_workloads.data.blocks import Segment
from mms_workloads.embedding.parameters import initial_parameters
from mms_workloads.embedding.state import EmbeddingState
from mms_workloads.pod import Pod
from mms_workloads.store import JobError
from mms_workloads.sync import plan as plans
from mms_workloads.sync import wire
from mms_workloads.sync.control import Control, Superseded, file
from mms_workloads.sync.layout import Layout
from mms_workloads.sync.layout import Table as Rows
from mms_workloads.sync.leases import Progress, Slice
from mms_workloads.sync.wire import Message
from mms_workloads.train import checkpoint, process, worker
from mms_workloads.train.checkpoints import Checkpointer
from mms_workloads.train.communicator import WELL, Contribution, Stats
from mms_workloads.train.guarding import Guarding
from mms_workloads.train.learner import Place
from mms_workloads.train.leasing import Leaser
from mms_workloads.train.parameter_server import ParameterServer
from mms_workloads.train.pulse import Pulse
from mms_workloads.train.state import Agreement, agree
from mms_workloads.transport.channel import PeerLost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mms_workloads.sync.control import Inbox
    from mms_workloads.train.ring import Wire

EPOCH = {"epoch": 2, "members": [[1, 0, "10.0.0.1:1"], [0, 3, "10.0.0.0:2"]], "urgent": False, "shards": []}
LEASED = Message(wire.LEASED, {"epoch": 1, "data_epoch": 4, "block": 7, "start": 2, "fraction": 0.1})
NONE_NOW = Message(wire.LEASED, {"epoch": 1, "block": None, "fraction": 0.1})
BYE = Message(wire.BYE, {"outcome": {"result": "Complete", "reason": "TrainingComplete"}})


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    job = JobFile.model_validate({**JOB_FILE, "storage": {"uri": f"file://{tmp_path}/run"}})
    return Pod("worker", 1, 0, 1, "127.0.0.1", job, "sha256:0", tmp_path, tmp_path, tmp_path / "log", 0, 0)


class Deaf(Control):
    """A control connection whose master is this test: `answers` arrive as soon as anything is sent."""

    def __init__(self, pod: Pod, *answers: Message) -> None:
        super().__init__(pod, "127.0.0.1:1", lambda: (0, None), plain=True)
        self.answers, self.sent = answers, list[Message]()

    def wait(self, ready: Callable[[Inbox], Any], timeout: float | None = None) -> Any:
        value = super().wait(ready, timeout or 5)
        assert value, "it would wait for ever"
        return value

    def send(self, kind: str, data: bytes = b"", **fields: Any) -> None:
        self.sent.append(Message(kind, fields, data))
        for answer in self.answers:
            with self.changing() as box:
                file(box, answer)


DEAD = 9


class TenSamples:
    """A learner whose blocks hold ten samples; there is nothing to learn in block DEAD."""

    job = JobFile.model_validate(JOB_FILE)

    def size(self, _: int) -> int:
        return 10

    def dead(self, block: int) -> str | None:
        return "all the same" if block == DEAD else None


READER = ThreadPoolExecutor(1)


def leaser(pod: Pod, *answers: Message, progress: Progress | None = None) -> Leaser:
    return leaser_of(Deaf(pod, *answers), progress)


def leaser_of(control: Deaf, progress: Progress | None = None) -> Leaser:
    agreement = Agreement(5, progress=progress or Progress([]))
    return Leaser(control, 1, TenSamples(), agreement, READER)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([LEASED], (Slice(4, 7, 2, 6, 10),)),
        ([NONE_NOW], ()),
        ([Message(wire.EPOCH, EPOCH)], ()),
        ([LEASED, Message(wire.EPOCH, EPOCH)], (Slice(4, 7, 2, 6, 10),)),
    ],
    ids=["a block", "none now", "the next epoch was announced", "both"],
)
def test_samples_for_a_round(pod: Pod, answers: list[Message], expected: tuple[Slice, ...]) -> None:
    assert leaser(pod, *answers).take(4) == expected


@pytest.mark.parametrize(
    "answer",
    [Message(wire.EPOCH, {**EPOCH, "urgent": True}), BYE, Message(wire.REFUSED, {"message": "stale"})],
    ids=["a member was lost", "the run ended", "refused"],
)
def test_no_lease_any_more(pod: Pod, answer: Message) -> None:
    with pytest.raises(Superseded):
        leaser(pod, LEASED, answer).take(4)


def test_samples_that_are_passed_over(pod: Pod) -> None:
    """Six for the round, of those that are trained on; what lies between them is seen."""
    fields = {"epoch": 1, "block": 7, "data_epoch": 4, "start": 0, "fraction": 0.0}
    progress = Progress([0] * 8, passed_over=[Slice(3, 7, 0, 9, 10), Slice(4, 7, 2, 4, 10)])
    one = leaser(pod, Message(wire.LEASED, fields), progress=progress)
    taken = one.take(6)
    assert taken == (Slice(4, 7, 0, 2, 10), Slice(4, 7, 2, 4, 10), Slice(4, 7, 4, 8, 10))
    assert one.live(taken) == (taken[0], taken[2])


def test_a_dead_block_is_seen_and_not_trained_on(pod: Pod) -> None:
    fields = {"epoch": 1, "block": DEAD, "data_epoch": 4, "start": 0, "fraction": 0.0}
    one = leaser(pod, Message(wire.LEASED, fields))
    taken = one.take(6)
    assert taken[0] == Slice(4, DEAD, 0, 10, 10), "whole, and no sample of the round"
    assert one.live(taken[:1]) == ()
    control = one._control
    assert isinstance(control, Deaf)
    assert [m.fields for m in control.sent if m.kind == wire.ANOMALY] == [
        {"anomaly": "DeadData", "rank": None, "block": DEAD, "action": "all the same"}
    ]


def test_a_round_goes_over_the_end_of_a_block(pod: Pod) -> None:
    control = Deaf(pod, LEASED)
    one = leaser_of(control)
    assert one.take(6) == (Slice(4, 7, 2, 8, 10),)
    assert len(control.sent) == 2  # the next block is asked for before this one is used up
    control.answers = (Message(wire.LEASED, {"epoch": 1, "data_epoch": 4, "block": 8, "start": 0, "fraction": 0.1}),)
    assert one.take(6) == (Slice(4, 7, 8, 10, 10), Slice(4, 7, 2, 6, 10))
    assert one.take(4) == (Slice(4, 7, 6, 10, 10),)


def test_a_lease_of_the_epoch_before_is_not_taken(pod: Pod) -> None:
    control = Deaf(pod, NONE_NOW)
    file(control.inbox, LEASED)
    assert leaser_of(control).take(4) == ()


def test_the_next_block_is_read_while_the_one_before_it_is_trained_on(pod: Pod) -> None:
    control = Deaf(pod, LEASED)
    one = leaser_of(control)
    one.take(4)
    control.answers = ()
    assert one._reading[4, 7].result(5).size == 10
    assert one.take(4) == (Slice(4, 7, 6, 10, 10),)
    assert one.take(4) == (Slice(4, 7, 2, 6, 10),), "nothing more was asked: the answer was there"


def test_a_block_is_asked_for_and_read_while_the_last_one_is_trained_on(pod: Pod) -> None:
    """A round may take all that is leased."""
    control = Deaf(pod, LEASED)
    one = leaser_of(control)
    assert one.take(8) == (Slice(4, 7, 2, 10, 10),)
    control.answers = ()
    assert one._reading[4, 7].result(5).size == 10
    assert one.take(8) == (Slice(4, 7, 2, 10, 10),)


def test_as_many_blocks_are_asked_for_ahead_as_a_round_takes(pod: Pod) -> None:
    control = Deaf(pod, LEASED)
    one = leaser_of(control)
    asked = lambda: sum(message.kind == wire.LEASE for message in control.sent)  # noqa: E731
    assert len(one.take(24)) == 3
    assert asked() == 3 + 3
    assert len(one.take(24)) == 3
    assert asked() == 6 + 3


def test_a_single_member_asks_for_what_its_round_needs(pod: Pod) -> None:
    """It would be told another order of blocks than one that is resumed between two of its rounds."""
    control = Deaf(pod, LEASED)
    one = Leaser(control, 1, TenSamples(), Agreement(5, progress=Progress([])), READER, members=1)  # type: ignore[arg-type]
    assert one.take(16) == (Slice(4, 7, 2, 10, 10),) * 2
    assert len(control.sent) == 2


def test_a_lease_that_comes_late_is_read_when_it_comes(pod: Pod) -> None:
    control = Deaf(pod)
    one = leaser_of(control)
    file(control.inbox, LEASED)
    file(control.inbox, LEASED)
    one.take(8)
    assert one.take(8) == (Slice(4, 7, 2, 10, 10),)
    assert not one._reading
    control._take(LEASED)
    assert one._reading[4, 7].result(5).size == 10
    one.close()
    control._take(Message(wire.LEASED, {"epoch": 1, "data_epoch": 5, "block": 7, "start": 2, "fraction": 0.1}))
    assert len(one._reading) == 1, "of an epoch that is over nothing is read"


def test_an_answer_of_long_ago_makes_no_empty_round(pod: Pod) -> None:
    control = Deaf(pod, LEASED)
    one = leaser_of(control)
    control.answers = ()
    file(control.inbox, LEASED)
    one.take(8)
    file(control.inbox, NONE_NOW)
    control.answers = (LEASED,)
    assert one.take(8) == (Slice(4, 7, 2, 10, 10),)
    control.answers = (NONE_NOW,)
    assert [len(one.take(8)) for _ in range(2)] == [1, 0]


def test_that_there_was_no_block_ahead_of_time_is_asked_again_when_one_is_needed(pod: Pod) -> None:
    control = Deaf(pod, LEASED)
    one = leaser_of(control)
    control.answers = ()
    file(control.inbox, LEASED)
    one.take(2)
    file(control.inbox, NONE_NOW)
    one.take(2)
    control.answers = (LEASED,)
    assert one.take(4) == (Slice(4, 7, 6, 10, 10),)
    assert one.take(4) == (Slice(4, 7, 2, 6, 10),)


def test_what_arrives_is_filed(pod: Pod) -> None:
    control = Deaf(pod)
    box = control.inbox
    for message in (
        Message(wire.PLAN, {}, b"plan"),
        Message(wire.COUNT, {"task": 1}),
        Message(wire.SUSPEND),
        Message(wire.CHECKPOINT),
        Message(wire.BEGIN, {"epoch": 1}),
    ):
        file(box, message)
    assert (box.plan, box.tasks[0].fields, box.suspend, box.checkpoint) == (b"plan", {"task": 1}, True, True)
    assert box.begin == {"epoch": 1}
    file(box, Message(wire.EPOCH, EPOCH))
    assert box.begin is None
    assert box.announcement is not None
    assert (box.announcement.ranks, box.announcement.addresses) == ((1, 0), ("10.0.0.1:1", "10.0.0.0:2"))
    assert [control.newer(1), control.newer(2), control.urgent(1)] == [True, False, False]
    file(box, Message(wire.WELCOME, {"incarnation": 1}))  # of a new master: what the old one asked for is void
    assert (len(box.tasks), box.suspend, box.checkpoint, box.plan) == (0, False, False, b"plan")
    file(box, BYE)
    assert box.bye is not None
    assert control.urgent(1)


def test_a_master_that_was_replaced_is_left(pod: Pod) -> None:
    control = Deaf(pod)
    assert control._take(Message(wire.WELCOME, {"incarnation": 2}))
    assert not control._take(Message(wire.WELCOME, {"incarnation": 1}))
    assert control._take(Message(wire.WELCOME, {"incarnation": 2}))


def test_sending_after_the_conversation_is_no_failure(pod: Pod) -> None:
    control = Control(pod, "127.0.0.1:1", lambda: (0, None), plain=True)
    control.send(wire.HEARTBEAT)
    control._loop = asyncio.new_event_loop()
    control._loop.close()
    control.send(wire.HEARTBEAT)


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


@pytest.fixture
def made(pod: Pod) -> Iterator[worker.Worker]:
    job = pod.job.model_copy(update={"task": Task(wordEmbedding=WordEmbedding(dimensions=4, minCount=1))})
    one = worker.Worker(dataclasses.replace(pod, job=job), Pulse(), plain=True)
    words = vocabulary.cut({"a": 3, "b": 2}, WordEmbedding(minCount=1))
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
        made._agree(ring, ALONE, begin(step=9, equal=False))
    assert made.state is not None
    assert made._holds() == (0, None)
    table.seats[0].broadcasts_left = 2
    made._agree(ring, ALONE, begin(step=9, equal=False))
    assert made._holds() == (0, 9)
    assert (made.state is not None, made._held() is made.state) == (True, True)


def test_a_checkpoint_that_cannot_be_read_now_is_not_called_damaged(
    made: worker.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = {"uri": "file:///c", "step": 3, "digest": "sha256:0", "time": "t"}
    (ring,) = Table(1).rings()
    for reason, expected in ((Reason.CREDENTIALS_INVALID, JobError), (Reason.ARTIFACT_CORRUPT, Superseded)):

        def fail(*_: object, reason: Reason = reason) -> None:
            raise JobError(reason, "no")

        monkeypatch.setattr(checkpoint, "load", fail)
        with pytest.raises(expected):
            made._agree(ring, ALONE, begin(step=3, checkpoint=reference))


def test_another_plan_voids_what_was_learnt(made: worker.Worker) -> None:
    (ring,) = Table(1).rings()
    made._agree(ring, ALONE, begin(step=9))
    made._prepare()
    assert made._holds() == (0, 9)
    assert made.plan is not None
    made.control.inbox.plan = plans.pack(plans.Plan((), 8, made.plan.vocabulary))
    made._prepare()
    assert made._holds() == (0, None)


def test_parts_are_written_one_at_a_time(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    writing, go = threading.Event(), threading.Event()
    written = []

    def write(*_: object) -> dict[str, Any]:
        written.append(1)
        writing.set()
        go.wait(10)
        raise JobError(Reason.STORAGE_DENIED, "full")

    monkeypatch.setattr(checkpoint, "write_part", write)
    control, state = Deaf(pod), states(1)[0]
    saver = Checkpointer(pod.job, control, pod.scratch)
    saver.save(state, ALONE)
    assert writing.wait(10)
    saver.save(state, ALONE)
    go.set()
    assert saver._thread is not None
    saver._thread.join()
    assert len(written) == 1
    (failed,) = control.sent
    assert (failed.kind, failed.fields["reason"], failed.fields["retryable"]) == (wire.FAILED, "StorageDenied", True)
    with pytest.raises(JobError, match="full"):
        saver.save_last(state, ALONE)


# The corpus


def test_corpus(tmp_path: Path) -> None:
    content = "a b c a\n\nb a zz\n"
    (tmp_path / "a.txt").write_text(content)
    store, task, uri = (
        Store(uri=f"file://{tmp_path}"),
        WordEmbedding(minCount=1, maxVocabulary=3),
        f"file://{tmp_path}/a.txt",
    )
    counted, sizes = corpus.count(store, {0: uri}, [Segment(0, 0, len(content))], task, tmp_path)
    assert (counted.above(0), sizes) == ({"a": 3, "b": 2, "c": 1, "zz": 1}, {})
    words = vocabulary.cut(counted.above(0), task)
    plan = plans.Plan((DataFile(uri=uri, size=len(content)),), 8, words)
    text = corpus.Corpus(store, plan, task, tmp_path / "cache")
    assert [text.tokens(b).tolist() for b in range(2)] == [[0, 1, 2, 0, -1], [1, 0, -1]]
    (tmp_path / "a.txt").unlink()
    again = corpus.Corpus(store, plan, task, tmp_path / "cache")
    assert again.tokens(1).tolist() == [1, 0, -1]


def test_tidy(tmp_path: Path) -> None:
    for name in ("checkpoint-x", "artifact-y", "spool", "blocks-1"):
        (tmp_path / "s" / name / "file").mkdir(parents=True)
    process.tidy(tmp_path / "s")
    assert {p.name for p in (tmp_path / "s").iterdir()} == {"spool", "blocks-1"}
