"""The master's decisions, with workers that are lists of what they were told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mms_workloads.contract import Activity, CheckpointRef, Desired, Guard, JobFile, Reason
from mms_workloads.data.vocabulary import pack_counts
from mms_workloads.pod import Pod
from mms_workloads.store import Found
from mms_workloads.sync import coordinator as module
from mms_workloads.sync import plan as plans
from mms_workloads.sync import startup, wire
from mms_workloads.sync.checkpoints import file_entry
from mms_workloads.sync.coordinator import BROKEN_GRACE_SECONDS, Coordinator, Link
from mms_workloads.sync.leases import Progress
from mms_workloads.sync.membership import HEARTBEAT_DEADLINE_SECONDS, RECOVERY_GRACE_SECONDS
from mms_workloads.sync.wire import Message

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
            "uid": "u", "run": 1, "attempt": 1, "role": "worker", "rank": rank, "incarnation": 0,
            "address": f"10.0.0.{rank}", "epoch": 0, "step": None, "plan": None, **hello,
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
        progress = None if applied is None else document(applied)
        self.say(wire.READY, epoch=self.epoch, step=step, progress=progress, lineage=lineage_or_none)

    def lease(self) -> int | None:
        self.say(wire.LEASE, epoch=self.epoch, step=self.master.it.step)
        return self.last(wire.LEASED)["block"]  # type: ignore[no-any-return]

    def progress(self, step: int, *leases: tuple[int, int]) -> None:
        self.say(
            wire.PROGRESS,
            epoch=self.epoch,
            **round_of(step, *leases, members=len(self.master.it.membership.epoch.members)),
        )

    def saved(self, step: int, *applied: int, final: bool = False, folder: str = "a", part: int = 0) -> None:
        """The peer's part of a checkpoint of two, durable in the store."""
        name, storage = f"step-{step:010d}-{folder}", self.master.it.job.storage
        place = Path(storage.uri.removeprefix("file://")) / "checkpoints" / name
        place.mkdir(parents=True, exist_ok=True)
        contents = {f"part-{part}-of-2.safetensors": b"x"}
        if part == 0:
            contents["progress.json"] = json.dumps({"step": step, **document(list(applied))}).encode()
        for file, content in contents.items():
            (place / file).write_bytes(content)
        files = {file: file_entry(place / file).model_dump() for file in contents}
        self.say(wire.CHECKPOINTED, folder=name, step=step, part=part, parts=2, files=files, final=final)


def document(applied: list[int]) -> dict[str, Any]:
    return Progress(applied).document()


def round_of(step: int, *leases: tuple[int, int], members: int = 1, **changes: Any) -> dict[str, Any]:
    """The first member's work, as far as it matters here."""
    rest = members - 1
    return {
        "step": step, "slices": [[[epoch, block, 0, 1, 1] for epoch, block in leases], *[[]] * rest], "samples": 10,
        "weight": 5.0, "loss": 10.0, "of": [10] + [0] * rest, "seconds": [0.0] * members,
        "verdicts": ["Good"] * members, **changes,
    }  # fmt: skip


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
        applied = master.it.leases.progress.applied if master.it.leases else []
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
    assert master.it.leases is not None
    assert (master.it.step, master.it.leases.progress.applied) == (1, [1, 0, 0, 0])


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
    assert master.it.links[1] is new.link


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
        peer.say(wire.PROGRESS, epoch=1, **round_of(1, (0, 0), (0, 1), members=2))
    assert master.it.step == 0
    for peer in (first, second):
        peer.ready(1, [1, 1, 0, 0])
    list(master.it.links.values())
    assert master.it.step == 0  # the joiner is not ready yet
    master.it.received(
        master.it.links[2], Message(wire.READY, {"epoch": 2, "step": None, "progress": None, "lineage": None})
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
    return startup.Checkpointed(reference(step), plans.pack(plan), Progress([1, 1, 0, 0]))


async def settled(master: Master) -> None:
    while tasks := list(master.it.tasks):
        for task in tasks:
            await task


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
    assert status.etaSeconds == int((1 - 3 / 8) / (1 / 8))


# ---- the guard


def anomalous(peer: Peer, step: int, verdict: str, *, loss: float = 10.0, **changes: Any) -> None:
    """A round of two members, whose second has had an anomaly."""
    leases = [(0, step - 1)] if step <= BLOCKS else []
    fields = round_of(step, *leases, members=2, verdicts=["Good", verdict], loss=loss, **changes)
    peer.say(wire.PROGRESS, epoch=peer.epoch, **fields)


def test_an_anomaly_in_the_last_round_of_an_epoch_is_told(master: Master) -> None:
    first, second = master.running()
    first.lease(), second.lease()
    fields = round_of(1, (0, 0), members=2, verdicts=["Good", "NonFinite"])
    master.it.desire(Desired(workers=3))
    Peer(master, 2)
    assert first.epoch == 2
    first.say(wire.PROGRESS, epoch=1, **fields)
    assert (master.it.step, [i.kind for i in master.it.status().incidents if i.kind == "NonFinite"]) == (
        0,
        ["NonFinite"],
    )
    for peer in (first, second):
        peer.ready(1, [1, 0, 0, 0])
    first.say(wire.PROGRESS, epoch=1, **fields)
    assert len([i for i in master.it.status().incidents if i.kind == "NonFinite"]) == 1


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
    master.it.measures.watch.broken = 2  # of steps 2 and 3, of which the checkpoint is
    blocks = [[0, block, 0, 1, 1] for block, passes in enumerate(master.it.leases.progress.applied) if not passes]
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
