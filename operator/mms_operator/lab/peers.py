"""What others decide, from their published formulas, for the comparison in the lab.

All see the same: how many requests are at the service, waiting or served, on average over a time (concurrency). Each
aims at TARGET of what a replica can take, as is usual.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

from mms_operator.plan.scaling.types import Decision

if TYPE_CHECKING:
    from mms_operator.plan.scaling.types import Capacity, Observed

TARGET = 0.7


class Static:
    """As many replicas whatever comes."""

    every = 3600.0

    def __init__(self, replicas: int) -> None:
        self.replicas = replicas

    def decide(self, observed: Observed) -> Decision:
        del observed
        return Decision(self.replicas, "always")


class _Window:
    """The mean of what was observed over the last seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.values: deque[tuple[float, float]] = deque()

    def add(self, now: float, value: float) -> float:
        self.values.append((now, value))
        while self.values[0][0] <= now - self.seconds:
            self.values.popleft()
        return sum(value for _, value in self.values) / len(self.values)


class Kpa:
    """Knative's autoscaler (knative/serving, pkg/autoscaler): a stable window, and one for panic a tenth as long.

    Panic: where the short window wants twice the ready replicas; for at least a stable window nothing is taken away.
    """

    every = 2.0
    STABLE_SECONDS, PANIC_SECONDS, PANIC_FACTOR = 60.0, 6.0, 2.0
    UP_FACTOR, DOWN_FACTOR = 1000.0, 2.0
    GRACE_SECONDS = 30.0  # from when nothing is wanted to none

    def __init__(self, capacity: Capacity, *, least: int = 1) -> None:
        self.target, self.least = TARGET * capacity.concurrency, least
        self._stable, self._panic = _Window(self.STABLE_SECONDS), _Window(self.PANIC_SECONDS)
        self._panics_since: float | None = None
        self._most = 0  # wanted in this panic
        self._idle_since: float | None = None

    def decide(self, observed: Observed) -> Decision:
        now, ready = observed.now, max(1, observed.ready)
        stable, panic = self._stable.add(now, observed.busy), self._panic.add(now, observed.busy)
        low, high = math.floor(ready / self.DOWN_FACTOR), math.ceil(self.UP_FACTOR * ready)
        wanted = min(max(math.ceil(stable / self.target), low), high)
        urgent = min(max(math.ceil(panic / self.target), low), high)
        if math.ceil(panic / self.target) / ready >= self.PANIC_FACTOR:
            self._most = self._most if self._panics_since is not None else 0
            self._panics_since = now
        elif self._panics_since is not None and now - self._panics_since > self.STABLE_SECONDS:
            self._panics_since, self._most = None, 0
        why = f"{stable:.1f} at once in 60 s"
        if self._panics_since is not None:
            self._most = wanted = max(self._most, urgent, wanted)
            why = f"panic: {panic:.1f} at once in 6 s"
        if wanted == 0 and self.least == 0:
            self._idle_since = now if self._idle_since is None else self._idle_since
            wanted = 0 if now - self._idle_since >= self.GRACE_SECONDS else 1
        else:
            self._idle_since = None
        return Decision(max(self.least, wanted), why)


class Hpa:
    """Kubernetes' autoscaler (v2) by the mean of a metric over the pods, with its usual behaviour.

    Pods that are not ready count as 0 on the way up; a decision within the tolerance changes nothing; it grows by twice
    or four pods in a period, whichever is more, and shrinks to the most that it wanted in five minutes.
    """

    every = 15.0
    TOLERANCE = 0.1
    STABILIZATION_SECONDS = 300.0

    def __init__(self, capacity: Capacity, *, least: int = 1) -> None:
        self.target, self.least = TARGET * capacity.concurrency, least
        self._wanted: deque[tuple[float, int]] = deque()

    def decide(self, observed: Observed) -> Decision:
        current = observed.ready + observed.starting
        wanted = max(self.least, self._by_metric(observed, current))
        self._wanted.append((observed.now, wanted))
        while self._wanted[0][0] <= observed.now - self.STABILIZATION_SECONDS:
            self._wanted.popleft()
        limit = max(2 * current, current + 4)
        replicas = min(wanted, limit)
        if replicas < current:
            replicas = min(current, max(one for _, one in self._wanted))
        return Decision(replicas, f"{observed.busy:.1f} at once in 15 s")

    def _by_metric(self, observed: Observed, current: int) -> int:
        if not observed.ready:
            return current
        ratio = observed.busy / observed.ready / self.target
        if ratio > 1 and observed.starting:
            among = observed.busy / current / self.target
            if among <= 1 + self.TOLERANCE:
                return current
            return max(current, math.ceil(among * current))
        if abs(ratio - 1) <= self.TOLERANCE:
            return current
        return math.ceil(ratio * observed.ready)


class Keda:
    """KEDA: between none and one by its own polling, from one on Kubernetes' autoscaler."""

    every = 15.0
    POLL_SECONDS, COOLDOWN_SECONDS = 30.0, 300.0

    def __init__(self, capacity: Capacity, *, least: int = 1) -> None:
        self.least = least
        self._above = Hpa(capacity, least=1)
        self._active = 0.0  # when it was last seen active
        self._seen = False

    def decide(self, observed: Observed) -> Decision:
        self._seen = self._seen or observed.arrivals > 0 or observed.busy > 0
        if observed.now % self.POLL_SECONDS < self.every:
            if self._seen:
                self._active = observed.now
            self._seen = False
        current = observed.ready + observed.starting
        if current == 0:
            woken = self._active == observed.now
            return Decision(1 if woken else self.least, "polled: active" if woken else "polled: idle")
        if self.least == 0 and observed.now - self._active > self.COOLDOWN_SECONDS:
            return Decision(0, "idle for 300 s")
        return self._above.decide(observed)
