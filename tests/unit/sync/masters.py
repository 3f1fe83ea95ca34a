"""A master whose workers and shards are lists of what they were told, and whose clock stands still."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mms_workloads.contract import CheckpointRef, DataFile, JobFile, WordEmbedding
from mms_workloads.data.vocabulary import Vocabulary
from mms_workloads.pod import Pod
from mms_workloads.store import Found
from mms_workloads.sync import claims, startup, wire
from mms_workloads.sync import plan as plans
from mms_workloads.sync.checkpoints import digest
from mms_workloads.sync.claims import Claim
from mms_workloads.sync.coordinator import Coordinator
from mms_workloads.sync.leases import Progress
from mms_workloads.sync.membership import RECOVERY_GRACE_SECONDS
from mms_workloads.sync.wire import Message
from tests.unit.data.words import words_of

if TYPE_CHECKING:
    from mms_workloads.sync.links import Link

BLOCKS = 4


class Clock:
    """Past the time in which workers of a master before this one could come back."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


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
        self.say(wire.LEASE, epoch=self.epoch, step=self.master.it.dispatcher.step)
        return self.last(wire.LEASED)["block"]  # type: ignore[no-any-return]

    def progress(self, step: int, *leases: tuple[int, int]) -> None:
        members = len(self.master.it.workers.membership.epoch.members)
        self.report(self.epoch, round_of(step, *leases, members=members))

    def report(self, epoch: int, *rounds: dict[str, Any]) -> None:
        self.say(wire.PROGRESS, epoch=epoch, rounds=list(rounds))

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
        files = {file: digest(content).model_dump() for file, content in contents.items()}
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
    """changes: of the job file."""

    def __init__(
        self,
        folder: Path,
        clock: Clock,
        *,
        counted: bool = True,
        checkpoint: startup.Checkpointed | None = None,
        claim: Claim | None = None,
        **changes: Any,
    ) -> None:
        self.clock = clock
        job = JobFile.model_validate(
            {
                "job": {"namespace": "n", "name": "words", "uid": "u", "run": 1},
                "task": {"wordEmbedding": {"minCount": 1}},
                "data": {"store": {"uri": "file:///x"}, "blockBytes": 10, "sharding": "Sequential"},
                "optimizer": {"epochs": 2},
                "workers": 2,
                "storage": {"uri": f"file://{folder}"},
                "masterHost": "m",
                **changes,
            }
        )
        pod = Pod("master", 0, 4, 1, "", job, "sha256:0", folder, folder, folder / "log", 0, 0)
        claim = claim or Claim(job.storage, claims.name_of(job, pod.attempt, pod.incarnation))
        self.it = Coordinator(pod, claim, [Found("file:///a.txt", 10 * BLOCKS, None)], checkpoint)
        clock.now += RECOVERY_GRACE_SECONDS + 1
        if counted and self.it.dispatcher.counting:
            self.it.dispatcher.counting.add(0, words_of({"a": 60, "b": 40}), {}, WordEmbedding())

    def running(self, ranks: int = 2) -> list[Peer]:
        """Peers in their first epoch, begun."""
        peers = [Peer(self, rank) for rank in range(ranks)]
        for peer in peers:
            peer.ready()
        return peers

    def kinds(self) -> list[str]:
        return [incident.kind for incident in self.it.incidents]


def reference(step: int, folder: str = "c") -> CheckpointRef:
    return CheckpointRef(uri=f"file:///{folder}/{step}", step=step, digest="sha256:0", time="2026-01-01T00:00:00Z")


def checkpointed(step: int) -> startup.Checkpointed:
    plan = plans.Plan((DataFile(uri="file:///a.txt", size=10 * BLOCKS),), 10, Vocabulary(("a", "b"), (60, 40)))
    return startup.Checkpointed(reference(step), plans.pack(plan), Progress([1, 1, 0, 0]))


async def settled(master: Master) -> None:
    while tasks := list(master.it.tasks):
        await asyncio.gather(*tasks)  # lets the loop run, also where all are done: their callbacks take them off
