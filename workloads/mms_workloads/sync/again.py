"""How long to wait between two tries to make the last checkpoint of a run durable: a store that restarts is back within
seconds. Pure.
"""

from __future__ import annotations

FIRST_SECONDS = 1.0
LONGEST_SECONDS = 10.0
DOUBLINGS = 10  # at most: whoever tries for days must not leave the numbers


def pause(tries: int) -> float:
    """Seconds after so many tries before the one that failed."""
    return min(FIRST_SECONDS * 2.0 ** min(tries, DOUBLINGS), LONGEST_SECONDS)
