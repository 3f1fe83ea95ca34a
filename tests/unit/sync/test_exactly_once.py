"""Every sample once on every shard, whoever dies in between."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mms_workloads.contract import Data, Optimizer, ParameterServer, Store
from mms_workloads.sync import consistency, cursors, optimizers
from mms_workloads.sync.cursors import Refusal
from mms_workloads.sync.layout import Layout, Table
from mms_workloads.sync.leases import Leases, Progress, Slice
from mms_workloads.sync.push import Delta, Push
from mms_workloads.sync.shard_state import ShardState

SGD = optimizers.of(Optimizer(name="SGD"))

# ---------------------------------------------------------------------- every sample once on every shard


@dataclass
class Worker:
    position: int
    pushed: int = 0  # in this epoch
    leased: list[tuple[Slice, list[cursors.Cursor]]] = field(default_factory=list)  # what is left of a lease
    push: Push | None = None
    waits: set[int] = field(default_factory=set)  # shards that have not answered


SIZES = (1, 4, 6, 3, 5)
STARTS = [sum(SIZES[:block]) for block in range(len(SIZES))]
SAMPLES = sum(SIZES)
DATA_EPOCHS = 2


class Machine(RuleBasedStateMachine):
    """Workers and shards die between any two pushes; leases go from hand to hand; shards are replaced by replicas.

    Each sample adds 1 to a row of its own, on each shard: the parameters count how often it was applied. (Rows that no
    gradient touched are added as they are.)
    """

    @initialize(
        mode=st.sampled_from(["Synchronous", "BoundedStaleness", "Asynchronous"]),
        shards=st.integers(1, 3),
        workers=st.integers(1, 3),
        sharding=st.sampled_from(["Random", "Sequential"]),
        replicas=st.booleans(),
    )
    def begin(self, mode, shards, workers, sharding, replicas):
        self.server = ParameterServer(shards=shards, consistency=mode, staleness=1)
        data = Data.model_validate({"store": Store(uri="file:///x"), "sharding": sharding})
        self.leases = Leases.start(data, 1, DATA_EPOCHS, range(len(SIZES)), len(SIZES))
        self.layout = Layout((Table("counts", shards * SAMPLES, 1, sparse=True),), shards)
        self.has_replicas = replicas and shards > 1
        self.states = [self.fresh(shard) for shard in range(shards)]
        self.replicas = [self.fresh(shard) for shard in range(shards)]  # [i]: of shard i
        self.answered = [0] * shards  # the last step that each shard has told a worker of
        self.completed = 0  # the last synchronous step that all shards have told a worker of
        self.epoch(workers)

    def fresh(self, shard):
        state = ShardState(self.layout, shard, SGD, undo=self.synchronous)
        state.filled("counts", *state.window("counts"))
        state.begin(0, Progress.none(len(SIZES)))
        return state

    @property
    def synchronous(self):
        return self.server.consistency == "Synchronous"

    def epoch(self, workers):
        """What the master does when somebody is lost or joins."""
        if self.synchronous:
            step = min(s.step for s in self.states)
            assert step >= self.completed  # what a worker knows to be done is never undone
            self.answered = [min(step, answered) for answered in self.answered]
            for state in self.states:
                state.rollback_to(step)
            for shard, replica in enumerate(self.replicas):
                if replica.step > step:
                    replica.rollback_to(step)
                assert not self.has_replicas or replica.step in (step - 1, step), shard
        for shard, (state, replica) in enumerate(zip(self.states, self.replicas, strict=True)):
            if replica is state or replica.step != state.step or not self.has_replicas:
                self.replicas[shard] = self.copy(state)
        self.leases.restore(cursors.common([s.progress for s in self.states]))
        self.modes = [consistency.of(self.server, workers) for _ in self.states]
        self.workers = {position: Worker(position) for position in range(workers)}

    def copy(self, state):
        twin = self.fresh(state.shard)
        window = state.window("counts")
        twin.part("counts", *window)["parameters"].copy_(state.part("counts", *window)["parameters"])
        twin.begin(state.step, state.progress)
        return twin

    # -------------------------------------------------------------- workers

    @rule(worker=st.integers(0, 2), batch=st.integers(1, 4))
    def compute(self, worker, batch):
        who = self.workers.get(worker)
        if who is None or who.push is not None:
            return
        slices = self.take_slices(who, batch)
        rows = torch.tensor(
            sorted(STARTS[s.block] + i for s in slices for i in range(s.start, s.stop)), dtype=torch.int64
        )
        step = self.states[0].step if self.synchronous else who.pushed
        who.push = Push(
            step, 0.1, 0.0, slices, {}, {}, {"counts": Delta(rows, torch.ones(len(rows), 1), torch.zeros(len(rows)))}
        )
        who.waits = set(range(len(self.states)))

    def take_slices(self, who, batch):
        slices = []
        while batch:
            if not who.leased:
                lease = self.leases.take(who.position, len(self.workers))
                if lease is None:
                    break
                size = SIZES[lease.block]
                at = [cursors.cursor(s.progress, lease.block) for s in self.states]
                who.leased.append((Slice(lease.data_epoch, lease.block, lease.start, size, size), at))
            left, at = who.leased[0]
            here = (left.data_epoch, left.start)
            repeated = any(c > here for c in at)
            if repeated and slices:
                break
            stop = cursors.cut(left.data_epoch, left.start, min(left.stop, left.start + batch), at)
            slices.append(Slice(left.data_epoch, left.block, left.start, stop, left.size))
            batch -= stop - left.start
            who.leased[0] = (Slice(left.data_epoch, left.block, stop, left.stop, left.size), at)
            if stop == left.stop:
                who.leased.pop(0)
            if repeated:
                break
        return tuple(slices)

    @rule(
        worker=st.integers(0, 2), shard=st.integers(0, 2), dies=st.sampled_from([None] * 6 + ["applied", "forwarded"])
    )
    def deliver(self, worker, shard, dies):
        """A push reaches a shard, perhaps for the second time, or the shard dies on the way to its answer."""
        who = self.workers.get(worker)
        if who is None or who.push is None or shard not in who.waits:
            return
        state, replica, mode = self.states[shard], self.replicas[shard], self.modes[shard]
        delta = who.push.deltas["counts"]
        here = Delta(delta.rows + state.window("counts")[0], delta.values, delta.touches)
        push = replace(who.push, deltas={"counts": here})
        decided = mode.offer(state, who.position, push)
        assert not isinstance(decided, Refusal), decided
        if decided is not None:
            state.apply(decided)
            if self.has_replicas and dies != "applied":
                replica.apply(decided)
            if dies:
                self.kill_shard(shard)
                return
            mode.settle(state, decided)
        self.hear()

    def hear(self):
        """Workers get the answers that are due."""
        for who in self.workers.values():
            for shard in list(who.waits):
                answer = self.modes[shard].answer(self.states[shard], who.position, who.push)
                if answer is not None:
                    self.answered[shard] = max(self.answered[shard], answer.step)
                    who.waits.discard(shard)
            if who.push is not None and not who.waits:
                self.completed = max(self.completed, who.push.step + 1)
                if not self.synchronous:
                    self.leases.commit(who.push.slices)
                who.push, who.pushed = None, who.pushed + 1
        if self.synchronous and not any(who.push for who in self.workers.values()):
            self.leases.commit(self.uncommitted())

    def uncommitted(self):
        """Slices between the master's progress and the shards'."""
        found = []
        for block, size in enumerate(SIZES):
            at, to = (cursors.cursor(p, block) for p in (self.leases.progress, self.states[0].progress))
            while at < to:
                stop = to[1] if at[0] == to[0] else size
                found.append(Slice(at[0], block, at[1], stop, size))
                at = cursors.end(found[-1])
        return found

    # -------------------------------------------------------------- losses

    @rule(workers=st.integers(1, 3))
    def lose_or_join(self, workers):
        """All connections of the epoch are gone, whatever was under way."""
        self.epoch(workers)

    @rule(shard=st.integers(0, 2))
    def kill_a_shard(self, shard):
        if shard < len(self.states):
            self.kill_shard(shard)

    def kill_shard(self, shard):
        """Its replica takes over. Without one, the job would go back to a checkpoint: not the subject here."""
        if self.has_replicas:
            assert self.replicas[shard].step >= self.answered[shard]
            self.states[shard] = self.replicas[shard]
        self.epoch(len(self.workers))

    @invariant()
    def once(self):
        for state in (*self.states, *self.replicas):
            found = state.part("counts", *state.window("counts"))["parameters"][:, 0].round(decimals=4)
            expected = torch.zeros(SAMPLES)
            for block, size in enumerate(SIZES):
                data_epoch, offset = cursors.cursor(state.progress, block)
                expected[STARTS[block] : STARTS[block] + size] += data_epoch
                expected[STARTS[block] : STARTS[block] + offset] += 1
            assert torch.equal(found, expected)

    @invariant()
    def replicas_are_not_behind_what_was_answered(self):
        if self.has_replicas:
            for state, replica, step in zip(self.states, self.replicas, self.answered, strict=True):
                assert replica.step >= min(step, state.step)

    def teardown(self):
        """Left alone, the work gets done, and every sample was applied once in each data epoch on every shard."""
        for _ in range(200):
            for worker in self.workers:
                self.compute(worker, 3)
            for worker, shard in itertools.product(self.workers, range(len(self.states))):
                self.deliver(worker, shard, None)
        self.once()
        assert all(state.progress.applied == [DATA_EPOCHS] * len(SIZES) for state in self.states)


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestExactlyOnce = Machine.TestCase
