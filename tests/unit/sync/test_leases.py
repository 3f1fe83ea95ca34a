"""Every block once in every data epoch, whoever is lost in between."""

from __future__ import annotations

import itertools
import json
import random  # noqa: TC003 - hypothesis reads the annotation

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mms_workloads.contract import Data, Store
from mms_workloads.data import blocks
from mms_workloads.sync.leases import Lease, Leases, Progress, Slice, order

RANKS = st.integers(0, 2)


def start(sharding: str, epochs: int, count: int, seed: int = 1) -> Leases:
    data = Data.model_validate({"store": Store(uri="file:///x"), "sharding": sharding})
    return Leases.start(data, seed, epochs, blocks.split(count, 0.1)[0], count)


SIZE = 4  # samples of a block


class Machine(RuleBasedStateMachine):
    """Ranks take leases, use them up in slices and lose them; rounds commit; the state goes back to what a survivor or
    a checkpoint has."""

    @initialize(sharding=st.sampled_from(["Random", "Sequential"]), epochs=st.integers(1, 4), count=st.integers(1, 14))
    def begin(self, sharding: str, epochs: int, count: int) -> None:
        self.leases = start(sharding, epochs, count)
        self.hands: dict[int, list[Lease]] = {0: [], 1: [], 2: []}
        self.effect: list[tuple[int, int, int]] = []  # samples that are part of the parameters
        self.checkpoint: tuple[list[tuple[int, int, int]], Progress] = ([], self.leases.progress.copy())

    @rule(rank=RANKS)
    def take(self, rank: int) -> None:
        lease = self.leases.take(rank, len(self.hands))
        assert lease or self.hands[rank] or not self.free(), "a rank that has nothing gets what there is"
        if lease:
            held = [(one.data_epoch, one.block) for hand in self.hands.values() for one in hand]
            assert (lease.data_epoch, lease.block) not in held
            self.hands[rank].append(lease)

    def free(self) -> list[int]:
        """Blocks that may be taken."""
        applied = self.leases.progress.applied
        last = min(min(applied[b] for b in self.leases.blocks) + 1, self.leases.epochs - 1)
        held = {(one.data_epoch, one.block) for hand in self.hands.values() for one in hand}
        return [b for b in self.leases.blocks if applied[b] <= last and (applied[b], b) not in held]

    @rule(ranks=st.sets(RANKS, min_size=1), samples=st.integers(1, SIZE))
    def round(self, ranks: set[int], samples: int) -> None:
        committed = []
        for rank in ranks:
            hand = []
            for lease in self.hands[rank]:
                stop = min(SIZE, lease.start + samples)
                committed.append(Slice(lease.data_epoch, lease.block, lease.start, stop, SIZE))
                if stop < SIZE:
                    hand.append(Lease(lease.data_epoch, lease.block, stop))
            self.hands[rank] = hand
        self.leases.commit(committed)
        self.effect += [(s.data_epoch, s.block, i) for s in committed for i in range(s.start, s.stop)]

    @rule(rank=RANKS)
    def lose(self, rank: int) -> None:
        self.leases.give_back([rank])
        self.hands[rank] = []

    @rule()
    def next_epoch(self) -> None:
        self.leases.give_back()
        self.leases.restore(Progress.read(json.loads(json.dumps(self.leases.progress.document()))))
        self.hands = {rank: [] for rank in self.hands}

    @rule()
    def save(self) -> None:
        self.checkpoint = (list(self.effect), self.leases.progress.copy())

    @rule()
    def all_die(self) -> None:
        self.effect = list(self.checkpoint[0])
        self.leases.restore(self.checkpoint[1])
        self.hands = {rank: [] for rank in self.hands}

    @precondition(lambda self: not self.leases.done())
    @rule()
    def somebody_can_always_work(self) -> None:
        if not any(self.hands.values()):
            assert self.leases.take(0) is not None
            self.leases.give_back([0])

    @invariant()
    def nothing_counts_twice(self) -> None:
        if hasattr(self, "leases"):
            assert len(set(self.effect)) == len(self.effect)
            progress = self.leases.progress
            for block, applied in enumerate(progress.applied):
                expected = applied * SIZE + progress.start(block)
                assert sum(b == block for _, b, _ in self.effect) == expected

    def teardown(self) -> None:
        """Whatever happened, the rest can be done, and then all of it was done once."""
        if not hasattr(self, "leases"):
            return
        self.next_epoch()
        while lease := self.leases.take(0):
            self.leases.commit([Slice(lease.data_epoch, lease.block, lease.start, SIZE, SIZE)])
            self.effect += [(lease.data_epoch, lease.block, i) for i in range(lease.start, SIZE)]
        assert self.leases.done()
        assert self.leases.fraction() == 1
        everything = [(e, b, i) for e in range(self.leases.epochs) for b in self.leases.blocks for i in range(SIZE)]
        assert sorted(self.effect) == everything


def whole(data_epoch: int, block: int) -> Slice:
    return Slice(data_epoch, block, 0, 1, 1)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40)


@given(st.integers(0, 5), st.lists(st.integers(0, 99), unique=True, max_size=30), st.integers(0, 9))
def test_order(seed: int, numbers: list[int], data_epoch: int) -> None:
    assert order("Sequential", seed, data_epoch, numbers) == numbers
    shuffled = order("Random", seed, data_epoch, numbers)
    assert sorted(shuffled) == sorted(numbers)
    assert shuffled == order("Random", seed, data_epoch, numbers)


def test_orders_differ_by_data_epoch_and_seed() -> None:
    numbers = list(range(50))
    orders = [order("Random", seed, epoch, numbers) for seed in (1, 2) for epoch in (0, 1)]
    assert len({tuple(o) for o in orders}) == 4


def test_the_next_data_epoch_starts_while_the_last_blocks_are_held() -> None:
    leases = start("Sequential", 2, 3)
    held = [leases.take(0) for _ in range(3)]
    assert held == [Lease(0, 0), Lease(0, 1), Lease(0, 2)]
    assert leases.take(1) is None
    leases.commit([whole(0, 0)])
    assert leases.take(1) == Lease(1, 0)


@given(st.randoms(use_true_random=False), st.integers(1, 9), st.integers(1, 5), st.integers(1, 3))
def test_a_rank_that_is_alone_has_the_same_rounds_wherever_it_was_resumed(
    chance: random.Random, count: int, mixed: int, samples: int
) -> None:
    """Of each block that is open it takes some samples in a round; ahead of it, it asks for more."""

    def rounds(resumed: float, ahead: int) -> list[list[Slice]]:
        leases, opened, made = start("Random", 3, count), list[Lease](), list[list[Slice]]()
        waiting: list[Lease] = []
        while not leases.done():
            if chance.random() < resumed:
                leases.restore(Progress.read(leases.progress.document()))
                opened, waiting = [], []
            while len(opened) < mixed and (lease := waiting.pop(0) if waiting else leases.take(0, members=1)):
                opened.append(lease)
            opened.sort(key=lambda one: (one.data_epoch, one.block))
            this = [Slice(one.data_epoch, one.block, one.start, min(one.start + samples, SIZE), SIZE) for one in opened]
            waiting += [lease for _ in range(ahead) if (lease := leases.take(0, members=1))]
            leases.commit(this)
            opened = [Lease(s.data_epoch, s.block, s.stop) for s in this if s.stop < s.size]
            made.append(this)
        return made

    assert rounds(0.5, chance.randrange(3)) == rounds(0, 0)


def test_a_rank_goes_on_with_its_blocks_and_leaves_the_others_theirs() -> None:
    leases = start("Sequential", 2, 6)
    first, second, ahead = leases.take(0), leases.take(1), leases.take(0)
    assert (first, second, ahead) == (Lease(0, 0), Lease(0, 1), Lease(0, 2))
    leases.commit([Slice(0, 0, 0, 2, SIZE)])
    leases.give_back()
    assert [leases.take(0) for _ in range(2)] == [Lease(0, 0, 2), Lease(0, 2)], "the one that it was at, first"
    assert leases.take(0) == Lease(0, 4), "one that nobody has read"
    assert leases.take(1) == second
    leases.commit([Slice(0, 0, 2, SIZE, SIZE)])
    leases.give_back()
    assert [leases.take(0) for _ in range(4)] == [Lease(0, 2), Lease(0, 4), Lease(0, 5), second], "at last another's"


def test_a_commit_out_of_turn_is_refused() -> None:
    leases = start("Sequential", 3, 2)
    with pytest.raises(ValueError, match="does not follow"):
        leases.commit([whole(1, 0)])
    leases.commit([whole(0, 0)])
    with pytest.raises(ValueError, match="does not follow"):
        leases.commit([whole(0, 0)])


def test_a_commit_of_which_a_part_is_out_of_turn_changes_nothing() -> None:
    leases = start("Sequential", 3, 2)
    with pytest.raises(ValueError, match="does not follow"):
        leases.commit([whole(0, 0), Slice(0, 1, 1, 2, 2)])
    assert leases.progress == Progress([0, 0])


def test_a_block_goes_on_where_its_committed_part_ends() -> None:
    leases = start("Sequential", 1, 1)
    assert leases.take(0) == Lease(0, 0)
    leases.commit([Slice(0, 0, 0, 3, 10), Slice(0, 0, 3, 5, 10)])
    assert leases.take(1) is None  # it is still held
    leases.give_back([0])
    assert leases.take(1) == Lease(0, 0, 5)


def test_progress_of_another_data_set_is_refused() -> None:
    with pytest.raises(ValueError, match="progress of 2 blocks, the data set has 3"):
        start("Sequential", 1, 3).restore(Progress([0, 0]))


def test_the_last_blocks_go_to_all_in_equal_parts() -> None:
    leases = Leases("Sequential", 1, 1, range(9), Progress.none(9))
    assert [leases.take(0) for _ in range(6)] == [*(Lease(0, b) for b in range(5)), None], "nine blocks for two"
    leases.commit([Slice(0, b, 0, 3, SIZE) for b in range(5)])
    assert leases.take(0) == Lease(0, 5), "a quarter of each is left, and more of the others"
    assert [leases.take(0), leases.take(0)] == [Lease(0, 6), None]
    assert [leases.take(1) for _ in range(3)] == [Lease(0, 7), Lease(0, 8), None]


def test_none_has_a_second_block_where_another_would_have_none() -> None:
    leases = start("Sequential", 1, 4)
    assert [leases.take(0, 3) for _ in range(3)] == [Lease(0, 0), Lease(0, 1), None]
    assert [leases.take(1, 3) for _ in range(2)] == [Lease(0, 2), None]
    assert leases.take(2, 3) == Lease(0, 3)


def test_a_rank_that_has_nothing_is_refused_no_block() -> None:
    """Whoever else there is, and has less left."""
    leases = start("Sequential", 1, 2)
    assert leases.take(0, 1000) == Lease(0, 0)
    assert leases.take(0, 1000) is None
    assert leases.take(1, 1000) == Lease(0, 1)


def test_fraction() -> None:
    progress = Progress([2, 0, 1])
    progress.commit([whole(0, 1), whole(1, 2)])
    assert progress.applied == [2, 1, 2]
    assert progress.fraction([0, 1, 2], 2) == pytest.approx(5 / 6)
    progress.commit([Slice(1, 1, 0, 1, 4)])
    assert progress.fraction([0, 1, 2], 2) == pytest.approx(5.25 / 6)


def test_the_fraction_is_the_same_to_the_bit_in_whatever_order_blocks_were_begun() -> None:
    """The learning rate of each rank follows from it."""
    parts = {block: (done, 10) for block, done in enumerate([1, 2, 3, 6, 7])}
    found = {
        Progress([0] * 5, {block: parts[block] for block in order_}).fraction(range(5), 3)
        for order_ in itertools.permutations(parts)
    }
    assert len(found) == 1


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 9), st.integers(1, 10)), max_size=9))
def test_samples_that_are_passed_over(spans: list[tuple[int, int, int, int]]) -> None:
    """Those of a block's pass and no others, in as few parts as can be, wherever a round begins."""
    passed_over = sorted(Slice(e, b, at, min(10, at + length), 10) for e, b, at, length in spans)
    progress = Progress([0] * 3, passed_over=passed_over)
    for e, b, at in itertools.product(range(3), range(3), range(10)):
        out = [any((s.data_epoch, s.block) == (e, b) and s.start <= i < s.stop for s in passed_over) for i in range(10)]
        stop, live = progress.part(e, b, at, 10)
        assert at < stop <= 10
        assert out[at:stop] == [not live] * (stop - at)
        assert not live or stop == 10 or out[stop], "all up to what is passed over"
