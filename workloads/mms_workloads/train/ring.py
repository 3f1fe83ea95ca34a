"""Communicator of sync.mode Ring: all-reduce among the members of a membership epoch.

A dense model's gradient is summed bucket by bucket while the backward pass goes on, then every rank makes the same
update. Word vectors are averaged: of the rows that anybody touched the changes travel.
"""

from __future__ import annotations

import math
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Protocol

import torch

from mms_workloads.contract import Guard
from mms_workloads.embedding.state import EmbeddingState
from mms_workloads.train.communicator import Contribution, Health, decode, encode
from mms_workloads.train.flat import FlatState
from mms_workloads.train.guarding import Guarding
from mms_workloads.train.merge import merge_scale

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from mms_workloads.sync.leases import Slice
    from mms_workloads.train.state import State, Tables

Wire = Literal["None", "BF16", "Int8"]


class Collectives(Protocol):
    """As transport.ring.RingTransport has them, for the tensors of the state wherever they are."""

    @property
    def position(self) -> int: ...
    @property
    def size(self) -> int: ...
    def all_reduce(self, tensor: Tensor, wire: Wire = "None", error: Tensor | None = None) -> None: ...
    def all_gather(self, tensor: Tensor) -> list[Tensor]: ...
    def broadcast(self, tensor: Tensor, source: int) -> None: ...
    def close(self) -> None: ...


class Ring:
    def __init__(self, transport: Collectives, wire: Wire = "None", guard: Guarding | None = None) -> None:
        self._transport, self._wire = transport, wire
        self._guard = guard or Guarding(Guard())
        self._rounds: dict[int, _DenseRound] = {}

    def attach(self, state: State) -> None:
        """Buckets of the state's gradient travel as soon as they are complete."""
        if isinstance(state, FlatState):
            self._rounds[id(state)] = _DenseRound(self._transport, state, self._wire, self._guard)

    def prepare(self, state: State, rows: Callable[[], Mapping[str, Tensor]]) -> None:
        """Every rank holds all rows."""

    def exchange(
        self, state: State, mine: Contribution, rate: float, again: Callable[[], object]
    ) -> list[Contribution]:
        if isinstance(state, EmbeddingState):
            return self._average(state, mine, rate)
        assert isinstance(state, FlatState)  # noqa: S101 - the two kinds of state there are
        return self._rounds[id(state)].finish(mine, rate, again)

    def compare(self, checksum: int) -> None:
        _told(self._guard, self._transport, Contribution(health=Health(checksum=checksum)), 0.0)

    def share(self, state: State, source: int) -> None:
        mine = state.tables()
        if self._transport.position == source:
            # Rows of word vectors are on cache lines of their own, and travel without what lies between.
            _each(mine, lambda tensor: self._transport.broadcast(tensor.contiguous(), source))
            state.reset()
            return
        received: Tables = {
            name: {slot: torch.empty_like(t) for slot, t in slots.items()} for name, slots in mine.items()
        }
        _each(received, lambda tensor: self._transport.broadcast(tensor, source))
        state.adopt(received)

    def close(self) -> None:
        for one in self._rounds.values():
            one.close()
        self._transport.close()

    def _average(self, state: EmbeddingState, mine: Contribution, rate: float) -> list[Contribution]:
        transport, position = self._transport, self._transport.position
        rows, counts = self._touched(state)
        changes, squares = state.changes(rows)
        contributions = _told(self._guard, transport, mine, math.sqrt(squares))
        good = self._guard.judge(contributions)
        if not all(good):
            if not good[position]:
                state.reset()  # its rows of the round go nowhere
            rows, counts = self._touched(state)
            changes, _ = state.changes(rows)
        if rows.numel():
            # What BF16 loses of a change is a small part of it, and not kept for the next round, which has other rows.
            transport.all_reduce(changes, self._wire)
        state.commit(rows, changes, merge_scale(counts[0], counts[1], rate), _slices(contributions))
        return _settled(self._guard, contributions, good, position)

    def _touched(self, state: EmbeddingState) -> tuple[Tensor, Tensor]:
        """The rows that anybody touched: only those travel, since a round touches a part of a large vocabulary.

        With how often all ranks did, and how many of them [2, n]. None in a round without blocks.
        """
        touches = state.touched()
        counts = torch.stack((touches, (touches > 0).float()))
        self._transport.all_reduce(counts)
        rows = counts[0].nonzero().squeeze(1)
        return rows, counts[:, rows]


class _DenseRound:
    """The reduction of one state's gradients, in a thread beside the backward pass, always in the buckets' order."""

    def __init__(self, transport: Collectives, state: FlatState, wire: Wire, guard: Guarding) -> None:
        self._transport, self._state, self._wire, self._guard = transport, state, wire, guard
        self._error = torch.zeros(state.gradient.shape) if wire != "None" else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ring")
        self._complete: set[int] = set()
        self._sent: list[Future[None]] = []
        self._squares = torch.zeros(())  # of the rank's own gradient, bucket by bucket; where that is
        state.on_bucket = self._bucket

    def finish(self, mine: Contribution, rate: float, again: Callable[[], object]) -> list[Contribution]:
        """Where a rank's gradient is left out, the sum that has it is thrown away, and the others make another one."""
        guard, position = self._guard, self._transport.position
        self._reduce()
        norm, self._squares = math.sqrt(self._squares), torch.zeros(())
        contributions = _told(guard, self._transport, mine, norm)
        good = guard.judge(contributions)
        there = [i for i, c in enumerate(contributions) if c.stats.samples]
        if any(good[i] for i in there) and not all(good[i] for i in there):
            self._forget()
            if good[position] and mine.stats.samples:
                again()
            self._reduce()
            self._squares = torch.zeros(())
        samples = sum(contributions[i].stats.samples for i in there if good[i])
        if samples and self._finite():
            self._state.update(samples, rate)
        else:
            self._forget()
            good = [False] * len(good)
        self._state.commit(_slices(contributions))
        return _settled(guard, contributions, good, position)

    def _reduce(self) -> None:
        for bucket in range(len(self._state.buckets)):
            if bucket not in self._complete:  # no data, or parameters that the loss does not depend on
                self._bucket(bucket)
        sent, self._sent, self._complete = self._sent, [], set()
        try:
            for future in sent:
                future.result()
        finally:
            for future in sent:
                future.cancel()

    def _finite(self) -> bool:
        """Sums of finite gradients may still overflow: on all ranks alike, as all have the same bits."""
        return self._transport.size == 1 or bool(torch.isfinite(self._state.gradient.sum()))

    def _forget(self) -> None:
        """The round's gradient, and what compression has kept of it."""
        self._state.reset()
        if self._error is not None:
            self._error.zero_()

    def close(self) -> None:
        self._state.on_bucket = lambda _: None
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _bucket(self, bucket: int) -> None:
        self._complete.add(bucket)
        while (following := len(self._sent)) in self._complete:
            window = self._state.buckets[following]
            gradient = self._state.gradient[window]
            self._squares = self._squares + gradient.dot(gradient)
            error = self._error[window] if self._error is not None else None
            self._sent.append(self._all_reduce(gradient, error))

    def _all_reduce(self, gradient: Tensor, error: Tensor | None) -> Future[None]:
        if self._transport.size == 1:  # there is nothing to send, and a thread's turns are felt in short steps
            done: Future[None] = Future()
            done.set_result(None)
            return done
        return self._thread.submit(self._transport.all_reduce, gradient, self._wire, error)


def _told(guard: Guarding, transport: Collectives, mine: Contribution, norm: float) -> list[Contribution]:
    """What all ranks say of the round. Raises PartedError."""
    if transport.size == 1:
        return [guard.stamp(mine, norm)]
    contributions = [decode(row) for row in transport.all_gather(encode(guard.stamp(mine, norm)))]
    guard.compare(contributions, transport.position)
    return contributions


def _settled(
    guard: Guarding, contributions: list[Contribution], good: Sequence[bool], position: int
) -> list[Contribution]:
    guard.learn(contributions[position])
    pairs = zip(contributions, good, strict=True)
    return [c if ok or not c.stats.samples else replace(c, applied=False) for c, ok in pairs]


def _slices(contributions: list[Contribution]) -> list[Slice]:
    return [s for c in contributions for s in c.slices]


def _each(tables: Tables, act: Callable[[Tensor], None]) -> None:
    for name in sorted(tables):
        for slot in sorted(tables[name]):
            act(tables[name][slot])
