"""The master's decisions over a run: who is let in, what was before it, how it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mms_workloads.contract import Activity, Desired
from mms_workloads.data.vocabulary import pack_counts
from mms_workloads.sync import plan as plans
from mms_workloads.sync import wire
from mms_workloads.sync.membership import RECOVERY_GRACE_SECONDS
from tests.unit.data.words import counts_of
from tests.unit.sync.masters import BLOCKS, Clock, Master, Peer, checkpointed, document, reference, settled

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "stale",
    [{"uid": "x"}, {"run": 2}, {"attempt": 2}, {"incarnation": -1}],
    ids=["job", "run", "attempt", "incarnation"],
)
def test_a_stale_peer_is_refused(master: Master, stale: dict[str, Any]) -> None:
    peers = master.running()
    stranger = Peer(master, 1, **stale)
    assert stranger.link is None
    assert [m.kind for m in stranger.told] == [wire.REFUSED]
    assert peers[1].count(wire.EPOCH) == 1
    assert len(master.it.workers.links) == 2


@pytest.mark.parametrize("incarnation", [0, 1], ids=["connection", "process"])
def test_a_peer_is_replaced_before_it_is_missed(master: Master, incarnation: int) -> None:
    """Its own connection ends unseen: what it held is lost all the same, and said to be."""
    first, _ = master.running()
    second = Peer(master, 0, incarnation=incarnation)
    assert (first.closed, second.link is not None) == (True, True)
    assert master.kinds() == ["WorkerLost", "WorkerJoined"]
    first.vanish()
    assert master.kinds().count("WorkerLost") == 1


def test_counting_then_training(tmp_path: Path, clock: Clock) -> None:
    master = Master(tmp_path, clock, counted=False)
    first = Peer(master, 0)
    assert first.last(wire.COUNT) == {"task": 0, "segments": [[0, 0, 40]], "uris": {0: "file:///a.txt"}}
    assert master.it.status().activity is Activity.COUNTING
    second = Peer(master, 1)
    assert second.count(wire.COUNT) == 0
    first.vanish()
    assert second.last(wire.COUNT)["task"] == 0  # the lost worker's task
    second.say(wire.COUNTED, pack_counts(counts_of({"a": 3, "b": 2})), task=0, sizes={})
    assert second.count(wire.EPOCH) == 0  # until all workers are there
    third = Peer(master, 0)
    assert [peer.count(wire.PLAN) for peer in (second, third)] == [1, 1]
    assert second.last(wire.EPOCH) == {
        "epoch": 1,
        "urgent": True,
        "members": [[1, 0, "10.0.0.1"], [0, 0, "10.0.0.0"]],
        "shards": [],
    }


async def test_a_run_to_its_end(master: Master) -> None:
    peers = master.running()
    for peer in peers:
        begin = peer.last(wire.BEGIN)
        assert (begin["step"], begin["equal"], begin["progress"]) == (0, True, document([0] * BLOCKS))
    step = 0
    while (blocks := [peer.lease() for peer in peers]) != [None, None]:
        step += 1
        applied = master.it.dispatcher.leases.progress.applied if master.it.dispatcher.leases else []
        leases = [(applied[b], b) for b in blocks if b is not None]
        for peer in peers:
            peer.progress(step, *leases)
        master.clock.now += 1
    assert step == BLOCKS
    status = master.it.status()
    assert (status.percent, status.activity, status.step, status.loss) == (100, Activity.EXPORTING, BLOCKS, 2.0)
    peers[0].say(
        wire.EXPORTED, artifact={"uri": "file:///a", "digest": "sha256:1", "version": 1, "metrics": {"m": 0.5}}
    )
    await settled(master)
    outcome = master.it.outcome
    assert outcome is not None
    assert (outcome.result, outcome.step) == ("Complete", BLOCKS)
    assert [peer.count(wire.BYE) for peer in peers] == [1, 1]
    late = Peer(master, 1, incarnation=1)
    assert late.count(wire.BYE) == 1


def test_a_failure_that_another_try_can_help(master: Master) -> None:
    peer = master.running()[0]
    peer.say(wire.FAILED, reason="StorageUnreachable", message="away", retryable=True)
    assert (master.it.outcome, master.kinds()) == (None, ["WorkerFailed"])


def test_a_failure_that_no_try_can_help(master: Master) -> None:
    peers = master.running()
    peers[0].say(wire.FAILED, reason="DataUnreadable", message="not UTF-8", retryable=False)
    outcome = master.it.outcome
    assert outcome is not None
    assert (outcome.result, outcome.reason, outcome.message) == ("Failed", "DataUnreadable", "not UTF-8")
    assert peers[1].last(wire.BYE)["outcome"]["reason"] == "DataUnreadable"


def test_a_run_goes_on_from_its_checkpoint(tmp_path: Path, clock: Clock) -> None:
    master = Master(tmp_path, clock, checkpoint=checkpointed(8))
    assert (master.it.status().step, master.it.status().percent) == (8, 25)
    begin = master.running()[0].last(wire.BEGIN)
    assert (begin["step"], begin["progress"], begin["source"]) == (8, document([1, 1, 0, 0]), 0)


def test_a_new_master_tells_whom_of_the_old_ones_it_has_never_heard_of(tmp_path: Path, clock: Clock) -> None:
    master = Master(tmp_path, clock)
    survivor = Peer(master, 0, epoch=5, step=20)
    clock.now += RECOVERY_GRACE_SECONDS - 1
    survivor.say(wire.HEARTBEAT)
    assert master.it.status().gone == [], "it may still come"
    clock.now += 1
    survivor.say(wire.HEARTBEAT)
    (gone,) = master.it.status().gone
    assert (gone.role, gone.rank, gone.incarnation, gone.seconds) == ("worker", 1, 0, RECOVERY_GRACE_SECONDS)
    Peer(master, 1, incarnation=2)
    assert master.it.status().gone == []


def test_a_master_of_a_fresh_run_misses_nobody(tmp_path: Path, clock: Clock) -> None:
    master = Master(tmp_path, clock)
    Peer(master, 0)
    clock.now += RECOVERY_GRACE_SECONDS
    assert master.it.status().gone == [], "they are still starting"


def test_a_new_master_takes_up_the_highest_step(tmp_path: Path, clock: Clock) -> None:
    master = Master(tmp_path, clock, checkpoint=checkpointed(8))
    peers = [Peer(master, rank, epoch=5, step=20 + rank) for rank in range(2)]
    assert master.kinds() == ["MasterRestarted"]
    assert peers[0].epoch == 6
    peers[0].ready(20, [2, 1, 1, 0])
    peers[1].ready(21, [2, 1, 1, 1])
    assert (master.it.dispatcher.step, master.it.status().percent) == (21, 62)
    assert peers[0].last(wire.BEGIN)["source"] == 1


def test_a_new_master_without_a_checkpoint_asks_for_the_plan(tmp_path: Path, clock: Clock) -> None:
    master = Master(tmp_path, clock, counted=False)
    plan = checkpointed(1).plan
    survivor = Peer(master, 0, epoch=5, step=20, plan=plans.digest(plan))
    assert survivor.count(wire.SEND_PLAN) == 1
    survivor.say(wire.PLAN, plan)
    assert survivor.count(wire.EPOCH) == 0  # the rest may still come
    master.clock.now += RECOVERY_GRACE_SECONDS / 2
    survivor.say(wire.HEARTBEAT)
    master.clock.now += RECOVERY_GRACE_SECONDS / 2
    survivor.say(wire.HEARTBEAT)
    master.it.tick()
    assert (survivor.epoch, survivor.count(wire.PLAN)) == (6, 0)


async def test_suspend_while_training(master: Master) -> None:
    first, second = master.running()
    master.it.desire(Desired(suspend=True, workers=2))
    assert (first.count(wire.SUSPEND), second.count(wire.SUSPEND)) == (1, 1)
    assert master.it.status().activity is Activity.SUSPENDING
    third = Peer(master, 2)
    first.vanish()  # it would have saved its part
    for peer in (second, third):
        peer.ready(1, [1, 0, 0, 0])
    assert second.count(wire.SUSPEND) == 2
    for part, peer in enumerate((second, third)):
        assert master.it.outcome is None
        peer.saved(1, 1, 0, 0, 0, part=part, final=True)
        await settled(master)
    outcome = master.it.outcome
    assert outcome is not None
    assert outcome.checkpoint is not None
    assert (outcome.result, outcome.checkpoint.step, outcome.step) == ("Suspended", 1, 1)


@pytest.mark.parametrize("ranks", [0, 1])
def test_suspend_before_anything_was_trained(tmp_path: Path, clock: Clock, ranks: int) -> None:
    master = Master(tmp_path, clock, counted=False)
    for rank in range(ranks):
        Peer(master, rank)
    master.it.desire(Desired(suspend=True, workers=2))
    outcome = master.it.outcome
    assert outcome is not None
    assert (outcome.result, outcome.checkpoint) == ("Suspended", None)
    assert "from the beginning" in outcome.message


def test_a_new_master_is_told_to_suspend_before_the_workers_are_back(tmp_path: Path, clock: Clock) -> None:
    """What they hold is newer than the checkpoint: it is waited for."""
    master = Master(tmp_path, clock, checkpoint=checkpointed(8))
    clock.now -= RECOVERY_GRACE_SECONDS
    master.it.desire(Desired(suspend=True, workers=2))
    assert master.it.outcome is None
    peers = [Peer(master, rank, epoch=5, step=20) for rank in range(2)]
    for peer in peers:
        peer.ready(20, [2, 1, 1, 0])
    assert peers[0].count(wire.SUSPEND) == 1
    clock.now += RECOVERY_GRACE_SECONDS
    for peer in peers:
        peer.say(wire.HEARTBEAT)
    master.it.tick()
    assert master.it.outcome is None
    for peer in peers:
        peer.vanish()
    clock.now += RECOVERY_GRACE_SECONDS - 1
    master.it.tick()
    assert master.it.outcome is None, "their connections may be made again"
    clock.now += 1
    master.it.tick()
    outcome = master.it.outcome
    assert outcome is not None
    assert outcome.checkpoint == reference(8)


async def test_connections_that_break_while_the_run_is_suspended(master: Master) -> None:
    """The members come again with what they hold, and save it."""
    for peer in (peers := master.running()):
        peer.progress(1, (0, 0))
    master.it.desire(Desired(suspend=True, workers=2, minWorkers=2))
    for peer in peers:
        peer.vanish()
    master.it.tick()
    assert master.it.outcome is None
    back = [Peer(master, rank, epoch=1, step=1) for rank in range(2)]
    for peer in back:
        peer.ready(1, [1, 0, 0, 0])
    assert [peer.count(wire.SUSPEND) for peer in back] == [1, 1]
    for part, peer in enumerate(back):
        peer.saved(1, 1, 0, 0, 0, part=part, final=True)
    for peer in back:
        assert peer.link is not None
        master.it.lost(peer.link, "it was told to stop", told=True)
    assert master.it.outcome is None, "the checkpoint is being made valid"
    await settled(master)
    outcome = master.it.outcome
    assert outcome is not None
    assert outcome.checkpoint is not None
    assert outcome.checkpoint.step == 1


def test_desired_workers(tmp_path: Path, clock: Clock) -> None:
    master = Master(tmp_path, clock, workers=3)
    peers = [Peer(master, rank) for rank in range(2)]
    assert peers[0].count(wire.EPOCH) == 0
    master.it.desire(Desired(workers=2))
    assert peers[0].count(wire.EPOCH) == 1


def test_a_worker_that_is_wanted_no_more_need_not_wait_to_leave(master: Master) -> None:
    first, second = master.running()
    for peer in (first, second):
        peer.lease()
    second.say(wire.STOPPING)
    assert second.count(wire.LEAVE) == 0, "it tells the others in a round"
    master.it.desire(Desired(workers=1))
    first.ready(0, [0] * BLOCKS)
    third = Peer(master, 2)
    third.say(wire.STOPPING)
    assert [peer.count(wire.LEAVE) for peer in (first, second, third)] == [0, 1, 1]


@pytest.mark.parametrize(("workers", "first"), [(1, [0, 1, 2, 3]), (2, [0, 1, None]), (4, [0, None])])
def test_the_last_blocks_are_dealt_to_all_members(
    tmp_path: Path, clock: Clock, workers: int, first: list[int | None]
) -> None:
    master = Master(tmp_path, clock, workers=workers, optimizer={"epochs": 1})
    peers = master.running(workers)
    assert [peers[0].lease() for _ in first] == first


def test_speed_and_time_left(master: Master) -> None:
    first, second = master.running()
    for step in range(1, 4):
        master.clock.now += 1
        first.progress(step, (0, step - 1))
        second.progress(step, (0, step - 1))
    status = master.it.status()
    assert (status.samplesPerSecond, status.percent) == (10, 37)
    assert status.etaSeconds == int((1 - 3 / 8) / (1 / 8))


def test_who_can_be_asked_for_parameters(master: Master) -> None:
    """Members of the epoch that are connected, under the epoch's number: nobody before there is one."""
    assert master.it.trainers().trainers == []
    peers = [Peer(master, rank, parameters=f"10.0.0.{rank}:29402") for rank in (0, 1)]
    told = master.it.trainers()
    assert (told.epoch, told.attempt, told.run) == (1, 1, 1)
    assert [(one.rank, one.address) for one in told.trainers] == [(0, "10.0.0.0:29402"), (1, "10.0.0.1:29402")]
    peers[0].vanish()
    told = master.it.trainers()
    assert [one.rank for one in told.trainers] == [1]
    assert told.shards is None
    assert Peer(master, 0).link is not None, "of a pod that gives none nobody is told"
    assert [one.rank for one in master.it.trainers().trainers] == [1]
