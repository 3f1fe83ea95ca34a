"""When a shard makes pushes part of its state, and when it answers them: the modes of parameterServer.consistency.

Decisions only: what is decided, the server applies, forwards to the replica, and then calls `settle`. Positions are the
members' places in the membership epoch; an object of this module lives as long as the epoch. Deterministic: what comes
out depends on what was pushed, in Synchronous mode not even on the order. Not safe for threads: the owner has the lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch

from mms_workloads.sync import compression
from mms_workloads.sync.cursors import Refusal, Verdict, examine
from mms_workloads.sync.push import Answer, Push, flaw
from mms_workloads.sync.shard_state import Rows, Update
from mms_workloads.train.merge import merge_scale

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from mms_workloads.contract import ParameterServer
    from mms_workloads.sync.push import Delta
    from mms_workloads.sync.shard_state import ShardState

    # By the contributions of a step, in member order: whose gradients go into the parameters. Must be the same on all
    # shards, so a pure function. The slices of those that are left out count as seen.
    Judge = Callable[[Sequence[Mapping[str, Any]]], Sequence[bool]]


class Consistency(Protocol):
    def offer(self, state: ShardState, position: int, push: Push) -> Update | Refusal | None:
        """An update to apply now, or None: nothing to apply, the answer comes when `answer` has it."""

    def settle(self, state: ShardState, update: Update) -> Answer:
        """The update of the last offer is part of the state, here and on the replica. What is answered from now on."""

    def answer(self, state: ShardState, position: int, push: Push) -> Answer | None:
        """None while the worker must wait."""

    def pulled(self, state: ShardState, position: int, table: str, rows: Tensor) -> None:
        """The worker gets these rows of a sparse table as they are now."""

    def leave(self, position: int) -> None:
        """The worker pushes no more in this epoch."""

    def awaited(self) -> list[int]:
        """Positions that others wait for."""


def everybody(contributions: Sequence[Mapping[str, Any]]) -> Sequence[bool]:
    return [True] * len(contributions)


def of(mode: ParameterServer, members: int, judge: Judge = everybody) -> Consistency:
    match mode.consistency:
        case "Synchronous":
            return Synchronous(members, judge)
        case "BoundedStaleness":
            return Relaxed(members, mode.staleness, judge)
        case "Asynchronous":
            return Relaxed(members, None, judge)


class Synchronous:
    """A step is applied once, when all members have pushed for it: the gradients' sum over the number of samples."""

    def __init__(self, members: int, judge: Judge = everybody) -> None:
        self._judge = judge
        self._pushes: list[Push | None] = [None] * members
        self._applied_before: set[int] = set()  # positions whose slices an earlier step has
        self._included: list[bool] = []
        self._answer: Answer | None = None
        self._sums: dict[str, Tensor] = {}

    def offer(self, state: ShardState, position: int, push: Push) -> Update | Refusal | None:
        if self._answer is not None and push.step == self._answer.step - 1 == state.step - 1:
            return None  # sent again after a broken connection: answered again
        if push.step != state.step:
            return Refusal(f"the push is for step {push.step}, the shard is at {state.step}: pull its parameters")
        if wrong := flaw(state, push):
            return Refusal(wrong)
        earlier = self._pushes[position]
        if earlier is not None:
            return None if earlier.slices == push.slices else Refusal(f"member {position} has pushed other samples")
        taken = {s.block for other in self._pushes if other for s in other.slices}
        if shared := taken & {s.block for s in push.slices}:
            return Refusal(
                f"blocks {sorted(shared)} are in another member's push of this step: lease them to one worker"
            )
        verdict = examine(state.progress, push.slices)
        if isinstance(verdict, Refusal):
            return verdict
        if verdict is Verdict.APPLIED:
            self._applied_before.add(position)
        self._pushes[position] = push
        arrived = [p for p in self._pushes if p is not None]
        return self._decide(state, arrived) if len(arrived) == len(self._pushes) else None

    def settle(self, state: ShardState, update: Update) -> Answer:
        del state
        contributions = tuple(p.contribution for p in self._pushes if p is not None)
        self._answer = Answer(update.step, contributions, tuple(self._included))
        self._pushes = [None] * len(self._pushes)
        self._applied_before = set()
        return self._answer

    def answer(self, state: ShardState, position: int, push: Push) -> Answer | None:
        del state, position
        return self._answer if self._answer is not None and self._answer.step > push.step else None

    def pulled(self, state: ShardState, position: int, table: str, rows: Tensor) -> None:
        pass  # all members compute from the same step

    def leave(self, position: int) -> None:
        pass  # all members leave after the same step, or the epoch is over

    def awaited(self) -> list[int]:
        missing = [i for i, p in enumerate(self._pushes) if p is None]
        return missing if len(missing) < len(self._pushes) else []

    def _decide(self, state: ShardState, pushes: list[Push]) -> Update:
        judged = self._judge([p.contribution for p in pushes])
        self._included = [good and i not in self._applied_before for i, good in enumerate(judged)]
        used = [p for p, included in zip(pushes, self._included, strict=True) if included]
        return Update(
            state.step + 1,
            (used or pushes)[0].rate,
            tuple(s for i, p in enumerate(pushes) if i not in self._applied_before for s in p.slices),
            {name: mean for name in state.dense if (mean := self._mean(name, used)) is not None},
            {name: rows for name in state.sparse if (rows := _merged(name, used)) is not None},
        )

    def _mean(self, name: str, pushes: list[Push]) -> Tensor | None:
        samples = sum(p.samples for p in pushes)
        parts = [p.gradients[name] for p in pushes if p.samples and name in p.gradients]
        if not parts:
            return None
        out = parts[0][0]
        if out.dtype != torch.float32:
            if name not in self._sums:
                self._sums[name] = torch.empty(out.numel())
            out = self._sums[name]
        compression.mean_into(out, parts, samples)
        return out


def _merged(name: str, pushes: list[Push]) -> Rows | None:
    """The ranks' changes as one change, as the ring makes it."""
    used = [(p.deltas[name], p.rate) for p in pushes if name in p.deltas and p.deltas[name].rows.numel()]
    if not used:
        return None
    rows = torch.unique(torch.cat([delta.rows for delta, _ in used]))
    total = torch.zeros(rows.numel(), used[0][0].values.shape[1])
    counts = torch.zeros(2, rows.numel())
    for delta, _ in used:
        at = torch.searchsorted(rows, delta.rows)
        total.index_add_(0, at, delta.values.float())
        counts[0].index_add_(0, at, delta.touches)
        counts[1].index_add_(0, at, (delta.touches > 0).float())
    total *= merge_scale(counts[0], counts[1], used[0][1])[:, None]
    return Rows(rows, total)


class Relaxed:
    """A push is applied as it comes. A worker more than `staleness` pushes ahead of the slowest waits; None: never.
    Nobody waits for one that has left: each leaves when it hears of the next epoch.

    Deltas of workers that computed at the same time would overshoot in rows that all of them touch often, as their sum
    does in a synchronous step. There the ranks of a step share merge_scale; here a delta shares it with the deltas that
    came since its worker pulled the row: with n workers in turn, n - 1. So the factor is the same in the long run, from
    1 for rare rows and for a worker that nobody overtook, to 1/n. Only the first deltas of an epoch are scaled by 1,
    1/2, ... 1/n: together they may go beyond a row's goal once, by the factor 1 + 1/2 + ... + 1/n at most.
    """

    def __init__(self, members: int, staleness: int | None, judge: Judge = everybody) -> None:
        self._staleness, self._judge = staleness, judge
        self._pushed = [0] * members
        self._contributions: list[Mapping[str, Any] | None] = [None] * members
        self._included = [False] * members
        self._there = set(range(members))
        self._offered: tuple[int, Push] | None = None
        # By sparse table: float64 [2, rows of the shard], gradients and deltas that were added to each row so far; and
        # the same as each member saw it when it pulled the row. 16 bytes a row and member.
        self._clock: dict[str, Tensor] = {}
        self._seen: dict[tuple[str, int], Tensor] = {}

    def offer(self, state: ShardState, position: int, push: Push) -> Update | Refusal | None:
        self._there.add(position)
        if push.step == self._pushed[position] - 1:
            return None  # sent again after a broken connection: answered again
        if push.step != self._pushed[position]:
            return Refusal(f"the worker's push {push.step} does not follow the {self._pushed[position]} that are known")
        if wrong := flaw(state, push):
            return Refusal(wrong)
        verdict = examine(state.progress, push.slices)
        if isinstance(verdict, Refusal):
            return verdict
        gradients: dict[str, Tensor] = {}
        deltas: dict[str, Rows] = {}
        if verdict is Verdict.FRESH and self._judge([push.contribution])[0]:
            gradients = {name: _mean_of(parts, push.samples) for name, parts in push.gradients.items() if push.samples}
            deltas = {
                name: self._scaled(state, position, name, delta, push.rate)
                for name, delta in push.deltas.items()
                if delta.rows.numel()
            }
        fresh_slices = push.slices if verdict is Verdict.FRESH else ()
        if not (gradients or deltas or fresh_slices):
            self._count(position, push, included=False)
            return None
        self._offered = (position, push)
        return Update(state.step + 1, push.rate, fresh_slices, gradients, deltas)

    def settle(self, state: ShardState, update: Update) -> Answer:
        assert self._offered is not None  # noqa: S101 - an update comes from an offer
        position, push = self._offered
        self._offered = None
        for name in update.deltas:
            rows = push.deltas[name].rows - state.window(name)[0]
            clock = self._clock_of(state, name)
            clock[0].index_add_(0, rows, push.deltas[name].touches.double())
            clock[1].index_add_(0, rows, torch.ones(rows.numel(), dtype=torch.float64))
        self._count(position, push, included=bool(update.gradients or update.deltas))
        return self._known(state)

    def answer(self, state: ShardState, position: int, push: Push) -> Answer | None:
        if self._pushed[position] <= push.step:
            return None
        ahead = self._pushed[position] - min(self._pushed[i] for i in self._there | {position})
        if self._staleness is not None and ahead > self._staleness:
            return None
        return self._known(state)

    def pulled(self, state: ShardState, position: int, table: str, rows: Tensor) -> None:
        local = rows - state.window(table)[0]
        clock = self._clock_of(state, table)
        if (table, position) not in self._seen:
            self._seen[table, position] = torch.zeros_like(clock)
        self._seen[table, position][:, local] = clock[:, local]

    def leave(self, position: int) -> None:
        self._there.discard(position)

    def awaited(self) -> list[int]:
        pushed = {i: self._pushed[i] for i in sorted(self._there)}
        if self._staleness is None or not pushed:
            return []
        slowest, fastest = min(pushed.values()), max(pushed.values())
        return [i for i, one in pushed.items() if one == slowest] if fastest - slowest > self._staleness else []

    def _known(self, state: ShardState) -> Answer:
        return Answer(state.step, tuple(self._contributions), tuple(self._included))

    def _count(self, position: int, push: Push, *, included: bool) -> None:
        self._pushed[position] += 1
        self._contributions[position] = push.contribution
        self._included[position] = included

    def _scaled(self, state: ShardState, position: int, name: str, delta: Delta, rate: float) -> Rows:
        rows = delta.rows - state.window(name)[0]
        since = self._clock_of(state, name)[:, rows]
        if (name, position) in self._seen:
            since -= self._seen[name, position][:, rows]
        scale = merge_scale(delta.touches + since[0], since[1] + 1, rate, stale=True)
        return Rows(delta.rows, delta.values.float() * scale[:, None])

    def _clock_of(self, state: ShardState, name: str) -> Tensor:
        if name not in self._clock:
            start, stop = state.window(name)
            self._clock[name] = torch.zeros(2, stop - start, dtype=torch.float64)
        return self._clock[name]


def _mean_of(encoded: Sequence[Tensor], samples: float) -> Tensor:
    total = compression.decode(encoded)
    compression.mean_into(total, [[total]], samples)
    return total
