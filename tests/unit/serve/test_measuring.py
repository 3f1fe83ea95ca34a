"""What a pod finds out about itself, and what Triton's metrics say."""

from __future__ import annotations

import asyncio

import pytest

from mms_workloads.contract import MeasuredPoint
from mms_workloads.serve import load, measuring
from mms_workloads.serve.totals import Totals


def curve(*rates: float) -> list[MeasuredPoint]:
    return [MeasuredPoint(concurrency=2**n, rate=rate, p99=0.1) for n, rate in enumerate(rates)]


@pytest.mark.parametrize(
    ("rates", "following"),
    [
        ((), 1),
        ((10,), 2),
        ((10, 19), 4),
        ((10, 10.2), 4),  # one without a gain may be chance
        ((10, 10.2, 10.3), None),
        ((10, 19, 19, 30), 16),
        (tuple(2.0**n for n in range(9)), None),  # as many as there may be
    ],
)
def test_more_at_a_time_until_nothing_is_gained(rates: tuple[float, ...], following: int | None) -> None:
    assert measuring.following(curve(*rates)) == following


@pytest.mark.parametrize(
    ("points", "following"),
    [
        ([(1, 164, 0.07), (2, 152, 0.08), (4, 123, 0.1)], 16),  # as a pod of a fifth of a processor
        ([(1, 164, 0.07), (2, 152, 0.08), (4, 123, 0.1), (16, 184, 0.2)], 32),
        ([(1, 164, 0.07), (2, 152, 0.08), (4, 123, 0.1), (16, 160, 0.2), (64, 160, 0.3)], 256),
        ([(1, 164, 0.07), (2, 152, 0.08), (4, 123, 0.5)], 16),  # one late number may be chance
        ([(1, 164, 0.07), (2, 152, 0.5), (4, 500, 0.5)], None),
        ([(1, 100, 0.1), (2, 190, 0.1), (4, 350, 0.5), (8, 600, 0.6)], None),
        ([(1, 164, 0.07), (2, 152, 0.08), (4, 123, 0.1), (16, 160, 0.2), (64, 160, 0.3), (128, 160, 0.3)], None),
    ],
)
def test_by_leaps_while_answers_come_in_time(points: list[tuple[int, float, float]], following: int | None) -> None:
    found = [MeasuredPoint(concurrency=many, rate=rate, p99=p99) for many, rate, p99 in points]
    assert measuring.following(found, 0.4) == following


async def test_a_server_with_two_places() -> None:
    places = asyncio.Semaphore(2)
    asked: list[int] = []

    async def ask(number: int) -> None:
        asked.append(number)
        async with places:
            await asyncio.sleep(0.01)

    found = await measuring.measure(ask, 30.0, 0.2)
    assert found.error is None
    assert [point.concurrency for point in found.curve][:3] == [1, 2, 4]
    one, two, *_, last = found.curve
    assert two.rate > 1.5 * one.rate
    assert last.p99 > 1.5 * two.p99  # they wait for each other
    assert set(range(4)) <= set(asked)


async def test_it_ends_in_time() -> None:
    async def ask(_: int) -> None:
        await asyncio.sleep(0.001)

    found = await measuring.measure(ask, 0.0, 0.05)
    assert found.curve == []


async def test_a_question_that_fails_is_told() -> None:
    async def ask(number: int) -> None:
        if number >= 1:
            raise ValueError("no")
        await asyncio.sleep(0.01)

    found = await measuring.measure(ask, 30.0, 0.05)
    assert found.error
    assert "no" in found.error


TEXT = """\
# TYPE nv_inference_request_success counter
nv_inference_request_success{model="neighbours",version="1"} 90
nv_inference_request_failure{model="neighbours",reason="OTHER",version="1"} 8
nv_inference_request_failure{model="neighbours",reason="REJECTED",version="1"} 2
nv_inference_request_success{model="vectors",version="1"} 0
nv_inference_pending_request_count{model="neighbours",version="1"} 3
nv_inference_pending_request_count{model="vectors",version="1"} 1
nv_inference_request_summary_us_count{model="neighbours",version="1"} 90
nv_inference_request_summary_us{model="neighbours",version="1",quantile="0.5"} 1200
nv_inference_request_summary_us{model="neighbours",version="1",quantile="0.99"} 4500
nv_inference_request_summary_us{model="vectors",version="1",quantile="0.5"} Nan
nv_cpu_utilization 0.5
"""


def test_the_load_is_read_from_the_metrics() -> None:
    found = load.parse(TEXT)
    assert found.pending == 4
    assert found.models["neighbours"].requests == 100
    assert found.models["neighbours"].quantiles == {"0.5": 0.0012, "0.99": 0.0045}
    assert (found.models["vectors"].requests, found.models["vectors"].quantiles) == (0, {})


def test_of_other_text_nothing_is_known() -> None:
    assert load.parse("<html>").models == {}


def test_of_two_versions_of_a_model_the_slower_one_counts() -> None:
    line = 'nv_inference_request_{}{{model="classify",version="{}"{}}} {}'
    both = [line.format("success", version, "", 10) for version in (1, 2)]
    both += [line.format("summary_us", version, ',quantile="0.99"', us) for version, us in ((1, 9000), (2, 3000))]
    found = load.parse("\n".join(both)).models["classify"]
    assert (found.requests, found.quantiles) == (20, {"0.99": 0.009})


def test_what_a_version_has_counted_stays_when_it_is_unloaded() -> None:
    line = 'nv_inference_request_success{{model="classify",version="{}"}} {}'
    known = Totals()
    for told, wanted in (
        ((line.format(1, 100),), 100),
        ((line.format(1, 110), line.format(2, 50)), 160),
        ((line.format(2, 60),), 170),  # the first one is unloaded
        ((line.format(2, 65), line.format(1, 3)), 178),  # and comes back
        ((line.format(2, 66),), 179),  # and goes
        ((line.format(2, 67), line.format(1, 113)), 180),  # it was away only
        ((line.format(2, 4), line.format(1, 1)), 5),  # Triton has been started again
    ):
        assert load.parse("\n".join(told), known).models["classify"].requests == wanted
        assert known.starts == (1 if wanted == 5 else 0)
