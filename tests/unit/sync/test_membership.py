"""Membership under any order of joins, losses, heartbeats and epochs."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mms_workloads.sync.membership import (
    HEARTBEAT_DEADLINE_SECONDS,
    RECOVERY_GRACE_SECONDS,
    Fence,
    Hello,
    Membership,
    Refusal,
)

FENCE = Fence("uid", 1, 1)
RANKS = st.integers(0, 3)


def join(membership: Membership, *hellos: Hello, now: float = 0.0) -> Membership:
    for hello in hellos:
        answer = membership.hello(hello, now)
        assert isinstance(answer, Membership)
        membership = answer
    return membership


def peers(*ranks: int, incarnation: int = 0) -> list[Hello]:
    return [Hello(FENCE, rank, incarnation, f"10.0.0.{rank}") for rank in ranks]


class Machine(RuleBasedStateMachine):
    """The model: which (rank, incarnation) is in, and since when it was heard of."""

    def __init__(self) -> None:
        super().__init__()
        self.membership = Membership(FENCE, 2)
        self.now = 0.0
        self.present: dict[int, int] = {}
        self.heard: dict[int, float] = {}
        self.highest: dict[int, int] = {}
        self.numbers = [0]
        self.changed: set[int] = set()  # ranks that joined or left since the last epoch
        self.steps: dict[int, int] = {}  # that the present ones came with

    @rule(rank=RANKS, incarnation=st.integers(0, 3), epoch=st.integers(0, 5), step=st.none() | st.integers(0, 9))
    def hello(self, rank: int, incarnation: int, epoch: int, step: int | None) -> None:
        before = self.membership
        answer = before.hello(Hello(FENCE, rank, incarnation, "a", epoch, step), self.now)
        if incarnation < self.highest.get(rank, 0):
            assert isinstance(answer, Refusal)
            return
        assert isinstance(answer, Membership)
        self.membership = answer
        self.present[rank] = self.highest[rank] = incarnation
        self.heard[rank] = self.now
        self.changed.add(rank)
        self.steps[rank] = -1 if step is None else step
        self.numbers[-1] = max(self.numbers[-1], epoch)

    @rule(fence=st.builds(Fence, st.sampled_from(["uid", "x"]), st.integers(1, 2), st.integers(1, 2)), rank=RANKS)
    def stranger(self, fence: Fence, rank: int) -> None:
        if fence != FENCE:
            assert isinstance(self.membership.hello(Hello(fence, rank, 99), self.now), Refusal)

    @rule(rank=RANKS)
    def lose(self, rank: int) -> None:
        self.membership = self.membership.lose([rank])
        if self.present.pop(rank, None) is not None:
            self.changed.add(rank)

    @rule(rank=RANKS)
    def heartbeat(self, rank: int) -> None:
        self.membership = self.membership.heard(rank, self.now)
        self.heard[rank] = self.now

    @rule(seconds=st.floats(0, 2 * HEARTBEAT_DEADLINE_SECONDS))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(workers=st.integers(1, 4))
    def want(self, workers: int) -> None:
        self.membership = self.membership.want(workers)

    @precondition(lambda self: self.membership.ready(self.now))
    @rule()
    def advance(self) -> None:
        before = {m.rank for m in self.membership.epoch.members} if self.membership.epoch else set()
        stayed = (before & self.present.keys()) - self.changed
        self.membership = self.membership.advance()
        assert self.membership.epoch is not None
        self.numbers.append(self.membership.epoch.number)
        members = self.membership.epoch.members
        inside = {m.rank for m in members}
        assert {m.rank: m.incarnation for m in members}.items() <= self.present.items()
        assert len(members) == min(len(self.present), self.membership.wanted)
        assert stayed <= inside or inside <= stayed, "who trains goes on"
        others = self.present.keys() - stayed
        least = min((self.steps[r] for r in inside & others), default=-1)
        assert all(self.steps[r] <= least for r in others - inside) or not inside & others, (
            "who stands by holds no more"
        )
        assert [m.joined for m in members] == sorted(m.joined for m in members)
        self.changed = set()

    @invariant()
    def members_are_the_present(self) -> None:
        assert {m.rank: m.incarnation for m in self.membership.members} == self.present

    @invariant()
    def numbers_rise(self) -> None:
        assert all(a < b for a, b in zip(self.numbers, self.numbers[1:], strict=False))

    @invariant()
    def who_was_not_heard_of_is_overdue(self) -> None:
        late = {r for r in self.present if self.heard[r] + HEARTBEAT_DEADLINE_SECONDS <= self.now}
        assert set(self.membership.overdue(self.now)) == late

    @invariant()
    def an_epoch_of_other_members_is_due(self) -> None:
        epoch = self.membership.epoch
        if epoch is None:
            return
        inside = {m.rank for m in epoch.members}
        assert self.membership.broken() == bool(self.changed & inside)
        rests = not self.changed & inside and len(inside) == min(len(self.present), self.membership.wanted)
        assert self.membership.ready(self.now) == (bool(self.present) and not rests)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=30)


@pytest.mark.parametrize(
    ("hello", "says"),
    [
        (Hello(Fence("other", 1, 1), 1, 5), "job uid run 1 attempt 1, the peer belongs to job other"),
        (Hello(Fence("uid", 2, 1), 1, 5), "run 2"),
        (Hello(Fence("uid", 1, 2), 1, 5), "attempt 2"),
        (Hello(FENCE, 0, 1), "incarnation 2 of rank 0 is known, the peer is incarnation 1"),
    ],
    ids=["job", "run", "attempt", "incarnation"],
)
def test_a_stale_peer_is_refused(hello: Hello, says: str) -> None:
    membership = join(Membership(FENCE, 1), Hello(FENCE, 0, 2))
    answer = membership.hello(hello, 0)
    assert isinstance(answer, Refusal)
    assert says in answer.message


def test_an_old_incarnation_is_refused_after_the_rank_was_lost() -> None:
    membership = join(Membership(FENCE, 1), Hello(FENCE, 0, 2)).lose([0])
    assert isinstance(membership.hello(Hello(FENCE, 0, 1), 0), Refusal)


def test_the_first_epoch_waits_for_all() -> None:
    membership = join(Membership(FENCE, 3), *peers(0, 2))
    assert not membership.ready(1e9)
    assert join(membership, *peers(1)).ready(0)
    assert membership.want(2).ready(0)


def test_a_new_master_waits_for_survivors_and_not_for_ever() -> None:
    survivor = Hello(FENCE, 1, 0, "a", 7, 40)
    membership = join(Membership(FENCE, 2), survivor, now=100.0)
    assert not membership.ready(100.0 + RECOVERY_GRACE_SECONDS - 0.1)
    assert membership.ready(100.0 + RECOVERY_GRACE_SECONDS)
    epoch = membership.advance().epoch
    assert epoch is not None
    assert epoch.number == 8
    assert epoch.position(1) == 0
    assert epoch.position(0) is None


def test_the_same_pod_with_another_process_breaks_the_epoch() -> None:
    membership = join(Membership(FENCE, 2), *peers(0, 1)).advance()
    assert not membership.broken()
    again = join(membership, *peers(1))
    assert again.broken()
    assert [m.rank for m in again.advance().members] == [0, 1]


def test_who_is_not_wanted_yet_stands_by_and_takes_a_lost_ones_place() -> None:
    membership = join(join(Membership(FENCE, 2), *peers(0, 1)).advance(), *peers(2))
    assert (membership.broken(), membership.ready(0)) == (False, False)
    assert not membership.lose([2]).ready(0), "nobody waits for one that stands by"
    lost = membership.lose([0])
    assert lost.ready(0)
    assert [m.rank for m in lost.chosen()] == [1, 2]
    back = join(lost.advance(), *peers(0, incarnation=1))
    assert not back.ready(0), "it stands by now"
    assert [m.rank for m in back.want(3).chosen()] == [1, 2, 0]


def test_whoever_brings_parameters_to_a_new_master_goes_before_one_that_stands_by() -> None:
    survivors = [Hello(FENCE, rank, 0, "a", 7, 40) for rank in (1, 2)]
    membership = join(Membership(FENCE, 2), *peers(0), *survivors)
    assert [m.rank for m in membership.advance().epoch.members] == [1, 2]  # type: ignore[union-attr]


def test_a_joiner_does_not_break_the_epoch() -> None:
    membership = join(join(Membership(FENCE, 1), *peers(1)).advance().want(2), *peers(0))
    assert (membership.broken(), membership.ready(0)) == (False, True)
    epoch = membership.advance().epoch
    assert epoch is not None
    assert [m.rank for m in epoch.members] == [1, 0]  # the oldest first
