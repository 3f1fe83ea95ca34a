"""Shards that come and go while a run goes on: it does not wait for those that do not come, and saves what goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mms_workloads.contract import Desired
from mms_workloads.sync import wire
from mms_workloads.sync.epochs import CHANGE_SECONDS
from mms_workloads.sync.leases import Progress
from mms_workloads.sync.shard_forming import HeldShard
from mms_workloads.sync.shards import TOGETHER_SECONDS
from tests.unit.sync.masters import BLOCKS, Clock, Master, Peer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Served:
    """A run of two shards and one worker, which are what the test lets them say."""

    def __init__(
        self, folder: Path, clock: Clock, *, consistency: str = "Synchronous", replicas: int = 1, **hello: Any
    ) -> None:
        given = {"shards": 2, "replicas": replicas, "consistency": consistency}
        self.master = Master(folder, clock, workers=1, syncMode="ParameterServer", parameterServer=given)
        self.shards = [self.shard(rank, **hello) for rank in range(2)]
        self.worker = Peer(self.master, 0)

    def shard(self, rank: int, **hello: Any) -> Peer:
        return Peer(self.master, rank, role="shard", **hello)

    def want(self, shards: int) -> None:
        self.master.it.desire(Desired(workers=1, minWorkers=1, shards=shards, suspend=False))

    def later(self, seconds: float) -> None:
        self.master.clock.now += seconds
        for peer in (self.worker, *self.shards):
            peer.say(wire.HEARTBEAT)
        self.master.it.tick()

    def later_without_worker(self) -> None:
        for shard in self.shards:
            shard.say(wire.HEARTBEAT)
        self.master.it.tick()

    def announced(self) -> list[str]:
        return list(self.worker.last(wire.EPOCH)["shards"])

    def begin(self, held: Sequence[HeldShard]) -> int:
        """The announced epoch begins; how many shards it has. held: by rank; the others hold nothing."""
        self.worker.ready()
        epoch, told = self.worker.epoch, []
        for shard in self.shards:
            mine = held[shard.rank] if shard.rank < len(held) else HeldShard()
            shard.say(wire.READY, epoch=epoch, held=mine.document())
        for shard in self.shards:
            told.append(shard.last(wire.BEGIN))
            assert told[-1]["epoch"] == epoch
            if told[-1]["fills"]:
                shard.say(wire.FILLED, epoch=epoch)
        for shard, one in zip(self.shards, told, strict=True):
            if one["state"]:
                shard.say(wire.STARTED, epoch=epoch)
        begun = self.worker.last(wire.BEGIN)
        assert begun["epoch"] == epoch
        assert len(begun["shards"]) == told[0]["shards"]
        self.worker.lease()
        return int(told[0]["shards"])


def held(*applied: int, layout: int = 2, step: int = 0) -> HeldShard:
    return HeldShard(layout, "l", step, progress=Progress(list(applied) or [0] * BLOCKS))


BOTH = [held(), held()]


def test_a_checkpoint_does_not_wait_for_a_shard_without_a_node(tmp_path: Path, clock: Clock) -> None:
    run = Served(tmp_path, clock)
    assert run.begin([]) == 2
    run.want(3)
    run.later(run.master.it.job.checkpoint.intervalSeconds)
    assert run.announced() == ["10.0.0.0", "10.0.0.1"]
    assert run.begin(BOTH) == 2
    assert [shard.last(wire.BEGIN)["save"] for shard in run.shards] == [True, True]


def test_a_lost_worker_does_not_wait_for_a_shard_without_a_node(tmp_path: Path, clock: Clock) -> None:
    run = Served(tmp_path, clock)
    run.begin([])
    run.want(3)
    run.worker.vanish()
    run.worker = Peer(run.master, 0, incarnation=1)
    assert run.worker.epoch == 2
    assert run.begin(BOTH) == 2


def test_what_a_shard_that_is_to_leave_holds_is_saved(tmp_path: Path, clock: Clock) -> None:
    run = Served(tmp_path, clock)
    run.begin([])
    run.shards[1].say(wire.STOPPING)
    assert run.worker.epoch == 2
    run.begin(BOTH)
    assert [shard.last(wire.BEGIN)["save"] for shard in run.shards] == [True, True]
    # Who writes an older part yet does not leave this one out: it would be none.
    assert [shard.last(wire.BEGIN)["waits"] for shard in run.shards] == [True, True]


def test_a_shard_of_which_there_is_a_copy_leaves_without_a_checkpoint(tmp_path: Path, clock: Clock) -> None:
    """After a moment, in which the holder of the copy might be told to stop, too."""
    run = Served(tmp_path, clock, replicas=2)
    run.begin([])
    run.shards[1].say(wire.STOPPING)
    run.later(TOGETHER_SECONDS / 2)
    assert run.shards[1].count(wire.LEAVE) == 0
    run.later(TOGETHER_SECONDS / 2)
    run.later(0)
    assert [shard.count(wire.LEAVE) for shard in run.shards] == [0, 1]
    assert run.worker.epoch == 1, "nothing is saved"


def test_the_holder_of_a_copy_is_told_to_stop_a_moment_later(tmp_path: Path, clock: Clock) -> None:
    run = Served(tmp_path, clock, replicas=2)
    run.begin([])
    run.shards[0].say(wire.STOPPING)
    run.later(TOGETHER_SECONDS / 2)
    assert run.worker.epoch == 1
    run.shards[1].say(wire.STOPPING)
    assert run.worker.epoch == 2
    run.begin(BOTH)
    assert [shard.last(wire.BEGIN)["save"] for shard in run.shards] == [True, True]
    run.later(TOGETHER_SECONDS)
    assert [shard.count(wire.LEAVE) for shard in run.shards] == [0, 0], "they leave when their parts are durable"


def test_the_holder_of_a_copy_is_told_to_stop_when_the_other_may_go(tmp_path: Path, clock: Clock) -> None:
    """Its connection is still there, and it is as good as gone."""
    run = Served(tmp_path, clock, replicas=2)
    run.begin([])
    run.shards[1].say(wire.STOPPING)
    run.later(TOGETHER_SECONDS)
    run.later(0)
    assert run.shards[1].count(wire.LEAVE) == 1
    run.shards[0].say(wire.STOPPING)
    run.later(TOGETHER_SECONDS)
    run.later(0)
    assert run.shards[0].count(wire.LEAVE) == 0, "nobody else has the rows"


def test_the_last_holder_of_rows_stays_till_another_has_them(tmp_path: Path, clock: Clock) -> None:
    run = Served(tmp_path, clock, replicas=2)
    run.begin([])
    run.shards[0].say(wire.LEAVE)
    run.shards[1].say(wire.STOPPING)
    run.shards[0] = run.shard(0, incarnation=1)
    run.later(TOGETHER_SECONDS)
    assert run.shards[1].count(wire.LEAVE) == 0, "the one that has come holds nothing yet"
    copies = HeldShard(
        2, "l", 0, progress=Progress([0] * BLOCKS), replica_step=0, replica_progress=Progress([0] * BLOCKS)
    )
    run.begin([HeldShard(), copies])
    assert [shard.last(wire.BEGIN)["state"] for shard in run.shards] == ["fetch", "keep"]
    run.later(0)
    assert run.shards[1].count(wire.LEAVE) == 1


def last_save(run: Served, held: Sequence[HeldShard]) -> list[dict[str, Any]]:
    """What the shards are told to begin when there is no worker; they have stopped after it."""
    run.master.it.tick()
    epoch = run.shards[0].epoch
    assert run.shards[0].last(wire.EPOCH)["members"] == []
    for shard in run.shards:
        shard.say(wire.READY, epoch=epoch, held=held[shard.rank].document())
    return [shard.last(wire.BEGIN) for shard in run.shards]


@pytest.mark.parametrize("replicas", [1, 2])
def test_all_pods_are_told_to_stop_and_the_worker_leaves_first(tmp_path: Path, clock: Clock, replicas: int) -> None:
    run = Served(tmp_path, clock, replicas=replicas)
    run.begin([])
    run.worker.say(wire.LEAVE)
    run.master.it.tick()
    assert run.shards[0].epoch == 1, "shards that stay wait for a worker"
    for shard in run.shards:
        shard.say(wire.STOPPING)
    begun = last_save(run, BOTH)
    assert [(one["epoch"], one["save"], one["final"], one["waits"]) for one in begun] == [(2, True, True, True)] * 2
    run.later_without_worker()
    assert run.shards[0].epoch == 2, "once is enough"
    run.shards[1].say(wire.STOPPING)
    assert [one["save"] for one in last_save(run, BOTH)] == [True, True], "it leaves after an epoch later than it knew"
    worker = Peer(run.master, 0, incarnation=1)
    assert worker.epoch == 4, "it goes on with those that have not left yet"


def test_the_worker_leaves_while_the_others_wait_for_it(tmp_path: Path, clock: Clock) -> None:
    run = Served(tmp_path, clock)
    run.begin([])
    run.shards[1].say(wire.STOPPING)
    assert run.worker.epoch == 2
    run.worker.say(wire.LEAVE)
    begun = last_save(run, BOTH)
    assert [(one["epoch"], one["save"], one["final"]) for one in begun] == [(3, True, True)] * 2


def test_without_workers_rows_of_different_samples_are_not_saved(tmp_path: Path, clock: Clock) -> None:
    """Nobody would finish the block: the same is not asked for again and again."""
    run = Served(tmp_path, clock, consistency="Asynchronous")
    run.begin([])
    run.worker.say(wire.LEAVE)
    run.shards[0].say(wire.STOPPING)
    begun = last_save(run, [held(1, 0, 0, 0, step=1), held()])
    assert [(one["save"], one["final"]) for one in begun] == [(False, False)] * 2
    run.later_without_worker()
    assert run.shards[0].epoch == 2


def test_more_shards_take_part_when_all_of_them_are_there(tmp_path: Path, clock: Clock) -> None:
    run = Served(tmp_path, clock)
    run.begin([])
    run.want(4)
    run.shards.append(run.shard(2))
    assert run.worker.epoch == 1
    run.shards.append(run.shard(3))
    assert run.worker.epoch == 2
    assert run.begin(BOTH) == 4


def test_a_shard_that_goes_again_before_it_took_part(tmp_path: Path, clock: Clock) -> None:
    run = Served(tmp_path, clock)
    run.begin([])
    run.want(3)
    third = run.shard(2)
    assert len(run.announced()) == 3
    third.vanish()
    assert len(run.announced()) == 2, "nobody has moved any rows yet"
    assert run.begin(BOTH) == 2


def test_a_new_master_does_not_wait_for_a_shard_without_a_node(tmp_path: Path, clock: Clock) -> None:
    """It reads that three are wanted; the shards say that two have served."""
    master = Master(tmp_path, clock, workers=1, syncMode="ParameterServer", parameterServer={"shards": 3})
    for rank in range(2):
        Peer(master, rank, role="shard", epoch=7, layout=2)
    worker = Peer(master, 0, epoch=7)
    assert worker.epoch == 8
    assert len(worker.last(wire.EPOCH)["shards"]) == 2


def test_a_shard_that_is_not_there_has_no_address(tmp_path: Path, clock: Clock) -> None:
    """Places in the list are ranks: rows that the shard before has are asked of the one that is there."""
    run = Served(tmp_path, clock)
    run.begin([])
    run.want(4)
    run.shards.append(run.shard(3))
    run.later(run.master.it.job.checkpoint.intervalSeconds)
    run.worker.ready()
    assert run.shards[0].last(wire.EPOCH)["shards"] == ["10.0.0.0", "10.0.0.1", "", "10.0.0.3"]


def test_rows_of_different_samples_are_not_put_together(tmp_path: Path, clock: Clock) -> None:
    """A push was cut off: one shard has it. Its block is finished in the layout before, then the change is made."""
    for wanted, ranks in ((3, [0, 1, 2]), (1, [0, 1])):
        run = Served(tmp_path, clock, consistency="Asynchronous")
        run.begin([])
        if wanted > 2:
            run.shards.append(run.shard(2))
        run.want(wanted)
        assert len(run.announced()) == wanted
        assert run.begin([held(1, 0, 0, 0, step=1), held()]) == 2
        assert [shard.last(wire.BEGIN)["state"] for shard in run.shards] == ["keep", "keep", None][: len(ranks)]
        run.master.it.tick()
        assert run.worker.epoch == 2, "workers have some time to finish the block"
        run.later(CHANGE_SECONDS)
        assert run.worker.epoch == 3
        assert run.begin([held(1, 0, 0, 0, step=1), held(1, 0, 0, 0, step=1)]) == wanted
