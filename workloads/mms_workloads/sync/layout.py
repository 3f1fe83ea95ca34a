"""Which shard holds which rows, and what a shard must get from whom when that changes. Pure.

Of each table shard i of n holds a contiguous range of rows; sizes differ by one at most. With two replicas the state of
shard i is on shard i + 1 (mod n) as well. Without PyTorch: the master, which decides by it, starts seconds sooner.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from torch import Tensor


@dataclass(frozen=True, slots=True, order=True)
class Table:
    """rows [rows, columns] float32. sparse: a step changes some of the rows, and no optimizer keeps slots of them.

    A dense model is one table "dense" of its parameters, columns 1; embeddings are "vectors" and "contexts" [V, d].
    """

    name: str
    rows: int
    columns: int = 1
    sparse: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    tables: tuple[Table, ...]
    shards: int

    def table(self, name: str) -> Table:
        """Raises KeyError."""
        for table in self.tables:
            if table.name == name:
                return table
        raise KeyError(f"no table {name!r}, there are {[t.name for t in self.tables]}")

    def bounds(self, name: str, shard: int) -> tuple[int, int]:
        """The rows [start, stop) of the table that the shard holds."""
        return bounds(self.table(name).rows, shard, self.shards)

    def split(self, name: str, rows: Tensor) -> list[slice]:
        """Where in `rows` (int64 [n], ascending) each shard's part is."""
        total = self.table(name).rows
        edges = [bounds(total, i, self.shards)[0] for i in range(1, self.shards)]
        cuts = [0, *np.searchsorted(rows.numpy(), edges).tolist(), rows.numel()]
        return [slice(start, stop) for start, stop in pairwise(cuts)]


def bounds(rows: int, index: int, count: int) -> tuple[int, int]:
    """The rows [start, stop) of part `index` of `count`."""
    return rows * index // count, rows * (index + 1) // count


def replica_holder(shard: int, shards: int) -> int | None:
    """Who holds the shard's replica; nobody when there is one shard only."""
    return (shard + 1) % shards if shards > 1 else None


def replica_of(holder: int, shards: int) -> int | None:
    """Whose replica a shard holds."""
    return (holder - 1) % shards if shards > 1 else None


@dataclass(frozen=True, slots=True)
class Fetch:
    """Rows [start, stop) of a table, numbered in the whole table, from the shard `source` of the layout before.

    replica: the source holds them as the replica of the shard before it.
    """

    source: int
    replica: bool
    table: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Lost:
    """Nobody holds these rows any more: all shards must go back to the last checkpoint."""

    table: str
    start: int
    stop: int

    def __str__(self) -> str:
        return (
            f"rows {self.start} to {self.stop} of {self.table} are lost with their shard: restore the last checkpoint"
        )


def fetches(
    before: Layout,
    after: Layout,
    shard: int,
    *,
    states: Collection[int],
    replicas: Collection[int] = (),
    near: int | None = None,
) -> list[Fetch] | Lost:
    """What makes up the state of `shard` in the layout after, in order.

    states: shards of the layout before that still hold their own state; replicas: those that still hold the replica of
    the shard before them; near: the one that asks, whose own memory is used first.
    """
    plan: list[Fetch] = []
    for table in after.tables:
        start, stop = after.bounds(table.name, shard)
        for old in range(before.shards):
            held_from, held_to = before.bounds(table.name, old)
            low, high = max(start, held_from), min(stop, held_to)
            if low >= high:
                continue
            source = _source(old, before.shards, states, replicas, near)
            if source is None:
                return Lost(table.name, low, high)
            plan.append(Fetch(*source, table.name, low, high))
    return plan


def _source(
    old: int, shards: int, states: Collection[int], replicas: Collection[int], near: int | None
) -> tuple[int, bool] | None:
    holder = replica_holder(old, shards)
    replica = (holder, True) if holder is not None and holder in replicas else None
    if replica and holder == near:
        return replica
    return (old, False) if old in states else replica


def pieces(fetch: Fetch, size: int) -> Sequence[tuple[int, int]]:
    """The fetch's rows in ranges of at most `size` rows."""
    return [(start, min(start + size, fetch.stop)) for start in range(fetch.start, fetch.stop, size)]
