"""KPA, HPA and KEDA against vectors worked out by hand from their published formulas.

With a concurrency of 10 the target is 0.7 * 10 = 7 requests at a replica.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mms_operator.lab.peers import Hpa, Keda, Kpa, Static
from mms_operator.plan.scaling.types import Capacity, Observed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mms_operator.lab.simulate import Scaler

TEN = Capacity(service_seconds=1.0, objective_seconds=2.0, concurrency=10)


def seen(now: float, busy: float, ready: int, starting: int = 0) -> Observed:
    return Observed(now, ready, starting, arrivals=int(busy > 0), late=0, waiting=0, busy=busy)


def replay(scaler: Scaler, busy: Iterable[float], ready: int, *, begin: float = 0.0) -> list[int]:
    """What is decided where so many requests are at so many replicas, whatever is decided."""
    every = scaler.every
    return [scaler.decide(seen(begin + (i + 1) * every, one, ready)).replicas for i, one in enumerate(busy)]


def test_static() -> None:
    assert Static(3).decide(seen(0, 100, 1)).replicas == 3


# ---- KPA: ticks of 2 s


def test_kpa_follows_the_mean_of_its_stable_window() -> None:
    # 30 ticks of 21 at once: ceil(21 / 7) = 3. Then ticks of 28: after k of them the mean is 21 + 7 k / 30, so one is
    # enough for ceil(> 3) = 4; the panic window's ceil(28 / 7) = 4 is less than twice the 3 that are ready.
    found = replay(Kpa(TEN), [21] * 30 + [28] * 2, ready=3)
    assert found == [3] * 30 + [4] * 2


def test_kpa_forgets_what_is_older_than_its_stable_window() -> None:
    kpa = Kpa(TEN)
    assert kpa.decide(seen(2, 21, 3)).replicas == 3
    assert kpa.decide(seen(60, 0, 2)).replicas == 2  # (21 + 0) / 2 = 10.5, ceil(10.5 / 7)
    assert kpa.decide(seen(62, 0, 2)).replicas == 1  # of (2, 62] both are 0: no less than floor(2 / 2)


@pytest.mark.parametrize(
    ("busy", "ready", "replicas"),
    [
        (7, 10, 5),  # ceil(7 / 7) = 1, but no less than floor(10 / 2)
        (7, 11, 5),  # floor(11 / 2)
        (0, 1, 1),  # floor(1 / 2) = 0, but least is 1
        (70_000, 1, 1000),  # ceil(70000 / 7) = 10000, but no more than 1000 * 1
    ],
)
def test_kpa_grows_by_a_thousand_and_shrinks_by_half_at_most(busy: float, ready: int, replicas: int) -> None:
    assert Kpa(TEN).decide(seen(2, busy, ready)).replicas == replicas


def test_kpa_panics_where_six_seconds_want_twice_what_is_ready() -> None:
    kpa = Kpa(TEN)
    # 28 ticks of 14: ceil(14 / 7) = 2. A tick of 56: the mean of the last three is 28, and ceil(28 / 7) = 4 is twice
    # what is ready: panic. The stable window alone: (28 * 14 + 56) / 29 / 7 = 2.2, so 3.
    assert replay(kpa, [14] * 28, ready=2) == [2] * 28
    panic = kpa.decide(seen(58, 56, 2))
    assert (panic.replicas, panic.why[:5]) == (4, "panic")
    # (14 + 56 + 56) / 3 = 42: 6.
    assert kpa.decide(seen(60, 56, 2)).replicas == 6


def test_kpa_does_not_panic_below_twice() -> None:
    kpa = Kpa(TEN)
    assert replay(kpa, [14] * 28, ready=2) == [2] * 28
    # (14 + 14 + 35) / 3 = 21: ceil(21 / 7) = 3 is 1.5 times the 2 that are ready.
    assert "panic" not in kpa.decide(seen(58, 35, 2)).why


def test_kpa_takes_nothing_away_for_a_stable_window_of_panic() -> None:
    kpa = Kpa(TEN)
    assert kpa.decide(seen(2, 70, 1)).replicas == 10  # ceil(70 / 7), 10 times what is ready
    # From 4 s on nothing comes, and 10 are ready; the short window is never again above twice that. The panic lasts
    # while no more than 60 s have gone: up to 62 s.
    at = {now: kpa.decide(seen(now, 0, 10)) for now in range(4, 68, 2)}
    assert {now for now, one in at.items() if one.replicas == 10} == set(range(4, 63, 2))
    assert at[64].replicas == 5  # floor(10 / 2)


def test_kpa_panic_is_extended_while_it_is_over_the_threshold() -> None:
    kpa = Kpa(TEN)
    assert kpa.decide(seen(2, 70, 1)).replicas == 10
    assert kpa.decide(seen(30, 140, 1)).replicas == 20
    assert kpa.decide(seen(90, 0, 20)).why.startswith("panic")
    assert not kpa.decide(seen(92, 0, 20)).why.startswith("panic")


def test_kpa_goes_to_zero_thirty_seconds_after_nothing_was_wanted() -> None:
    kpa = Kpa(TEN, least=0)
    assert kpa.decide(seen(2, 7, 1)).replicas == 1
    found = {now: kpa.decide(seen(now, 0, 1)).replicas for now in range(4, 100, 2)}
    # At 62 s the request of 2 s has left the window of (2, 62]: nothing is wanted from then on, and 30 s later is 92 s.
    assert [now for now, replicas in found.items() if replicas == 0] == list(range(92, 100, 2))


def test_kpa_keeps_what_it_must() -> None:
    assert set(replay(Kpa(TEN, least=1), [0] * 100, ready=1)) == {1}
    assert set(replay(Kpa(TEN, least=3), [7] * 10, ready=3)) == {3}


# ---- HPA: every 15 s


@pytest.mark.parametrize(
    ("busy", "ready", "replicas"),
    [
        (30.7, 4, 4),  # 30.7 / 4 / 7 = 1.096: within the tolerance
        (25.3, 4, 4),  # 0.904
        (31.5, 4, 5),  # 1.125 * 4 = 4.5
        (56.0, 4, 8),  # 2 * 4
        (24.5, 4, 4),  # 0.875 * 4 = 3.5
        (140.0, 1, 5),  # 20 * 1, but no more than max(2 * 1, 1 + 4)
        (1400.0, 6, 12),  # max(2 * 6, 6 + 4)
    ],
)
def test_hpa(busy: float, ready: int, replicas: int) -> None:
    assert Hpa(TEN).decide(seen(15, busy, ready)).replicas == replicas


@pytest.mark.parametrize(
    ("busy", "ready", "starting", "replicas"),
    [
        (42.0, 3, 3, 6),  # 42 / 3 / 7 = 2, but among 6 it is 1: as many as there are
        (45.0, 3, 3, 6),  # among 6: 1.07, within the tolerance
        (63.0, 3, 3, 9),  # among 6: 1.5 * 6
        (35.0, 3, 3, 6),  # 1.67, among 6 0.83: that would turn round, so nothing
    ],
)
def test_hpa_counts_those_that_start_as_idle_on_the_way_up(
    busy: float, ready: int, starting: int, replicas: int
) -> None:
    assert Hpa(TEN).decide(seen(15, busy, ready, starting)).replicas == replicas


def test_hpa_leaves_those_that_start_out_on_the_way_down() -> None:
    hpa = Hpa(TEN)
    # 14 / 4 / 7 = 0.5 of the 4 that are ready: 2; after 300 s without a higher one it is followed.
    assert [hpa.decide(seen(now, 14, 4, 2)).replicas for now in range(15, 46, 15)] == [2, 2, 2]


def test_hpa_shrinks_to_the_most_of_five_minutes() -> None:
    hpa = Hpa(TEN)
    assert hpa.decide(seen(15, 56, 8)).replicas == 8  # 56 / 8 / 7 = 1
    assert hpa.decide(seen(30, 42, 8)).replicas == 8  # wants 6
    found = {now: hpa.decide(seen(now, 14, 8)).replicas for now in range(45, 376, 15)}  # wants 2
    # 8 was wanted at 15 s, which is forgotten at 315 s; 6 at 30 s, which is forgotten at 330 s.
    assert {now for now, one in found.items() if one == 8} == set(range(45, 301, 15))
    assert [found[now] for now in (315, 330, 345)] == [6, 2, 2]


def test_hpa_without_a_ready_pod_has_no_metric() -> None:
    assert Hpa(TEN).decide(seen(15, 100, 0, 3)).replicas == 3


# ---- KEDA: polls every 30 s, decides as HPA does above one


def test_keda_wakes_at_a_poll() -> None:
    keda = Keda(TEN, least=0)
    assert keda.decide(seen(30, 0, 0)).replicas == 0
    assert keda.decide(seen(45, 3, 0)).replicas == 0  # no poll
    assert keda.decide(seen(60, 3, 0)).replicas == 1
    assert keda.decide(seen(75, 3, 0, 1)).replicas == 1


def test_keda_goes_to_zero_after_its_cooldown() -> None:
    keda = Keda(TEN, least=0)
    assert keda.decide(seen(30, 7, 1)).replicas == 1  # active at the poll of 30 s
    found = {now: keda.decide(seen(now, 0, 1)).replicas for now in range(45, 391, 15)}
    assert [now for now, one in found.items() if one == 0] == list(range(345, 391, 15)), "more than 300 s after"


def test_keda_is_hpa_from_one_on() -> None:
    busy = [7, 30, 100, 100, 20, 0, 0, 50]
    assert replay(Keda(TEN), busy, ready=3) == replay(Hpa(TEN), busy, ready=3)
    assert set(replay(Keda(TEN, least=1), [0] * 50, ready=1)) == {1}
