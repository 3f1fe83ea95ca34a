"""A work queue of keys: each key is held once, and one worker at a time has it.

The rules of client-go's workqueue: a key that is added while it is worked on runs once more afterwards; a key that
fails comes back after an exponentially growing delay with jitter. Delays wait in a heap, so that no worker sleeps.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import time
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

K = TypeVar("K", bound="Hashable")

BACKOFF_BASE = 0.5  # seconds after the first failure
BACKOFF_LIMIT = 300.0
_DOUBLINGS = 16  # more of them overflow nothing, but say nothing either
_STALE = 64  # entries of the heap that may be out of date before it is built anew


class WorkQueue(Generic[K]):
    """`clock` gives seconds that never run backwards; `jitter` a random number in [0, 1)."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, jitter: Callable[[], float] = random.random
    ) -> None:
        self._clock = clock
        self._jitter = jitter
        self._ready: dict[K, float] = {}  # key -> since when; in the order of arrival
        self._running: set[K] = set()
        self._again: set[K] = set()  # added while they ran
        self._due: dict[K, float] = {}  # key -> when it becomes ready
        self._heap: list[tuple[float, int, K]] = []  # of _due, with entries that are out of date
        self._count = itertools.count()
        self._failures: dict[K, int] = {}
        self._idle: deque[asyncio.Future[None]] = deque()  # workers that wait for a key
        self._timer_changed = asyncio.Event()
        self._taken_at = clock()

    def add(self, key: K) -> None:
        """Makes the key ready now."""
        if key in self._running:
            self._again.add(key)
        elif key not in self._ready:
            self._ready[key] = self._clock()
            self._wake_one()

    def add_after(self, key: K, seconds: float) -> None:
        """Makes the key ready later; the earliest of several times counts."""
        due = self._clock() + max(seconds, 0.0)
        if due < self._due.get(key, float("inf")):
            self._due[key] = due
            heapq.heappush(self._heap, (due, next(self._count), key))
            if len(self._heap) > 2 * len(self._due) + _STALE:
                self._compact()
            self._timer_changed.set()

    def retry(self, key: K) -> float:
        """Makes a key that failed ready after its backoff; gives the seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        delay = min(BACKOFF_BASE * 2.0 ** min(failures, _DOUBLINGS), BACKOFF_LIMIT) * (0.5 + self._jitter() / 2)
        self.add_after(key, delay)
        return delay

    def forget(self, key: K) -> None:
        """The key's failures count no more."""
        self._failures.pop(key, None)

    def take(self) -> K | None:
        """The key that is ready for longest, or None. The caller has it until `done`."""
        self.promote()
        if not self._ready:
            return None
        key = next(iter(self._ready))
        del self._ready[key]
        self._taken_at = self._clock()
        self._due.pop(key, None)  # this run is what the delay was for
        self._running.add(key)
        return key

    def done(self, key: K) -> None:
        self._running.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def promote(self) -> None:
        """Makes ready what is due."""
        now = self._clock()
        while self._heap and self._heap[0][0] <= now:
            due, _, key = heapq.heappop(self._heap)
            if self._due.get(key) == due:
                del self._due[key]
                self.add(key)

    @property
    def depth(self) -> int:
        """Keys that are ready."""
        return len(self._ready)

    @property
    def stalled(self) -> float:
        """Seconds in which a key was ready and none was taken: a mere backlog is taken from all the time."""
        return min(self.oldest, self._clock() - self._taken_at)

    @property
    def oldest(self) -> float:
        """Seconds that the longest-waiting ready key has waited; 0 without one."""
        return self._clock() - next(iter(self._ready.values())) if self._ready else 0.0

    def next_due(self) -> float | None:
        """Seconds until the next delayed key is due; None without one."""
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return max(self._heap[0][0] - self._clock(), 0.0) if self._heap else None

    async def run(self, work: Callable[[K], Awaitable[None]], workers: int) -> None:
        """Works until it is cancelled. `work` answers for its failures (`retry`, `forget`) and raises nothing."""
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(self._work(work))
            group.create_task(self._tick())

    async def _work(self, work: Callable[[K], Awaitable[None]]) -> None:
        while True:
            key = await self._get()
            try:
                await work(key)
            finally:
                self.done(key)

    async def _get(self) -> K:
        while (key := self.take()) is None:
            waiter = asyncio.get_running_loop().create_future()
            self._idle.append(waiter)
            await waiter
        return key

    async def _tick(self) -> None:
        while True:
            self._timer_changed.clear()
            try:
                async with asyncio.timeout(self.next_due()):
                    await self._timer_changed.wait()
            except TimeoutError:
                self.promote()

    def _compact(self) -> None:
        """A key that runs every few seconds and asks each time for a look in a month would fill the memory."""
        self._heap = [(due, next(self._count), key) for key, due in self._due.items()]
        heapq.heapify(self._heap)

    def _wake_one(self) -> None:
        while self._idle:
            waiter = self._idle.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
