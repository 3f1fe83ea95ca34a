"""Epochs in which nothing moves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mms_workloads.sync.membership import Member
from mms_workloads.sync.stalls import FLOOR_SECONDS, LEARNED, SLOWEST, UNKNOWN_SECONDS, VAIN_EPOCHS, Stalls

if TYPE_CHECKING:
    from mms_workloads.sync.absences import Place

MEMBERS = [Member(rank, 0, "", rank, 0.0) for rank in range(4)]


def missed(found: Stalls, by: int, *ranks: int) -> None:
    found.missed(("worker", by), [("worker", rank) for rank in ranks])


@pytest.mark.parametrize(
    ("rounds", "every", "bound"),
    [
        (0, 1.0, UNKNOWN_SECONDS),
        (LEARNED - 1, 1.0, UNKNOWN_SECONDS),
        (LEARNED, 1.0, FLOOR_SECONDS),
        (LEARNED, 60.0, SLOWEST * 60.0),
    ],
)
def test_how_long_a_round_may_take(rounds: int, every: float, bound: float) -> None:
    found, now = Stalls(), 500.0
    found.began(now)
    for _ in range(rounds):
        now += every
        found.round(now)
    assert found.verdict(now + bound) is None
    assert found.verdict(now + bound + 1) == f"no round for {bound + 1:.0f} s"
    found.began(now)
    assert found.verdict(now + min(bound + 1, UNKNOWN_SECONDS)) is None
    found.pause()
    assert found.verdict(now + 10 * bound) is None


@pytest.mark.parametrize(
    ("unreached", "who"),
    [
        ({0: [1], 1: [0]}, 1),  # the one that came last
        ({0: [2], 1: [2], 2: [1, 3]}, 2),
        ({0: [9]}, None),  # a rank that is no member
        ({}, None),  # nobody says who
        ({0: [1, 2, 3]}, 0),  # it reaches nobody, and the others have not said so
    ],
)
def test_who_leaves(unreached: dict[int, list[int]], who: int | None) -> None:
    found = Stalls()
    for _ in range(2):  # it begins anew
        for vain in range(VAIN_EPOCHS):
            found.began(0.0)
            for by, ranks in unreached.items():
                missed(found, by, *ranks)
            expected = ("worker", who) if who is not None and vain == VAIN_EPOCHS - 1 else None
            assert found.failed(MEMBERS) == expected


W0, W1, W2, S0, S1 = ("worker", 0), ("worker", 1), ("worker", 2), ("shard", 0), ("shard", 1)


@pytest.mark.parametrize(
    ("workers", "unreached", "who", "then"),
    [
        pytest.param(2, {W0: [S1], W1: [S1]}, S1, S1, id="a shard that nobody reaches"),
        pytest.param(3, {W0: [S1], W2: [S1]}, S1, S1, id="a shard that most do not reach"),
        pytest.param(2, {W0: [S0, S1]}, W0, W0, id="a worker that reaches no shard"),
        pytest.param(2, {W0: [S1]}, W0, W0, id="a worker and a shard, which another one reaches"),
        pytest.param(1, {W0: [S1]}, W0, S1, id="of two ends first the one that holds nothing"),
        pytest.param(1, {W0: [S0, S1]}, W0, W0, id="the only worker reaches no shard"),
        pytest.param(2, {W0: [S0, S1], W1: [S0, S1]}, W1, S1, id="nobody reaches anybody"),
        pytest.param(2, {S0: [S1], S1: [S0]}, S1, S1, id="shards that do not reach each other"),
        pytest.param(2, {S0: [S1], W0: [S1]}, S1, S1, id="neither workers nor shards reach it"),
        pytest.param(2, {W0: [("shard", 7)]}, None, None, id="a shard that is gone"),
    ],
)
def test_workers_and_shards(workers: int, unreached: dict[Place, list[Place]], who: Place, then: Place) -> None:
    """then: who leaves where that was of no use."""
    found = Stalls()
    for expected in (who, then):
        for vain in range(VAIN_EPOCHS):
            found.began(0.0)
            for by, places in unreached.items():
                found.missed(by, places)
            left = found.failed(MEMBERS[:workers], MEMBERS[:2])
            assert left == (expected if vain == VAIN_EPOCHS - 1 else None)


def test_how_many_were_to_leave_since_the_last_round() -> None:
    found = Stalls()
    for parted in (1, 2):
        for _ in range(VAIN_EPOCHS):
            found.began(0.0)
            missed(found, 0, 1)
            found.failed(MEMBERS)
        found.lost()
        assert found.parted == parted
    found.round(1.0)
    assert found.parted == 0


def test_an_epoch_with_a_round_is_not_vain() -> None:
    found = Stalls()
    for _ in range(VAIN_EPOCHS + 1):
        found.began(0.0)
        found.round(1.0)
        missed(found, 0, 1)
        assert found.failed(MEMBERS) is None


def test_epochs_that_failed_otherwise_are_not_counted() -> None:
    found = Stalls()
    for _ in range(VAIN_EPOCHS):
        found.began(0.0)
        assert found.failed(MEMBERS) is None
    found.began(0.0)
    missed(found, 0, 1)
    assert found.failed(MEMBERS) is None
    found.lost()
    found.began(0.0)
    missed(found, 0, 1)
    assert found.failed(MEMBERS) is None, "a loss explains what was before it"
