"""A parameter shard (Li et al., 2014) behind its lock: membership epochs, pushes that wait, a replica of another shard.

No input or output but through `Forward`, which sends an update to the replica's holder. The master's word comes by
method calls, in this order: end_epoch; settle (Synchronous: all shards go back to the step that all have); prepare, for
a shard that is new or gets other rows, which is then filled; begin_epoch. Data comes from the connections' threads.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Protocol

from mms_workloads.sync import consistency
from mms_workloads.sync.cursors import Cursor, Refusal, cursor
from mms_workloads.sync.leases import Progress
from mms_workloads.sync.push import flaw_of_rows, flaw_of_update
from mms_workloads.sync.shard_client import Unreached
from mms_workloads.sync.shard_parts import Answered, Filling, Over, Standing
from mms_workloads.sync.shard_state import ShardState
from mms_workloads.sync.shard_tables import PARAMETERS
from mms_workloads.transport.channel import PeerLost, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor

    from mms_workloads.contract import ParameterServer
    from mms_workloads.sync.consistency import Consistency, Judge
    from mms_workloads.sync.layout import Layout
    from mms_workloads.sync.optimizers import Rule
    from mms_workloads.sync.push import Answer, Push
    from mms_workloads.sync.shard_parts import Member, Part
    from mms_workloads.sync.shard_state import Lent, Snapshot, Update
    from mms_workloads.transport.channel import Fence


class Forward(Protocol):
    """The way to the holder of this shard's replica in one epoch."""

    def send(self, update: Update) -> None:
        """Returns when the replica has applied it. Raises PeerLost, Refused."""

    def close(self) -> None:
        """Wakes a `send` that waits. Safe in any thread."""


@dataclass(slots=True)
class _Epoch:
    fence: Fence
    members: Sequence[Member]
    mode: Consistency
    forward: Forward | None
    over: str | None = None

    def position(self, member: Member) -> int | None:
        return self.members.index(member) if member in self.members else None


class Shard:
    def __init__(
        self,
        rule: Rule,
        mode: ParameterServer,
        judge: Judge = consistency.everybody,
        *,
        snapshot_at: Callable[[Answer], bool] = lambda _: False,
        on_lost: Callable[[str, tuple[int, ...]], None] = lambda *_: None,
    ) -> None:
        """snapshot_at: whether a snapshot of the state is put into `snapshots` right after this step.

        All shards see the same contributions of a synchronous step, so that they decide alike. on_lost: called from
        the thread of a connection when the replica's holder does not answer: the epoch cannot go on. It is told why,
        and the holder's rank where no connection to it could be made.
        """
        self._rule, self._mode, self._judge = rule, mode, judge
        self._snapshot_at, self._on_lost = snapshot_at, on_lost
        self.snapshots: SimpleQueue[Snapshot] = SimpleQueue()
        self.updates = 0  # that were applied
        self._undo = mode.consistency == "Synchronous"
        # Whoever applies takes `_order` first, then `_lock`: updates are forwarded in the order of their application,
        # and readers wait for memory only, not for the replica.
        self._order = threading.Lock()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._closed = False
        self._epoch: _Epoch | None = None
        self._parts: dict[Part, ShardState] = {}
        self._filling: dict[Part, Filling] = {}

    # ------------------------------------------------------------------ the master's word

    def standing(self) -> Standing:
        with self._lock:
            state, replica, epoch = self._parts.get("state"), self._parts.get("replica"), self._epoch
            live = epoch is not None and not epoch.over
            return Standing(
                epoch.fence.epoch if epoch else 0,
                state.step if state else -1,
                bool(state and state.can_go_back),
                state.progress.copy() if state else Progress([]),
                replica.step if replica else -1,
                replica.progress.copy() if replica else Progress([]),
                tuple(epoch.members[i][0] for i in epoch.mode.awaited()) if epoch and live else (),
            )

    def end_epoch(self, why: str) -> Standing:
        """Pushes that were not answered are dropped, and their workers told. Waits for an update under way."""
        with self._changed:
            epoch = self._epoch
            if epoch and not epoch.over:
                epoch.over = why or "the master has ended it"
            self._filling = {}  # what has not begun is nobody's: the next epoch may have another layout
            self._changed.notify_all()
        if epoch and epoch.forward:
            epoch.forward.close()
        with self._order:
            return self.standing()

    def settle(self, step: int) -> None:
        """Goes back to a step, its replica of another shard too where that is ahead. Raises ValueError."""
        with self._order, self._lock:
            self._check_ended()
            for part, state in self._parts.items():
                if part == "state" or state.step > step:
                    state.rollback_to(step)

    def prepare(self, layout: Layout, shard: int, part: Part = "state") -> None:
        """An empty part, to be filled: by `room` and `filled`, a client's put, or ShardServer.fetch.

        shard: whose rows; for the replica, the shard before this one. What the shard holds now can be read until the
        next epoch begins.
        """
        filling = Filling(ShardState(layout, shard, self._rule, undo=self._undo))
        with self._lock:
            self._filling[part] = filling

    def begin_epoch(
        self,
        fence: Fence,
        members: Sequence[Member],
        *,
        step: int | None = None,
        progress: Progress | None = None,
        forward: Forward | None = None,
    ) -> None:
        """members: workers, in the epoch's order. forward: None where nobody holds a replica.

        step: Synchronous: that all shards must have. With progress it says what a part that was filled by `put` holds;
        one that was fetched brings its own. Raises ValueError with what is missing; then nothing has changed.
        """
        with self._order, self._changed:
            self._check_ended()
            origins = {part: filling.origin(part, step, progress) for part, filling in self._filling.items()}
            at = origins["state"][0] if "state" in origins else self._held("state").step
            if step is not None and at != step:
                raise ValueError(f"the shard is at step {at}, the epoch begins at {step}: settle it first")
            for part, filling in self._filling.items():
                filling.state.begin(*origins[part])
            self._parts.update({part: filling.state for part, filling in self._filling.items()})
            self._filling = {}
            mode = consistency.of(self._mode, len(members), self._judge)
            self._epoch = _Epoch(fence, tuple(members), mode, forward)
            self._changed.notify_all()

    def close(self) -> None:
        self.end_epoch("the shard has ended")
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def drop_replica(self) -> None:
        """Nobody's replica is held here any more."""
        with self._lock:
            self._parts.pop("replica", None)
            self._filling.pop("replica", None)

    # ------------------------------------------------------------------ workers

    def push(self, fence: Fence, member: Member, push: Push) -> Answered | Refusal | Over:
        """Waits for the answer. The push's tensors are the shard's until this returns; it may change them."""
        epoch = self._epoch_of(fence)
        if isinstance(epoch, Over):
            return epoch
        position = epoch.position(member)
        if position is None:
            return Refusal(f"worker {member[0]} of incarnation {member[1]} is no member of epoch {fence.epoch}")
        try:
            refusal = self._take(epoch, position, push)
        except (PeerLost, Refused) as error:
            unreached = error.shards if isinstance(error, Unreached) else ()
            self._break(epoch, f"the replica's holder did not take an update: {error}", unreached)
            refusal = None
        except Exception as error:  # the others must not wait for what will never come
            self._break(epoch, f"an update could not be applied: {error!r}")
            raise
        if refusal:
            return refusal
        with self._changed:
            while not epoch.over:
                state = self._parts["state"]
                if answer := epoch.mode.answer(state, position, push):
                    lent = {name: state.lend(name, *state.window(name), [PARAMETERS]) for name in state.dense}
                    return Answered(answer, lent)
                self._changed.wait()
            return Over(epoch.over)

    def left(self, fence: Fence, member: Member) -> None:
        """The worker's connection is gone: others need not wait for it, who would leave the epoch as well."""
        with self._changed:
            epoch = self._epoch
            position = epoch.position(member) if epoch and epoch.fence == fence else None
            if epoch and position is not None:
                epoch.mode.leave(position)
                self._changed.notify_all()

    def pull(self, fence: Fence, member: Member, table: str, rows: Tensor) -> tuple[int, Tensor] | Refusal | Over:
        """The step and the rows' parameters [n, columns]. rows: int64 [n], ascending, of this shard."""
        epoch = self._epoch_of(fence)
        if isinstance(epoch, Over):
            return epoch
        with self._lock:
            state = self._parts["state"]
            if table not in state.sparse:
                return Refusal(f"shard {state.shard} has no sparse table {table!r}")
            if wrong := flaw_of_rows(rows, *state.window(table)):
                return Refusal(wrong)
            position = epoch.position(member)
            if position is not None:
                epoch.mode.pulled(state, position, table, rows)
            return state.step, state.rows(table, rows)

    def cursors(self, blocks: Iterable[int]) -> list[Cursor]:
        """Raises IndexError on blocks that there are not, ValueError while the shard holds nothing."""
        with self._lock:
            return [cursor(self._held("state").progress, block) for block in blocks]

    # ------------------------------------------------------------------ other shards, and who fills this one

    def apply_forwarded(self, fence: Fence, update: Update) -> Refusal | Over | None:
        """An update of the shard whose replica is here."""
        epoch = self._epoch_of(fence)
        if isinstance(epoch, Over):
            return epoch
        with self._lock:
            replica = self._parts.get("replica")
            if epoch.over:
                return Over(epoch.over)
            if replica is None:
                return Refusal("no replica is held here: prepare and fill it, or begin the epoch without it")
            if wrong := flaw_of_update(replica, update):
                return Refusal(wrong)
            try:
                replica.apply(update)
            except ValueError as error:
                return Refusal(f"replica: {error}")
            return None

    def get(
        self, part: Part, table: str, start: int, stop: int, slots: Iterable[str] | None = None
    ) -> tuple[int, Lent]:
        """The step and rows [start, stop), to be given to `release`. Raises KeyError, ValueError."""
        with self._lock:
            state = self._held(part)
            return state.step, state.lend(table, start, stop, slots)

    def release(self, lent: Iterable[Lent]) -> None:
        with self._lock:
            for one in lent:
                one.release()

    def room(self, part: Part, table: str, start: int, stop: int) -> dict[str, Tensor]:
        """Where the rows of a part that is being filled belong. Raises KeyError, ValueError."""
        with self._lock:
            if part not in self._filling:
                raise ValueError(f"no {part} is being filled here: prepare it first")
            return self._filling[part].state.part(table, start, stop)

    def filled(self, part: Part, table: str, start: int, stop: int, origin: tuple[int, Progress] | None = None) -> None:
        """All of the rows are in their room. origin: step and progress of the shard that they are from, if from one."""
        with self._lock:
            filling = self._filling[part]
            filling.state.filled(table, start, stop)
            if origin:
                filling.origins.append(origin)

    # ------------------------------------------------------------------ checkpoints and checks

    def begin_snapshot(self) -> Snapshot:
        """Of the state as it is now. Raises ValueError while the shard holds nothing."""
        with self._lock:
            return self._held("state").snapshot()

    def complete(self, snapshot: Snapshot) -> None:
        """Returns when all of it is there; pushes are taken between its pieces."""
        complete = False
        while not complete:
            with self._lock:
                complete = snapshot.advance()

    def drop(self, snapshot: Snapshot) -> None:
        """It is written, or not wanted any more."""
        with self._lock:
            snapshot.release()

    def checksums(self, part: Part) -> tuple[int, dict[str, str]]:
        """The step, and by table and slot: a replica's are the same at the same step. Raises ValueError."""
        with self._lock:
            state = self._held(part)
            return state.step, state.checksums()

    # ------------------------------------------------------------------ inside

    def _take(self, epoch: _Epoch, position: int, push: Push) -> Refusal | None:
        with self._order:
            with self._lock:
                if epoch.over:
                    return None
                state = self._parts["state"]
                decided = epoch.mode.offer(state, position, push)
                if isinstance(decided, Refusal):
                    return decided
                if decided:
                    state.apply(decided)
            if decided and epoch.forward:
                epoch.forward.send(decided)
            with self._changed:
                if decided:
                    answer = epoch.mode.settle(state, decided)
                    self.updates += 1
                    if self._snapshot_at(answer):
                        self.snapshots.put(state.snapshot())
                self._changed.notify_all()
        return None

    def _break(self, epoch: _Epoch, why: str, unreached: tuple[int, ...] = ()) -> None:
        with self._changed:
            first = not epoch.over
            epoch.over = epoch.over or why
            self._changed.notify_all()
        if first:
            self._on_lost(why, unreached)

    def _epoch_of(self, fence: Fence) -> _Epoch | Over:
        """Waits for an epoch that other pods heard of first."""
        with self._changed:
            while not self._closed:
                epoch = self._epoch
                if epoch and epoch.fence == fence:
                    return Over(epoch.over) if epoch.over else epoch
                if epoch and not epoch.fence.older(fence):
                    return Over(f"epoch {epoch.fence.epoch} has begun, this connection is of epoch {fence.epoch}")
                self._changed.wait()
            return Over("the shard has ended")

    def _held(self, part: Part) -> ShardState:
        if part not in self._parts:
            raise ValueError(f"the shard holds no {part}")
        return self._parts[part]

    def _check_ended(self) -> None:
        if self._epoch and not self._epoch.over:
            raise ValueError(f"epoch {self._epoch.fence.epoch} is going on: end it first")
