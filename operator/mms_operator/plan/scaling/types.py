"""What a decision about replicas is made of, and what it says."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a replica does: so many requests at a time, each in so many seconds."""

    service_seconds: float
    objective_seconds: float  # that a request may wait and be served in
    concurrency: int = 1

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.concurrency / self.service_seconds

    @property
    def slack(self) -> float:
        """Seconds that a request may wait."""
        return self.objective_seconds - self.service_seconds


@dataclass(frozen=True, slots=True)
class Observed:
    """A service at a moment, and what has happened since the moment before. Times in seconds."""

    now: float
    ready: int
    starting: int
    arrivals: int
    late: int  # requests whose service began too late for the objective
    waiting: int  # requests, now
    busy: float  # requests that waited or were served, on average over the time since the moment before


@dataclass(frozen=True, slots=True)
class Decision:
    """replicas: those that there should be. why: for people."""

    replicas: int
    why: str
