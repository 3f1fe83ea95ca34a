"""Each shard's own account of the data that is part of its parameters: what makes a push count once on every shard.

A worker may die when some shards have applied its push and others have not. Its lease goes to another worker, which
computes the same samples again and pushes to all shards; those that have them already answer and change nothing. This
needs slices that no shard has applied in part: `cut` ends them at the shards' cursors. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from mms_workloads.sync.leases import Progress

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mms_workloads.sync.leases import Slice

Cursor = tuple[int, int]  # data epoch, samples of it that are applied


@dataclass(frozen=True, slots=True)
class Refusal:
    """Nothing was changed; the text says what to do."""

    message: str


class Verdict(Enum):
    FRESH = auto()
    APPLIED = auto()


def cursor(progress: Progress, block: int) -> Cursor:
    return progress.applied[block], progress.start(block)


def end(s: Slice) -> Cursor:
    """Where its block's cursor is after the slice."""
    return (s.data_epoch, s.stop) if s.stop < s.size else (s.data_epoch + 1, 0)


def examine(progress: Progress, slices: Iterable[Slice]) -> Verdict | Refusal:
    """Whether a push's slices are all new or all applied; a push without slices is new."""
    at: dict[int, Cursor] = {}
    verdicts: set[Verdict] = set()
    for s in slices:
        if not 0 <= s.block < len(progress.applied) or not 0 <= s.start < s.stop <= s.size:
            return Refusal(f"{s} is no part of a data set of {len(progress.applied)} blocks")
        here = at.get(s.block, cursor(progress, s.block))
        if end(s) <= here:
            verdicts.add(Verdict.APPLIED)
        elif (s.data_epoch, s.start) == here:
            verdicts.add(Verdict.FRESH)
            at[s.block] = end(s)
        elif (s.data_epoch, s.start) < here:
            return Refusal(f"{s} is applied in part, up to {_say(here)}: end slices at the cursors of all shards")
        else:
            return Refusal(f"{s} leaves out samples, its block is applied up to {_say(here)}: lease it from there")
    if len(verdicts) > 1:
        return Refusal("some of the push's slices are applied and some are not: push them one by one")
    return verdicts.pop() if verdicts else Verdict.FRESH


def common(all_progress: Sequence[Progress]) -> Progress:
    """What every shard has: where leases start again. Cursors of different shards may differ without synchrony."""
    first = all_progress[0]
    result = Progress.none(len(first.applied))
    for block in range(len(first.applied)):
        least = min(all_progress, key=lambda progress: cursor(progress, block))
        result.applied[block] = least.applied[block]
        if block in least.partial:
            result.partial[block] = least.partial[block]
    result.passed_over = list(first.passed_over)
    result.rate_factor = min(progress.rate_factor for progress in all_progress)
    return result


def cut(data_epoch: int, start: int, stop: int, cursors: Iterable[Cursor]) -> int:
    """The end, at most `stop`, of a slice from `start` that no shard has applied in part.

    cursors: the block's on all shards, asked for when it was leased. A slice that a shard has already is pushed alone.
    """
    inside = [offset for epoch, offset in cursors if epoch == data_epoch and start < offset < stop]
    return min(inside, default=stop)


def _say(at: Cursor) -> str:
    return f"data epoch {at[0]}, sample {at[1]}"
