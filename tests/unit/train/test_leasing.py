"""A worker's leases, and what its master tells it otherwise."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from mms_workloads.contract import JobFile, Reason
from mms_workloads.store import JobError
from mms_workloads.sync import again, wire
from mms_workloads.sync.control import Control, Superseded, file
from mms_workloads.sync.leases import Progress, Slice
from mms_workloads.sync.wire import Message
from mms_workloads.train.leasing import Leaser
from mms_workloads.train.state import Agreement
from tests.unit.test_contract import JOB_FILE
from tests.unit.train.deaf import Deaf

if TYPE_CHECKING:
    from collections.abc import Callable

    from mms_workloads.pod import Pod

EPOCH = {"epoch": 2, "members": [[1, 0, "10.0.0.1:1"], [0, 3, "10.0.0.0:2"]], "urgent": False, "shards": []}
LEASED = Message(wire.LEASED, {"epoch": 1, "data_epoch": 4, "block": 7, "start": 2, "fraction": 0.1})
NONE_NOW = Message(wire.LEASED, {"epoch": 1, "block": None, "fraction": 0.1})
BYE = Message(wire.BYE, {"outcome": {"result": "Complete", "reason": "TrainingComplete"}})


DEAD = 9


class TenSamples:
    """A learner whose blocks hold ten samples; there is nothing to learn in block DEAD."""

    job = JobFile.model_validate(JOB_FILE)

    def size(self, _: int) -> int:
        return 10

    def ready(self, block: int, data_epoch: int) -> None:
        pass

    def dead(self, block: int) -> str | None:
        return "all the same" if block == DEAD else None


READER = ThreadPoolExecutor(1)
AWAY = JobError(Reason.STORAGE_UNREACHABLE, "away", retryable=True)


class Away(TenSamples):
    """Its store does not answer the first `failures` times; `meanwhile` is what the master says then."""

    def __init__(self, failures: int, meanwhile: Callable[[], None] = lambda: None) -> None:
        self.failures, self.meanwhile = failures, meanwhile

    def ready(self, block: int, data_epoch: int) -> None:
        del block, data_epoch
        if self.failures:
            self.failures -= 1
            self.meanwhile()
            raise AWAY


def leaser(pod: Pod, *answers: Message, progress: Progress | None = None) -> Leaser:
    return leaser_of(Deaf(pod, *answers), progress)


def leaser_of(control: Deaf, progress: Progress | None = None, learner: TenSamples | None = None) -> Leaser:
    agreement = Agreement(5, progress=progress or Progress([]))
    return Leaser(control, 1, learner or TenSamples(), agreement, READER)  # type: ignore[arg-type]


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


def test_a_store_that_is_away_for_a_while_is_waited_for(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(again, "pause", lambda _: 0.0)
    assert leaser_of(Deaf(pod, LEASED), learner=Away(3)).take(4) == (Slice(4, 7, 2, 6, 10),)


def test_a_store_that_stays_away_ends_the_process(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(again, "TRIES_SECONDS", 0.0)
    with pytest.raises(JobError, match="away"):
        leaser_of(Deaf(pod, LEASED), learner=Away(1)).take(4)


def stop(control: Deaf) -> None:
    with control.changing() as box:
        box.stopping = True


def announce(control: Deaf, **changes: Any) -> None:
    with control.changing() as box:
        file(box, Message(wire.EPOCH, {**EPOCH, **changes}))


@pytest.mark.parametrize("meanwhile", [stop, announce], ids=["told to stop", "the next epoch was announced"])
def test_who_is_to_leave_waits_for_no_store(pod: Pod, meanwhile: Callable[[Deaf], None]) -> None:
    """It makes the round without a block, in which the members tell each other."""
    control = Deaf(pod, LEASED)
    assert leaser_of(control, learner=Away(2, lambda: meanwhile(control))).take(4) == ()


def test_the_loss_of_a_member_ends_the_wait_for_a_store(pod: Pod) -> None:
    control = Deaf(pod, LEASED)
    one = leaser_of(control, learner=Away(2, lambda: announce(control, urgent=True)))
    with pytest.raises(Superseded):
        one.take(4)


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


def test_a_block_that_was_dead_in_an_epoch_before_is_dead(pod: Pod) -> None:
    fields = {"epoch": 1, "block": DEAD, "data_epoch": 4, "start": 0, "fraction": 0.0}
    known: dict[int, str] = {}
    for told in (1, 0):
        control = Deaf(pod, Message(wire.LEASED, fields))
        agreement = Agreement(5, progress=Progress([]))
        one = Leaser(control, 1, TenSamples(), agreement, READER, dead=known)  # type: ignore[arg-type]
        assert one.live(one.take(6)[:1]) == ()
        assert len([m for m in control.sent if m.kind == wire.ANOMALY]) == told
        assert known == {DEAD: "all the same"}


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


class Master(Deaf):
    """Each request has one answer: the next of `given`, none once there are no more."""

    def __init__(self, pod: Pod, *given: Message) -> None:
        super().__init__(pod)
        self.given, self.asked = list(given), 0

    def send(self, kind: str, data: bytes = b"", **fields: Any) -> None:
        self.answers = (self.given.pop(0) if self.given else NONE_NOW,)
        self.asked += 1
        super().send(kind, data, **fields)


def dealt_from(control: Deaf, mixed: int, members: int, **options: Any) -> Leaser:
    agreement = Agreement(5, progress=Progress([]))
    return Leaser(control, 1, TenSamples(), agreement, READER, mixed=mixed, members=members, **options)  # type: ignore[arg-type]


def block(number: int, data_epoch: int = 4, start: int = 0) -> Message:
    fields = {"epoch": 1, "data_epoch": data_epoch, "block": number, "start": start, "fraction": 0.1}
    return Message(wire.LEASED, fields)


def lengths(slices: tuple[Slice, ...]) -> list[tuple[int, int]]:
    return [(s.block, s.stop - s.start) for s in slices]


def test_a_round_is_dealt_from_several_blocks(pod: Pod) -> None:
    """In the order of their numbers, however they come: nearly the same of each, and all that a round needs."""
    one = dealt_from(Master(pod, block(8, 3), block(5), block(3), block(4)), mixed=3, members=1)
    assert lengths(one.take(8)) == [(8, 3), (3, 3), (5, 2)]
    assert lengths(one.take(22)) == [(8, 7), (3, 7), (5, 8)]
    assert lengths(one.take(20)) == [(4, 10)], "no more than there is"


def test_a_single_member_waits_for_its_blocks_and_others_for_one(pod: Pod) -> None:
    for members, dealt in ((1, [(3, 4), (5, 4)]), (2, [(3, 8)])):
        one = dealt_from(Master(pod, block(3), block(5)), mixed=2, members=members)
        assert lengths(one.take(8)) == dealt


def test_blocks_that_are_at_hand_join_those_that_are_open(pod: Pod) -> None:
    control = Deaf(pod)
    one = dealt_from(control, mixed=2, members=2)
    control._take(block(3))
    one.take(2)
    for answer in (NONE_NOW, block(5)):
        control._take(answer)
    one._reading[4, 5].result(5)
    assert lengths(one.take(4)) == [(3, 2), (5, 2)]


def test_a_single_member_that_can_have_no_block_asks_again_when_it_has_used_one_up(pod: Pod) -> None:
    control = Master(pod, block(3), block(5))
    one = dealt_from(control, mixed=3, members=1)
    one.take(4)
    one.take(4)
    before = control.asked
    assert lengths(one.take(4)) == [(3, 2), (5, 2)]
    assert control.asked == before
    assert lengths(one.take(8)) == [(3, 4), (5, 4)]
    control.given = [block(6), block(7)]
    assert lengths(one.take(3)) == [(6, 2), (7, 1)]


def test_the_block_that_a_gradient_is_not_finite_of_is_found(pod: Pod) -> None:
    """By rounds from one block each, until that is not the one; then they are dealt from all again."""
    one = dealt_from(Master(pod, block(3), block(5), block(6), block(7)), mixed=3, members=1)
    assert lengths(one.take(3)) == [(3, 1), (5, 1), (6, 1)]
    one.made(finite=False)
    assert lengths(one.take(3)) == [(3, 3)]
    one.made(finite=True)
    for _ in range(2):
        assert lengths(one.take(3)) == [(5, 3)]
        one.made(finite=False)
    assert lengths(one.take(4)) == [(5, 3)], "no samples of another block among them"
    one.made(finite=False)
    assert lengths(one.take(3)) == [(6, 3)]
    one.made(finite=True)
    assert lengths(one.take(3)) == [(3, 1), (6, 1), (7, 1)]


def test_a_block_that_is_used_up_inside_a_round_frees_its_next_pass_for_the_round_after(pod: Pod) -> None:
    """As in a run that is resumed between the two."""
    control = Master(pod, block(3), block(5, start=9))
    one = dealt_from(control, mixed=2, members=1)
    assert lengths(one.take(4)) == [(3, 2), (5, 1), (3, 1)]
    control.given = [block(5, 5)]
    assert lengths(one.take(4)) == [(3, 2), (5, 2)]


def test_who_has_searched_goes_on_in_the_next_epoch(pod: Pod) -> None:
    """Of blocks that it has not got it knows nothing, and a round that has others' samples is no search."""
    suspects = {4}
    one = dealt_from(Master(pod, block(3), block(5)), mixed=2, members=1, suspects=suspects)
    assert lengths(one.take(2)) == [(3, 1), (5, 1)]
    one.made(finite=False)
    assert suspects == {3, 4, 5}
    following = dealt_from(Master(pod, block(3), block(8), block(5)), mixed=2, members=1, suspects=suspects)
    assert lengths(following.take(4)) == [(3, 4)]
    following.made(finite=True)
    assert lengths(following.take(20)) == [(3, 6), (8, 10), (5, 4)]
    following.made(finite=True)
    assert suspects == {4, 5}
    assert lengths(following.take(2)) == [(5, 2)]


def test_while_there_is_no_block_one_at_a_time_is_asked_for(pod: Pod) -> None:
    control = Master(pod)
    one = dealt_from(control, mixed=4, members=2)
    asked = []
    for _ in range(4):
        assert one.take(4) == ()
        asked.append(control.asked)
    assert asked == [4, 5, 6, 7]
    control.given = [block(number) for number in range(9)]
    assert lengths(one.take(4)) == [(0, 4)]
    assert control.asked == 7 + 1 + 4, "and all that it needs when there is one"


def test_ranks_that_do_not_step_together_take_a_round_from_one_block(pod: Pod) -> None:
    one = dealt_from(Master(pod, block(3), block(5)), mixed=2, members=2, alone=True)
    assert lengths(one.take(4)) == [(3, 4)]


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


def test_rounds_are_told_together_and_before_what_follows(pod: Pod) -> None:
    control = Control(pod, "127.0.0.1:1", lambda: (0, None), plain=True)
    control._loop = asyncio.new_event_loop()

    async def said(count: int) -> list[Message]:
        outbox = control._outbox = asyncio.Queue()
        for epoch, step in ((1, 1), (1, 2), (2, 3)):
            control.report(epoch, {"step": step})
        control.send(wire.LEASE, epoch=2)
        control.report(2, {"step": 4})
        return [await outbox.get() for _ in range(count)]

    told = control._loop.run_until_complete(said(4))
    control._loop.close()
    assert [(m.kind, m.fields) for m in told] == [
        (wire.PROGRESS, {"epoch": 1, "rounds": [{"step": 1}, {"step": 2}]}),
        (wire.PROGRESS, {"epoch": 2, "rounds": [{"step": 3}]}),
        (wire.LEASE, {"epoch": 2}),
        (wire.PROGRESS, {"epoch": 2, "rounds": [{"step": 4}]}),
    ]


def test_threads_do_not_overtake_each_other(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    """One has taken what was reported and has not queued it: what another one says then comes after it."""
    control = Control(pod, "127.0.0.1:1", lambda: (0, None), plain=True)
    queued, other_is_done = list[str](), threading.Event()

    def other() -> None:
        control.report(1, {"step": 2}, at_once=True)
        control.send(wire.HEARTBEAT)
        other_is_done.set()

    thread = threading.Thread(target=other)

    def call(_: object, *messages: Message) -> None:
        if messages and threading.current_thread() is not thread:
            thread.start()
            other_is_done.wait(0.2)  # it is not, as long as this one holds it up
        queued.extend(message.kind + str(message.fields.get("rounds", "")) for message in messages)

    monkeypatch.setattr(control, "_call", call)
    control.report(1, {"step": 1})
    control.send(wire.LEASE)
    thread.join()
    assert queued == ["progress[{'step': 1}]", "lease", "progress[{'step': 2}]", "heartbeat"]


def test_sending_after_the_conversation_is_no_failure(pod: Pod) -> None:
    control = Control(pod, "127.0.0.1:1", lambda: (0, None), plain=True)
    control.send(wire.HEARTBEAT)
    control._loop = asyncio.new_event_loop()
    control._loop.close()
    control.send(wire.HEARTBEAT)
