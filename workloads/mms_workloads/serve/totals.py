"""Counters that begin anew, or vanish, with the process that counts, as ones that only grow."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    Key = tuple[str, str, str]  # a model, its version in Triton, and what is counted


class Totals:
    """Triton forgets what a version of a model has counted when it is unloaded."""

    def __init__(self) -> None:
        self._seen: dict[Key, int] = {}  # also of those that have vanished: they may be back as they were
        self._grown: Counter[Key] = Counter()

    def take(self, counts: Mapping[Key, int]) -> Mapping[Key, int]:
        """With what is counted now; all that ever was."""
        for key, now in counts.items():
            then = self._seen.get(key, 0)
            self._grown[key] += now - then if now >= then else now
        self._seen.update(counts)
        return self._grown
