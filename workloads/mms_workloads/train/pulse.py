"""Signs of life of a worker's or shard's process, in memory that it shares with its supervisor.

A process that is stopped or starved gives none at all; one whose computation hangs still answers its master, but its
round takes far longer than those before it. Time in an exchange is no sign: it is the peers' as well, and a peer that
hangs is found by its own supervisor.
"""

from __future__ import annotations

import contextlib
import mmap
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

BEAT_SECONDS = 0.5
# Without a beat. The master gives up the member after as long; its process is here again before the operator, which
# waits some seconds more, would replace the pod.
SILENT_SECONDS = 5.0
# A computation that takes this many times what one of its size may take, and at least the floor, hangs. Before LEARNED
# of them are known the first reads of data and the first allocations are among them.
SLOWEST = 20.0
FLOOR_SECONDS = 10.0
LEARNED = 3
UNKNOWN_SECONDS = 600.0

_FIELDS = struct.Struct("4d")  # last beat, computing since (0: it does not), seconds that it may take, rounds made


@dataclass(frozen=True, slots=True)
class Signs:
    """As of one moment; times are of the monotonic clock, which all processes of a machine share."""

    beat: float
    since: float
    usual: float  # seconds of the longest computation so far, in proportion where this one is larger than all were
    count: float

    def verdict(self, now: float) -> str | None:
        """Why the process counts as hung; None while it does not."""
        silent = now - self.beat
        if self.beat and silent > SILENT_SECONDS:
            return f"no sign of life for {silent:.0f} s"
        bound = max(FLOOR_SECONDS, SLOWEST * self.usual) if self.count >= LEARNED else UNKNOWN_SECONDS
        if self.since and now - self.since > bound:
            return f"a round's computation takes {now - self.since:.0f} s, up to {self.usual:.1f} s were expected"
        return None


class Pulse:
    """Made by the supervisor before it forks; beats and computations are the worker's to tell."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _FIELDS.size)
        self._longest = self._count = 0.0
        self._largest = 0

    def beat(self) -> None:
        self._put(0, time.monotonic())

    @contextlib.contextmanager
    def computing(self, work: int) -> Iterator[None]:
        """work: how much there is to compute, in the same unit each time. Who is left alone gets larger rounds."""
        self._put(2, self._longest * max(1.0, work / self._largest if self._largest else 1.0))
        started = time.monotonic()
        self._put(1, started)
        try:
            yield
        finally:
            self._put(1, 0.0)
            if work:  # a round without data says nothing of those with
                self._longest = max(self._longest, time.monotonic() - started)
                self._largest = max(self._largest, work)
                self._count += 1
            self._put(3, self._count)

    def made(self, rounds: int) -> None:
        """A shard computes nothing by itself: updates that it has applied."""
        self._put(3, float(rounds))

    def signs(self) -> Signs:
        return Signs(*_FIELDS.unpack(self._memory[:]))

    def _put(self, field: int, value: float) -> None:
        self._memory[8 * field : 8 * field + 8] = struct.pack("d", value)
