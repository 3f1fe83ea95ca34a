"""A service that is scaled by somebody's rules, request by request.

Requests wait in one queue, first come, first served, for a place at a ready replica: as with an ideal balancer, the
same for all that are compared. A replica costs from its start on, ready or not, until it is told to go and has finished
what it serves.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Protocol

from mms_operator.plan.scaling.types import Observed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mms_operator.plan.scaling.types import Capacity, Decision

ROUNDING = 1e-9  # seconds: of sums of times


class Scaler(Protocol):
    """Decides again and again."""

    @property
    def every(self) -> float:
        """Seconds between two decisions."""

    def decide(self, observed: Observed) -> Decision: ...


@dataclass(slots=True)
class Outcome:
    requests: int = 0
    late: int = 0  # whose answer took longer than the objective
    replica_seconds: float = 0.0
    starts: int = 0
    decisions: list[tuple[float, Decision]] = field(default_factory=list)  # where the number of replicas changes

    @property
    def within(self) -> float:
        """The part of requests that met the objective."""
        return 1 - self.late / self.requests

    @property
    def replica_hours(self) -> float:
        return self.replica_seconds / 3600


def simulate(times: Sequence[float], scaler: Scaler, capacity: Capacity, cold_start: float, initial: int) -> Outcome:
    """times: of arrivals, in seconds, ascending; initial: replicas that are ready at the beginning.

    What is counted ends with the last arrival, but for the lateness of those that wait then.
    """
    service = _Service(scaler, capacity, cold_start, times[-1], _Fleet(capacity.concurrency, initial), scaler.every)
    service.out.requests = len(times)
    for arrival in times:
        service.until(arrival)
        service.arrives(arrival)
    service.drain()
    return service.out


@dataclass(slots=True)
class _Fleet:
    """Replicas that are ready, those that start (when each is ready, ascending), and requests that are served."""

    concurrency: int
    ready: int
    starting: deque[float] = field(default_factory=deque)
    served: list[float] = field(default_factory=list)  # when each is over: a heap

    @property
    def count(self) -> int:
        """That cost: those that were told to go and still serve are among them."""
        over = len(self.served) - self.ready * self.concurrency
        return self.ready + len(self.starting) + max(0, -(-over // self.concurrency))

    def scale(self, wanted: int, at: float) -> int:
        """at: when those that are started are ready. Returns how many; who starts is the first to go."""
        more = wanted - self.ready - len(self.starting)
        if more > 0:
            self.starting.extend([at] * more)
            return more
        for _ in range(min(-more, len(self.starting))):
            self.starting.pop()
        self.ready = min(self.ready, wanted)
        return 0


@dataclass(slots=True)
class _Service:
    """The queue before the fleet, and the clock."""

    scaler: Scaler
    capacity: Capacity
    cold_start: float
    end: float  # of what is counted
    fleet: _Fleet
    tick: float  # when the scaler decides next
    now: float = 0.0
    queue: deque[float] = field(default_factory=deque)  # when each arrived
    arrivals: int = 0  # since the scaler decided, as are the next two
    late: int = 0
    busy_seconds: float = 0.0
    out: Outcome = field(default_factory=Outcome)

    def until(self, time: float) -> None:
        """All that happens before."""
        while (at := self._next()) < time:
            self._pass(at)

    def arrives(self, now: float) -> None:
        self._clock(now)
        self.queue.append(now)
        self.arrivals += 1
        self._serve()

    def drain(self) -> None:
        """Until nobody waits who could still be served in time."""
        while self.queue and self.now - self.queue[-1] <= self.capacity.slack + ROUNDING:
            self._pass(self._next())
        self.out.late += len(self.queue)

    def _next(self) -> float:
        fleet = self.fleet
        at = min(self.tick, fleet.served[0]) if fleet.served else self.tick
        return min(at, fleet.starting[0]) if fleet.starting else at

    def _pass(self, now: float) -> None:
        self._clock(now)
        fleet = self.fleet
        while fleet.served and fleet.served[0] <= now:
            heappop(fleet.served)
        while fleet.starting and fleet.starting[0] <= now:
            fleet.starting.popleft()
            fleet.ready += 1
        if self.tick <= now:
            self._decide()
        self._serve()

    def _clock(self, now: float) -> None:
        self.busy_seconds += (now - self.now) * (len(self.queue) + len(self.fleet.served))
        if self.now < self.end:
            self.out.replica_seconds += (min(now, self.end) - self.now) * self.fleet.count
        self.now = now

    def _decide(self) -> None:
        now, fleet, every = self.now, self.fleet, self.scaler.every
        before = fleet.ready + len(fleet.starting)
        observed = Observed(
            now, fleet.ready, len(fleet.starting), self.arrivals, self.late, len(self.queue), self.busy_seconds / every
        )
        decision = self.scaler.decide(observed)
        self.out.starts += fleet.scale(decision.replicas, now + self.cold_start)
        if decision.replicas != before:
            self.out.decisions.append((now, decision))
        self.arrivals = self.late = 0
        self.busy_seconds = 0.0
        self.tick += every

    def _serve(self) -> None:
        fleet = self.fleet
        places = fleet.ready * self.capacity.concurrency
        while self.queue and len(fleet.served) < places:
            waited = self.now - self.queue.popleft()
            heappush(fleet.served, self.now + self.capacity.service_seconds)
            if waited > self.capacity.slack + ROUNDING:
                self.out.late += 1
                self.late += 1
