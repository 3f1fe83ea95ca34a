"""The master's decisions over one run: who is in, who trains on what, whose parameters count, how it ends.

It lives in one asyncio task's world: every method runs to its end undisturbed, and only `Link.send` and the store (in
threads) reach out. It is soft state: all of it can be made again from what the workers hold and what the storage holds.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from mms_workloads.contract import (
    Activity,
    ArtifactRef,
    CheckpointRef,
    Desired,
    Incident,
    JobFile,
    Outcome,
    ParameterServer,
    Reason,
    StatusReport,
)
from mms_workloads.data import blocks, vocabulary
from mms_workloads.logs import logger
from mms_workloads.pod import Pod, failed
from mms_workloads.store import Found, JobError
from mms_workloads.sync import checkpoints, startup, wire
from mms_workloads.sync import plan as plans
from mms_workloads.sync.absences import Absences
from mms_workloads.sync.counting import Counting
from mms_workloads.sync.forming import Forming, Held, Restart, decide
from mms_workloads.sync.leases import Leases, Progress, Slice
from mms_workloads.sync.links import Link
from mms_workloads.sync.measures import Measures
from mms_workloads.sync.membership import (
    HEARTBEAT_DEADLINE_SECONDS,
    RECOVERY_GRACE_SECONDS,
    Epoch,
    Fence,
    Hello,
    Membership,
    Refusal,
)
from mms_workloads.sync.saving import Checkpoints, Saving
from mms_workloads.sync.shards import Shards
from mms_workloads.sync.speed import Speed
from mms_workloads.sync.watch import Evict, Fail, Measure, Report, Rollback, Watch, round_of
from mms_workloads.sync.wire import Message

if TYPE_CHECKING:
    from collections.abc import Callable

KEPT_INCIDENTS = 50
# A collective that failed without the loss of a member is tried again in a next epoch. A member's death is noticed by
# its neighbours and by us at about the same time: this is left for us.
BROKEN_GRACE_SECONDS = 1.0


class Coordinator:
    def __init__(self, pod: Pod, files: list[Found] | None, checkpoint: startup.Checkpointed | None) -> None:
        """files: the data set, where no checkpoint says what it is."""
        job = pod.job
        self.pod, self.job = pod, job
        self.log = logger(job=f"{job.job.namespace}/{job.job.name}", role="master")
        self.membership = Membership(Fence(job.job.uid, job.job.run, pod.attempt), job.workers, job.minWorkers)
        self.links: dict[int, Link] = {}  # workers', by rank
        fence = self.membership.fence
        self.shards = Shards.of(job.parameterServer or ParameterServer(), fence) if _served(job) else None
        self.absences = Absences()
        self.plan: bytes | None = None
        self.leases: Leases | None = None
        self.files, self.counting = files, Counting.start(files) if files else None
        self.forming = Forming()
        self.previous: Epoch | None = None  # the membership epoch before
        self.again_at: float | None = None  # when the epoch is given up although nobody was lost
        self.again_why = ""
        self.checkpoints = Checkpoints.of(job, checkpoint)
        self.reloading = False  # looking for a checkpoint before a damaged one
        self.checkpoint_due = 0.0
        self.save_wanted = False  # shards write a checkpoint between two epochs
        self.step, self.exporting = 0, False
        self.speed = Speed()
        self.incidents: deque[Incident] = deque(maxlen=KEPT_INCIDENTS)
        self.measures = Measures(Watch(job.guard), self.checkpoints)
        self.suspend = False
        # Workers that trained under a master before this one come back within this time.
        self.survivors_until = time.monotonic() + RECOVERY_GRACE_SECONDS
        self.outcome: Outcome | None = None
        self.ended = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()
        if checkpoint:
            self._adopt_plan(checkpoint.plan).restore(checkpoint.progress)
            self.step = checkpoint.ref.step

    # What arrives

    def hello(self, message: Message, send: Callable[[Message], None], close: Callable[[], None]) -> Link | None:
        """Lets a worker in; None after it was told why not."""
        f = message.fields
        fence = Fence(f["uid"], f["run"], f["attempt"])
        peer = Hello(fence, f["rank"], f["incarnation"], f["address"], f["epoch"], f["step"])
        if f["role"] == "shard":
            return self._hello_shard(peer, f["plan"], send, close)
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
            self.absences.took_over = time.monotonic()
            self._incident("MasterRestarted", None, "the workers' state is taken up")
        elif self.membership.epoch:
            waits = peer.rank not in {m.rank for m in answer.chosen()}
            action = "stands by for one that is lost" if waits else "let in by the next membership epoch"
            self._incident("WorkerJoined", peer.rank, action)
        self.membership = answer
        link = Link(peer.rank, peer.incarnation, send, close, f["plan"])
        self.links[peer.rank] = link
        self.absences.came("worker", peer.rank)
        send(Message(wire.WELCOME, {"incarnation": self.pod.incarnation}))
        if self.outcome:
            send(Message(wire.BYE, {"outcome": self.outcome.model_dump(mode="json")}))
        elif self.plan is None and f["plan"]:
            send(Message(wire.SEND_PLAN))
        self.log.info("worker joined", rank=peer.rank, incarnation=peer.incarnation, step=peer.step)
        self.tick()
        return link

    def _hello_shard(
        self, peer: Hello, plan: str | None, send: Callable[[Message], None], close: Callable[[], None]
    ) -> Link | None:
        shards = self.shards
        refusal = shards.hello(peer, time.monotonic()) if shards else Refusal("this run has no parameter shards")
        if refusal or shards is None:
            send(Message(wire.REFUSED, {"message": refusal.message if refusal else ""}))
            return None
        old = shards.links.get(peer.rank)
        if old:
            old.send(Message(wire.REFUSED, {"message": "another process of this shard has connected"}))
            old.close()
        link = Link(peer.rank, peer.incarnation, send, close, plan, role="shard")
        shards.links[peer.rank] = link
        self.absences.came("shard", peer.rank)
        send(Message(wire.WELCOME, {"incarnation": self.pod.incarnation}))
        if self.outcome:
            send(Message(wire.BYE, {"outcome": self.outcome.model_dump(mode="json")}))
        elif self.plan is None and plan:
            send(Message(wire.SEND_PLAN))
        self.log.info("shard joined", rank=peer.rank, incarnation=peer.incarnation, step=peer.step)
        self.tick()
        return link

    def received(self, link: Link, message: Message) -> None:
        if self._links(link.role).get(link.rank) is not link:
            return  # a connection that was replaced: nothing it says counts
        if link.role == "shard" and self.shards:
            self.shards.membership = self.shards.membership.heard(link.rank, time.monotonic())
            handler = self._shard_handlers().get(message.kind)
        else:
            self.membership = self.membership.heard(link.rank, time.monotonic())
            handler = self._handlers().get(message.kind)
        if handler:
            handler(link, message)
        if message.kind != wire.HEARTBEAT:
            self.tick()

    def lost(self, link: Link, why: str, *, told: bool = False) -> None:
        """The connection is gone, or the pod takes its leave since it was `told` to end."""
        if self._links(link.role).get(link.rank) is not link:
            return
        if not told:
            self.absences.left(link, self._heard(link))
        if link.role == "shard" and self.shards:
            self.shards.lost(link.rank)
        else:
            del self.links[link.rank]
            self._release(link)
            self.membership = self.membership.lose([link.rank])
        if not self.outcome:
            self._incident("WorkerLost" if link.role == "worker" else "ShardLost", link.rank, why)
            self.log.warning("lost", role=link.role, rank=link.rank, why=why, epoch=self.membership.last_number)
        self.tick()

    def desire(self, desired: Desired) -> None:
        self.membership = self.membership.want(desired.workers, desired.minWorkers)
        self.suspend = self.suspend or desired.suspend
        if self.shards:
            if desired.shards:
                self.shards.membership = self.shards.membership.want(desired.shards)
            self.save_wanted = self.save_wanted or self.suspend
        elif self.suspend and self.forming.begun:
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
        for rank in self.shards.overdue(now) if self.shards else ():
            link = self.shards.links[rank] if self.shards else self.links[rank]
            link.close()
            self.lost(link, "no heartbeat")
            return
        if self.shards and self.membership.epoch:
            self._call_shards(self.membership.epoch, self.shards)
        if self.suspend and self._nothing_to_save(now):
            self._suspended(self.checkpoints.reference)
        elif self.plan is None:
            self._deal_counting()
        elif self._next_epoch_due(now):
            self._advance()
        elif self._checkpoint_due(now):
            self.checkpoint_due = now + self.job.checkpoint.intervalSeconds
            if self.shards:
                self.save_wanted = True  # in the next epoch's beginning, when all shards rest at the same step
                self.tick()
            else:
                self._tell_members(Message(wire.CHECKPOINT))

    def finish(self, outcome: Outcome) -> None:
        if self.outcome:
            return
        self.outcome = outcome
        self.log.info("run ended", result=outcome.result, reason=outcome.reason, message=outcome.message)
        for link in self.all_links():
            link.send(Message(wire.BYE, {"outcome": outcome.model_dump(mode="json")}))
        self.ended.set()

    def fail(self, error: JobError) -> None:
        self.finish(failed(error, self.step))

    def status(self) -> StatusReport:
        fraction = self.leases.fraction() if self.leases else 0.0
        speed = None if self.exporting else self.speed.samples_per_second()
        left = None if self.exporting else self.speed.seconds_left(fraction)
        return StatusReport(
            uid=self.job.job.uid,
            run=self.job.job.run,
            attempt=self.pod.attempt,
            activity=self._activity(),
            epoch=self.membership.epoch.number if self.membership.epoch else 0,
            workersReady=min(len(self.links), self.membership.wanted),
            workersStandby=max(0, len(self.links) - self.membership.wanted),
            shardsReady=len(self.forming.serving & set(self.shards.links)) if self.shards else 0,
            gone=self.absences.all(self._places(), time.monotonic()),
            step=self.step,
            percent=int(100 * fraction),
            loss=self.speed.loss,
            samplesPerSecond=speed,
            etaSeconds=left,
            checkpoint=self.checkpoints.reference,
            incidents=list(self.incidents),
            quarantined=len(self.measures.quarantined),
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
            wire.ANOMALY: self._anomaly,
            wire.LEAVE: lambda link, _: self.lost(link, "it was told to stop", told=True),
        }

    def _shard_handlers(self) -> dict[str, Callable[[Link, Message], None]]:
        return {
            wire.PLAN: lambda _, m: self._plan_from_worker(m.data),
            wire.READY: self._shard_ready,
            wire.FILLED: self._shard_filled,
            wire.STARTED: self._shard_started,
            wire.BROKEN: self._broken,
            wire.CHECKPOINTED: self._checkpointed,
            wire.CHECKPOINT_INVALID: self._checkpoint_invalid,
            wire.FAILED: self._failed,
            wire.LEAVE: lambda link, _: self.lost(link, "it was told to stop", told=True),
        }

    def _counted(self, link: Link, message: Message) -> None:
        link.counts = False
        if self.plan is not None or self.counting is None:
            return
        sizes = {int(k): v for k, v in message.fields["sizes"].items()}
        counts = vocabulary.unpack_counts(message.data)
        task = self.job.task.wordEmbedding
        limit = vocabulary.counter_limit(task) if task else 0
        self.counting.add(message.fields["task"], counts, sizes, limit)

    def _plan_from_worker(self, data: bytes) -> None:
        if self.plan is None:
            self._adopt_plan(data)

    def _ready(self, link: Link, message: Message) -> None:
        epoch, f = self.membership.epoch, message.fields
        if epoch is None or f["epoch"] != epoch.number or self.forming.begun:
            return
        progress = Progress.read(f["progress"]) if f["progress"] else None
        self.forming.ready[link.rank] = Held(f["step"], f["lineage"], progress)
        if self.shards is None and len(self.forming.ready) == len(epoch.members):
            self._begin(epoch)

    def _call_shards(self, epoch: Epoch, shards: Shards) -> None:
        """When all workers are out of the epoch before, and all shards that this one needs are there."""
        ready = len(self.forming.ready) == len(epoch.members) and not self.membership.broken()
        if ready and not self.forming.called and shards.complete() and self.plan:
            self.forming.called = True
            shards.call(epoch, self.plan, plans.digest(self.plan))

    def _shard_ready(self, link: Link, message: Message) -> None:
        epoch, shards = self.membership.epoch, self.shards
        if epoch is None or shards is None or message.fields["epoch"] != epoch.number or self.forming.begun:
            return
        if shards.heard(link.rank, message.fields["held"]):
            self._begin_with_shards(epoch, shards)

    def _shard_filled(self, link: Link, message: Message) -> None:
        if not self._current(message) or self.shards is None:
            return
        self.forming.filled.add(link.rank)
        if self.forming.filled >= set(range(self.shards.layout)):
            self.shards.tell(Message(wire.GO, {"epoch": message.fields["epoch"]}))

    def _shard_started(self, link: Link, message: Message) -> None:
        if not self._current(message) or self.shards is None:
            return
        self.forming.serving.add(link.rank)
        if self.forming.serving >= set(range(self.shards.layout)):
            self.shards.serve()
            self._tell_members(Message(wire.BEGIN, self.forming.told))

    def _lease(self, link: Link, message: Message) -> None:
        """Answered when the rounds that the worker has finished are known here: they may free blocks for it."""
        if self._current(message):
            self.forming.started.add(link.rank)
            self.forming.asking.append((link.rank, message.fields["step"]))
            self._answer_leases()

    def _answer_leases(self) -> None:
        asking, self.forming.asking = self.forming.asking, []
        for rank, step in asking:
            if step > self.step:
                self.forming.asking.append((rank, step))
                continue
            lease = self.leases.take(rank) if self.leases else None
            fraction = self.leases.fraction() if self.leases else 0.0
            fields: dict[str, Any] = {"epoch": self.membership.last_number, "block": None, "fraction": fraction}
            if lease:
                fields |= {"data_epoch": lease.data_epoch, "block": lease.block, "start": lease.start}
            self.links[rank].send(Message(wire.LEASED, fields))

    def _progress(self, link: Link, message: Message) -> None:
        """The first member reports each round. What it could not say before it was lost, the others hold."""
        f, epoch = message.fields, self.membership.epoch
        if self.leases is None or epoch is None:
            return
        if not self._together:
            f = {**f, "step": self.step + 1}  # each worker counts its own
        if f["step"] != self.step + 1:
            return
        slices = [tuple(Slice(*one) for one in each) for each in f["slices"]]
        if not self._current(message):
            # The members hold the round and will say so. What the guard saw of it nobody would tell any more.
            if self.previous and f["epoch"] == self.previous.number and not self.forming.begun:
                self._watch(f, self.previous, link, slices)
            return
        self.leases.commit(s for each in slices for s in each)
        self.step = f["step"]
        self.speed.add(time.monotonic(), self.leases.fraction(), f["samples"], f["weight"], f["loss"])
        self.exporting = self.leases.done()
        self._watch(f, epoch, link, slices)
        self._answer_leases()

    def _watch(self, fields: dict[str, Any], epoch: Epoch, link: Link, slices: list[tuple[Slice, ...]]) -> None:
        ranks = [m.rank for m in epoch.members] if self._together else [link.rank]
        for measure in self.measures.watch.observe(round_of(fields, ranks, slices)):
            self._take(measure)

    def _take(self, measure: Measure) -> None:
        """Does what the guard asks for."""
        match measure:
            case Report(kind, rank, action):
                self._incident(kind, rank, action)
            case Evict(kind, rank, action):
                self._incident(kind, rank, action)
                if rank in self.links:
                    self.links[rank].send(Message(wire.EVICT, {"why": action}))
            case Rollback():
                self._spawn(self._roll_back(measure))
            case Fail(action):
                self.fail(JobError(Reason.TRAINING_DIVERGED, action))

    async def _roll_back(self, wanted: Rollback) -> None:
        """The epoch ends; the next one starts from the last checkpoint before what went wrong."""
        if self.reloading or self.measures.restart or self.leases is None:
            return
        self.reloading = True
        said = await self.measures.roll_back(wanted, self.leases)
        self.reloading = False
        self._incident(wanted.kind, None, said)
        self.again_at, self.again_why = time.monotonic(), ""
        self.tick()

    def _anomaly(self, link: Link, message: Message) -> None:
        f = message.fields
        if news := self.measures.found(f, link.rank):
            self._incident(f["anomaly"], *news)
            if self.leases and self.measures.quarantined >= set(self.leases.blocks):
                self.fail(JobError(Reason.DATA_EMPTY, f"there is nothing to learn in any block: {f['action']}"))

    def _broken(self, link: Link, message: Message) -> None:
        if self._current(message, begun=False) and self.again_at is None:
            self.again_at, self.again_why = time.monotonic() + BROKEN_GRACE_SECONDS, message.fields["why"]
            self.log.info("collective failed", rank=link.rank, why=message.fields["why"])

    def _checkpointed(self, _: Link, message: Message) -> None:
        if saving := self.checkpoints.add(message.fields):
            self._spawn(self._commit_checkpoint(saving))

    async def _commit_checkpoint(self, saving: Saving) -> None:
        ref = await self.checkpoints.commit(saving)
        if ref is None:
            return
        self.log.info("checkpoint", step=ref.step, uri=ref.uri)
        if saving.final and self.suspend:
            self._suspended(ref)
        await self.checkpoints.prune(ref)

    def _checkpoint_invalid(self, link: Link, message: Message) -> None:
        if self.checkpoints.damaged(message.fields["uri"]):
            self.reloading = True
            action = f"{message.fields['message']}; the one before it is used"
            self._incident("CheckpointInvalid", link.rank, action)
            self._spawn(self._reload_checkpoint())

    async def _reload_checkpoint(self) -> None:
        await self.checkpoints.reload()
        self.reloading, self.again_at, self.again_why = False, time.monotonic(), ""
        self.tick()

    def _exported(self, _: Link, message: Message) -> None:
        artifact = ArtifactRef.model_validate(message.fields["artifact"])
        self._spawn(self._prune_runs())
        self.finish(
            Outcome(
                result="Complete",
                reason=Reason.COMPLETE,
                artifact=artifact,
                checkpoint=self.checkpoints.reference,
                step=self.step,
            )
        )

    async def _prune_runs(self) -> None:
        try:
            gone = await asyncio.to_thread(startup.prune_runs, self.job)
        except JobError as error:  # the run is complete all the same
            self.log.warning("old runs stay", reason=error.reason, message=error.message)
        else:
            if gone:
                self.log.info("old runs deleted", runs=gone)

    def _failed(self, link: Link, message: Message) -> None:
        f = message.fields
        error = JobError(Reason(f["reason"]), f["message"], retryable=f["retryable"])
        if error.retryable:
            self._incident("WorkerFailed", link.rank, f"{error.reason}: {error.message}")
        else:
            self.fail(error)

    # Steps of the run

    def _deal_counting(self) -> None:
        if self.counting is None:
            return
        if self.counting.complete():
            try:
                plan = self.counting.plan(self.job.task.wordEmbedding, self.job.data.blockBytes)
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
        trained_on, _ = blocks.split(count, self.job.evaluation.split)
        self.leases = Leases.start(self.job.data, optimizer.seed, optimizer.epochs, trained_on, count)
        return self.leases

    def _next_epoch_due(self, now: float) -> bool:
        """A loss does not wait. A joiner waits until the members of the epoch that is being formed have met."""
        if self.reloading or not self.membership.members:
            return False
        if self.again_at is not None and now >= self.again_at:
            return True
        epoch = self.membership.epoch
        shards = self.shards
        if shards and not shards.complete():
            return False
        broken = self.membership.broken() or bool(shards and shards.broken())
        met = epoch is None or broken or self.forming.started >= {m.rank for m in epoch.members}
        waits = bool(shards and epoch and (shards.broken() or shards.changes() or self.save_wanted))
        return met and (self.membership.ready(now) or (waits and self.membership.enough()))

    def _checkpoint_due(self, now: float) -> bool:
        running = self.forming.begun and not self.membership.broken() and not self.exporting
        return running and now >= self.checkpoint_due

    def _advance(self) -> None:
        lost = bool(self.shards and self.shards.broken())
        broken, again = self.membership.broken() or lost, self.again_at is not None
        if again and not broken and self.again_why:
            self._incident(
                "EpochRestarted", None, f"its members meet again, since an exchange failed: {self.again_why}"
            )
        urgent = broken or again or not self.forming.begun
        self.previous = self.membership.epoch
        self.membership = self.membership.advance()
        self.forming, self.again_at = Forming(), None
        if self.shards:
            self.shards.called = ()
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
            addresses = self.shards.addresses() if self.shards else []
            fields = {"epoch": epoch.number, "urgent": urgent, "members": members, "shards": addresses}
            link.send(Message(wire.EPOCH, fields))

    def _begin(self, epoch: Epoch) -> None:
        """All members are out of the epoch before: decides whose parameters the new one starts from."""
        assert self.leases is not None  # noqa: S101 - an epoch is made only with a plan
        held = [self.forming.ready[m.rank] for m in epoch.members]
        restart = self.measures.take_restart()
        begin = decide([] if restart else held, self.checkpoints.newest, len(self.leases.progress.applied))
        self._go_on_from(begin.step, begin.progress, restart)
        self.forming.begun = True
        self.exporting = self.leases.done()
        self.checkpoint_due = time.monotonic() + self.job.checkpoint.intervalSeconds
        self.speed.pause()
        # Members that were lost may go on from the same step on their own: what follows here is told apart from that.
        lineage = self._new_lineage()
        fields = {"epoch": epoch.number, "lineage": lineage, **begin.fields()}
        self._tell_members(Message(wire.BEGIN, fields))
        if self.suspend:
            self._tell_members(Message(wire.SUSPEND))

    def _go_on_from(self, step: int, progress: Progress, restart: Restart | None) -> None:
        assert self.leases is not None  # noqa: S101 - an epoch is made only with a plan
        self.measures.go_on_from(self.leases, step, progress, restart)
        self.step = step

    def _begin_with_shards(self, epoch: Epoch, shards: Shards) -> None:
        """What the shards hold counts; workers hold nothing that could be lost."""
        assert self.leases is not None  # noqa: S101 - an epoch is made only with a plan
        restart = self.measures.take_restart()
        if odd := shards.corrupt():
            action = f"the rows of {_names(odd)} are not what their replicas are: all go back to the checkpoint"
            self._incident("Corruption", odd[0], action)
        forget = restart is not None or bool(odd)
        begin = shards.decide(len(self.leases.progress.applied), self.checkpoints.newest, forget=forget)
        self._go_on_from(begin.step, begin.progress, restart)
        self.exporting = self.leases.done()
        self.speed.pause()
        rest = set(begin.state) == {"keep"} and shards.agree(begin)
        save = self.save_wanted and rest
        final = save and self.suspend
        lineage = self._new_lineage()
        fields = {
            "epoch": epoch.number,
            "lineage": lineage,
            "save": save,
            "final": final,
            "members": [[m.rank, m.incarnation] for m in epoch.members],
        }
        self.save_wanted = self.suspend and not save
        self.checkpoint_due = time.monotonic() + self.job.checkpoint.intervalSeconds
        shards.begin(begin, fields)
        if final:
            return  # nobody trains any more: what remains is to write
        self.forming.begun = True
        told = {"epoch": epoch.number, "lineage": lineage, "step": begin.step, "progress": begin.progress.document()}
        self.forming.told = {
            **told,
            "source": 0,
            "equal": True,
            "fresh": False,
            "checkpoint": None,
        }  # when all shards have begun

    def _new_lineage(self) -> str:
        lineage = secrets.token_hex(8)
        self.checkpoints.lineages.append(lineage)
        return lineage

    def _nothing_to_save(self, now: float) -> bool:
        """No worker holds parameters: nothing is lost by stopping at once."""
        held = self.membership.epoch is not None or self.membership.recovering_until is not None
        peers = self.links if self.shards is None else self.shards.links
        return now >= self.survivors_until and not (peers and held)

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

    @property
    def _together(self) -> bool:
        """Whether all workers step at the same time."""
        return self.shards is None or self.shards.spec.consistency == "Synchronous"

    def all_links(self) -> list[Link]:
        return [*self.links.values(), *(self.shards.links.values() if self.shards else ())]

    def _links(self, role: str) -> dict[int, Link]:
        return self.shards.links if role == "shard" and self.shards else self.links

    def _heard(self, link: Link) -> float:
        """When a present member was heard of last."""
        membership = self.shards.membership if link.role == "shard" and self.shards else self.membership
        deadlines = (m.deadline - HEARTBEAT_DEADLINE_SECONDS for m in membership.members if m.rank == link.rank)
        return next(deadlines, time.monotonic())

    def _places(self) -> list[tuple[str, int]]:
        workers = [("worker", rank) for rank in range(self.membership.wanted)]
        return workers + [("shard", rank) for rank in range(self.shards.wanted if self.shards else 0)]

    def _activity(self) -> Activity:
        if self.outcome:
            return Activity.DONE
        if self.suspend:
            return Activity.SUSPENDING
        if not self.links or (self.shards and not self.shards.complete()):
            return Activity.WAITING
        if self.plan is None:
            return Activity.COUNTING
        if not self.forming.begun and self.membership.epoch is None:
            return Activity.WAITING
        return Activity.EXPORTING if self.exporting else Activity.TRAINING

    def _current(self, message: Message, *, begun: bool = True) -> bool:
        epoch = self.membership.epoch
        return epoch is not None and message.fields["epoch"] == epoch.number and (self.forming.begun or not begun)

    def _tell_members(self, message: Message) -> None:
        for member in self.membership.epoch.members if self.membership.epoch else ():
            if member.rank in self.links:
                self.links[member.rank].send(message)

    def _release(self, link: Link) -> None:
        if self.leases:
            self.leases.give_back([link.rank])
        if self.counting:
            self.counting.give_back(link.rank)

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


def _names(shards: list[int]) -> str:
    return f"shard{'s' if len(shards) > 1 else ''} {', '.join(map(str, shards))}"


def _served(job: JobFile) -> bool:
    return job.syncMode == "ParameterServer"
