"""Every block once in every data epoch, whoever is lost in between."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mms_workloads.contract import Data, Store
from mms_workloads.data import blocks
from mms_workloads.sync.leases import Lease, Leases, apply_commit, fraction, order

RANKS = st.integers(0, 2)


def start(sharding: str, epochs: int, count: int, seed: int = 1) -> Leases:
    data = Data.model_validate({"store": Store(uri="file:///x"), "sharding": sharding})
    return Leases.start(data, seed, epochs, blocks.training(count), count)


class Machine(RuleBasedStateMachine):
    """Ranks take leases and lose them; rounds commit some; the state goes back to what a survivor or checkpoint has."""

    @initialize(sharding=st.sampled_from(["Random", "Sequential"]), epochs=st.integers(1, 4), count=st.integers(1, 14))
    def begin(self, sharding: str, epochs: int, count: int) -> None:
        self.leases = start(sharding, epochs, count)
        self.hands: dict[int, list[Lease]] = {0: [], 1: [], 2: []}
        self.effect: list[Lease] = []  # what is part of the parameters
        self.checkpoint: tuple[list[Lease], list[int]] = ([], list(self.leases.applied))

    @rule(rank=RANKS)
    def take(self, rank: int) -> None:
        lease = self.leases.take(rank)
        if lease:
            assert all(lease not in hand for hand in self.hands.values())
            self.hands[rank].append(lease)

    @rule(ranks=st.sets(RANKS, min_size=1))
    def round(self, ranks: set[int]) -> None:
        committed = [lease for rank in ranks for lease in self.hands[rank]]
        self.leases.commit(committed)
        self.effect += committed
        for rank in ranks:
            self.hands[rank] = []

    @rule(rank=RANKS)
    def lose(self, rank: int) -> None:
        self.leases.give_back([rank])
        self.hands[rank] = []

    @rule()
    def next_epoch(self) -> None:
        self.leases.give_back()
        self.leases.restore(list(self.leases.applied))
        self.hands = {rank: [] for rank in self.hands}

    @rule()
    def save(self) -> None:
        self.checkpoint = (list(self.effect), list(self.leases.applied))

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
            for block, applied in enumerate(self.leases.applied):
                assert sorted(lease.data_epoch for lease in self.effect if lease.block == block) == list(range(applied))

    def teardown(self) -> None:
        """Whatever happened, the rest can be done, and then all of it was done once."""
        if not hasattr(self, "leases"):
            return
        self.next_epoch()
        while lease := self.leases.take(0):
            self.leases.commit([lease])
            self.effect.append(lease)
        assert self.leases.done()
        assert self.leases.fraction() == 1
        assert sorted(self.effect) == [Lease(e, b) for e in range(self.leases.epochs) for b in self.leases.blocks]


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
    leases.commit([Lease(0, 0)])
    assert leases.take(1) == Lease(1, 0)


def test_a_commit_out_of_turn_is_refused() -> None:
    leases = start("Sequential", 3, 2)
    with pytest.raises(ValueError, match="does not follow"):
        leases.commit([Lease(1, 0)])
    leases.commit([Lease(0, 0)])
    with pytest.raises(ValueError, match="does not follow"):
        leases.commit([Lease(0, 0)])


def test_progress_of_another_data_set_is_refused() -> None:
    with pytest.raises(ValueError, match="progress of 2 blocks, the data set has 3"):
        start("Sequential", 1, 3).restore([0, 0])


def test_fraction() -> None:
    applied = [2, 0, 1]
    apply_commit(applied, [Lease(0, 1), Lease(1, 2)])
    assert applied == [2, 1, 2]
    assert fraction(applied, [0, 1, 2], 2) == pytest.approx(5 / 6)
