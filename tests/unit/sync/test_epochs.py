"""Membership epochs as the master makes them: who is told what, whose state counts, who may have which block."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mms_workloads.contract import Desired
from mms_workloads.sync import stalls, wire
from mms_workloads.sync.epochs import BROKEN_GRACE_SECONDS
from mms_workloads.sync.leases import Progress
from mms_workloads.sync.membership import HEARTBEAT_DEADLINE_SECONDS
from mms_workloads.sync.shard_forming import HeldShard
from mms_workloads.sync.wire import Message
from tests.unit.sync.masters import BLOCKS, Clock, Master, Peer, document, round_of

if TYPE_CHECKING:
    from pathlib import Path


def test_a_block_that_a_finished_round_frees(master: Master) -> None:
    """The second worker asks before the first has told of the round that both have finished."""
    first, second = master.running()
    for _ in range(BLOCKS - 1):
        first.lease()
    second.lease()
    second.say(wire.LEASE, epoch=1, step=1)
    assert second.count(wire.LEASED) == 1
    first.progress(1, (0, 0))
    assert (second.last(wire.LEASED)["data_epoch"], second.last(wire.LEASED)["block"]) == (1, 0)


def test_a_round_is_counted_once(master: Master) -> None:
    peers = master.running()
    peers[0].lease()
    for peer in peers:
        peer.progress(1, (0, 0))
    peers[1].progress(5, (0, 1))
    assert master.it.dispatcher.leases is not None
    assert (master.it.dispatcher.step, master.it.dispatcher.leases.progress.applied) == (1, [1, 0, 0, 0])


def test_a_lost_worker(master: Master) -> None:
    first, second = master.running()
    assert (first.lease(), second.lease()) == (0, 1)
    second.vanish()
    assert first.last(wire.EPOCH)["urgent"]
    assert first.last(wire.EPOCH)["members"] == [[0, 0, "10.0.0.0"]]
    first.ready(0, [0] * BLOCKS)
    # Its own again; the lost worker's, which that will find in its cache if it is back, can be had last.
    assert [first.lease() for _ in range(BLOCKS)] == [0, 2, 3, 1]
    assert master.kinds() == ["WorkerLost"]


def test_a_worker_that_is_not_heard_of(master: Master) -> None:
    first, second = master.running()
    master.clock.now += HEARTBEAT_DEADLINE_SECONDS - 1
    first.say(wire.HEARTBEAT)
    master.clock.now += 1
    master.it.tick()
    assert (first.closed, second.closed) == (False, True)
    assert first.last(wire.EPOCH)["members"] == [[0, 0, "10.0.0.0"]]


def test_a_connection_that_was_replaced_is_not_listened_to(master: Master) -> None:
    old = master.running()[1]
    new = Peer(master, 1)
    assert old.closed
    old.say(wire.FAILED, reason="DataNotFound", message="x", retryable=False)
    old.vanish()
    assert master.it.outcome is None
    assert master.it.workers.links[1] is new.link


def test_a_joiner_waits_until_the_members_have_met(master: Master) -> None:
    """Their ring is still being formed: an announcement now would take it from under them."""
    first, second = master.running()
    master.it.desire(Desired(workers=3))
    joiner = Peer(master, 2)
    assert joiner.count(wire.EPOCH) == 0
    first.lease()
    assert joiner.count(wire.EPOCH) == 0
    second.lease()
    assert joiner.last(wire.EPOCH) == {
        "epoch": 2,
        "urgent": False,
        "members": [[r, 0, f"10.0.0.{r}"] for r in (0, 1, 2)],
        "shards": [],
    }


def test_one_that_stands_by_takes_a_lost_ones_place_at_once(master: Master) -> None:
    first, second = master.running()
    first.lease(), second.lease()
    spare = Peer(master, 2)
    report = master.it.status()
    assert (spare.count(wire.EPOCH), report.workersReady, report.workersStandby) == (0, 2, 1)
    second.vanish()
    for peer in (first, spare):
        assert (peer.last(wire.EPOCH)["urgent"], [m[0] for m in peer.last(wire.EPOCH)["members"]]) == (True, [0, 2])
    assert spare.count(wire.PLAN) == 1
    back = Peer(master, 1, incarnation=1)
    assert back.count(wire.EPOCH) == 0
    assert master.it.status().workersStandby == 1


def test_a_lease_is_asked_for_after_the_next_epoch_was_announced(master: Master) -> None:
    """It is not answered: the worker sees the announcement and goes on without a block."""
    first, second = master.running()
    first.lease(), second.lease()
    master.it.desire(Desired(workers=3))
    Peer(master, 2)
    first.say(wire.LEASE, epoch=1, step=0)
    assert first.count(wire.LEASED) == 1
    # The round in flight is finished by all members: their report of the new epoch holds it.
    for peer in (first, second):
        peer.report(1, round_of(1, (0, 0), (0, 1), members=2))
    assert master.it.dispatcher.step == 0
    for peer in (first, second):
        peer.ready(1, [1, 1, 0, 0])
    list(master.it.workers.links.values())
    assert master.it.dispatcher.step == 0  # the joiner is not ready yet
    master.it.received(
        master.it.workers.links[2], Message(wire.READY, {"epoch": 2, "step": None, "progress": None, "lineage": None})
    )
    assert master.it.dispatcher.step == 1
    assert first.last(wire.BEGIN)["equal"] is False


@pytest.mark.parametrize(
    ("states", "source", "step", "equal"),
    [
        ([(5, "a"), (5, "a")], 0, 5, True),
        ([(4, "a"), (5, "a")], 1, 5, False),
        ([(5, "a"), (5, "b")], 0, 5, False),
        ([(None, ""), (5, "a")], 1, 5, False),
        ([(0, "a"), (None, "")], 0, 0, False),
        ([(None, ""), (None, "")], 0, 0, True),
    ],
    ids=["same", "one round behind", "same step of another history", "a joiner", "start lost", "nothing"],
)
def test_whose_state_counts(
    master: Master, states: list[tuple[int | None, str]], source: int, step: int, equal: bool
) -> None:
    peers = [Peer(master, rank) for rank in range(2)]
    for peer, (held, lineage) in zip(peers, states, strict=True):
        peer.ready(held, None if held is None else [1, 0, 0, held], lineage)
    begin = peers[0].last(wire.BEGIN)
    assert (begin["source"], begin["step"], begin["equal"]) == (source, step, equal)
    assert begin["progress"] == document([0] * BLOCKS if states[source][0] is None else [1, 0, 0, step])
    assert begin["lineage"]
    assert begin == peers[1].last(wire.BEGIN)


def test_lineages_of_two_epochs_differ(master: Master) -> None:
    first, second = master.running()
    before = first.last(wire.BEGIN)["lineage"]
    second.vanish()
    first.ready(0, [0] * BLOCKS)
    assert first.last(wire.BEGIN)["lineage"] != before


def test_a_collective_that_fails_without_a_loss(master: Master) -> None:
    """Nobody is missing, so nothing but the workers' word can end the epoch."""
    first, second = master.running()
    first.say(wire.BROKEN, epoch=1, why="connection reset")
    master.clock.now += BROKEN_GRACE_SECONDS / 2
    second.say(wire.BROKEN, epoch=1, why="connection reset")
    assert first.epoch == 1
    master.clock.now += BROKEN_GRACE_SECONDS / 2
    master.it.tick()
    assert (first.epoch, first.last(wire.EPOCH)["urgent"]) == (2, True)
    assert master.kinds() == ["EpochRestarted"]
    first.say(wire.BROKEN, epoch=1, why="late")
    master.clock.now += BROKEN_GRACE_SECONDS
    for peer in (first, second):
        peer.say(wire.HEARTBEAT)
    master.it.tick()
    assert first.epoch == 2


def test_members_that_reach_the_master_and_not_each_other(master: Master) -> None:
    """They meet again without end unless one of them leaves: the one that came last."""
    first, second = master.running()
    for vain in (1, 2):
        assert second.count(wire.EVICT) == 0
        for peer, other in ((first, 1), (second, 0)):
            peer.say(wire.BROKEN, epoch=vain, why="the previous member did not connect in time", unreached=[other])
        master.clock.now += BROKEN_GRACE_SECONDS
        master.it.tick()
        for peer in (first, second):
            peer.ready()
    assert (first.count(wire.EVICT), second.count(wire.EVICT)) == (0, 1)
    assert master.kinds() == ["EpochRestarted", "EpochRestarted", "Unreachable"]


def test_who_is_replaced_in_vain_counts(tmp_path: Path, clock: Clock) -> None:
    """Else a network that lets nobody meet would have pods replaced without end."""
    master = Master(tmp_path, clock, minWorkers=2)
    first, second = master.running()
    reasons = []
    for incarnation in (1, 2):
        for _ in range(2):
            for peer, other in ((first, 1), (second, 0)):
                peer.say(wire.BROKEN, epoch=peer.epoch, why="no connection", unreached=[other])
            master.clock.now += BROKEN_GRACE_SECONDS
            master.it.tick()
            for peer in (first, second):
                peer.ready()
        reasons.append(second.last(wire.EVICT)["reason"])
        second.vanish()
        second = Peer(master, 1, incarnation=incarnation)
        for peer in (first, second):
            peer.ready()
    assert reasons == ["PeersUnreachable", "PeersStillUnreachable"]


def test_a_shard_that_no_worker_reaches(tmp_path: Path, clock: Clock) -> None:
    """It is replaced like a worker, and saves its rows before it goes."""
    master = Master(tmp_path, clock, syncMode="ParameterServer", parameterServer={"shards": 2})
    shards, workers = ([Peer(master, rank, role=role) for rank in range(2)] for role in ("shard", "worker"))
    held = HeldShard()
    for epoch in (1, 2, 3):
        for worker in workers:
            worker.ready()
        for shard in shards:
            shard.say(wire.READY, epoch=epoch, held=held.document())
        begins = [shard.last(wire.BEGIN) for shard in shards]
        if epoch == 3:
            break
        assert [(begin["epoch"], begin["save"]) for begin in begins] == [(epoch, False)] * 2
        held = HeldShard(2, begins[0]["lineage"], 0, False, Progress([0] * BLOCKS))
        for shard in shards:
            shard.say(wire.STARTED, epoch=epoch)
        for worker in workers:
            worker.say(wire.BROKEN, epoch=epoch, why="no connection", unreached=[], shards=[1])
        assert sum(peer.count(wire.EVICT) for peer in (*shards, *workers)) == 0
        master.clock.now += BROKEN_GRACE_SECONDS
        master.it.tick()
        if shards[1].count(wire.EVICT):
            shards[1].say(wire.STOPPING)
    assert [peer.count(wire.EVICT) for peer in (*shards, *workers)] == [0, 1, 0, 0]
    assert shards[1].last(wire.EVICT)["reason"] == "PeersUnreachable"
    assert master.kinds() == ["EpochRestarted", "EpochRestarted", "Unreachable"]
    assert [(begin["epoch"], begin["save"]) for begin in begins] == [(3, True)] * 2


def test_what_failed_with_a_lost_member_is_nobodys_fault(master: Master) -> None:
    first, second = master.running()
    for incarnation in (1, 2, 3):
        first.say(wire.BROKEN, epoch=first.epoch, why="connection reset", unreached=[1])
        second.vanish()
        first.ready()
        first.lease()
        second = Peer(master, 1, incarnation=incarnation)
        for peer in (first, second):
            peer.ready()
    assert first.epoch == 7
    assert first.count(wire.EVICT) + second.count(wire.EVICT) == 0


def passes(master: Master, seconds: float) -> None:
    master.clock.now += seconds
    for peers in master.it.peers.values():
        for rank in list(peers.links):
            peers.heard(rank, master.clock.now)
    master.it.tick()


def rounds(master: Master, first: Peer) -> int:
    """As many as it takes to know how long one takes; the last one's step."""
    for step in range(1, stalls.LEARNED + 1):
        first.progress(step)
        passes(master, 1.0)
    return stalls.LEARNED


def test_a_round_that_does_not_end(master: Master) -> None:
    first, second = master.running()
    step = rounds(master, first)
    passes(master, stalls.FLOOR_SECONDS - 2)
    assert first.epoch == 1
    passes(master, 2)
    assert (first.epoch, first.last(wire.EPOCH)["urgent"]) == (2, True)
    assert master.kinds() == ["EpochRestarted"]
    for peer in (first, second):
        peer.ready(step, [0] * BLOCKS)
    passes(master, stalls.FLOOR_SECONDS + 2)
    assert first.epoch == 2, "parameters may have to travel before the first round"
    master.it.desire(Desired(workers=2, suspend=True))
    passes(master, stalls.UNKNOWN_SECONDS)
    assert first.epoch == 2, "the last checkpoint takes as long as it takes"


def test_a_round_that_does_not_end_while_an_epoch_waits_for_its_end(master: Master) -> None:
    """A joiner is let in at a round's end, which does not come."""
    first, second = master.running()
    first.lease(), second.lease()
    rounds(master, first)
    master.it.desire(Desired(workers=3))
    Peer(master, 2)
    assert (first.epoch, first.last(wire.EPOCH)["urgent"]) == (2, False)
    passes(master, stalls.FLOOR_SECONDS)
    assert (first.epoch, first.last(wire.EPOCH)["urgent"]) == (3, True)


def test_shards_may_take_long_to_get_their_rows(tmp_path: Path, clock: Clock) -> None:
    master = Master(tmp_path, clock, workers=1, syncMode="ParameterServer", parameterServer={"shards": 1})
    shard, worker = Peer(master, 0, role="shard"), Peer(master, 0)
    worker.ready()
    shard.say(wire.READY, epoch=1, held=HeldShard().document())
    assert shard.count(wire.BEGIN) == 1
    passes(master, 2 * stalls.UNKNOWN_SECONDS)
    assert worker.epoch == 1
    shard.say(wire.STARTED, epoch=1)
    passes(master, stalls.UNKNOWN_SECONDS - 1)
    assert worker.epoch == 1
    passes(master, 2)
    assert worker.epoch == 2


def test_a_collective_that_fails_because_of_a_loss(master: Master) -> None:
    first, second = master.running()
    first.say(wire.BROKEN, epoch=1, why="connection reset")
    second.vanish()
    assert first.epoch == 2
    master.clock.now += BROKEN_GRACE_SECONDS
    first.say(wire.HEARTBEAT)
    master.it.tick()
    assert first.epoch == 2
    assert master.kinds() == ["WorkerLost"]


@pytest.mark.parametrize("workers", [1, 2])
def test_all_workers_are_lost(tmp_path: Path, clock: Clock, workers: int) -> None:
    master = Master(tmp_path, clock, workers=workers)
    for peer in master.running(workers):
        peer.vanish()
    clock.now += 1000  # checkpoints have been due meanwhile, and there is nobody to write them
    master.it.tick()
    alone = Peer(master, 1, incarnation=1)
    assert alone.epoch == workers + 1
    alone.ready()
    assert alone.last(wire.BEGIN)["step"] == 0


def test_a_worker_is_lost_while_it_waits_for_a_block_and_no_epoch_can_follow(master: Master) -> None:
    first, second = master.running()
    master.it.desire(Desired(workers=2, minWorkers=2))
    first.lease()
    second.say(wire.LEASE, epoch=1, step=1)  # answered when round 1 is known
    second.vanish()
    first.progress(1, (0, 0))
    assert (master.it.dispatcher.step, first.epoch) == (1, 1)
    assert Peer(master, 1, incarnation=1).count(wire.LEASED) == 0


def test_a_worker_is_lost_after_it_was_ready_and_no_epoch_can_follow(master: Master) -> None:
    first, second = Peer(master, 0), Peer(master, 1)
    master.it.desire(Desired(workers=2, minWorkers=2))
    second.ready()
    second.vanish()
    first.ready()
    assert first.count(wire.BEGIN) == 0
    third = Peer(master, 1, incarnation=1)
    for peer in (first, third):
        peer.ready()
    assert [peer.last(wire.BEGIN)["epoch"] for peer in (first, third)] == [2, 2]


def test_a_survivor_does_not_train_with_fewer_than_the_least(master: Master) -> None:
    """Its exchange has failed, as it does when another one is lost."""
    first, second = master.running()
    master.it.desire(Desired(workers=2, minWorkers=2))
    second.vanish()
    first.say(wire.BROKEN, epoch=1, why="connection reset")
    master.clock.now += 2 * BROKEN_GRACE_SECONDS
    master.it.tick()
    assert first.epoch == 1
    third = Peer(master, 1, incarnation=1)
    assert first.epoch == third.epoch == 2


def test_no_epoch_is_announced_without_a_shard(tmp_path: Path, clock: Clock) -> None:
    master = Master(tmp_path, clock, workers=1, syncMode="ParameterServer", parameterServer={"shards": 2})
    shards = [Peer(master, rank, role="shard") for rank in range(2)]
    worker = Peer(master, 0)
    shards[1].vanish()
    worker.say(wire.BROKEN, epoch=1, why="connection reset")
    clock.now += 2 * BROKEN_GRACE_SECONDS
    master.it.tick()
    assert worker.epoch == 1
    Peer(master, 1, role="shard", incarnation=1)
    assert worker.epoch == 2
    assert len(worker.last(wire.EPOCH)["shards"]) == 2


def test_shards_know_of_an_epoch_that_nobody_else_has_seen(tmp_path: Path, clock: Clock) -> None:
    """The master and all workers are others: what is announced must be news to the shards."""
    master = Master(tmp_path, clock, workers=1, syncMode="ParameterServer", parameterServer={"shards": 2})
    for rank in range(2):
        Peer(master, rank, role="shard", epoch=7)
    worker = Peer(master, 0)
    assert worker.epoch == 8


def test_a_shard_is_lost_after_it_was_ready(tmp_path: Path, clock: Clock) -> None:
    master = Master(tmp_path, clock, workers=1, syncMode="ParameterServer", parameterServer={"shards": 2})
    shards = [Peer(master, rank, role="shard") for rank in range(2)]
    worker = Peer(master, 0)
    worker.ready()
    held = HeldShard().document()
    shards[0].say(wire.READY, epoch=1, held=held)
    shards[0].vanish()
    shards[1].say(wire.READY, epoch=1, held=held)
    assert shards[1].count(wire.BEGIN) == 0
    shards[0] = Peer(master, 0, role="shard", incarnation=1)
    worker.ready()
    for shard in shards:
        shard.say(wire.READY, epoch=2, held=held)
    assert [shard.last(wire.BEGIN)["epoch"] for shard in shards] == [2, 2]
