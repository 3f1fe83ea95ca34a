"""Replicas by the latency objective. Pure.

A rule is: as many replicas as the busiest moments of the last so many seconds took, times a factor. Which seconds and
which factor are right depends on the traffic and on how long a replica takes to start. So every rule has a shadow: what
its replicas would have done and cost with the arrivals that came, start times included. The cheapest rule that would
have met the objective decides (the experts of Cesa-Bianchi and Lugosi, 2006, with a constraint). What the shadows
cannot know, the outcome tells: more late requests than theirs make what they may have smaller.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING

from mms_operator.plan.scaling.demand import needed
from mms_operator.plan.scaling.types import Decision

if TYPE_CHECKING:
    from mms_operator.plan.scaling.types import Capacity, Observed

EVERY_SECONDS = 2.0
LOOK_BACKS = (10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1280.0)  # seconds
FACTORS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0)
RULES = tuple(product(LOOK_BACKS, FACTORS))
FIRST = RULES.index((160.0, 1.5))  # the rule until another has proved itself
UNSEEN_SECONDS = 3.0  # of requests that each shadow may yet have late: so it takes long to prove itself
UNSEEN_STARTS = 0.1  # of the requests that come while a replica starts, at least: nothing can be done about them
CHEAPER = 0.9  # of the cost of the rule that decides, for another one to take its place
FORGET_SECONDS = 3600.0  # after which what a shadow has seen weighs a third
KNOWN_SECONDS = 60.0  # before which no shadow is believed
MARGIN = 0.5  # of the late requests that are allowed, those that a shadow may have
CATCH_UP_SECONDS = 3.0  # in which what waits too long is to be served, or in a cold start if that is longer
LEARN = 0.05  # of the margin, for a decision in which all requests were late


@dataclass(frozen=True, slots=True)
class Spec:
    capacity: Capacity
    cold_start_seconds: float  # a high quantile of those measured
    within: float = 0.99  # the part of requests that are to meet the objective
    least: int = 1
    most: int = 1000


@dataclass(frozen=True, slots=True)
class Shadow:
    """What a rule would have done: its replicas now and those that start, with when each is ready; what waits.

    requests, late, cost (replica-seconds): forgotten over time.
    """

    ready: int
    starting: tuple[float, ...] = ()
    waiting: float = 0.0
    requests: float = 0.0
    late: float = 0.0
    cost: float = 0.0


@dataclass(frozen=True, slots=True)
class Memory:
    """What is carried from one decision to the next."""

    began: float | None = None
    counts: tuple[int, ...] = ()  # arrivals between decisions, latest last
    shadows: tuple[Shadow, ...] = ()
    margin: float = MARGIN
    rule: int = FIRST


@dataclass(slots=True)
class Objective:
    """As the lab calls it: with its memory."""

    spec: Spec
    memory: Memory = field(default_factory=Memory)

    @property
    def every(self) -> float:
        return EVERY_SECONDS

    def decide(self, observed: Observed) -> Decision:
        self.memory, decision = decide(self.spec, self.memory, observed)
        return decision


def decide(spec: Spec, memory: Memory, observed: Observed) -> tuple[Memory, Decision]:
    """Every EVERY_SECONDS; observed: what has happened since the last time."""
    counts = (*memory.counts, observed.arrivals)[-_bins(LOOK_BACKS[-1]) :]
    levels = {back: needed(counts[-_bins(back) :], EVERY_SECONDS, spec.capacity) for back in LOOK_BACKS}
    wanted = [_clamped(spec, levels[back] * factor) for back, factor in RULES]
    began = observed.now if memory.began is None else memory.began
    age = observed.now - began
    there = observed.ready + observed.starting
    shadows = tuple(
        [_lived(spec, shadow, want, observed) for shadow, want in zip(memory.shadows, wanted, strict=True)]
        if age >= KNOWN_SECONDS
        else [Shadow(there)] * len(RULES)
    )
    margin = _margin(spec, memory, observed)
    rule = _best(spec, replace(memory, shadows=shadows, margin=margin), age)
    (back, factor), shadow = RULES[rule], shadows[rule]
    proof = f"would have met {1 - shadow.late / shadow.requests:.2%}" if shadow.requests else "decides at first"
    why = f"{factor:g} times the {levels[back]:.1f} replicas' work of {back:.0f} s, which {proof}"
    replicas, queued = wanted[rule], _catching_up(spec, observed.ready, observed.waiting, observed.arrivals)
    if queued > replicas:
        replicas = queued
        why = f"{observed.waiting} requests wait too long, and are to be served with what comes; else {why}"
    # Until a shadow can have seen what it started become ready, nothing that is there is taken away.
    if age < KNOWN_SECONDS + spec.cold_start_seconds:
        replicas = max(replicas, there)
    return Memory(began, counts, shadows, margin, rule), Decision(replicas, why)


def _best(spec: Spec, memory: Memory, age: float) -> int:
    """The cheapest that is proved to meet the objective; the one that decides if it does and none is much cheaper."""
    shadows = memory.shadows
    if not shadows[0].requests:
        return FIRST  # nothing has been proved
    rate = shadows[0].requests / max(1.0, min(age, FORGET_SECONDS))
    allowed = memory.margin * (1 - spec.within)
    unseen = max(UNSEEN_SECONDS, UNSEEN_STARTS * spec.cold_start_seconds) * rate
    good = [i for i, s in enumerate(shadows) if s.late + unseen <= allowed * s.requests]
    if not good:
        if shadows[FIRST].late <= allowed * shadows[FIRST].requests:
            return FIRST
        return min(range(len(shadows)), key=lambda i: (shadows[i].late, shadows[i].cost))
    best = min(good, key=lambda i: shadows[i].cost)
    stays = memory.rule in good and shadows[best].cost > CHEAPER * shadows[memory.rule].cost
    return memory.rule if stays else best


def _lived(spec: Spec, shadow: Shadow, wanted: int, observed: Observed) -> Shadow:
    """The time since the last decision, then this one."""
    now, capacity = observed.now, spec.capacity
    keep = math.exp(-EVERY_SECONDS / FORGET_SECONDS)
    ready = shadow.ready + sum(1 for at in shadow.starting if at <= now)
    starting = tuple(at for at in shadow.starting if at > now)
    # What came is spread over the time; what waits at its end longer than the slack is late.
    served = ready * capacity.rate * EVERY_SECONDS
    total = shadow.waiting + observed.arrivals
    waiting = max(0.0, total - served)
    late = 0.0
    may_wait = ready * capacity.rate * capacity.slack
    if waiting > may_wait:
        late = min(float(observed.arrivals), waiting - may_wait)
    cost = EVERY_SECONDS * (ready + len(starting))
    wanted = max(wanted, _catching_up(spec, ready, waiting, observed.arrivals))
    more = wanted - ready - len(starting)
    if more > 0:
        starting = (*starting, *([now + spec.cold_start_seconds] * more))
    elif more < 0:
        gone = min(-more, len(starting))
        starting = starting[: len(starting) - gone]
        ready = min(ready, wanted)
    return Shadow(
        ready,
        starting,
        waiting,
        keep * shadow.requests + observed.arrivals,
        keep * shadow.late + late,
        keep * shadow.cost + cost,
    )


def _catching_up(spec: Spec, ready: int, waiting: float, arrivals: int) -> int:
    """Replicas that serve what comes, and in a short time what waits; 0 while what waits is served soon enough."""
    capacity = spec.capacity
    if waiting <= ready * capacity.rate * capacity.slack:
        return 0
    seconds = max(CATCH_UP_SECONDS, spec.cold_start_seconds)
    return _clamped(spec, (arrivals / EVERY_SECONDS + waiting / seconds) / capacity.rate)


def _margin(spec: Spec, memory: Memory, observed: Observed) -> float:
    if not observed.arrivals and not observed.late:
        return memory.margin
    missed = min(1.0, observed.late / max(1, observed.arrivals))
    return min(max(memory.margin - LEARN * (missed - MARGIN * (1 - spec.within)), 0.01), 1.0)


def _clamped(spec: Spec, replicas: float) -> int:
    return min(max(math.ceil(replicas - 1e-9), spec.least), spec.most)


def _bins(seconds: float) -> int:
    return max(1, math.ceil(seconds / EVERY_SECONDS))
