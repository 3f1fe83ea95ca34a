"""The search for the best way of batching."""

from __future__ import annotations

import pytest

from mms_workloads.contract import Batching, Measured, MeasuredPoint
from mms_workloads.serve import tuning

OBJECTIVE = 0.05


def measured(rate: float, p99: float = 0.01) -> Measured:
    return Measured(curve=[MeasuredPoint(concurrency=1, rate=rate, p99=p99)], seconds=1.0)


class World:
    """A pod whose rate depends on the way it runs."""

    def __init__(self, processors: int = 4, **gains: float) -> None:
        self.processors, self.gains = processors, gains
        self.tried: list[Batching] = []

    def rate(self, batching: Batching) -> float:
        rate = 100.0
        for name, gain in self.gains.items():
            field, _, value = name.rpartition("_")
            rate *= gain if getattr(batching, field) == int(value) else 1.0
        return rate

    def search(self, first: Batching | None = None) -> Batching:
        tried = [(first or Batching(), measured(self.rate(first or Batching())))]
        while (candidate := tuning.following(tried, OBJECTIVE, self.processors)) is not None:
            assert candidate not in {one for one, _ in tried}
            tried.append((candidate, measured(self.rate(candidate))))
        self.tried = [one for one, _ in tried]
        return tuning.best(tried, OBJECTIVE)[0]


def test_what_gains_nothing_is_not_taken() -> None:
    world = World()
    assert world.search() == Batching()
    assert len(world.tried) == 4  # one step in each dimension


def test_more_processes_as_long_as_they_gain() -> None:
    world = World(instances_2=1.5, instances_4=2.0, instances_8=2.02)
    assert world.search().instances == 4
    world = World(processors=1, instances_2=1.5, instances_4=9.0)
    assert world.search().instances == 2  # no more than two for each processor


def test_each_dimension_begins_with_the_best_of_those_before() -> None:
    world = World(instances_2=1.5, maxQueueDelayMicroseconds_200=1.2, preferredBatchSize_64=1.1)
    assert world.search() == Batching(instances=2, maxQueueDelayMicroseconds=200, preferredBatchSize=64)


def test_a_delay_that_only_helps_when_it_is_long_is_not_found_and_costs_one_try() -> None:
    world = World(maxQueueDelayMicroseconds_1000=3.0)
    assert world.search() == Batching()


def test_what_is_asked_for_is_where_it_begins() -> None:
    first = Batching(instances=4, maxQueueDelayMicroseconds=500, preferredBatchSize=32)
    world = World(processors=4, instances_8=1.5)
    assert world.search(first) == first.model_copy(update={"instances": 8})
    assert all(one.preferredBatchSize <= 32 and one.maxQueueDelayMicroseconds >= 500 for one in world.tried)


@pytest.mark.parametrize(("p99", "taken"), [(0.04, True), (0.06, False)])
def test_only_what_meets_the_objective_counts(p99: float, taken: bool) -> None:
    other = Batching(instances=2)
    tried = [(Batching(), measured(100)), (other, measured(200, p99))]
    assert (tuning.best(tried, OBJECTIVE)[0] == other) == taken


async def test_it_ends_when_its_time_is_over() -> None:
    left = iter([1.0, -1.0])

    async def measure(_: Batching) -> Measured:
        return measured(100)

    found, tried = await tuning.search(Batching(), measure, OBJECTIVE, lambda: next(left))
    assert (found.batching, tried) == (Batching(), 2)
