"""What is done again while the store is away, and how long to wait between two tries: one that restarts is back within
seconds.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from mms_workloads.logs import logger
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")

FIRST_SECONDS = 1.0
LONGEST_SECONDS = 10.0
DOUBLINGS = 10  # at most: whoever tries for days must not leave the numbers
TRIES_SECONDS = 60.0  # as long as a master that starts gives the store


def pause(tries: int) -> float:
    """Seconds after so many tries before the one that failed. Pure."""
    return min(FIRST_SECONDS * 2.0 ** min(tries, DOUBLINGS), LONGEST_SECONDS)


def while_away(work: Callable[[], Result], over: Callable[[float], object]) -> Result:
    """What `work` returns. Of errors that pass by themselves it is tried again, for TRIES_SECONDS.

    over: waits for so many seconds; true where nobody needs the result any more. Raises JobError, then as well.
    """
    until: float | None = None
    tries = 0
    while True:
        try:
            return work()
        except JobError as error:
            until = time.monotonic() + TRIES_SECONDS if until is None else until
            if not error.retryable or time.monotonic() >= until:
                raise
            logger().warning("tried again", reason=error.reason, message=error.message)
            if over(pause(tries)):
                raise
            tries += 1
