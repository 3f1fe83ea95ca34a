"""Merging the ranks' changes: a sum for rare rows, a mean for frequent ones, and the state that it makes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mms_workloads.embedding.parameters import initial_parameters
from mms_workloads.embedding.state import EmbeddingState
from mms_workloads.sync.leases import Progress, Slice
from mms_workloads.train.merge import MOST_CURVATURE, curvature, merge_scale
from mms_workloads.train.state import agree, part


def scale(touches: float, ranks: float, rate: float) -> float:
    return float(merge_scale(torch.tensor([touches]), torch.tensor([ranks]), rate))


@pytest.mark.parametrize(
    ("touches", "ranks", "rate", "expected"),
    [
        (1, 1, 0.025, 1),
        (1e9, 1, 0.025, 1),
        (2, 2, 1e-6, 1),
        (1e9, 2, 0.025, 1 / 2),
        (1e9, 7, 0.025, 1 / 7),
        (0, 0, 0.025, 1),
    ],
    ids=["alone", "alone and often", "rare", "frequent, two", "frequent, seven", "untouched"],
)
def test_limits(touches: float, ranks: float, rate: float, expected: float) -> None:
    assert scale(touches, ranks, rate) == pytest.approx(expected, abs=1e-4)


@given(st.floats(0, 1e7), st.integers(1, 64), st.floats(1e-7, 1))
def test_between_a_mean_and_a_sum(touches: float, ranks: int, rate: float) -> None:
    found = scale(touches, ranks, rate)
    assert 1 / ranks - 1e-6 <= found <= 1 + 1e-6
    assert scale(touches * 2, ranks, rate) <= found + 1e-6


@pytest.mark.parametrize("ranks", [2, 5])
def test_the_merged_change_is_what_one_process_would_have_made(ranks: int) -> None:
    """A gap closed by steps: n ranks from a common start, merged, against one that makes all their steps."""
    rate, steps, gap = 0.1, 30, 1.0
    of_loss = float(curvature(torch.tensor(ranks)))
    alone = gap * (1 - math.exp(-ranks * steps * rate * of_loss))
    each = gap * (1 - math.exp(-steps * rate * of_loss))
    assert ranks * each * scale(ranks * steps, ranks, rate) == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("ranks", [2, 3, 4, 8, 16, 64])
def test_a_merge_never_overshoots_to_the_other_side_and_further(ranks: int) -> None:
    """Where the loss is as curved as it gets, whatever the number of steps: what is twice the gap or more diverges."""
    for steps in (1, 10, 50, 100, 200, 300, 500, 1000, 10_000):
        each = 1 - math.exp(-steps * 0.025 * MOST_CURVATURE)
        assert ranks * each * scale(ranks * steps, ranks, 0.025) < 2


def state(*applied: int) -> EmbeddingState:
    held = EmbeddingState.start(initial_parameters(6, 3, 1))
    agree(held, 3, "l", Progress(list(applied)))
    return held


def whole(data_epoch: int, block: int) -> Slice:
    return Slice(data_epoch, block, 0, 1, 1)


def test_commit() -> None:
    held = state(0, 1, 0, 0)
    before = held.base.clone()
    held.working.vectors[2] += 5
    held.working.contexts[4] += 7
    held.touches.vectors[2] = held.touches.contexts[4] = 1
    rows = held.touched().nonzero().squeeze(1)
    assert rows.tolist() == [2, 6 + 4]
    changes, squares = held.changes(rows)
    torch.testing.assert_close(changes, torch.tensor([[5.0] * 3, [7.0] * 3]))
    assert squares == pytest.approx(3 * 25 + 3 * 49)
    held.commit(rows, changes, torch.tensor([2.0, 1.0]), [whole(1, 1), whole(0, 3)])
    assert (held.agreement.step, held.agreement.progress.applied) == (4, [0, 2, 0, 1])
    torch.testing.assert_close(held.base.vectors[2], before.vectors[2] + 10)
    torch.testing.assert_close(held.base.contexts[4], before.contexts[4] + 7)
    assert torch.equal(held.working.vectors, held.base.vectors)
    assert torch.equal(held.working.contexts, held.base.contexts)
    assert float(held.touches.vectors.sum() + held.touches.contexts.sum()) == 0


def test_samples_are_never_committed_twice() -> None:
    held = state(0, 0)
    nothing = torch.tensor([], dtype=torch.long)
    held.commit(nothing, torch.zeros(0, 3), torch.zeros(0), [whole(0, 1)])
    with pytest.raises(ValueError, match="does not follow"):
        held.commit(nothing, torch.zeros(0, 3), torch.zeros(0), [whole(0, 1)])


def test_reset_drops_the_round() -> None:
    held = state(0)
    held.working.vectors.add_(1)
    held.touches.contexts.add_(1)
    held.reset()
    assert torch.equal(held.working.vectors, held.base.vectors)
    assert float(held.touches.contexts.sum()) == 0


def test_a_part_stays_as_it_was() -> None:
    """It is written while training goes on."""
    held = state(1, 0)
    copy, agreement = part(held.tables(), 0, 1), held.agreement.copy()
    held.base.vectors.add_(1)
    held.agreement.progress.applied[1] = 5
    held.agreement.step += 1
    assert torch.equal(copy["vectors"]["parameters"] + 1, held.base.vectors)
    assert (agreement.step, agreement.progress) == (3, Progress([1, 0]))


def test_a_state_that_nothing_was_agreed_on() -> None:
    assert not EmbeddingState.start(initial_parameters(2, 2, 1)).agreement.holds
