"""Ours and its peers on one trace, for each cold start.

All begin with the same replicas, ready: the smallest static fleet that meets the objective. What a scaler is worth then
shows in what it adds and takes away, and none is judged by how it wakes from nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mms_operator.lab.optimum import bound
from mms_operator.lab.peers import Hpa, Keda, Kpa, Static
from mms_operator.lab.simulate import simulate
from mms_operator.plan.scaling.objective import Objective, Spec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mms_operator.lab.simulate import Outcome, Scaler
    from mms_operator.plan.scaling.types import Capacity

    Tell = Callable[[str], None]  # what is run next

OURS = "ours"
SCALERS = (OURS, "KPA", "HPA", "KEDA")
MOST = 1000  # replicas that ours may have, or four times as many as a static fleet


@dataclass(frozen=True, slots=True)
class Question:
    times: Sequence[float]  # of arrivals, in seconds, ascending
    capacity: Capacity
    cold_starts: Sequence[float]  # seconds
    within: float = 0.99  # the part of requests that are to meet the objective
    least: int = 1  # replicas, of those that scale


@dataclass(frozen=True, slots=True)
class Comparison:
    """For one cold start. bound_hours: replica-hours that no scaler that meets the objective can go below."""

    cold_start: float
    scaled: dict[str, Outcome]  # by the name of the scaler
    bound_hours: float


@dataclass(frozen=True, slots=True)
class Answer:
    """static: by the number of replicas, those that were tried; cheapest: the smallest that meets the objective."""

    question: Question
    static: dict[int, Outcome]
    cheapest: int
    comparisons: list[Comparison]

    def shown_static(self) -> dict[str, Outcome]:
        """The cheapest static fleet that meets the objective and the one below."""
        return {f"static {n}": self.static[n] for n in (self.cheapest, self.cheapest - 1) if n in self.static}

    def best_peer(self, of: Comparison) -> tuple[str, Outcome]:
        """The cheapest of the others that meet the objective."""
        others = {**{name: outcome for name, outcome in of.scaled.items() if name != OURS}, **self.shown_static()}
        meets = {name: one for name, one in others.items() if one.within >= self.question.within}
        return min(meets.items(), key=lambda item: item[1].replica_seconds)


def compare(question: Question, tell: Tell) -> Answer:
    static, cheapest = static_fleets(question, tell)
    found = []
    for cold_start in question.cold_starts:
        scaled = {}
        for name in SCALERS:
            tell(f"{name}, cold start {cold_start:g} s")
            scaler = _scaler(name, question, cold_start, cheapest)
            scaled[name] = simulate(question.times, scaler, question.capacity, cold_start, cheapest)
        tell(f"the bound, cold start {cold_start:g} s")
        seconds = bound(question.times, question.capacity, cold_start, 1 - question.within)
        found.append(Comparison(cold_start, scaled, seconds / 3600))
    return Answer(question, static, cheapest, found)


def static_fleets(question: Question, tell: Tell) -> tuple[dict[int, Outcome], int]:
    """From the smallest that is stable up to the cheapest that meets the objective, and that one's number of replicas.

    More replicas make no request wait longer: so steps may double, and the last one is searched by halves.
    """
    times, capacity = question.times, question.capacity
    tried: dict[int, Outcome] = {}

    def meets(replicas: int) -> bool:
        if replicas not in tried:
            tell(f"{replicas} static replicas")
            tried[replicas] = simulate(times, Static(replicas), capacity, 0.0, replicas)
        return tried[replicas].within >= question.within

    high = max(1, math.ceil(len(times) / max(1.0, times[-1]) / capacity.rate))
    low, step = high - 1, 1
    while not meets(high):
        low, high, step = high, high + step, 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if meets(middle) else (middle, high)
    while high > 1 and meets(high - 1):  # a short trace: what does not keep up need not be late by much
        high -= 1
    return tried, high


def rounded_down(part: float) -> str:
    """As per cents of two digits: 98.999 % is not 99 %."""
    return f"{math.floor(1e4 * part + 1e-9) / 100:.2f} %"


def thinned(count: int, most: int) -> range:
    """Of so many things the numbers of at most so many, evenly spread, from the first one on."""
    return range(0, count, max(1, math.ceil(count / most)))


def _scaler(name: str, question: Question, cold_start: float, initial: int) -> Scaler:
    capacity, least = question.capacity, question.least
    if name == OURS:
        return Objective(Spec(capacity, cold_start, question.within, least, max(MOST, 4 * initial)))
    peers: dict[str, Callable[[], Scaler]] = {
        "KPA": lambda: Kpa(capacity, least=least),
        "HPA": lambda: Hpa(capacity, least=least),
        "KEDA": lambda: Keda(capacity, least=least),
    }
    return peers[name]()
