"""The process of a parameter shard: what the master says, done to the shard; checkpoints of its part, written."""

from __future__ import annotations

import itertools
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import structlog

from mms_workloads import logs, memory
from mms_workloads import store as stores
from mms_workloads.contract import CheckpointRef, Outcome, Reason
from mms_workloads.pod import Pod, Stopped
from mms_workloads.store import JobError
from mms_workloads.sync import again, checkpoints, optimizers, wire
from mms_workloads.sync import plan as plans
from mms_workloads.sync.control import Announcement, Control, Superseded
from mms_workloads.sync.layout import Layout, Lost, fetches, replica_holder, replica_of
from mms_workloads.sync.leases import Progress
from mms_workloads.sync.severing import Severing
from mms_workloads.sync.shard import Shard
from mms_workloads.sync.shard_client import Unreached
from mms_workloads.sync.shard_forming import HeldShard
from mms_workloads.sync.shard_server import ShardServer
from mms_workloads.sync.shard_tables import PARAMETERS
from mms_workloads.train import checkpoint, learner
from mms_workloads.train.parameter_server import judge
from mms_workloads.train.publisher import Held, Publisher
from mms_workloads.train.state import take
from mms_workloads.transport.channel import Fence, Listener, PeerLost, Refused, Security

if TYPE_CHECKING:
    from torch import Tensor

    from mms_workloads.embedding.learner import EmbeddingLearner
    from mms_workloads.sync.control import Inbox
    from mms_workloads.sync.shard_parts import Part, Standing
    from mms_workloads.sync.shard_state import Snapshot
    from mms_workloads.train.learner import Learner
    from mms_workloads.train.pulse import Pulse
    from mms_workloads.train.state import Tables

# How long a shard that was told to stop waits for a checkpoint of its rows, or to be told that others hold them. A pod
# has 30 s.
STOP_SECONDS = 10.0
NO_ROOM = (
    "raise sync.parameterServer.shards or the shards' memory limit, or make the model smaller (of word vectors lower "
    "dimensions, maxVocabulary or subwords.buckets)"
)
LOOK_SECONDS = 0.5  # how late the end of an epoch may be noticed while another part is being written


class ShardPod:
    def __init__(self, pod: Pod, pulse: Pulse, *, plain: bool) -> None:
        job = pod.job
        assert job.parameterServer is not None  # noqa: S101 - read_pod refused the job file otherwise
        self.pod, self.spec = pod, job.parameterServer
        clear = plain or job.transport == "Plain"
        security = Security.plain() if clear else Security.mutual(pod.tls_dir)
        listener = Listener(pod.ip, security)
        shard = Shard(
            optimizers.of(job.optimizer), job.parameterServer, partial(judge, job.guard), on_lost=self._broken
        )
        self.pulse = pulse
        self.server = ShardServer(shard, listener, security, pod.rank, pod.incarnation)
        self.publisher = Publisher.of(pod, self._published, plain=plain)
        self.control = Control(
            pod,
            f"{pod.ip}:{listener.port}",
            self._holds,
            beat=self._beat,
            plain=plain,
            parameters=self.publisher.address if self.publisher else "",
        )
        self.learner: Learner | None = None
        self.plan_digest = ""
        self.epoch = 0
        self.severing = Severing(lambda: self.control.inbox.stopping or self._newer(self.epoch))
        self.control.on_over = self._over_or_evicted
        # What the shard's state is of; layout 0: it has none.
        self.layout, self.lineage = 0, ""
        self.control.layout = lambda: self.layout
        self.writing: threading.Thread | None = None
        self.begun = 0  # the epoch that began here last
        self.leaving_after: int | None = None  # it ends when its part of a checkpoint of a later epoch is durable

    def run(self) -> Outcome:
        """The outcome that the master gave. Raises JobError, Stopped."""
        with self.control as control:
            try:
                return self._until_told()
            except JobError as error:
                control.send(wire.FAILED, reason=error.reason, message=error.message, retryable=error.retryable)
                raise
            finally:
                self.server.close()

    def stop(self) -> None:
        """The master has its rows saved first, unless they are on others that stay: then it lets it go."""
        if not self.layout:
            self.leave()
            return
        self.leaving_after = self.begun  # what is saved in that epoch may be of before
        self.control.send(wire.STOPPING)
        overdue = threading.Timer(STOP_SECONDS, self.leave)
        overdue.daemon = True
        overdue.start()

    def _over_or_evicted(self) -> None:
        """Others do not reach it: where they have no copy its rows are saved first, or the steps would be lost."""
        box = self.control.inbox
        if box.overdue or (box.evicted and self.spec.replicas > 1):
            self.leave()
        elif box.evicted and self.leaving_after is None:
            self.stop()
        self.severing.look()

    def leave(self) -> None:
        with self.control.changing() as box:
            box.stopping = True
        self.severing.look()

    def _until_told(self) -> Outcome:
        while True:
            box = self.control.wait(self._anything_to_do) and self.control.inbox
            if box.bye:
                bye: Outcome = box.bye
                return bye
            if box.refused:
                raise JobError(Reason.STALE_PEER, f"the master refused this pod: {box.refused}")
            if box.stopping:
                if self.writing:
                    self.writing.join()
                self.control.send(wire.LEAVE)
                raise box.evicted or Stopped
            if box.announcement:
                self._take_part(box.announcement)

    def _take_part(self, announcement: Announcement) -> None:
        self._prepare()
        # What breaks till here is of the epoch before, and is told as such.
        standing = self.server.end_epoch(f"membership epoch {announcement.epoch} begins")
        self.epoch = announcement.epoch
        self.severing.renew()
        structlog.contextvars.bind_contextvars(epoch=self.epoch)
        held = HeldShard(
            self.layout,
            self.lineage,
            standing.step,
            standing.can_go_back,
            standing.progress,
            standing.replica_step,
            standing.replica_progress,
            *self._checksums(standing),
        )
        self.control.send(wire.READY, epoch=self.epoch, held=held.document())
        self.control.wait(lambda box: box.begin or box.stopping or self._newer(self.epoch))
        begin = self.control.inbox.begin
        if begin is None or begin["epoch"] != self.epoch:
            return
        try:
            self._begin(announcement, begin)
        except (PeerLost, Refused, ValueError, Superseded) as error:
            logs.logger().info("epoch not begun", why=str(error))
            self._broken(str(error), error.shards if isinstance(error, Unreached) else ())

    def _checksums(self, standing: Standing) -> tuple[str, str]:
        """Of state and replica, where they are compared. An epoch begins with each checkpoint: it is of a state that
        was found equal to its copy.
        """
        if self.spec.replicas == 1 or self.pod.job.guard.corruption == "Off":
            return "", ""
        return self._checksum("state", standing.step), self._checksum("replica", standing.replica_step)

    def _checksum(self, part: Part, step: int) -> str:
        return " ".join(self.server.shard.checksums(part)[1].values()) if step >= 0 else ""

    def _begin(self, announcement: Announcement, begin: dict[str, Any]) -> None:
        shard, job = self.server.shard, self.pod.job
        self.begun = begin["epoch"]
        fence = Fence(job.job.uid, job.job.run, self.pod.attempt, self.epoch)
        progress = Progress.read(begin["progress"])
        if begin["settle"] and self.layout:
            shard.settle(begin["step"])
        self.server.expect(fence)
        if begin["save"]:
            self._save(shard.begin_snapshot(), begin, progress)
        if begin["final"]:
            return
        if begin["fills"]:
            self._fill("state", begin["state"], begin, announcement)
            self._fill("replica", begin["replica"], begin, announcement)
            self.control.send(wire.FILLED, epoch=self.epoch)
            self.control.wait(lambda box: box.go == self.epoch or box.stopping or self._newer(self.epoch))
            if self.control.inbox.go != self.epoch:
                raise Superseded("the epoch ended before all shards had their rows")
        if begin["state"] is None:
            self.layout = 0  # not part of the layout: what it held is on the others now
            return
        if begin["replica"] is None:
            shard.drop_replica()
        holder = replica_holder(self.pod.rank, begin["shards"])
        replica = (holder, _split(announcement.shards[holder])) if begin["replica"] and holder is not None else None
        step = begin["step"] if begin["settle"] or begin["state"] in {"load", "start"} else None
        members = [(rank, incarnation) for rank, incarnation in begin["members"]]
        self.server.begin_epoch(fence, members, step=step, progress=progress, replica=replica)
        self.layout, self.lineage = begin["shards"], begin["lineage"]
        self.control.send(wire.STARTED, epoch=self.epoch)
        logs.logger().info("epoch begins", shard=self.pod.rank, shards=begin["shards"], step=begin["step"])

    def _fill(self, part: Part, source: str | None, begin: dict[str, Any], announcement: Announcement) -> None:
        """Raises PeerLost, Refused, ValueError, Superseded."""
        if source is None or source == "keep":
            return
        after = self._layout(begin["shards"])
        shard = self.pod.rank if part == "state" else replica_of(self.pod.rank, begin["shards"])
        assert shard is not None  # noqa: S101 - there is a replica only where there are others
        held = ((after.bounds(table.name, shard), table.columns) for table in after.tables)
        size = sum(4 * (stop - start) * columns for (start, stop), columns in held)
        memory.need(size, f"the {part} of one of {begin['shards']} shards", NO_ROOM)
        self.server.shard.prepare(after, shard, part)
        if source == "fetch":
            before = self._layout(begin["before"])
            plan = fetches(before, after, shard, states=begin["states"], replicas=begin["replicas"], near=self.pod.rank)
            if isinstance(plan, Lost):
                raise ValueError(str(plan))
            addresses = {i: _split(address) for i, address in enumerate(announcement.shards) if address}
            self.server.fetch(part, plan, addresses, self.severing.abort)
            return
        bounds = {table.name: after.bounds(table.name, shard) for table in after.tables}
        rooms = {name: self.server.shard.room(part, name, *rows) for name, rows in bounds.items()}
        loaded = self._load(begin, bounds, rooms) if source == "load" else None
        for name, rows in bounds.items():
            take(rooms[name], loaded[name] if loaded else self._learner().initial(name, *rows))
            self.server.shard.filled(part, name, *rows)

    def _load(self, begin: dict[str, Any], bounds: dict[str, tuple[int, int]], rooms: Tables) -> Tables:
        """The shard's rows, in their room where it is contiguous."""
        reference = CheckpointRef.model_validate(begin["checkpoint"])
        try:
            return again.while_away(
                lambda: checkpoint.load(self.pod.job.storage, reference, self.pod.scratch, bounds.__getitem__, rooms),
                self._over,
            )
        except JobError as error:
            if not checkpoints.damaged(error):
                if error.retryable and self._over(0):
                    raise Superseded("the epoch ended before its checkpoint was read") from error
                raise
            self.control.send(wire.CHECKPOINT_INVALID, uri=reference.uri, message=error.message)
            raise Superseded(error.message) from error

    def _save(self, snapshot: Snapshot, begin: dict[str, Any], progress: Progress) -> None:
        """Writes this shard's part while pushes go on, one at a time.

        The last one, of the run or before a shard leaves, waits till it can: without all parts it is none.
        """
        before = self.writing if self.writing and self.writing.is_alive() else None
        if before and not begin["waits"]:
            self.server.shard.drop(snapshot)  # its checkpoint stays without this part; the master asks again
            return
        arguments = (snapshot, begin, progress, before)
        self.writing = threading.Thread(target=self._write, args=arguments, name="checkpoint", daemon=True)
        self.writing.start()

    def _write(
        self, snapshot: Snapshot, begin: dict[str, Any], progress: Progress, before: threading.Thread | None
    ) -> None:
        """A final part is tried until it is durable or its epoch is over. before: one that is being written yet."""
        epoch = begin["epoch"]
        try:
            self.server.shard.complete(snapshot)
            while before and before.is_alive():
                if self._newer(epoch):
                    return
                before.join(LOOK_SECONDS)
            for tries in itertools.count():
                written = self._written(snapshot, begin, progress)
                if written and self._leaves_after(begin):
                    self.leave()
                if written or not (begin["final"] or self._leaves_after(begin)):
                    return
                if self.control.wait(lambda box: box.stopping or self._newer(epoch), again.pause(tries)):
                    return
        finally:
            self.server.shard.drop(snapshot)

    def _leaves_after(self, begin: dict[str, Any]) -> bool:
        """Whether this shard ends when its part of that checkpoint is durable."""
        return self.leaving_after is not None and bool(begin["epoch"] > self.leaving_after)

    def _written(self, snapshot: Snapshot, begin: dict[str, Any], progress: Progress) -> bool:
        """Whether the part is durable; the master is told either way."""
        name, step, parts = checkpoints.folder(begin["step"], begin["lineage"]), begin["step"], begin["shards"]
        job, rank = self.pod.job, self.pod.rank
        others = {}
        if rank == 0:
            others = {
                checkpoints.PROGRESS: checkpoint.progress_file(step, progress),
                checkpoints.PLAN: self.control.inbox.plan or b"",
            }
        target = stores.child(job.storage, f"checkpoints/{name}")
        try:
            place = learner.Place(rank, parts)
            entries = checkpoint.write_part(target, snapshot.tables(), place, others, self.pod.scratch)
        except JobError as error:
            logs.logger().warning("checkpoint failed", step=step, reason=error.reason, message=error.message)
            self.control.send(wire.FAILED, reason=error.reason, message=error.message, retryable=True)
            return False
        logs.logger().info("checkpoint part", folder=name, part=rank, parts=parts)
        files = {file: entry.model_dump() for file, entry in entries.items()}
        self.control.send(
            wire.CHECKPOINTED, folder=name, step=step, parts=parts, part=rank, files=files, final=begin["final"]
        )
        return True

    def _prepare(self) -> None:
        packed = self.control.inbox.plan
        assert packed is not None  # noqa: S101 - the master sends it before any epoch
        digest = plans.digest(packed)
        if self.learner is None or self.plan_digest != digest:
            self.learner, self.plan_digest, self.layout = (
                learner.make(self.pod, plans.unpack(packed), digest),
                digest,
                0,
            )

    def _learner(self) -> Learner:
        assert self.learner is not None  # noqa: S101 - made by _prepare
        return self.learner

    def _layout(self, shards: int) -> Layout:
        return Layout(tuple(self._learner().tables()), shards)

    def _holds(self) -> tuple[int, int | None]:
        return self.epoch, self.server.shard.standing().step if self.layout else None

    def _published(self) -> Held | None:
        """In any thread. The rows are copied between two updates."""
        found, shards, shard = self.learner, self.layout, self.server.shard
        if found is None or not shards or self.pod.rank >= shards:
            return None
        learner_ = cast("EmbeddingLearner", found)
        first, stop = Layout(tuple(learner_.tables()), shards).bounds("vectors", self.pod.rank)

        def vectors() -> Tensor | None:
            try:
                return shard.get("state", "vectors", first, stop, [PARAMETERS])[1].tensors[PARAMETERS]
            except (KeyError, ValueError):  # it is laid out anew meanwhile
                return None

        step = shard.standing().step
        return Held(learner_, self.epoch, self.plan_digest, vectors, step=max(0, step), first=first)

    def _beat(self) -> None:
        self.pulse.beat()
        self.pulse.made(self.server.shard.updates)

    def _broken(self, why: str, shards: tuple[int, ...] = ()) -> None:
        self.control.send(wire.BROKEN, epoch=self.epoch, why=why, shards=shards)

    def _anything_to_do(self, box: Inbox) -> bool:
        return bool(box.stopping or self._newer(self.epoch))

    def _over(self, seconds: float) -> bool:
        """Waits so long; whether the epoch is over, or this pod is to end."""
        return bool(self.control.wait(lambda box: box.stopping or self._newer(self.epoch), seconds))

    def _newer(self, epoch: int) -> bool:
        box = self.control.inbox
        return self.control.newer(epoch) or box.bye is not None or box.refused is not None


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)
