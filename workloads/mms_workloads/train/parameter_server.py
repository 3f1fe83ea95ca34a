"""Communicator of sync.mode ParameterServer: gradients and deltas are pushed to the shards, parameters pulled.

The optimizer runs on the shards. A push says which samples it holds, so that a shard applies them once whoever sends
them again; what a worker holds itself is a copy of what the shards had last.
"""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from mms_workloads.embedding.pulled import PulledState
from mms_workloads.sync import compression
from mms_workloads.sync.leases import Slice
from mms_workloads.sync.push import Delta, Push
from mms_workloads.train.communicator import Contribution, Flag, Health, Stats
from mms_workloads.train.flat import PARAMETERS, TABLE, FlatState
from mms_workloads.train.guarding import Guarding

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from mms_workloads.contract import Guard
    from mms_workloads.sync.layout import Layout
    from mms_workloads.sync.shard_client import ShardClient
    from mms_workloads.train.state import State, Tables

Wire = Literal["None", "BF16", "Int8"]
SHARE_ROWS_BYTES = 16 << 20  # of one answer to `share`


def judge(guard: Guard, contributions: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Whose gradients go into the parameters. Pure: all shards decide alike. Without synchrony it sees one push alone,
    and only leaves out what is not finite.
    """
    return Guarding(guard).judge([_read(c, applied=True) for c in contributions])


class ParameterServer:
    """clients: of the shards, in the order of their parts."""

    def __init__(
        self,
        clients: Sequence[ShardClient],
        layout: Layout,
        wire: Wire,
        guard: Guarding,
        *,
        position: int = 0,
        synchronous: bool,
    ) -> None:
        self._clients, self._layout, self._wire, self._synchronous = clients, layout, wire, synchronous
        self._guard, self._position = guard, position
        self._pushes = 0  # in this epoch
        self._errors: list[Tensor | None] = [None] * len(clients)

    def attach(self, state: State) -> None:
        """Everything is sent at the end of a round: the optimizer needs the whole gradient of a shard's rows."""

    def prepare(self, state: State, rows: Callable[[], Mapping[str, Tensor]]) -> None:
        """Pulls the rows that the round needs."""
        if not isinstance(state, PulledState):
            return  # dense tables come with each answer
        for table, wanted in rows().items():
            held = state.held[table]
            held.hold(wanted)
            parts = self._layout.split(table, wanted)
            for client, window in zip(self._clients, parts, strict=True):
                client.send_pull(table, wanted[window])
            for client, window in zip(self._clients, parts, strict=True):
                _, values = client.receive_rows()
                held.put(window, values)

    def compare(self, checksum: int) -> None:
        """What workers hold is the shards', who compare it with their copies."""

    def exchange(
        self, state: State, mine: Contribution, rate: float, again: Callable[[], object]
    ) -> list[Contribution]:
        """A shard has each rank's gradient by itself and can leave one out: `again` is not needed."""
        del again
        if isinstance(state, PulledState):
            parts, squares = self._deltas(state)
            mine, samples = self._guard.stamp(mine, math.sqrt(squares)), 1.0 if mine.slices else 0.0
            if Flag.NOT_FINITE in mine.flags:
                parts = [{"deltas": {}} for _ in parts]
        else:
            assert isinstance(state, FlatState)  # noqa: S101 - the two kinds of state there are
            mine = self._guard.stamp(mine, math.sqrt(float(state.gradient.dot(state.gradient))))
            parts, samples = self._gradients(state, mine), float(mine.stats.samples)
        step = state.agreement.step if self._synchronous else self._pushes
        for client, part in zip(self._clients, parts, strict=True):
            client.send_push(Push(step, rate, samples, mine.slices, _write(mine), **part))
        contributions: list[Contribution] = []
        for shard, client in enumerate(self._clients):
            answer, _ = client.receive_answer(self._places(state, shard))
            contributions = [
                _read(c, applied=included)
                for c, included in zip(answer.contributions, answer.included, strict=True)
                if c is not None
            ]
        if isinstance(state, FlatState):
            state.received()
        self._pushes += 1
        if self._synchronous:
            state.agreement.progress.commit(s for c in contributions for s in c.slices)
        else:  # what the others have done meanwhile, their own reports say
            contributions = [replace(mine, applied=Flag.NOT_FINITE not in mine.flags)]
        if not contributions[self._position if self._synchronous else 0].applied:
            self._errors = [None] * len(self._errors)  # what compression kept is of a gradient that went nowhere
        self._guard.learn(mine)
        state.agreement.step += self._synchronous or bool(mine.slices)
        state.next_round()
        return contributions

    def share(self, state: State, source: int) -> None:
        """All that the shards hold. `source` does not matter: it is on no member."""
        del source
        if isinstance(state, PulledState):
            return  # rows come with the rounds that need them
        tables: Tables = {t.name: {PARAMETERS: torch.empty(t.rows, t.columns)} for t in self._layout.tables}
        self._fill(tables)
        state.adopt(tables)

    def gather(self, state: State, folder: Path) -> None:
        """Gives this rank all that there is at the end, as files in `folder` where it has pulled parts only.

        Raises PeerLost, OSError.
        """
        if isinstance(state, PulledState):
            self._fill(state.gather(folder))
        else:
            self.share(state, 0)

    def _fill(self, tables: Tables) -> None:
        """In pieces of bounded size."""
        for table in self._layout.tables:
            whole = tables[table.name][PARAMETERS]
            for shard, client in enumerate(self._clients):
                start, stop = self._layout.bounds(table.name, shard)
                rows = max(1, SHARE_ROWS_BYTES // (4 * table.columns))
                for first in range(start, stop, rows):
                    last = min(stop, first + rows)
                    client.get(
                        "state", table.name, first, last, slots=[PARAMETERS], into={PARAMETERS: whole[first:last]}
                    )

    def close(self) -> None:
        for client in self._clients:
            client.channel.close()

    def _gradients(self, state: FlatState, mine: Contribution) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = []
        for shard in range(len(self._clients)):
            start, stop = self._layout.bounds(TABLE, shard)
            if not mine.stats.samples or Flag.NOT_FINITE in mine.flags:
                parts.append({})
                continue
            gradient = state.gradient[start:stop].cpu()
            if self._wire != "None" and self._errors[shard] is None:
                self._errors[shard] = torch.zeros_like(gradient)
            parts.append({"gradients": {TABLE: compression.encode(gradient, self._wire, self._errors[shard])}})
        return parts

    def _deltas(self, state: PulledState) -> tuple[list[dict[str, Any]], float]:
        """For each shard its rows; the squared norm of the whole change."""
        parts: list[dict[str, Any]] = [{"deltas": {}} for _ in self._clients]
        touches = state.touched()
        rows = touches.nonzero().squeeze(1)
        values, squares = state.changes(rows)
        values = values.bfloat16() if self._wire == "BF16" else values
        contexts = int(torch.searchsorted(rows, state.size))
        for table, of_table, first in (
            ("vectors", slice(0, contexts), 0),
            ("contexts", slice(contexts, rows.numel()), state.size),
        ):
            if of_table.start == of_table.stop:
                continue
            numbers, changes, often = rows[of_table] - first, values[of_table], touches[rows[of_table]]
            for part, window in zip(parts, self._layout.split(table, numbers), strict=True):
                part["deltas"][table] = Delta(numbers[window].contiguous(), changes[window], often[window])
        return parts, squares

    def _places(self, state: State, shard: int) -> dict[str, Tensor] | None:
        if not isinstance(state, FlatState):
            return None
        start, stop = self._layout.bounds(TABLE, shard)
        return {TABLE: state.inbox[start:stop]}


def _write(mine: Contribution) -> dict[str, Any]:
    slices = [[s.data_epoch, s.block, s.start, s.stop, s.size] for s in mine.slices]
    return {"slices": slices, "stats": asdict(mine.stats), "flags": int(mine.flags), "health": asdict(mine.health)}


def _read(document: Mapping[str, Any], *, applied: bool) -> Contribution:
    slices = tuple(Slice(*one) for one in document["slices"])
    health = Health(**document["health"])
    return Contribution(slices, Stats(**document["stats"]), Flag(document["flags"]), health, applied)
