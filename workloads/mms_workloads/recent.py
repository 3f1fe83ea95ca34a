"""What was made last, in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

K = TypeVar("K")
V = TypeVar("V")


def _one(_: object) -> int:
    return 1


class Recent(Generic[K, V]):
    """The values that were used last, up to `limit` of weight but at least one. For any thread."""

    def __init__(self, limit: int, weight: Callable[[V], int] = _one) -> None:
        self._limit, self._weight, self._total = limit, weight, 0
        self._held: OrderedDict[K, V] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K, make: Callable[[K], V]) -> V:
        """`make(key)` where it is not held; two threads may make the same at once. Raises what that raises."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
        made = make(key)
        with self._lock:
            if key not in self._held:
                self._held[key] = made
                self._total += self._weight(made)
            while self._total > self._limit and len(self._held) > 1:
                _, dropped = self._held.popitem(last=False)
                self._total -= self._weight(dropped)
        return made
