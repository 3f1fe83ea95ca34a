"""What a pod can do: its golden questions, so many at a time, again and again, before it answers clients.

The number at a time doubles until more of them bring no more answers a second. While answers come in time it goes on
from there by leaps: a pod whose processor time is rationed answers two at a time no faster than one after the other,
and many times as many when dozens are put into a batch. What is measured is what one client on the pod's own machine
sees, so a little less than Triton could do.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from mms_workloads.contract import Measured, MeasuredPoint

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

STAGE_SECONDS = 1.5  # of one number at a time
WARM_SECONDS = 0.3  # before that: the first batches of a size are slower
MOST = 256  # at a time
GAIN = 1.05  # of answers a second, for a larger number at a time to be worth it
FLAT = 2  # numbers without a gain, after which it ends, or goes on by leaps
LEAP, LEAPS = 4, 3  # times as many at a time; without a gain
LATE = 2  # numbers in a row with which answers take too long


def following(curve: Sequence[MeasuredPoint], within: float | None = None) -> int | None:
    """How many at a time are to be measured next; None when nothing more is to be learnt.

    within: seconds that 99 of 100 answers may take; None: nobody said.
    """
    if not curve:
        return 1
    best = 0.0
    flat = late = 0
    for point in curve:
        flat = 0 if point.rate > GAIN * best else flat + 1
        best = max(best, point.rate)
        late = late + 1 if within is not None and point.p99 > within else 0
    wanted = curve[-1].concurrency * (2 if flat < FLAT else LEAP)
    ended = flat >= (FLAT if within is None else FLAT + LEAPS)
    return None if ended or late >= LATE or wanted > MOST else wanted


async def measure(
    ask: Callable[[int], Awaitable[None]],
    limit_seconds: float,
    stage_seconds: float = STAGE_SECONDS,
    *,
    within: float | None = None,
) -> Measured:
    """ask(n) asks the n-th question and raises when it fails. Ends after limit_seconds and one stage at most."""
    began = time.monotonic()
    curve: list[MeasuredPoint] = []
    error = None
    try:
        while (concurrency := following(curve, within)) and time.monotonic() - began < limit_seconds:
            curve.append(await _stage(ask, concurrency, stage_seconds))
    except ExceptionGroup as failures:  # whatever a question raises is what there is to tell
        first = failures.exceptions[0]
        error = f"{type(first).__name__}: {first}"[:500]
    return Measured(curve=curve, seconds=time.monotonic() - began, error=error)


async def _stage(ask: Callable[[int], Awaitable[None]], concurrency: int, seconds: float) -> MeasuredPoint:
    """At least one request of each, however long they take."""
    begins = time.monotonic() + WARM_SECONDS
    ends = begins + seconds
    taken: list[float] = []
    ended: list[float] = []

    async def client(number: int) -> None:
        turn = number
        while True:
            at = time.monotonic()
            await ask(turn)
            done = time.monotonic()
            turn += concurrency
            if done >= begins:
                taken.append(done - at)
                ended.append(done)
            if done >= ends and taken:
                return

    async with asyncio.TaskGroup() as group:
        for number in range(concurrency):
            group.create_task(client(number))
    taken.sort()
    p99 = taken[min(len(taken) - 1, int(0.99 * len(taken)))]
    # One answer says nothing of a rate but by its own time.
    between = max(ended) - min(ended)
    rate = (len(ended) - 1) / between if between > 0 else concurrency / max(taken[-1], 1e-9)
    return MeasuredPoint(concurrency=concurrency, rate=rate, p99=p99)
