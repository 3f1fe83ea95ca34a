"""The master's decisions over one run: who is in, who trains on what, whose parameters count, how it ends.

It lives in one asyncio task's world: every method runs to its end undisturbed, and only `Link.send` and the store (in
threads) reach out. It is soft state: all of it can be made again from what the workers hold and what the storage holds.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mms_workloads.contract import (
    Activity,
    ArtifactRef,
    CheckpointRef,
    Desired,
    Incident,
    Outcome,
    Reason,
    StatusReport,
    WordEmbedding,
)
from mms_workloads.data import blocks, vocabulary
from mms_workloads.logs import logger
from mms_workloads.pod import Pod, failed
from mms_workloads.store import Found, JobError
from mms_workloads.sync import checkpoints, startup, wire
from mms_workloads.sync import plan as plans
from mms_workloads.sync.counting import Counting
from mms_workloads.sync.leases import Lease, Leases
from mms_workloads.sync.membership import RECOVERY_GRACE_SECONDS, Epoch, Fence, Hello, Membership, Refusal
from mms_workloads.sync.rendezvous import Rendezvous
from mms_workloads.sync.speed import Speed
from mms_workloads.sync.wire import Message

if TYPE_CHECKING:
    from collections.abc import Callable

KEPT_INCIDENTS = 50
# A collective that failed without the loss of a member is tried again in a next epoch. A member's death is noticed by
# its neighbours and by us at about the same time: this is left for us.
BROKEN_GRACE_SECONDS = 1.0


@dataclass(slots=True)
class Link:
    """A worker's control connection."""

    rank: int
    send: Callable[[Message], None]
    close: Callable[[], None]
    plan: str | None = None  # the digest of the plan that it has
    counts: bool = False  # has a counting task


@dataclass(frozen=True, slots=True)
class Held:
    """The state that a member brings. Two of the same lineage and step are the same to the bit."""

    step: int | None  # None: it has none
    lineage: str | None
    applied: list[int] | None


@dataclass(slots=True)
class Forming:
    """How far the newest epoch has come."""

    ready: dict[int, Held] = field(default_factory=dict)  # by rank
    begun: bool = False  # all were ready and know whose state counts
    started: set[int] = field(default_factory=set)  # ranks that have met the others and asked for a block


class Coordinator:
    def __init__(self, pod: Pod, files: list[Found] | None, checkpoint: startup.Checkpointed | None) -> None:
        """files: the data set, where no checkpoint says what it is."""
        job = pod.job
        assert job.task.wordEmbedding is not None  # noqa: S101 - read_pod refused the job file otherwise
        self.pod, self.job = pod, job
        self.task: WordEmbedding = job.task.wordEmbedding
        self.log = logger(job=f"{job.job.namespace}/{job.job.name}", role="master")
        self.membership = Membership(Fence(job.job.uid, job.job.run, pod.attempt), job.workers)
        self.links: dict[int, Link] = {}
        self.plan: bytes | None = None
        self.leases: Leases | None = None
        self.files, self.counting = files, Counting.start(files) if files else None
        self.forming = Forming()
        self.again_at: float | None = None  # when the epoch is given up although nobody was lost
        self.again_why = ""
        self.rendezvous = Rendezvous()
        self.checkpoint = checkpoint.ref if checkpoint else None
        self.checkpoint_progress = checkpoint.applied if checkpoint else None
        self.bad_checkpoints: frozenset[str] = frozenset()
        self.reloading = False  # looking for a checkpoint before a damaged one
        self.checkpoint_due = 0.0
        self.step, self.words, self.exporting = 0, 0, False
        self.speed = Speed()
        self.incidents: deque[Incident] = deque(maxlen=KEPT_INCIDENTS)
        self.suspend = False
        # Workers that trained under a master before this one come back within this time.
        self.survivors_until = time.monotonic() + RECOVERY_GRACE_SECONDS
        self.outcome: Outcome | None = None
        self.ended = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()
        if checkpoint:
            self._adopt_plan(checkpoint.plan).restore(checkpoint.applied)
            self.step = checkpoint.ref.step

    # What arrives

    def hello(self, message: Message, send: Callable[[Message], None], close: Callable[[], None]) -> Link | None:
        """Lets a worker in; None after it was told why not."""
        f = message.fields
        peer = Hello(
            Fence(f["uid"], f["run"], f["attempt"]), f["rank"], f["incarnation"], f["address"], f["epoch"], f["step"]
        )
        answer = self.membership.hello(peer, time.monotonic())
        if isinstance(answer, Refusal):
            self.log.warning("peer refused", rank=peer.rank, incarnation=peer.incarnation, reason=answer.message)
            send(Message(wire.REFUSED, {"message": answer.message}))
            return None
        old = self.links.pop(peer.rank, None)
        if old:
            self._release(old)
            old.send(Message(wire.REFUSED, {"message": "another process of this rank has connected"}))
            old.close()
        if self.membership.recovering_until is None and answer.recovering_until is not None:
            self.step = max(self.step, peer.step or 0)
            self._incident("MasterRestarted", None, "the workers' state is taken up")
        elif self.membership.epoch:
            self._incident("WorkerJoined", peer.rank, "let in by the next membership epoch")
        self.membership = answer
        link = Link(peer.rank, send, close, f["plan"])
        self.links[peer.rank] = link
        send(Message(wire.WELCOME, {"incarnation": self.pod.incarnation}))
        if self.outcome:
            send(Message(wire.BYE, {"outcome": self.outcome.model_dump(mode="json")}))
        elif self.plan is None and f["plan"]:
            send(Message(wire.SEND_PLAN))
        self.log.info("worker joined", rank=peer.rank, incarnation=peer.incarnation, step=peer.step)
        self.tick()
        return link

    def received(self, link: Link, message: Message) -> None:
        if self.links.get(link.rank) is not link:
            return  # a connection that was replaced: nothing it says counts
        self.membership = self.membership.heard(link.rank, time.monotonic())
        handler = self._handlers().get(message.kind)
        if handler:
            handler(link, message)
        if message.kind != wire.HEARTBEAT:
            self.tick()

    def lost(self, link: Link, why: str) -> None:
        """The connection is gone or the worker takes its leave."""
        if self.links.get(link.rank) is not link:
            return
        del self.links[link.rank]
        self._release(link)
        self.membership = self.membership.lose([link.rank])
        if not self.outcome:
            self._incident("WorkerLost", link.rank, why)
            self.log.warning("worker lost", rank=link.rank, why=why, epoch=self.membership.last_number)
        self.tick()

    def desire(self, desired: Desired) -> None:
        self.membership = self.membership.want(desired.workers)
        self.suspend = self.suspend or desired.suspend
        if self.suspend and self.forming.begun:
            self._tell_members(Message(wire.SUSPEND))
        self.tick()

    # What follows from it

    def tick(self) -> None:
        """Does whatever is due now. Called on every event and a few times a second."""
        if self.outcome:
            return
        now = time.monotonic()
        for rank in self.membership.overdue(now):
            link = self.links[rank]
            link.close()
            self.lost(link, "no heartbeat")
            return  # lost() has ticked
        if self.suspend and self._nothing_to_save(now):
            self._suspended(self.checkpoint)
        elif self.plan is None:
            self._deal_counting()
        elif self._next_epoch_due(now):
            self._advance()
        elif self._checkpoint_due(now):
            self.checkpoint_due = now + self.job.checkpoint.intervalSeconds
            self._first_member().send(Message(wire.CHECKPOINT))

    def finish(self, outcome: Outcome) -> None:
        if self.outcome:
            return
        self.outcome = outcome
        self.log.info("run ended", result=outcome.result, reason=outcome.reason, message=outcome.message)
        for link in self.links.values():
            link.send(Message(wire.BYE, {"outcome": outcome.model_dump(mode="json")}))
        self.ended.set()

    def fail(self, error: JobError) -> None:
        self.finish(failed(error, self.step))

    def status(self) -> StatusReport:
        fraction = self.leases.fraction() if self.leases else 0.0
        speed = None if self.exporting else self.speed.words_per_second()
        left = int(self.words * self.job.optimizer.epochs * (1 - fraction) / speed) if speed and fraction < 1 else None
        return StatusReport(
            uid=self.job.job.uid,
            run=self.job.job.run,
            attempt=self.pod.attempt,
            activity=self._activity(),
            epoch=self.membership.epoch.number if self.membership.epoch else 0,
            workersReady=len(self.links),
            step=self.step,
            percent=int(100 * fraction),
            loss=self.speed.loss,
            samplesPerSecond=speed,
            etaSeconds=left,
            checkpoint=self.checkpoint,
            incidents=list(self.incidents),
            outcome=self.outcome,
        )

    # Handlers of messages

    def _handlers(self) -> dict[str, Callable[[Link, Message], None]]:
        return {
            wire.COUNTED: self._counted,
            wire.PLAN: lambda _, m: self._plan_from_worker(m.data),
            wire.READY: self._ready,
            wire.LEASE: self._lease,
            wire.PROGRESS: self._progress,
            wire.BROKEN: self._broken,
            wire.CHECKPOINTED: self._checkpointed,
            wire.CHECKPOINT_INVALID: self._checkpoint_invalid,
            wire.EXPORTED: self._exported,
            wire.FAILED: self._failed,
            wire.LEAVE: lambda link, _: self.lost(link, "it was told to stop"),
            wire.KV_SET: self._kv_set,
            wire.KV_GET: self._kv_get,
        }

    def _counted(self, link: Link, message: Message) -> None:
        link.counts = False
        if self.plan is not None or self.counting is None:
            return
        sizes = {int(k): v for k, v in message.fields["sizes"].items()}
        counts = vocabulary.unpack_counts(message.data)
        self.counting.add(message.fields["task"], counts, sizes, vocabulary.counter_limit(self.task))

    def _plan_from_worker(self, data: bytes) -> None:
        if self.plan is None:
            self._adopt_plan(data)

    def _ready(self, link: Link, message: Message) -> None:
        epoch, f = self.membership.epoch, message.fields
        if epoch is None or f["epoch"] != epoch.number or self.forming.begun:
            return
        self.forming.ready[link.rank] = Held(f["step"], f["lineage"], f["applied"])
        if len(self.forming.ready) == len(epoch.members):
            self._begin(epoch)

    def _lease(self, link: Link, message: Message) -> None:
        if not self._current(message):
            return
        self.forming.started.add(link.rank)
        lease = self.leases.take(link.rank) if self.leases else None
        fields = {"data_epoch": lease.data_epoch, "block": lease.block} if lease else {"block": None}
        link.send(Message(wire.LEASED, {"epoch": message.fields["epoch"], **fields}))

    def _progress(self, _: Link, message: Message) -> None:
        """Every member reports each round; the first report of the next step counts."""
        f = message.fields
        if not self._current(message) or f["step"] != self.step + 1 or self.leases is None:
            return
        self.leases.commit(Lease(*pair) for pair in f["leases"])
        self.step = f["step"]
        self.speed.add(time.monotonic(), f["words"], f["pairs"], f["loss"])
        self.exporting = self.leases.done()

    def _broken(self, link: Link, message: Message) -> None:
        if self._current(message, begun=False) and self.again_at is None:
            self.again_at, self.again_why = time.monotonic() + BROKEN_GRACE_SECONDS, message.fields["why"]
            self.log.info("collective failed", rank=link.rank, why=message.fields["why"])

    def _checkpointed(self, _: Link, message: Message) -> None:
        ref = CheckpointRef.model_validate(message.fields["checkpoint"])
        if self.checkpoint is None or ref.step >= self.checkpoint.step:
            self.checkpoint, self.checkpoint_progress = ref, message.fields["applied"]
        if message.fields["final"] and self.suspend:
            self._suspended(ref)

    def _checkpoint_invalid(self, link: Link, message: Message) -> None:
        if message.fields["uri"] in self.bad_checkpoints:
            return
        self.bad_checkpoints |= {message.fields["uri"]}
        self.reloading = True
        self._incident("CheckpointInvalid", link.rank, f"{message.fields['message']}; the one before it is used")
        self._spawn(self._reload_checkpoint())

    async def _reload_checkpoint(self) -> None:
        found = await asyncio.to_thread(startup.last_checkpoint, self.job.storage, self.bad_checkpoints)
        self.checkpoint, self.checkpoint_progress = (found.ref, found.applied) if found else (None, None)
        self.reloading, self.again_at, self.again_why = False, time.monotonic(), ""
        self.tick()

    def _exported(self, _: Link, message: Message) -> None:
        artifact = ArtifactRef.model_validate(message.fields["artifact"])
        self.finish(
            Outcome(
                result="Complete", reason=Reason.COMPLETE, artifact=artifact, checkpoint=self.checkpoint, step=self.step
            )
        )

    def _failed(self, link: Link, message: Message) -> None:
        f = message.fields
        error = JobError(Reason(f["reason"]), f["message"], retryable=f["retryable"])
        if error.retryable:
            self._incident("WorkerFailed", link.rank, f"{error.reason}: {error.message}")
        else:
            self.fail(error)

    def _kv_set(self, _: Link, message: Message) -> None:
        if self._current(message, begun=False):
            key = message.fields["key"]
            for rank in self.rendezvous.put(key, message.data):
                self._kv_send(self.links[rank], message, message.data)

    def _kv_get(self, link: Link, message: Message) -> None:
        if self._current(message, begun=False):
            value = self.rendezvous.get(message.fields["key"], link.rank)
            if value is not None:
                self._kv_send(link, message, value)

    def _kv_send(self, link: Link, message: Message, value: bytes) -> None:
        fields = {name: message.fields[name] for name in ("epoch", "key")}
        link.send(Message(wire.KV_VALUE, fields, value))

    # Steps of the run

    def _deal_counting(self) -> None:
        if self.counting is None:
            return
        if self.counting.complete():
            try:
                plan = self.counting.plan(self.task, self.job.data.blockBytes)
            except JobError as error:
                self.fail(error)
                return
            self.log.info("counted", files=len(plan.files), vocabulary=len(plan.vocabulary))
            self._adopt_plan(plans.pack(plan))
            self.tick()
            return
        for link in self.links.values():
            number = None if link.counts else self.counting.take(link.rank)
            if number is not None:
                link.counts = True
                segments = [[s.file, s.start, s.end] for s in self.counting.tasks[number]]
                uris = {s.file: self.counting.files[s.file].uri for s in self.counting.tasks[number]}
                link.send(Message(wire.COUNT, {"task": number, "segments": segments, "uris": uris}))

    def _adopt_plan(self, data: bytes) -> Leases:
        plan = plans.unpack(data)
        count = len(plan.blocks())
        optimizer = self.job.optimizer
        self.plan, self.counting = data, None
        self.words = sum(plan.vocabulary.counts)
        self.leases = Leases.start(self.job.data, optimizer.seed, optimizer.epochs, blocks.training(count), count)
        return self.leases

    def _next_epoch_due(self, now: float) -> bool:
        """A loss does not wait. A joiner waits until the members of the epoch that is being formed have met."""
        if self.reloading or not self.membership.members:
            return False
        if self.again_at is not None and now >= self.again_at:
            return True
        epoch = self.membership.epoch
        met = epoch is None or self.membership.broken() or self.forming.started >= {m.rank for m in epoch.members}
        return met and self.membership.ready(now)

    def _checkpoint_due(self, now: float) -> bool:
        running = self.forming.begun and not self.membership.broken() and not self.exporting
        return running and now >= self.checkpoint_due

    def _advance(self) -> None:
        broken, again = self.membership.broken(), self.again_at is not None
        if again and not broken and self.again_why:
            self._incident(
                "EpochRestarted", None, f"its members meet again, since an exchange failed: {self.again_why}"
            )
        urgent = broken or again or not self.forming.begun
        self.membership = self.membership.advance()
        self.forming, self.rendezvous, self.again_at = Forming(), Rendezvous(), None
        if self.leases:
            self.leases.give_back()
        epoch = self.membership.epoch
        assert epoch is not None and self.plan is not None  # noqa: S101, PT018 - advance() made it; tick() saw the plan
        self.log.info("membership epoch", epoch=epoch.number, ranks=[m.rank for m in epoch.members], urgent=urgent)
        members, digest = [[m.rank, m.incarnation, m.address] for m in epoch.members], plans.digest(self.plan)
        for member in epoch.members:
            link = self.links[member.rank]
            if link.plan != digest:
                link.send(Message(wire.PLAN, {}, self.plan))
                link.plan = digest
            link.send(Message(wire.EPOCH, {"epoch": epoch.number, "urgent": urgent, "members": members}))

    def _begin(self, epoch: Epoch) -> None:
        """All members are out of the epoch before: decides whose parameters the new one starts from."""
        assert self.leases is not None  # noqa: S101 - an epoch is made only with a plan
        held = [self.forming.ready[m.rank] for m in epoch.members]
        steps = [h.step for h in held if h.step is not None]
        fields: dict[str, Any] = {"epoch": epoch.number, "source": 0, "checkpoint": None}
        if steps:
            highest = max(steps)
            source = next(i for i, h in enumerate(held) if h.step == highest)
            applied = held[source].applied or []
            equal = all((h.step, h.lineage) == (highest, held[source].lineage) for h in held)
            fields |= {"source": source, "step": highest, "equal": equal}
        elif self.checkpoint and self.checkpoint_progress is not None:
            applied = self.checkpoint_progress
            fields |= {
                "step": self.checkpoint.step,
                "equal": False,
                "checkpoint": self.checkpoint.model_dump(mode="json"),
            }
        else:
            applied = [0] * len(self.leases.applied)
            fields |= {"step": 0, "equal": True}
        self.leases.restore(applied)
        self.step, self.forming.begun = fields["step"], True
        self.exporting = self.leases.done()
        self.checkpoint_due = time.monotonic() + self.job.checkpoint.intervalSeconds
        self.speed.pause()
        # Members that were lost may go on from the same step on their own: what follows here is told apart from that.
        lineage = secrets.token_hex(8)
        self._tell_members(Message(wire.BEGIN, fields | {"applied": applied, "lineage": lineage}))
        if self.suspend:
            self._tell_members(Message(wire.SUSPEND))

    def _nothing_to_save(self, now: float) -> bool:
        """No worker holds parameters: nothing is lost by stopping at once."""
        held = self.membership.epoch is not None or self.membership.recovering_until is not None
        return now >= self.survivors_until and not (self.links and held)

    def _suspended(self, checkpoint: CheckpointRef | None) -> None:
        message = "the run goes on from its checkpoint" if checkpoint else "the run starts from the beginning"
        self.finish(
            Outcome(
                result="Suspended",
                reason=Reason.SUSPENDED,
                message=f"{message} when it is resumed",
                checkpoint=checkpoint,
                step=checkpoint.step if checkpoint else 0,
            )
        )

    # Small things

    def _activity(self) -> Activity:
        if self.outcome:
            return Activity.DONE
        if self.suspend:
            return Activity.SUSPENDING
        if not self.links:
            return Activity.WAITING
        if self.plan is None:
            return Activity.COUNTING
        if not self.forming.begun and self.membership.epoch is None:
            return Activity.WAITING
        return Activity.EXPORTING if self.exporting else Activity.TRAINING

    def _current(self, message: Message, *, begun: bool = True) -> bool:
        epoch = self.membership.epoch
        return epoch is not None and message.fields["epoch"] == epoch.number and (self.forming.begun or not begun)

    def _first_member(self) -> Link:
        assert self.membership.epoch is not None  # noqa: S101 - only asked of a running epoch
        return self.links[self.membership.epoch.members[0].rank]

    def _tell_members(self, message: Message) -> None:
        for member in self.membership.epoch.members if self.membership.epoch else ():
            if member.rank in self.links:
                self.links[member.rank].send(message)

    def _release(self, link: Link) -> None:
        if self.leases:
            self.leases.give_back([link.rank])
        if self.counting:
            self.counting.give_back(link.rank)
        self.rendezvous.forget(link.rank)

    def _incident(self, kind: str, rank: int | None, action: str) -> None:
        self.incidents.append(Incident(time=checkpoints.now(), kind=kind, rank=rank, step=self.step, action=action))

    def _spawn(self, work: Any) -> None:
        async def guarded() -> None:
            try:
                await work
            except JobError as error:
                self.fail(error)
            except Exception as error:  # noqa: BLE001 - nobody waits for the task: without this the run would hang
                self.fail(JobError(Reason.INTERNAL, f"{type(error).__name__}: {error}", retryable=True))

        task = asyncio.get_running_loop().create_task(guarded())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
