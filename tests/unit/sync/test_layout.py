"""Which shard holds which rows, and where they come from when that changes."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from mms_workloads.sync.layout import Fetch, Layout, Lost, Table, fetches, pieces, replica_holder, replica_of

ROWS = st.integers(1, 60)
SHARDS = st.integers(1, 9)


@given(rows=ROWS, shards=SHARDS)
def test_a_partition_into_even_ranges(rows, shards):
    layout = Layout((Table("t", rows),), shards)
    ranges = [layout.bounds("t", shard) for shard in range(shards)]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == rows
    assert all(before[1] == after[0] for before, after in pairwise(ranges))
    sizes = [stop - start for start, stop in ranges]
    assert max(sizes) - min(sizes) <= 1


@given(rows=ROWS, shards=SHARDS, chosen=st.sets(st.integers(0, 59)))
def test_split(rows, shards, chosen):
    layout = Layout((Table("t", rows),), shards)
    numbers = torch.tensor(sorted(r for r in chosen if r < rows), dtype=torch.int64)
    parts = layout.split("t", numbers)
    assert len(parts) == shards
    assert torch.equal(torch.cat([numbers[part] for part in parts]), numbers)
    for shard, part in enumerate(parts):
        start, stop = layout.bounds("t", shard)
        assert all(start <= row < stop for row in numbers[part].tolist())


@given(
    rows=ROWS,
    before=st.integers(1, 5),
    after=st.integers(1, 5),
    states=st.sets(st.integers(0, 4)),
    replicas=st.sets(st.integers(0, 4)),
)
def test_what_is_fetched_is_all_rows_once_from_who_has_them(rows, before, after, states, replicas):
    old, new = Layout((Table("t", rows),), before), Layout((Table("t", rows),), after)
    states = {s for s in states if s < before}
    replicas = {s for s in replicas if s < before} if before > 1 else set()

    def has(fetch):
        held = (fetch.source - 1) % before if fetch.replica else fetch.source
        start, stop = old.bounds("t", held)
        return fetch.source in (replicas if fetch.replica else states) and start <= fetch.start < fetch.stop <= stop

    for shard in range(after):
        start, stop = new.bounds("t", shard)
        plan = fetches(old, new, shard, states=states, replicas=replicas, near=shard)
        if isinstance(plan, Lost):
            for row in range(plan.start, plan.stop):
                (owner,) = [o for o in range(before) if row in range(*old.bounds("t", o))]
                assert owner not in states
                assert (owner + 1) % before not in replicas
            assert start <= plan.start < plan.stop <= stop
            assert "restore the last checkpoint" in str(plan)
        else:
            assert all(has(fetch) for fetch in plan)
            assert [row for fetch in plan for row in range(fetch.start, fetch.stop)] == list(range(start, stop))


def test_a_shard_that_is_replaced_is_filled_from_its_replica():
    layout = Layout((Table("vectors", 90, 4, sparse=True), Table("contexts", 90, 4, sparse=True)), 3)
    plan = fetches(layout, layout, 1, states={0, 2}, replicas={0, 2})
    assert plan == [Fetch(2, True, "vectors", 30, 60), Fetch(2, True, "contexts", 30, 60)]
    assert fetches(layout, layout, 1, states={0, 2}, replicas={0}) == Lost("vectors", 30, 60)
    # The replica that it held itself, of shard 0:
    assert fetches(layout, layout, 0, states={0, 2}, replicas={0, 2}) == [
        Fetch(0, False, "vectors", 0, 30),
        Fetch(0, False, "contexts", 0, 30),
    ]


def test_own_memory_first():
    layout, fewer = Layout((Table("dense", 90),), 3), Layout((Table("dense", 90),), 1)
    everyone = {0, 1, 2}
    assert fetches(layout, fewer, 0, states=everyone, replicas=everyone, near=0) == [
        Fetch(0, False, "dense", 0, 30),
        Fetch(1, False, "dense", 30, 60),
        Fetch(0, True, "dense", 60, 90),  # what shard 0 holds as shard 2's replica
    ]
    assert fetches(layout, fewer, 0, states=everyone, replicas=everyone, near=1) == [
        Fetch(1, True, "dense", 0, 30),
        Fetch(1, False, "dense", 30, 60),
        Fetch(2, False, "dense", 60, 90),
    ]


def test_replicas_are_on_the_next_shard():
    assert [replica_holder(shard, 3) for shard in range(3)] == [1, 2, 0]
    assert [replica_of(shard, 3) for shard in range(3)] == [2, 0, 1]
    assert replica_holder(0, 1) is None
    assert replica_of(0, 1) is None


def test_pieces():
    assert pieces(Fetch(0, False, "t", 5, 30), 10) == [(5, 15), (15, 25), (25, 30)]
    assert pieces(Fetch(0, False, "t", 5, 6), 10) == [(5, 6)]
