"""The master's decisions, with workers that are lists of what they were told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mms_workloads.contract import Activity, CheckpointRef, Desired, JobFile, Reason
from mms_workloads.data.vocabulary import pack_counts
from mms_workloads.pod import Pod
from mms_workloads.store import Found
from mms_workloads.sync import coordinator as module
from mms_workloads.sync import plan as plans
from mms_workloads.sync import startup, wire
from mms_workloads.sync.coordinator import BROKEN_GRACE_SECONDS, Coordinator, Link
from mms_workloads.sync.membership import HEARTBEAT_DEADLINE_SECONDS, RECOVERY_GRACE_SECONDS
from mms_workloads.sync.wire import Message

if TYPE_CHECKING:
    from pathlib import Path

BLOCKS = 4


class Clock:
    """Past the time in which workers of a master before this one could come back."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


class Peer:
    """A worker as the master sees it: what it is told and what the test lets it say."""

    def __init__(self, master: Master, rank: int, **hello: Any) -> None:
        self.master, self.rank = master, rank
        self.told: list[Message] = []
        self.closed = False
        fields = {
            "uid": "u", "run": 1, "attempt": 1, "rank": rank, "incarnation": 0, "address": f"10.0.0.{rank}",
            "epoch": 0, "step": None, "plan": None, **hello,
        }  # fmt: skip
        self.link: Link | None = master.it.hello(Message(wire.HELLO, fields), self.told.append, self.close)

    def close(self) -> None:
        self.closed = True

    def say(self, kind: str, data: bytes = b"", **fields: Any) -> None:
        assert self.link is not None
        self.master.it.received(self.link, Message(kind, fields, data))

    def vanish(self) -> None:
        assert self.link is not None
        self.master.it.lost(self.link, "test")

    def last(self, kind: str) -> dict[str, Any]:
        return [m for m in self.told if m.kind == kind][-1].fields

    def count(self, kind: str) -> int:
        return sum(m.kind == kind for m in self.told)

    @property
    def epoch(self) -> int:
        return int(self.last(wire.EPOCH)["epoch"])

    def ready(self, step: int | None = None, applied: list[int] | None = None, lineage: str = "l") -> None:
        lineage_or_none = None if step is None else lineage
        self.say(wire.READY, epoch=self.epoch, step=step, applied=applied, lineage=lineage_or_none)

    def lease(self) -> int | None:
        self.say(wire.LEASE, epoch=self.epoch)
        return self.last(wire.LEASED)["block"]  # type: ignore[no-any-return]

    def progress(self, step: int, *leases: tuple[int, int]) -> None:
        self.say(wire.PROGRESS, epoch=self.epoch, step=step, leases=leases, words=10, pairs=5.0, loss=10.0)


class Master:
    def __init__(self, folder: Path, clock: Clock, *, workers: int = 2, counted: bool = True, **options: Any) -> None:
        self.clock = clock
        job = JobFile.model_validate(
            {
                "job": {"namespace": "n", "name": "words", "uid": "u", "run": 1},
                "task": {"wordEmbedding": {"minCount": 1}},
                "data": {"store": {"uri": "file:///x"}, "blockBytes": 10, "sharding": "Sequential"},
                "optimizer": {"epochs": 2},
                "workers": workers,
                "storage": {"uri": f"file://{folder}"},
                "masterHost": "m",
            }
        )
        pod = Pod("master", 0, 4, 1, "", job, "sha256:0", folder, folder, folder / "log", 0, 0)
        self.it = Coordinator(pod, [Found("file:///a.txt", 10 * BLOCKS, None)], options.get("checkpoint"))
        clock.now += RECOVERY_GRACE_SECONDS + 1
        if counted and self.it.counting:
            self.it.counting.add(0, {"a": 60, "b": 40}, {}, 1000)

    def running(self, ranks: int = 2) -> list[Peer]:
        """Peers in their first epoch, begun."""
        peers = [Peer(self, rank) for rank in range(ranks)]
        for peer in peers:
            peer.ready()
        return peers

    def kinds(self) -> list[str]:
        return [incident.kind for incident in self.it.incidents]


@pytest.fixture
def master(tmp_path: Path, clock: Clock) -> Master:
    return Master(tmp_path, clock)


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
    assert len(master.it.links) == 2


def test_counting_then_training(tmp_path: Path, clock: Clock) -> None:
    master = Master(tmp_path, clock, counted=False)
    first = Peer(master, 0)
    assert first.last(wire.COUNT) == {"task": 0, "segments": [[0, 0, 40]], "uris": {0: "file:///a.txt"}}
    assert master.it.status().activity is Activity.COUNTING
    second = Peer(master, 1)
    assert second.count(wire.COUNT) == 0
    first.vanish()
    assert second.last(wire.COUNT)["task"] == 0  # the lost worker's task
    second.say(wire.COUNTED, pack_counts({"a": 3, "b": 2}), task=0, sizes={})
    assert second.count(wire.EPOCH) == 0  # until all workers are there
    third = Peer(master, 0)
    assert [peer.count(wire.PLAN) for peer in (second, third)] == [1, 1]
    assert second.last(wire.EPOCH) == {
        "epoch": 1,
        "urgent": True,
        "members": [[1, 0, "10.0.0.1"], [0, 0, "10.0.0.0"]],
    }


def test_a_run_to_its_end(master: Master) -> None:
    peers = master.running()
    for peer in peers:
        begin = peer.last(wire.BEGIN)
        assert (begin["step"], begin["equal"], begin["applied"]) == (0, True, [0] * BLOCKS)
    step = 0
    while (blocks := [peer.lease() for peer in peers]) != [None, None]:
        step += 1
        applied = master.it.leases.applied if master.it.leases else []
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
    outcome = master.it.outcome
    assert outcome is not None
    assert (outcome.result, outcome.step) == ("Complete", BLOCKS)
    assert [peer.count(wire.BYE) for peer in peers] == [1, 1]
    late = Peer(master, 1, incarnation=1)
    assert late.count(wire.BYE) == 1


def test_a_round_is_counted_once(master: Master) -> None:
    peers = master.running()
    peers[0].lease()
    for peer in peers:
        peer.progress(1, (0, 0))
    peers[1].progress(5, (0, 1))
    assert master.it.leases is not None
    assert (master.it.step, master.it.leases.applied) == (1, [1, 0, 0, 0])


def test_a_lost_worker(master: Master) -> None:
    first, second = master.running()
    assert (first.lease(), second.lease()) == (0, 1)
    second.vanish()
    assert first.last(wire.EPOCH)["urgent"]
    assert first.last(wire.EPOCH)["members"] == [[0, 0, "10.0.0.0"]]
    first.ready(0, [0] * BLOCKS)
    assert [first.lease(), first.lease()] == [0, 1]  # the lost worker's block can be had again
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
    assert master.it.links[1] is new.link


def test_a_joiner_waits_until_the_members_have_met(master: Master) -> None:
    """Their group is still being formed: an announcement now would take the rendezvous from under them."""
    first, second = master.running()
    joiner = Peer(master, 2)
    assert joiner.count(wire.EPOCH) == 0
    first.say(wire.KV_SET, b"address", epoch=1, key="k")
    second.say(wire.KV_GET, epoch=1, key="k")
    assert second.count(wire.KV_VALUE) == 1
    first.lease()
    assert joiner.count(wire.EPOCH) == 0
    second.lease()
    assert joiner.last(wire.EPOCH) == {
        "epoch": 2,
        "urgent": False,
        "members": [[r, 0, f"10.0.0.{r}"] for r in (0, 1, 2)],
    }


def test_a_lease_is_asked_for_after_the_next_epoch_was_announced(master: Master) -> None:
    """It is not answered: the worker sees the announcement and goes on without a block."""
    first, second = master.running()
    first.lease(), second.lease()
    Peer(master, 2)
    first.say(wire.LEASE, epoch=1)
    assert first.count(wire.LEASED) == 1
    # The round in flight is finished by all members: their report of the new epoch holds it.
    for peer in (first, second):
        peer.say(wire.PROGRESS, epoch=1, step=1, leases=[(0, 0), (0, 1)], words=1, pairs=0.0, loss=0.0)
    assert master.it.step == 0
    for peer in (first, second):
        peer.ready(1, [1, 1, 0, 0])
    list(master.it.links.values())
    assert master.it.step == 0  # the joiner is not ready yet
    master.it.received(
        master.it.links[2], Message(wire.READY, {"epoch": 2, "step": None, "applied": None, "lineage": None})
    )
    assert master.it.step == 1
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
    assert begin["applied"] == ([0] * BLOCKS if states[source][0] is None else [1, 0, 0, step])
    assert begin["lineage"]
    assert begin == peers[1].last(wire.BEGIN)


def test_lineages_of_two_epochs_differ(master: Master) -> None:
    first, second = master.running()
    before = first.last(wire.BEGIN)["lineage"]
    second.vanish()
    first.ready(0, [0] * BLOCKS)
    assert first.last(wire.BEGIN)["lineage"] != before


def test_rendezvous_of_the_current_epoch_only(master: Master) -> None:
    first, second = master.running()
    second.say(wire.KV_GET, epoch=1, key="k")
    assert second.count(wire.KV_VALUE) == 0
    first.say(wire.KV_SET, b"old", epoch=0, key="k")
    first.say(wire.KV_SET, b"new", epoch=2, key="k")
    assert second.count(wire.KV_VALUE) == 0
    first.say(wire.KV_SET, b"v", epoch=1, key="k")
    assert [(m.fields, m.data) for m in second.told if m.kind == wire.KV_VALUE] == [({"epoch": 1, "key": "k"}, b"v")]
    second.vanish()
    first.say(wire.KV_GET, epoch=1, key="k")
    first.say(wire.KV_GET, epoch=2, key="k")
    assert first.count(wire.KV_VALUE) == 0


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


# Checkpoints and suspension


def reference(step: int, folder: str = "c") -> CheckpointRef:
    return CheckpointRef(uri=f"file:///{folder}/{step}", step=step, digest="sha256:0", time="2026-01-01T00:00:00Z")


def checkpointed(step: int) -> startup.Checkpointed:
    from mms_workloads.contract import DataFile
    from mms_workloads.data.vocabulary import Vocabulary

    plan = plans.Plan((DataFile(uri="file:///a.txt", size=10 * BLOCKS),), 10, Vocabulary(("a", "b"), (60, 40)))
    return startup.Checkpointed(reference(step), plans.pack(plan), [1, 1, 0, 0])


def test_the_oldest_member_saves_when_it_is_time(master: Master) -> None:
    first, second = master.running()
    master.it.tick()
    assert first.count(wire.CHECKPOINT) == 0
    for _ in range(70):
        master.clock.now += 1
        first.say(wire.HEARTBEAT)
        second.say(wire.HEARTBEAT)
        master.it.tick()
    assert (first.count(wire.CHECKPOINT), second.count(wire.CHECKPOINT)) == (1, 0)
    first.say(wire.CHECKPOINTED, checkpoint=reference(3).model_dump(mode="json"), applied=[1, 0, 0, 0], final=False)
    first.say(wire.CHECKPOINTED, checkpoint=reference(2).model_dump(mode="json"), applied=[0, 0, 0, 0], final=False)
    assert master.it.status().checkpoint == reference(3)
    first.vanish()
    second.vanish()
    again = Peer(master, 0, incarnation=1)
    again.ready()
    begin = again.last(wire.BEGIN)
    assert (begin["step"], begin["applied"], begin["checkpoint"]["uri"]) == (3, [1, 0, 0, 0], reference(3).uri)
    assert begin["equal"] is False


def test_a_run_goes_on_from_its_checkpoint(tmp_path: Path, clock: Clock) -> None:
    master = Master(tmp_path, clock, checkpoint=checkpointed(8))
    assert (master.it.status().step, master.it.status().percent) == (8, 25)
    begin = master.running()[0].last(wire.BEGIN)
    assert (begin["step"], begin["applied"], begin["source"]) == (8, [1, 1, 0, 0], 0)


def test_a_new_master_takes_up_the_highest_step(tmp_path: Path, clock: Clock) -> None:
    master = Master(tmp_path, clock, checkpoint=checkpointed(8))
    peers = [Peer(master, rank, epoch=5, step=20 + rank) for rank in range(2)]
    assert master.kinds() == ["MasterRestarted"]
    assert peers[0].epoch == 6
    peers[0].ready(20, [2, 1, 1, 0])
    peers[1].ready(21, [2, 1, 1, 1])
    assert (master.it.step, master.it.status().percent) == (21, 62)
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
    for task in list(master.it.tasks):
        await task
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
    for task in list(master.it.tasks):
        await task
    again = Peer(master, 0, incarnation=1)
    again.ready()
    assert (again.last(wire.BEGIN)["step"], again.last(wire.BEGIN)["checkpoint"]) == (0, None)


async def test_looking_for_a_checkpoint_fails(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(startup, "last_checkpoint", fail)
    master = Master(tmp_path, clock, checkpoint=checkpointed(8))
    master.running()[0].say(wire.CHECKPOINT_INVALID, uri=reference(8).uri, message="damaged")
    for task in list(master.it.tasks):
        await task
    outcome = master.it.outcome
    assert outcome is not None
    assert (outcome.reason, outcome.retryable) == (Reason.INTERNAL, True)


def test_suspend_while_training(master: Master) -> None:
    first, second = master.running()
    master.it.desire(Desired(suspend=True, workers=2))
    assert (first.count(wire.SUSPEND), second.count(wire.SUSPEND)) == (1, 1)
    assert master.it.status().activity is Activity.SUSPENDING
    first.vanish()  # the one that would have saved
    second.ready(1, [1, 0, 0, 0])
    assert second.count(wire.SUSPEND) == 2
    assert master.it.outcome is None
    second.say(wire.CHECKPOINTED, checkpoint=reference(1).model_dump(mode="json"), applied=[1, 0, 0, 0], final=True)
    outcome = master.it.outcome
    assert outcome is not None
    assert (outcome.result, outcome.checkpoint, outcome.step) == ("Suspended", reference(1), 1)


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
    master.it.tick()
    outcome = master.it.outcome
    assert outcome is not None
    assert outcome.checkpoint == reference(8)


def test_desired_workers(tmp_path: Path, clock: Clock) -> None:
    master = Master(tmp_path, clock, workers=3)
    peers = [Peer(master, rank) for rank in range(2)]
    assert peers[0].count(wire.EPOCH) == 0
    master.it.desire(Desired(workers=2))
    assert peers[0].count(wire.EPOCH) == 1


def test_speed_and_time_left(master: Master) -> None:
    first, second = master.running()
    for step in range(1, 4):
        master.clock.now += 1
        first.progress(step, (0, step - 1))
        second.progress(step, (0, step - 1))
    status = master.it.status()
    assert (status.samplesPerSecond, status.percent) == (10, 37)
    assert status.etaSeconds == int(100 * 2 * (1 - 3 / 8) / 10)
