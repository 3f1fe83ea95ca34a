"""The master's checkpoints: when they are wanted, which count, which are damaged."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from mms_workloads.contract import Desired, Reason
from mms_workloads.store import JobError
from mms_workloads.sync import again, checkpoints, startup, wire
from mms_workloads.sync.leases import Progress
from mms_workloads.sync.shard_forming import HeldShard
from tests.unit.sync.masters import Clock, Master, Peer, checkpointed, document, reference, settled

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


async def test_all_members_save_when_it_is_time(master: Master) -> None:
    first, second = master.running()
    master.it.tick()
    assert first.count(wire.CHECKPOINT) == 0
    for _ in range(70):
        master.clock.now += 1
        first.say(wire.HEARTBEAT)
        second.say(wire.HEARTBEAT)
        master.it.tick()
    assert (first.count(wire.CHECKPOINT), second.count(wire.CHECKPOINT)) == (1, 1)
    first.saved(3, 1, 0, 0, 0)
    await settled(master)
    assert master.it.status().checkpoint is None  # without the second part it is none
    second.saved(3, part=1)
    await settled(master)
    saved = master.it.status().checkpoint
    assert saved is not None
    assert (saved.step, saved.uri.rpartition("/")[2]) == (3, "step-0000000003-a")
    first.vanish()
    second.vanish()
    again = Peer(master, 0, incarnation=1)
    again.ready()
    begin = again.last(wire.BEGIN)
    assert (begin["step"], begin["progress"], begin["checkpoint"]["uri"]) == (3, document([1, 0, 0, 0]), saved.uri)
    assert begin["equal"] is False


async def test_checkpoints_that_do_not_become_valid_are_told(master: Master) -> None:
    """A write to a store that hangs neither ends nor fails. One that a lost member cut off is nothing to tell."""
    peers = master.running()

    def asked(times: int) -> list[str]:
        before = peers[0].count(wire.CHECKPOINT)
        while peers[0].count(wire.CHECKPOINT) < before + times:
            master.clock.now += 1
            for peer in peers:
                peer.say(wire.HEARTBEAT)
            master.it.tick()
        return master.kinds()

    assert asked(2) == []
    assert asked(1) == ["CheckpointLate"]
    assert "none of 2 that were asked for in the last 1" in master.it.incidents[-1].action
    for part, peer in enumerate(peers):
        peer.saved(4, 1, 0, 0, 0, part=part)
    await settled(master)
    assert asked(2) == ["CheckpointLate"], "it is told once, and counted from the last one that was valid"


async def test_the_master_is_needed_while_something_is_saved(master: Master) -> None:
    """One that is told to end stays as long."""
    first, second = master.running()
    assert not master.it.needed()
    first.say(wire.STOPPING)
    assert master.it.needed()
    first.say(wire.LEAVE)
    assert not master.it.needed()
    second.ready(0, [0, 0, 0, 0])
    folder = checkpoints.short(second.last(wire.BEGIN)["lineage"])
    second.saved(3, 1, 0, 0, 0, folder=folder)
    assert master.it.needed(), "the other part is yet to come"
    second.saved(3, folder=folder, part=1)
    assert master.it.needed(), "the manifest is being written"
    await settled(master)
    assert not master.it.needed()


def test_nobody_waits_for_a_part_that_cannot_come_any_more(master: Master) -> None:
    first, second = master.running()
    first.saved(3, 1, 0, 0, 0, folder=checkpoints.short(first.last(wire.BEGIN)["lineage"]))
    assert master.it.needed(), "the other part is yet to come"
    second.vanish()
    assert not master.it.needed()


def test_nobody_waits_for_the_part_of_a_shard_that_has_left(tmp_path: Path, clock: Clock) -> None:
    """Workers write no part."""
    master = Master(tmp_path, clock, workers=1, syncMode="ParameterServer", parameterServer={"shards": 2})
    shards, worker = [Peer(master, rank, role="shard") for rank in range(2)], Peer(master, 0)
    worker.ready()
    for shard in shards:
        shard.say(wire.READY, epoch=1, held=HeldShard().document())
    shards[1].saved(3, part=1, folder=checkpoints.short(shards[1].last(wire.BEGIN)["lineage"]))
    worker.vanish()
    assert master.it.needed()
    shards[0].say(wire.LEAVE)
    assert not master.it.needed()


async def test_parts_of_two_checkpoints_make_none(master: Master) -> None:
    first, second = master.running()
    first.saved(3, 1, 0, 0, 0, folder="a")
    second.saved(3, part=1, folder="b")
    await settled(master)
    assert master.it.status().checkpoint is None


async def test_an_older_checkpoint_that_is_complete_later_does_not_count(master: Master) -> None:
    first, second = master.running()
    first.saved(2, 1, 0, 0, 0, folder="a")
    for part, peer in enumerate((first, second)):
        peer.saved(4, 1, 1, 0, 0, folder="b", part=part)
    await settled(master)
    second.saved(2, folder="a", part=1)
    await settled(master)
    saved = master.it.status().checkpoint
    assert saved is not None
    assert saved.step == 4


async def test_a_damaged_checkpoint(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one before is used, although a worker is lost and another joins while it is looked for."""
    asked: list[frozenset[str]] = []

    def older(_: object, excluded: frozenset[str]) -> startup.Checkpointed:
        asked.append(excluded)
        return checkpointed(3)

    monkeypatch.setattr(startup, "last_checkpoint", older)
    master = Master(tmp_path, clock, checkpoint=checkpointed(8))
    first, second = master.running()
    for peer in (first, first):
        peer.say(wire.CHECKPOINT_INVALID, uri=reference(8).uri, message="damaged")
    second.vanish()
    joiner = Peer(master, 2)
    assert first.epoch == 1
    await settled(master)
    assert asked == [frozenset({reference(8).uri})]
    assert first.epoch == joiner.epoch == 2
    assert first.last(wire.EPOCH)["urgent"]
    first.ready()
    joiner.ready()
    assert first.last(wire.BEGIN)["checkpoint"]["uri"] == reference(3).uri
    assert "CheckpointInvalid" in master.kinds()


async def test_a_damaged_checkpoint_and_nobody_left(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "last_checkpoint", lambda *_: None)
    master = Master(tmp_path, clock, checkpoint=checkpointed(8))
    peers = master.running()
    peers[0].say(wire.CHECKPOINT_INVALID, uri=reference(8).uri, message="damaged")
    for peer in peers:
        peer.vanish()
    await settled(master)
    again = Peer(master, 0, incarnation=1)
    again.ready()
    assert (again.last(wire.BEGIN)["step"], again.last(wire.BEGIN)["checkpoint"]) == (0, None)


async def test_looking_for_a_checkpoint_fails(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(startup, "last_checkpoint", fail)
    master = Master(tmp_path, clock, checkpoint=checkpointed(8))
    master.running()[0].say(wire.CHECKPOINT_INVALID, uri=reference(8).uri, message="damaged")
    await settled(master)
    outcome = master.it.outcome
    assert outcome is not None
    assert (outcome.reason, outcome.retryable) == (Reason.INTERNAL, True)


async def test_the_last_checkpoint_is_asked_for_again_where_its_epoch_ends(tmp_path: Path, clock: Clock) -> None:
    """Of shards: the next epoch, which a worker's loss brings, begins with it, and nobody trains in between."""
    master = Master(tmp_path, clock, workers=1, syncMode="ParameterServer", parameterServer={"shards": 1})
    shard, worker = Peer(master, 0, role="shard"), Peer(master, 0)
    worker.ready()
    shard.say(wire.READY, epoch=1, held=HeldShard().document())
    shard.say(wire.STARTED, epoch=1)
    worker.lease()
    held = HeldShard(1, shard.last(wire.BEGIN)["lineage"], 1, True, Progress([1, 0, 0, 0]), -1, Progress([]))
    master.it.desire(Desired(suspend=True, workers=1))
    worker.ready()
    shard.say(wire.READY, epoch=2, held=held.document())
    assert shard.last(wire.BEGIN)["final"]
    worker.vanish()
    Peer(master, 0, incarnation=1).ready()
    shard.say(wire.READY, epoch=3, held=held.document())
    assert (shard.last(wire.BEGIN)["epoch"], shard.last(wire.BEGIN)["final"]) == (3, True)


class Away:
    """A store that does not answer so many calls."""

    def __init__(self, call: Callable[..., Any], times: int) -> None:
        self.call, self.left = call, times

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if self.left:
            self.left -= 1
            raise JobError(Reason.STORAGE_UNREACHABLE, "the store is away", retryable=True)
        return self.call(*arguments, **named)


@pytest.mark.parametrize("step", ["commit", "read"])
async def test_a_store_that_is_away_when_a_checkpoint_becomes_valid(
    master: Master, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """All parts are durable. There is no such checkpoint, and the run goes on; the next one is."""
    monkeypatch.setattr(checkpoints, step, Away(getattr(checkpoints, step), 1))
    peers = master.running()
    for at in (3, 4):
        assert master.it.status().checkpoint is None
        for part, peer in enumerate(peers):
            peer.saved(at, 1, 0, 0, 0, part=part)
        await settled(master)
    assert (master.it.outcome, master.kinds()) == (None, ["CheckpointFailed"])
    saved = master.it.status().checkpoint
    assert saved is not None
    assert saved.step == 4


@pytest.mark.parametrize("step", ["commit", "read"])
async def test_a_store_that_is_away_when_the_last_checkpoint_becomes_valid(
    master: Master, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    monkeypatch.setattr(again, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(checkpoints, step, Away(getattr(checkpoints, step), 2))
    peers = master.running()
    master.it.desire(Desired(suspend=True, workers=2))
    for part, peer in enumerate(peers):
        peer.saved(3, 1, 0, 0, 0, part=part, final=True)
    await settled(master)
    assert master.kinds() == ["CheckpointFailed"] * 2
    outcome = master.it.outcome
    assert outcome is not None
    assert outcome.checkpoint is not None
    assert (outcome.result, outcome.checkpoint.step) == ("Suspended", 3)


async def test_a_store_that_takes_no_checkpoint_for_good(master: Master, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise JobError(Reason.ARTIFACT_CORRUPT, "it reads back differently")

    monkeypatch.setattr(checkpoints, "read", forbidden)
    for part, peer in enumerate(master.running()):
        peer.saved(3, 1, 0, 0, 0, part=part)
    await settled(master)
    outcome = master.it.outcome
    assert outcome is not None
    assert (outcome.result, outcome.reason) == ("Failed", Reason.ARTIFACT_CORRUPT)


async def test_a_rollback_gives_up_what_became_valid_unheard(master: Master, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else whoever starts after all pods were lost would go on from it."""
    monkeypatch.setattr(checkpoints, "read", Away(checkpoints.read, 1))
    peers = master.running()
    for part, peer in enumerate(peers):
        peer.saved(3, 1, 0, 0, 0, part=part)
    await settled(master)
    storage = master.it.job.storage
    unheard = checkpoints.latest(storage)
    assert unheard is not None

    def last(_: object, excluded: frozenset[str]) -> startup.Checkpointed | None:
        return None if unheard.uri in excluded else replace(checkpointed(3), ref=unheard)

    monkeypatch.setattr(startup, "last_checkpoint", last)
    await master.it.checkpoints.discard(2)
    assert (checkpoints.latest(storage), master.it.status().checkpoint) == (None, None)
    assert master.it.status().knowsCheckpoint
