"""Which way of batching answers the most requests a second within the objective: a search by one dimension at a time.

More processes for each model first, since they use more processors; then, with the best of these, how long a batch
waits for more requests; then how large it may be. A way that is not better by some percent ends its dimension.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mms_workloads.contract import Batching, Measured
from mms_workloads.serve.repository import MAX_BATCH_SIZE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from mms_workloads.contract import MeasuredPoint

Tried = tuple[Batching, Measured]

BETTER = 1.05  # times the requests per second
INSTANCES = (2, 4, 8)
DELAYS = (200, 1000)  # microseconds
SIZES = (64, 16)  # rows of a batch: fewer, so that others wait less
_DIMENSIONS: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("instances", INSTANCES), ("maxQueueDelayMicroseconds", DELAYS), ("preferredBatchSize", SIZES),
)  # fmt: skip


def rate(curve: Sequence[MeasuredPoint], objective: float) -> float:
    """The most requests per second within the objective, in seconds; 0 where no point is."""
    return max((point.rate for point in curve if point.p99 <= objective), default=0.0)


def best(tried: Sequence[Tried], objective: float) -> Tried:
    """The first one, unless another is better; of those the one with the most."""
    found = tried[0]
    for one in tried[1:]:
        if rate(one[1].curve, objective) > BETTER * rate(found[1].curve, objective):
            found = one
    return found


def following(tried: Sequence[Tried], objective: float, processors: int) -> Batching | None:
    """What is to be tried next; None: nothing. `tried` has the one that was asked for first."""
    known = {batching for batching, _ in tried}
    base = tried[0][0]
    for name, steps in _DIMENSIONS:
        values = [step for step in steps if _sensible(name, step, base, processors)]
        now = _best_without(tried, name, objective)
        for value in values:
            candidate = now.model_copy(update={name: value})
            if candidate not in known:
                return candidate
            if best(tried[: 1 + _place(tried, candidate)], objective)[0] != candidate:
                break  # it was no better: more of the same is not either
    return None


def _sensible(name: str, value: int, base: Batching, processors: int) -> bool:
    if name == "instances":
        return base.instances < value <= 2 * processors
    if name == "preferredBatchSize":
        return value < (base.preferredBatchSize or MAX_BATCH_SIZE)
    return value > base.maxQueueDelayMicroseconds


def _best_without(tried: Sequence[Tried], name: str, objective: float) -> Batching:
    """The best so far of those that have the asked-for value in this dimension and all that follow."""
    base = tried[0][0]
    open_ = [one for one, _ in _DIMENSIONS][[one for one, _ in _DIMENSIONS].index(name) :]
    there = [one for one in tried if all(getattr(one[0], field) == getattr(base, field) for field in open_)]
    return best(there, objective)[0]


def _place(tried: Sequence[Tried], candidate: Batching) -> int:
    return next(place for place, (batching, _) in enumerate(tried) if batching == candidate)


async def search(
    first: Batching,
    measure: Callable[[Batching], Awaitable[Measured]],
    objective: float,
    left: Callable[[], float],
    processors: int | None = None,
) -> tuple[Measured, int]:
    """The best curve, with its way of batching, and how many were tried. left: seconds; none is begun without any.

    `measure` makes the pod run that way and measures it.
    """
    tried: list[Tried] = [(first, await measure(first))]
    while left() > 0 and (candidate := following(tried, objective, processors or os.cpu_count() or 1)) is not None:
        tried.append((candidate, await measure(candidate)))
    batching, found = best(tried, objective)
    return found.model_copy(update={"batching": batching}), len(tried)
