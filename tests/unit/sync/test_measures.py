"""What the master does about anomalies."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mms_workloads.contract import Desired, Guard, Reason
from mms_workloads.sync import checkpoints, startup, wire
from mms_workloads.sync.epochs import BROKEN_GRACE_SECONDS
from mms_workloads.sync.leases import Progress
from mms_workloads.sync.watch import SLOW_ROUNDS
from tests.unit.sync.masters import BLOCKS, Clock, Master, Peer, checkpointed, reference, round_of, settled

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def anomalous(peer: Peer, step: int, verdict: str, *, loss: float = 10.0, **changes: Any) -> None:
    """A round of two members, whose second has had an anomaly."""
    leases = [(0, step - 1)] if step <= BLOCKS else []
    fields = round_of(step, *leases, members=2, verdicts=["Good", verdict], loss=loss, **changes)
    peer.report(peer.epoch, fields)


def test_an_anomaly_in_the_last_round_of_an_epoch_is_told(master: Master) -> None:
    first, second = master.running()
    first.lease(), second.lease()
    fields = round_of(1, (0, 0), members=2, verdicts=["Good", "NonFinite"])
    master.it.desire(Desired(workers=3))
    Peer(master, 2)
    assert first.epoch == 2
    first.report(1, fields)
    assert (master.it.dispatcher.step, [i.kind for i in master.it.status().incidents if i.kind == "NonFinite"]) == (
        0,
        ["NonFinite"],
    )
    for peer in (first, second):
        peer.ready(1, [1, 0, 0, 0])
    first.report(1, fields)
    assert len([i for i in master.it.status().incidents if i.kind == "NonFinite"]) == 1


def test_an_anomaly_in_any_round_that_is_told_after_an_epoch_was_announced_and_another(master: Master) -> None:
    """The master was busy: several rounds were on their way when it announced, and nobody had heard of it yet."""
    first, second = master.running()
    first.lease(), second.lease()
    master.it.desire(Desired(workers=3))
    joiner = Peer(master, 2)
    joiner.vanish()
    assert first.epoch == 3
    for step, verdict in ((1, "Good"), (2, "NonFinite"), (3, "Good"), (2, "NonFinite")):
        fields = round_of(step, (0, step - 1), members=2, verdicts=["Good", verdict])
        first.report(1, fields)
    assert (master.it.dispatcher.step, master.kinds().count("NonFinite")) == (0, 1)
    for peer in (first, second):
        peer.ready(3, [1, 1, 1, 0])
    assert master.it.dispatcher.step == 3


async def test_gradients_out_of_hand_bring_all_back_to_the_checkpoint(
    master: Master, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(master.it.measures.watch, "guard", Guard(patience=2))
    peers = master.running()
    for peer in peers:
        peer.lease()
    anomalous(peers[0], 1, "Good")
    for part in (0, 1):
        peers[part].saved(1, 1, *[0] * (BLOCKS - 1), part=part)
    await settled(master)
    anomalous(peers[0], 2, "NonFinite")
    assert master.kinds() == ["NonFinite"]
    anomalous(peers[0], 3, "NonFinite", slices=[[], [[0, 2, 0, 1, 1]]])
    await settled(master)
    assert [peer.last(wire.EPOCH)["urgent"] for peer in peers] == [True, True]
    for peer in peers:
        peer.ready(step=3, applied=[1, 1, 1, *[0] * (BLOCKS - 3)])
    begin = peers[0].last(wire.BEGIN)
    assert (begin["step"], begin["checkpoint"]["step"], begin["equal"]) == (1, 1, False), "what they hold is forgotten"
    assert begin["progress"]["rate_factor"] == 0.5
    assert begin["progress"]["applied"][:3] == [1, 0, 2], "block 2 is left out in all data epochs"
    assert "step 1" in master.it.incidents[-1].action
    assert master.it.status().step == 1


async def test_what_was_given_up_does_not_come_back(master: Master, monkeypatch: pytest.MonkeyPatch) -> None:
    """One has loaded the checkpoint when the epoch breaks, another has not, and still holds a higher step."""
    monkeypatch.setattr(master.it.measures.watch, "guard", Guard(nonFinite="Rollback"))
    first, second = peers = master.running()
    wrecked = first.last(wire.BEGIN)["lineage"]
    first.lease(), second.lease()
    anomalous(first, 1, "Good")
    for part in (0, 1):
        peers[part].saved(1, 1, *[0] * (BLOCKS - 1), part=part)
    await settled(master)
    anomalous(first, 2, "NonFinite")
    await settled(master)
    for peer in peers:
        peer.ready(step=9, applied=[1] * BLOCKS, lineage=wrecked)
    back = first.last(wire.BEGIN)
    assert (back["step"], back["checkpoint"]["step"]) == (1, 1)
    second.say(wire.BROKEN, epoch=second.epoch, why="the connection was lost")
    master.clock.now += BROKEN_GRACE_SECONDS + 0.1
    master.it.tick()
    first.ready(step=1, applied=[1, *[0] * (BLOCKS - 1)], lineage=back["lineage"])
    second.ready(step=9, applied=[1] * BLOCKS, lineage=wrecked)
    begin = first.last(wire.BEGIN)
    assert (begin["step"], begin["source"], begin["equal"]) == (1, 0, False)
    assert begin["lineage"] != back["lineage"]


async def test_what_a_private_run_has_made_public_is_not_made_again(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = {"privacy": {"epsilon": 8, "delta": 1e-5}, "guard": {"nonFinite": "Rollback"}}
    spent = {"epsilonSpent": 2.5, "delta": 1e-5, "noiseMultiplier": 1.5}
    master = Master(tmp_path, clock, **spec)
    first, second = master.running()
    first.lease(), second.lease()
    anomalous(first, 1, "Good", privacy=spent)
    found = master.it.status().privacy
    assert found is not None
    assert found.model_dump() == spent
    assert master.it.outcome is None
    anomalous(first, 2, "NonFinite")
    assert master.it.outcome is not None
    assert (master.it.outcome.reason, master.it.outcome.retryable) == (Reason.TRAINING_DIVERGED, False)
    assert "spec.privacy pays for each record once" in master.it.outcome.message
    other = Master(tmp_path, clock, checkpoint=checkpointed(8), **spec)
    peer, _ = other.running()
    peer.say(wire.CHECKPOINT_INVALID, uri=reference(8).uri, message="damaged")
    await settled(other)
    assert other.it.outcome is not None
    assert (other.it.outcome.reason, other.it.outcome.retryable) == (Reason.ARTIFACT_CORRUPT, False)


async def test_without_a_checkpoint_they_start_again(master: Master, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(master.it.measures.watch, "guard", Guard(nonFinite="Rollback"))
    peers = master.running()
    anomalous(peers[0], 1, "NonFinite")
    await settled(master)
    for peer in peers:
        peer.ready(step=1, applied=[1, *[0] * (BLOCKS - 1)])
    begin = peers[0].last(wire.BEGIN)
    assert (begin["step"], begin["fresh"], begin["checkpoint"]) == (0, True, None)


async def test_a_checkpoint_that_has_the_anomaly_is_passed_over(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "last_checkpoint", lambda *_: checkpointed(1))
    master = Master(tmp_path, clock, checkpoint=checkpointed(3))
    monkeypatch.setattr(master.it.measures.watch, "guard", Guard(patience=3))
    peers = master.running()
    master.it.measures.watch.broken[0, 1] = [2, 3]  # of which step the checkpoint is
    blocks = [
        [0, block, 0, 1, 1] for block, passes in enumerate(master.it.dispatcher.leases.progress.applied) if not passes
    ]
    anomalous(peers[0], 4, "NonFinite", slices=[[], blocks[:1]])
    await settled(master)
    for peer in peers:
        peer.ready(step=4, applied=[1] * BLOCKS)
    assert peers[0].last(wire.BEGIN)["checkpoint"]["uri"] == reference(1).uri


async def test_a_worker_is_evicted(master: Master, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(master.it.measures.watch, "guard", Guard(patience=1))
    peers = master.running()
    anomalous(peers[0], 1, "GradientOutlier")
    assert [peer.count(wire.EVICT) for peer in peers] == [0, 1]
    assert "replaced" in peers[1].last(wire.EVICT)["why"]


def test_a_straggler_is_told_again_of_the_process_that_follows_it(master: Master) -> None:
    first, _ = master.running()
    rounds = range(1, SLOW_ROUNDS + 1)
    for step in rounds:
        anomalous(first, step, "Good", seconds=[1.0, 4.0], of=[10, 10])
    assert master.kinds() == ["Straggler"]
    successor = Peer(master, 1, incarnation=1)
    first.ready(SLOW_ROUNDS, [2] * BLOCKS)
    successor.ready()
    for step in rounds:
        anomalous(first, SLOW_ROUNDS + step, "Good", seconds=[1.0, 4.0], of=[10, 10])
    assert master.kinds() == ["Straggler", "WorkerLost", "WorkerJoined", "Straggler"]


async def test_the_run_fails_where_that_is_asked_for(master: Master, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(master.it.measures.watch, "guard", Guard(nonFinite="Fail"))
    peers = master.running()
    anomalous(peers[0], 1, "NonFinite")
    outcome = master.it.outcome
    assert outcome is not None
    assert (outcome.result, outcome.reason) == ("Failed", Reason.TRAINING_DIVERGED)


def test_members_that_differ_are_told_once(master: Master) -> None:
    peers = master.running()
    for peer in peers:
        peer.say(wire.ANOMALY, anomaly="Corruption", rank=None, block=None, action="x", epoch=1)
    assert master.kinds() == ["Corruption"]


def test_blocks_are_quarantined_once(master: Master) -> None:
    peers = master.running()
    for peer in peers:
        peer.say(wire.ANOMALY, anomaly="DeadData", rank=None, block=1, action="all the same")
    assert master.it.status().quarantined == 1
    assert master.it.incidents[-1].action == "block 1 is not trained on: all the same"


def test_a_new_master_is_told_what_is_quarantined(tmp_path: Path, clock: Clock) -> None:
    """Whose workers found it under the one before: it has the same number, and each block once."""
    master = Master(tmp_path, clock, checkpoint=checkpointed(3))
    peers = [Peer(master, rank, epoch=4, step=5) for rank in range(2)]
    told = [[[1, "all the same"]], [[1, "all the same"], [3, "blank"]]]
    for _ in range(2):
        for peer, dead in zip(peers, told, strict=True):
            progress = Progress([1] * BLOCKS).document()
            peer.say(wire.READY, epoch=peer.epoch, step=5, lineage="l", progress=progress, dead=dead)
        assert master.it.status().quarantined == 2
        assert master.kinds().count("DeadData") == 2
    assert peers[0].count(wire.BEGIN) == 1


async def test_a_resumed_run_knows_what_is_quarantined(tmp_path: Path, clock: Clock) -> None:
    """Also before a worker has found it again."""
    master = Master(tmp_path, clock)
    peers = master.running()
    peers[0].say(wire.ANOMALY, anomaly="DeadData", rank=None, block=1, action="all the same")
    for part in range(2):
        peers[part].saved(1, 1, *[0] * (BLOCKS - 1), part=part)
    await settled(master)
    assert master.it.checkpoints.reference
    kept = checkpoints.quarantined(master.it.job.storage, master.it.checkpoints.reference)
    found = replace(checkpointed(3), quarantined=kept)
    assert Master(tmp_path, clock, checkpoint=found, guard={"deadData": "Off"}).it.status().quarantined == 0
    resumed = Master(tmp_path, clock, checkpoint=found)
    assert (resumed.it.status().quarantined, resumed.kinds().count("DeadData")) == (1, 0)
    resumed.running()[0].say(wire.ANOMALY, anomaly="DeadData", rank=None, block=1, action="all the same")
    assert (resumed.it.status().quarantined, resumed.kinds().count("DeadData")) == (1, 1)


def test_a_new_master_is_told_that_there_is_nothing_to_learn(tmp_path: Path, clock: Clock) -> None:
    master = Master(tmp_path, clock, checkpoint=checkpointed(3))
    peers = [Peer(master, rank, epoch=4, step=5) for rank in range(2)]
    dead = [[block, "all the same"] for block in range(BLOCKS)]
    peers[0].say(wire.READY, epoch=peers[0].epoch, step=5, lineage="l", progress=None, dead=dead)
    assert master.it.outcome is not None
    assert master.it.outcome.reason == Reason.DATA_EMPTY


async def test_what_one_rollback_leaves_out_stays_out_after_another(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    master = Master(tmp_path, clock, checkpoint=checkpointed(1))
    monkeypatch.setattr(master.it.measures.watch, "guard", Guard(nonFinite="Rollback", patience=10))
    peers = master.running()
    for block in (2, 3):
        anomalous(peers[0], 2, "NonFinite", slices=[[], [[0, block, 0, 1, 1]]])
        await settled(master)
        for peer in peers:
            peer.ready(step=2, applied=[1] * BLOCKS)
    begin = peers[0].last(wire.BEGIN)
    assert (begin["step"], begin["progress"]["applied"]) == (1, [1, 1, 2, 2])
    newest = master.it.checkpoints.newest
    assert newest is not None
    assert newest[1].applied == [1, 1, 0, 0], "the checkpoint is what it was"


async def test_a_rollback_that_is_due_while_a_checkpoint_is_searched_for_is_done_after_it(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "last_checkpoint", lambda *_: checkpointed(1))
    master = Master(tmp_path, clock, checkpoint=checkpointed(3))
    monkeypatch.setattr(master.it.measures.watch, "guard", Guard(nonFinite="Rollback", patience=10))
    peers = master.running()
    peers[0].say(wire.CHECKPOINT_INVALID, uri=reference(3).uri, message="damaged")
    anomalous(peers[0], 4, "NonFinite", slices=[[], [[0, 2, 0, 1, 1]]])
    await settled(master)
    assert master.kinds()[-2:] == ["CheckpointInvalid", "NonFinite"]
    for peer in peers:
        peer.ready(step=4, applied=[1] * BLOCKS)
    assert peers[0].last(wire.BEGIN)["checkpoint"]["step"] == 1


async def test_a_checkpoint_that_is_being_made_valid_is_given_up_too(
    master: Master, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All its parts are durable, and the master reads it back, when the anomaly that is in it is found."""
    monkeypatch.setattr(master.it.measures.watch, "guard", Guard(patience=2))
    read, reading, go_on = checkpoints.read, threading.Event(), threading.Event()

    def slowly(*which: Any) -> bytes:
        reading.set()
        assert go_on.wait(10)
        return read(*which)

    monkeypatch.setattr(checkpoints, "read", slowly)
    first, second = peers = master.running()
    first.lease(), second.lease()
    anomalous(first, 1, "NonFinite")
    lineage = checkpoints.short(first.last(wire.BEGIN)["lineage"])
    for part in (0, 1):
        peers[part].saved(1, 1, *[0] * (BLOCKS - 1), part=part, folder=lineage)
    await asyncio.to_thread(reading.wait, 10)
    anomalous(first, 2, "NonFinite")
    await asyncio.sleep(0)
    go_on.set()
    await settled(master)
    for peer in peers:
        peer.ready(step=2, applied=[1] * BLOCKS)
    begin = first.last(wire.BEGIN)
    assert (begin["step"], begin["fresh"], begin["checkpoint"]) == (0, True, None)
    assert master.it.status().checkpoint is None


async def test_what_is_exported_while_the_run_goes_back_is_no_result(
    master: Master, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(master.it.measures.watch, "guard", Guard(nonFinite="Rollback"))
    peers = master.running()
    artifact = {"uri": "file:///a", "digest": "sha256:1", "version": 1, "metrics": {}}
    anomalous(peers[0], 1, "NonFinite")
    peers[0].say(wire.EXPORTED, artifact=artifact)
    await settled(master)
    peers[0].say(wire.EXPORTED, artifact=artifact)
    await settled(master)
    assert master.it.outcome is None
    for peer in peers:
        peer.ready(step=1, applied=[1, *[0] * (BLOCKS - 1)])
    peers[0].say(wire.EXPORTED, artifact=artifact)
    await settled(master)
    assert master.it.outcome is not None
