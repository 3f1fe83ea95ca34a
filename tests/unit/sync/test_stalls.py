"""Epochs in which nothing moves."""

from __future__ import annotations

import pytest

from mms_workloads.sync.membership import Member
from mms_workloads.sync.stalls import FLOOR_SECONDS, LEARNED, SLOWEST, UNKNOWN_SECONDS, VAIN_EPOCHS, Stalls

MEMBERS = [Member(rank, 0, "", rank, 0.0) for rank in range(4)]


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
        ({1: [1]}, 1),  # it alone does not reach a shard
        ({0: [0], 1: [1], 2: [2], 3: [3]}, None),  # nobody reaches it
    ],
)
def test_who_leaves(unreached: dict[int, list[int]], who: int | None) -> None:
    found = Stalls()
    for _ in range(2):  # it begins anew
        for vain in range(VAIN_EPOCHS):
            found.began(0.0)
            for by, ranks in unreached.items():
                found.missed(by, ranks)
            left = found.failed(MEMBERS)
            assert (left and left.rank) == (who if vain == VAIN_EPOCHS - 1 else None)


def test_how_many_were_to_leave_since_the_last_round() -> None:
    found = Stalls()
    for parted in (1, 2):
        for _ in range(VAIN_EPOCHS):
            found.began(0.0)
            found.missed(0, [1])
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
        found.missed(0, [1])
        assert found.failed(MEMBERS) is None


def test_epochs_that_failed_otherwise_are_not_counted() -> None:
    found = Stalls()
    for _ in range(VAIN_EPOCHS):
        found.began(0.0)
        assert found.failed(MEMBERS) is None
    found.began(0.0)
    found.missed(0, [1])
    assert found.failed(MEMBERS) is None
    found.lost()
    found.began(0.0)
    found.missed(0, [1])
    assert found.failed(MEMBERS) is None, "a loss explains what was before it"
