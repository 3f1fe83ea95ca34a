"""Communicator of sync.mode Ring: all-reduce among the members of a membership epoch.

A dense model's gradient is summed bucket by bucket while the backward pass goes on, then every rank makes the same
update. Word vectors are averaged: of the rows that anybody touched the changes travel.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal

import torch

from mms_workloads.embedding.state import EmbeddingState
from mms_workloads.train.communicator import Contribution, Flag, decode, encode
from mms_workloads.train.flat import FlatState
from mms_workloads.train.merge import merge_scale

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Future

    from torch import Tensor

    from mms_workloads.sync.leases import Slice
    from mms_workloads.train.state import State, Tables
    from mms_workloads.transport.ring import RingTransport

Wire = Literal["None", "BF16", "Int8"]


class Ring:
    def __init__(self, transport: RingTransport, wire: Wire = "None") -> None:
        self._transport, self._wire = transport, wire
        self._rounds: dict[int, _DenseRound] = {}

    def attach(self, state: State) -> None:
        """Buckets of the state's gradient travel as soon as they are complete."""
        if isinstance(state, FlatState):
            self._rounds[id(state)] = _DenseRound(self._transport, state, self._wire)

    def prepare(self, state: State, rows: Callable[[], Mapping[str, Tensor]]) -> None:
        """Every rank holds all rows."""

    def exchange(self, state: State, mine: Contribution, rate: float) -> list[Contribution]:
        if isinstance(state, EmbeddingState):
            return self._average(state, mine, rate)
        assert isinstance(state, FlatState)  # noqa: S101 - the two kinds of state there are
        return self._rounds[id(state)].finish(mine, rate)

    def share(self, state: State, source: int) -> None:
        mine = state.tables()
        if self._transport.position == source:
            _each(mine, lambda tensor: self._transport.broadcast(tensor, source))
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
        transport = self._transport
        contributions = [decode(row) for row in transport.all_gather(encode(mine))]
        # Which rows anybody touched: only those travel. A block touches thousands, a vocabulary may have millions.
        touches = torch.cat((state.touches.vectors, state.touches.contexts))
        counts = torch.stack((touches, (touches > 0).float()))
        transport.all_reduce(counts)
        rows = counts[0].nonzero().squeeze(1)  # none in a round without blocks
        split = int((rows < state.size).sum())
        parts = (rows[:split], rows[split:] - state.size)
        delta = torch.cat((state.delta_vectors(parts[0]), state.delta_contexts(parts[1])))
        if rows.numel():
            transport.all_reduce(delta)
        delta *= merge_scale(counts[0, rows], counts[1, rows], rate)[:, None]
        state.commit(parts, (delta[:split], delta[split:]), _slices(contributions))
        return contributions


class _DenseRound:
    """The reduction of one state's gradients, in a thread beside the backward pass, always in the buckets' order."""

    def __init__(self, transport: RingTransport, state: FlatState, wire: Wire) -> None:
        self._transport, self._state, self._wire = transport, state, wire
        self._error = torch.zeros_like(state.gradient) if wire != "None" else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ring")
        self._complete: set[int] = set()
        self._sent: list[Future[None]] = []
        self._finite = True
        state.on_bucket = self._bucket

    def finish(self, mine: Contribution, rate: float) -> list[Contribution]:
        for bucket in range(len(self._state.buckets)):
            if bucket not in self._complete:  # no data, or parameters that the loss does not depend on
                self._bucket(bucket)
        sent, self._sent, self._complete = self._sent, [], set()
        finite, self._finite = self._finite, True
        try:
            for future in sent:
                future.result()
        finally:
            for future in sent:
                future.cancel()
        if not finite:
            mine = Contribution(mine.slices, mine.stats, mine.flags | Flag.NOT_FINITE)
        contributions = [decode(row) for row in self._transport.all_gather(encode(mine))]
        return apply_gradient(self._state, contributions, rate)

    def close(self) -> None:
        self._state.on_bucket = lambda _: None
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _bucket(self, bucket: int) -> None:
        self._complete.add(bucket)
        while (following := len(self._sent)) in self._complete:
            window = self._state.buckets[following]
            gradient = self._state.gradient[window]
            self._finite = self._finite and bool(torch.isfinite(gradient.sum()))
            error = self._error[window] if self._error is not None else None
            self._sent.append(self._thread.submit(self._transport.all_reduce, gradient, self._wire, error))


def apply_gradient(state: FlatState, contributions: list[Contribution], rate: float) -> list[Contribution]:
    """The update with the gradient that was summed over all ranks; left out when it is not finite, on all alike."""
    samples = sum(c.stats.samples for c in contributions)
    good = samples > 0 and bool(torch.isfinite(state.gradient.sum()))
    if good:
        state.update(samples, rate)
    state.commit(_slices(contributions))
    if samples and not good:
        return [Contribution(c.slices, c.stats, c.flags, applied=False) for c in contributions]
    return contributions


def _slices(contributions: list[Contribution]) -> list[Slice]:
    return [s for c in contributions for s in c.slices]


def _each(tables: Tables, act: Callable[[Tensor], None]) -> None:
    for name in sorted(tables):
        for slot in sorted(tables[name]):
            act(tables[name][slot])
