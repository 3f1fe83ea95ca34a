"""Counters of Triton's over the ends of versions of a model."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    Key = tuple[str, str, str]  # a model, its version in Triton, and what is counted


class Totals:
    """Triton forgets what a version of a model has counted when it is unloaded: here it stays.

    A Triton that has been started again has counted nothing, and so it is here. starts: how often that was seen.
    """

    def __init__(self) -> None:
        self.starts = 0
        self._now: Mapping[Key, int] = {}
        self._past: Counter[Key] = Counter()  # of versions that are not there, or were loaded anew

    def take(self, counts: Mapping[Key, int]) -> Mapping[Key, int]:
        """With what is counted now; all since Triton's start."""
        before, self._now = self._now, dict(counts)
        if any(now < before.get(key, 0) for key, now in counts.items()):
            self.starts += 1
            self._past.clear()
        else:
            for key in before.keys() - counts.keys():
                self._past[key] += before[key]
            for key in counts.keys() - before.keys():
                if counts[key] >= self._past[key]:  # it is back as it was
                    del self._past[key]
        found = self._past.copy()
        found.update(counts)
        return found
