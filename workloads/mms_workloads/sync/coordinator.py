"""The master's decisions over one run: who is let in, what is due, how it ends.

It lives in one asyncio task's world: every method runs to its end undisturbed, and only `Link.send` and the store (in
threads) reach out. It is soft state: all of it can be made again from what the workers hold and what the storage holds.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from mms_workloads.contract import (
    ArtifactRef,
    CheckpointRef,
    Desired,
    Incident,
    Outcome,
    ParameterServer,
    PrivacyReport,
    Reason,
)
from mms_workloads.logs import logger
from mms_workloads.pod import Pod, failed
from mms_workloads.store import Found, JobError
from mms_workloads.sync import checkpoints, reports, startup, wire
from mms_workloads.sync.absences import Absences
from mms_workloads.sync.claims import Claim, Replaced
from mms_workloads.sync.dispatcher import Dispatcher
from mms_workloads.sync.epochs import Epochs
from mms_workloads.sync.links import Link
from mms_workloads.sync.measures import Measures
from mms_workloads.sync.membership import RECOVERY_GRACE_SECONDS, Fence, Hello, Membership, Refusal
from mms_workloads.sync.peers import Peers
from mms_workloads.sync.saving import Checkpoints, Saving
from mms_workloads.sync.shards import Shards
from mms_workloads.sync.watch import Evict, Fail, Measure, Report, Rollback, Watch
from mms_workloads.sync.wire import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from mms_workloads.contract import StatusReport, Trainers
    from mms_workloads.sync.keys import Keys

KEPT_INCIDENTS = 50
NOT_AGAIN = (
    "the run would go back and read again what it has made public, and spec.privacy pays for each record once a data "
    "epoch: lower optimizer.learningRate, or restore the checkpoint, and start another run"
)


class Coordinator:
    def __init__(
        self,
        pod: Pod,
        claim: Claim,
        files: list[Found] | None,
        checkpoint: startup.Checkpointed | None,
        keys: Keys | None = None,
    ) -> None:
        """files: the data set, where no checkpoint says what it is. Raises JobError."""
        job = pod.job
        self.pod, self.job = pod, job
        self.log = logger(job=f"{job.job.namespace}/{job.job.name}", role="master")
        fence = Fence(job.job.uid, job.job.run, pod.attempt)
        self.workers = Peers("worker", Membership(fence, job.workers, job.minWorkers))
        served = job.syncMode == "ParameterServer"
        self.shards = Shards.of(job.parameterServer or ParameterServer(), fence) if served else None
        self.peers = {p.role: p for p in (self.workers, *([self.shards.peers] if self.shards else []))}
        self.absences = Absences()
        self.dispatcher = Dispatcher.start(job, files, checkpoint, keys)
        self.checkpoints = Checkpoints.of(job, claim, checkpoint)
        self.searches = 0  # for a checkpoint to go back to: under way, one after the other
        self.search = asyncio.Lock()
        watched = job.guard.deadData != "Off"
        remembered = checkpoint.quarantined if checkpoint and watched else frozenset[int]()
        self.measures = Measures(Watch(job.guard), self.checkpoints, remembered=remembered)
        self.epochs = Epochs(
            self.workers,
            self.shards,
            self.dispatcher,
            self.checkpoints,
            self.measures,
            job.checkpoint.intervalSeconds,
            self._incident,
        )
        self.incidents: deque[Incident] = deque(maxlen=KEPT_INCIDENTS)
        # Workers that trained under a master before this one come back within this time, and so do the last ones whose
        # connections broke.
        self.survivors_until = time.monotonic() + RECOVERY_GRACE_SECONDS
        self.outcome: Outcome | None = None
        self.replaced = False  # another master has claimed the storage: this one ends without an outcome
        self.privacy: PrivacyReport | None = None  # as the first member says
        self.precision: str | None = None  # the same
        self.ended = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()
        self.last_commits = 0  # of checkpoints that the run is suspended with: under way

    # What arrives

    def hello(self, message: Message, send: Callable[[Message], None], close: Callable[[], None]) -> Link | None:
        """Lets a worker or shard in; None after it was told why not."""
        f = message.fields
        fence = Fence(f["uid"], f["run"], f["attempt"])
        peer = Hello(fence, f["rank"], f["incarnation"], f["address"], f["epoch"], f["step"])
        link = Link(
            peer.rank,
            peer.incarnation,
            send,
            close,
            f["plan"],
            role=f["role"],
            pages=f.get("pages", ""),
            parameters=f.get("parameters", ""),
            bf16=f.get("bf16", False),
        )
        peers, before = self.peers.get(link.role), self.workers.membership
        replaced = peers.links.get(link.rank) if peers else None
        refusal = peers.join(link, peer, time.monotonic()) if peers else Refusal("this run has no parameter shards")
        if refusal:
            self.log.warning("peer refused", rank=link.rank, incarnation=link.incarnation, reason=refusal.message)
            send(Message(wire.REFUSED, {"message": refusal.message}))
            return None
        if replaced:
            self._note_loss(replaced, "another connection of its rank takes its place")
        if link.role == "worker":
            self._worker_joined(peer, before)
        else:
            if self.shards:
                self.shards.brings(f.get("layout", 0))
            self.workers.saw(peer.epoch)  # workers and the master may all be others than those that had it
        self.absences.came(link.role, link.rank)
        send(Message(wire.WELCOME, {"incarnation": self.pod.incarnation}))
        if self.outcome:
            send(Message(wire.BYE, {"outcome": self.outcome.model_dump(mode="json")}))
        elif self.dispatcher.plan is None and link.plan:
            send(Message(wire.SEND_PLAN))
        event = "worker joined" if link.role == "worker" else "shard joined"
        self.log.info(event, rank=link.rank, incarnation=link.incarnation, step=peer.step)
        self.tick()
        return link

    def _worker_joined(self, peer: Hello, before: Membership) -> None:
        self.epochs.release(peer.rank)  # what the connection that it replaces had
        membership = self.workers.membership
        if before.recovering_until is None and membership.recovering_until is not None:
            self.dispatcher.step = max(self.dispatcher.step, peer.step or 0)
            self.absences.took_over = time.monotonic()
            self._incident("MasterRestarted", None, "the workers' state is taken up")
        elif membership.epoch:
            waits = peer.rank not in {m.rank for m in membership.chosen()}
            action = "stands by for one that is lost" if waits else "let in by the next membership epoch"
            self._incident("WorkerJoined", peer.rank, action)

    def received(self, link: Link, message: Message) -> None:
        peers = self.peers[link.role]
        if not peers.present(link):
            return
        peers.heard(link.rank, time.monotonic())
        if handler := self._handlers(link.role).get(message.kind):
            handler(link, message)
        if message.kind != wire.HEARTBEAT:
            self.tick()

    def lost(self, link: Link, why: str, *, told: bool = False) -> None:
        """The connection is gone, or the pod takes its leave since it was `told` to end."""
        peers = self.peers[link.role]
        if not peers.present(link):
            return
        if not told:
            self.absences.left(link, peers.heard_last(link.rank))
        peers.lose(link.rank)
        if not told and peers is self._holders and not peers.links:
            self.survivors_until = time.monotonic() + RECOVERY_GRACE_SECONDS  # its connection may be made again
        if link.role == "worker":
            self.epochs.release(link.rank)
        self._note_loss(link, why)
        self.tick()

    def _note_loss(self, link: Link, why: str) -> None:
        if not self.outcome:
            self._incident("WorkerLost" if link.role == "worker" else "ShardLost", link.rank, why)
            epoch = self.workers.membership.last_number
            self.log.warning("lost", peer=link.role, rank=link.rank, why=why, epoch=epoch)

    def desire(self, desired: Desired) -> None:
        self.workers.want(desired.workers, desired.minWorkers)
        if self.shards and desired.shards:
            self.shards.peers.want(desired.shards)
        if desired.suspend or self.epochs.suspending:
            self.epochs.suspend()
        self.tick()

    # What follows from it

    def tick(self) -> None:
        """Does whatever is due now. Called on every event and a few times a second."""
        if self.outcome:
            return
        now = time.monotonic()
        for peers in self.peers.values():
            for link in peers.overdue(now):
                link.close()
                self.lost(link, "no heartbeat")
                return  # lost() has ticked
        self.epochs.call_shards()
        self.epochs.watch(now)
        self._release(now)
        if self.epochs.suspending and self._nothing_to_save(now):
            self._suspended(self.checkpoints.reference)
        elif self.dispatcher.plan is None:
            self._count()
        elif not self.searches and self.epochs.due(now):
            self.epochs.advance()
        elif self.epochs.save_due(now):
            if late := self.checkpoints.ask(now):
                self._incident("CheckpointLate", None, late)
            self.epochs.save(now)
            if self.shards:
                self.tick()  # they save in a next epoch

    def _release(self, now: float) -> None:
        """Who was told to stop, and holds nothing that is needed, need not wait for another epoch."""
        for rank, link in self.workers.links.items():
            if link.stopping and self.epochs.goes_on_without(rank):
                link.stopping = False
                link.send(Message(wire.LEAVE))
        if self.shards:
            self.shards.release(self.epochs.forming.serving, now)

    def finish(self, outcome: Outcome) -> None:
        if self.outcome:
            return
        self.outcome = outcome
        self.log.info("run ended", result=outcome.result, reason=outcome.reason, message=outcome.message)
        for peers in self.peers.values():
            peers.tell(Message(wire.BYE, {"outcome": outcome.model_dump(mode="json")}))
        self.ended.set()

    def fail(self, error: JobError) -> None:
        self.finish(failed(error, self.dispatcher.step))

    def needed(self) -> bool:
        """Pods are about to leave, or a checkpoint is being made: steps would be lost if the master left before."""
        leaving = any(link.stopping for peers in self.peers.values() for link in peers.links.values())
        return leaving or bool(self.tasks) or self.epochs.saving()

    # What it says, for whoever asks

    def status(self) -> StatusReport:
        return reports.status(self, time.monotonic())

    def trainers(self) -> Trainers:
        return reports.trainers(self)

    # Handlers of messages

    def _handlers(self, role: str) -> dict[str, Callable[[Link, Message], None]]:
        epochs, now = self.epochs, time.monotonic()
        both: dict[str, Callable[[Link, Message], None]] = {
            wire.PLAN: lambda _, m: self.dispatcher.adopt(m.data),
            wire.BROKEN: lambda link, m: epochs.broken(link, m, now),
            wire.CHECKPOINTED: self._checkpointed,
            wire.CHECKPOINT_INVALID: self._checkpoint_invalid,
            wire.FAILED: self._failed,
            wire.STOPPING: self._stopping,
            wire.LEAVE: lambda link, _: self.lost(link, "it was told to stop", told=True),
        }
        if role == "shard":
            return {
                **both,
                wire.READY: lambda link, m: epochs.shard_ready(link, m, now),
                wire.FILLED: epochs.shard_filled,
                wire.STARTED: lambda link, m: epochs.shard_started(link, m, now),
            }
        return {
            **both,
            wire.COUNTED: self._counted,
            wire.READY: self._ready,
            wire.LEASE: epochs.lease,
            wire.KEY: self._key,
            wire.PROGRESS: self._progress,
            wire.EXPORTED: self._exported,
            wire.ANOMALY: self._anomaly,
        }

    def _stopping(self, link: Link, _: Message) -> None:
        link.stopping = True
        if self.shards and link.role == "shard":
            self.shards.told_to_stop(self.epochs.forming.serving, time.monotonic())

    def _counted(self, link: Link, message: Message) -> None:
        try:
            self.dispatcher.counted(link, message)
        except JobError as error:
            self.fail(error)

    def _ready(self, link: Link, message: Message) -> None:
        """A worker that trained under a master before this one says, too, which blocks it found dead."""
        for block, action in message.fields.get("dead", ()):
            self._found({"anomaly": "DeadData", "rank": None, "block": block, "action": action}, link.rank)
        if not self.outcome:
            self.epochs.ready(link, message, time.monotonic())

    def _key(self, link: Link, message: Message) -> None:
        block = int(message.fields["block"])
        key = self.dispatcher.key(link.rank, block)
        if key is None:
            self.log.warning("block key refused", rank=link.rank, block=block)
        link.send(Message(wire.KEYS, {"keys": {block: key} if key else {}, "refused": [] if key else [block]}))

    def _progress(self, link: Link, message: Message) -> None:
        number, rounds = message.fields["epoch"], message.fields["rounds"]
        for fields in rounds:
            this = self.epochs.progress(link, number, fields, time.monotonic())
            if this is None:
                continue
            if said := fields.get("privacy"):
                self.privacy = PrivacyReport.model_validate(said)
            self.precision = fields.get("precision", self.precision)
            for measure in self.measures.watch.observe(this):
                self._take(measure)
        self.epochs.answer_leases()

    def _take(self, measure: Measure) -> None:
        """Does what the guard asks for."""
        match measure:
            case Report(kind, rank, action):
                self._incident(kind, rank, action)
            case Evict(kind, rank, action):
                self._incident(kind, rank, action)
                self.workers.tell(Message(wire.EVICT, {"why": action, "reason": Reason.WORKER_UNSOUND}), [rank])
            case Rollback() if self.job.privacy:
                self.fail(JobError(Reason.TRAINING_DIVERGED, f"{measure.kind}: {NOT_AGAIN}"))
            case Rollback():
                self._search(self._roll_back(measure))
            case Fail(action):
                self.fail(JobError(Reason.TRAINING_DIVERGED, action))

    async def _roll_back(self, wanted: Rollback) -> None:
        """The next epoch starts from the last checkpoint before what went wrong."""
        leases = self.dispatcher.leases
        if self.measures.restart or leases is None:
            return  # another member's report had it done
        self._incident(wanted.kind, None, await self.measures.roll_back(wanted, leases))

    def _anomaly(self, link: Link, message: Message) -> None:
        self._found(message.fields, link.rank)

    def _found(self, anomaly: dict[str, Any], rank: int) -> None:
        leases = self.dispatcher.leases
        if news := self.measures.found(anomaly, rank):
            self._incident(anomaly["anomaly"], *news)
            if leases and self.measures.quarantined >= set(leases.blocks):
                self.fail(JobError(Reason.DATA_EMPTY, f"there is nothing to learn in any block: {anomaly['action']}"))

    def _checkpointed(self, _: Link, message: Message) -> None:
        if saving := self.checkpoints.add(message.fields):
            self._spawn(self._commit_checkpoint(saving))

    async def _commit_checkpoint(self, saving: Saving) -> None:
        self.last_commits += saving.final
        try:
            ref = await self.checkpoints.commit(saving, self.measures.dead, self._not_committed)
        finally:
            self.last_commits -= saving.final
        if ref is None:
            return
        self.log.info("checkpoint", step=ref.step, uri=ref.uri)
        if saving.final and self.epochs.suspending:
            self._suspended(ref)
        await self.checkpoints.prune(ref)

    def _not_committed(self, error: JobError) -> None:
        self.log.warning("checkpoint failed", reason=error.reason, message=error.message)
        self._incident("CheckpointFailed", None, f"{error.reason}: {error.message}")

    def _checkpoint_invalid(self, link: Link, message: Message) -> None:
        if self.job.privacy:
            self.fail(JobError(Reason.ARTIFACT_CORRUPT, f"{message.fields['message']}: {NOT_AGAIN}"))
        elif self.checkpoints.damaged(message.fields["uri"]):
            action = f"{message.fields['message']}; the one before it is used, unless a member holds what was in it"
            self._incident("CheckpointInvalid", link.rank, action)
            self._search(self.checkpoints.reload())

    def _failed(self, link: Link, message: Message) -> None:
        f = message.fields
        error = JobError(Reason(f["reason"]), f["message"], retryable=f["retryable"])
        if error.retryable:
            self._incident("WorkerFailed", link.rank, f"{error.reason}: {error.message}")
        else:
            self.fail(error)

    # How it ends

    def _exported(self, _: Link, message: Message) -> None:
        artifact = ArtifactRef.model_validate(message.fields["artifact"])
        if self.measures.watch.waiting:
            self._given_up(artifact)
        else:
            self._spawn(self._complete(artifact, self.measures.watch.rollbacks))

    async def _complete(self, artifact: ArtifactRef, rollbacks: int) -> None:
        await self.checkpoints.check()
        if self.measures.watch.rollbacks > rollbacks:
            self._given_up(artifact)
            return
        self.finish(
            Outcome(
                result="Complete",
                reason=Reason.COMPLETE,
                artifact=artifact,
                checkpoint=self.checkpoints.reference,
                step=self.dispatcher.step,
            )
        )
        await self._prune_runs()

    def _given_up(self, artifact: ArtifactRef) -> None:
        """The run goes back behind what was exported."""
        self.log.warning("artifact given up", uri=artifact.uri)

    async def _prune_runs(self) -> None:
        try:
            gone = await asyncio.to_thread(startup.prune_runs, self.job)
        except JobError as error:  # the run is complete all the same
            self.log.warning("old runs stay", reason=error.reason, message=error.message)
        else:
            if gone:
                self.log.info("old runs deleted", runs=gone)

    def _nothing_to_save(self, now: float) -> bool:
        """Nobody holds parameters: nothing is lost by stopping at once."""
        membership = self.workers.membership
        held = membership.epoch is not None or membership.recovering_until is not None
        return now >= self.survivors_until and not (self._holders.links and held) and not self.last_commits

    @property
    def _holders(self) -> Peers:
        """Those that hold the parameters."""
        return self.shards.peers if self.shards else self.workers

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

    def _count(self) -> None:
        try:
            complete = self.dispatcher.count(self.workers.links.values())
        except JobError as error:
            self.fail(error)
            return
        if complete:
            self.tick()

    def _incident(self, kind: str, rank: int | None, action: str) -> None:
        step = self.dispatcher.step
        self.incidents.append(Incident(time=checkpoints.now(), kind=kind, rank=rank, step=step, action=action))

    def _search(self, work: Coroutine[Any, Any, None]) -> None:
        """Has a checkpoint to go back to found. The epoch ends; the next one waits for it."""
        self.searches += 1
        self._spawn(self._in_turn(work))

    async def _in_turn(self, work: Coroutine[Any, Any, None]) -> None:
        async with self.search:
            await work
        self.searches -= 1
        self.epochs.restart(time.monotonic())
        self.tick()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        async def guarded() -> None:
            try:
                await work
            except JobError as error:
                self.fail(error)
            except Replaced as error:
                self.log.warning("replaced", why=str(error))
                self.replaced = True
                self.ended.set()
            except Exception as error:  # noqa: BLE001 - nobody waits for the task: without this the run would hang
                self.fail(JobError(Reason.INTERNAL, f"{type(error).__name__}: {error}", retryable=True))

        task = asyncio.get_running_loop().create_task(guarded())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
