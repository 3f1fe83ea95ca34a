"""The replayed service: waits, cold starts and costs that can be worked out by hand, and what holds for any of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from heapq import heapify, heapreplace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mms_operator.lab.peers import Static
from mms_operator.lab.simulate import simulate
from mms_operator.plan.scaling.types import Capacity, Decision

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mms_operator.lab.simulate import Outcome
    from mms_operator.plan.scaling.types import Observed

SECOND = Capacity(service_seconds=1.0, objective_seconds=2.0)
INSTANTS = st.lists(st.integers(0, 400).map(lambda n: n / 8), min_size=1, max_size=60).map(sorted)


@dataclass
class Told:
    """Decides what it was told for each time, and keeps what it saw."""

    replicas: dict[float, int]
    every: float = 1.0
    seen: list[Observed] = field(default_factory=list)

    def decide(self, observed: Observed) -> Decision:
        self.seen.append(observed)
        last = max((at for at in self.replicas if at <= observed.now), default=None)
        return Decision(observed.ready + observed.starting if last is None else self.replicas[last], "told")


def late(waits: list[float], capacity: Capacity) -> int:
    return sum(wait > capacity.slack + 1e-9 for wait in waits)


def changes(initial: int, out: Outcome) -> Iterator[tuple[int, Decision]]:
    for _, decision in out.decisions:
        yield initial, decision
        initial = decision.replicas


def test_requests_wait_for_their_turn() -> None:
    # One replica, a second each: those of 0, 0, 0, 1 s wait 0, 1, 2, 2 s, of which a second is allowed.
    out = simulate([0.0, 0.0, 0.0, 1.0, 9.0], Static(1), SECOND, 0.0, 1)
    assert (out.requests, out.late, out.starts) == (5, 2, 0)
    assert out.within == pytest.approx(0.6)
    assert out.replica_seconds == pytest.approx(9.0)
    assert out.replica_hours == pytest.approx(9 / 3600)


@pytest.mark.parametrize(("service", "missed"), [(0.9, 0), (1.0, 0), (1.25, 97)], ids=["idle", "full", "overloaded"])
def test_regular_arrivals(service: float, missed: int) -> None:
    # One each second. At 1.25 s of service number k waits 0.25 k s, more than 0.75 s from the fifth on, of 101.
    out = simulate([float(k) for k in range(101)], Static(1), Capacity(service, service + 0.75), 0.0, 1)
    assert out.late == missed


def test_a_replica_serves_so_many_at_a_time() -> None:
    # Four at once on two places: two wait a second, which is allowed; a fifth and a sixth wait two.
    capacity = Capacity(1.0, 2.0, concurrency=2)
    assert simulate([0.0] * 4, Static(1), capacity, 0.0, 1).late == 0
    assert simulate([0.0] * 6, Static(1), capacity, 0.0, 1).late == 2


def test_a_replica_that_starts_costs_and_serves_when_it_is_ready() -> None:
    # From 1 s on two are wanted, and the second is ready at 4 s. Of six at 2 s the first one begins two, at 2 and
    # 3 s, and both four, at 4 and 5 s: these are late.
    told = Told({1.0: 2})
    out = simulate([2.0] * 6 + [10.0], told, SECOND, 3.0, 1)
    assert (out.late, out.starts) == (4, 1)
    assert out.replica_seconds == pytest.approx(10 + 9), "of the second one from 1 s on"
    assert [(one.ready, one.starting) for one in told.seen[:4]] == [(1, 0), (1, 1), (1, 1), (2, 0)]
    assert [(at, decision.replicas) for at, decision in out.decisions] == [(1.0, 2)]


def test_who_starts_goes_first() -> None:
    told = Told({1.0: 4, 2.0: 2, 5.0: 1})
    out = simulate([10.0], told, SECOND, 3.0, 1)
    assert out.starts == 3
    # 3 started at 1 s; two of them went at 2 s; the third was ready at 4 s and went at 5 s.
    assert out.replica_seconds == pytest.approx(10 + 2 * 1 + 4)


def test_a_replica_that_is_to_go_finishes_what_it_serves() -> None:
    slow = Capacity(5.0, 20.0)
    out = simulate([0.5, 0.5, 20.0], Told({1.0: 1}), slow, 0.0, 2)
    assert out.late == 0
    assert out.replica_seconds == pytest.approx(20 + 5.5), "the second one until its request is served"


def test_what_is_seen() -> None:
    told = Told({}, every=2.0)
    simulate([0.0, 0.0, 0.0, 0.0, 8.0], told, SECOND, 0.0, 1)
    first, second, third = told.seen[:3]
    # Four at 0 s, one of them served in each second: 4 and 3 at the service in the first two seconds, 2 and 1 after.
    assert (first.now, first.arrivals, first.waiting, first.busy) == (2.0, 4, 2, 3.5)
    assert (second.arrivals, second.late, second.busy) == (0, 2, 1.5), "two began after 2 and 3 s"
    assert (third.arrivals, third.late, third.busy) == (0, 0, 0.0)


def test_a_service_without_replicas_serves_nobody() -> None:
    out = simulate([0.0, 1.0, 30.0], Static(0), SECOND, 1.0, 0)
    assert (out.late, out.replica_seconds) == (3, 0.0)


def test_who_waits_at_the_end_may_still_be_in_time() -> None:
    # Woken at 2 s by the request of 0.5 s, ready at 3 s: 2.5 s of wait.
    assert simulate([0.5], Told({2.0: 1}), Capacity(1.0, 4.0), 1.0, 0).late == 0
    assert simulate([0.5], Told({2.0: 1}), Capacity(1.0, 3.0), 1.0, 0).late == 1


@given(INSTANTS, st.integers(1, 4), st.sampled_from([0.5, 1.0, 3.0]))
def test_static_fleets_wait_as_many_servers_with_one_queue(times: list[float], places: int, service: float) -> None:
    """Kiefer and Wolfowitz' recursion: each request takes the place that is free first."""
    free = [0.0] * places
    heapify(free)
    waits = []
    for time in times:
        begin = max(time, free[0])
        heapreplace(free, begin + service)
        waits.append(begin - time)
    capacity = Capacity(service, service + 1.0)
    assert simulate(times, Static(places), capacity, 0.0, places).late == late(waits, capacity)
    one = Capacity(service, service + 1.0, concurrency=places)
    assert simulate(times, Static(1), one, 0.0, 1).late == late(waits, capacity)


@given(INSTANTS, st.lists(st.integers(0, 5), max_size=40), st.sampled_from([0.0, 0.5, 7.0]), st.integers(0, 3))
def test_nothing_is_lost_whatever_is_decided(
    times: list[float], wanted: list[int], cold_start: float, initial: int
) -> None:
    told = Told(dict(enumerate(wanted, 1)))
    out = simulate(times, told, SECOND, cold_start, initial)
    assert 0 <= out.late <= out.requests == len(times)
    assert out.late >= sum(one.late for one in told.seen), "and those that nobody served"
    assert sum(one.arrivals for one in told.seen) <= len(times)
    assert out.starts == sum(max(0, decision.replicas - before) for before, decision in changes(initial, out))
    assert 0 <= out.replica_seconds <= (initial + out.starts) * times[-1] + 1e-9
    for before, after in zip(told.seen, told.seen[1:], strict=False):
        assert math.isclose(after.now - before.now, 1.0)
        assert after.waiting <= before.waiting + after.arrivals
