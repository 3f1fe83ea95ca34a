"""The worker: connect, count, then join membership epochs and train in them until the master says how the run ended."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import structlog

from mms_workloads import artifact, contract, logs, memory
from mms_workloads.contract import CheckpointRef, Outcome, Reason
from mms_workloads.data import corpus, keyring, pages, readers, records, vocabulary
from mms_workloads.data.blocks import Segment
from mms_workloads.data.pages import Pages
from mms_workloads.embedding.pulled import PulledState
from mms_workloads.embedding.state import EmbeddingState
from mms_workloads.pod import Pod, Stopped
from mms_workloads.store import JobError
from mms_workloads.sync import again, checkpoints, claims, wire
from mms_workloads.sync import plan as plans
from mms_workloads.sync.control import Announcement, Control, Superseded
from mms_workloads.sync.layout import Layout
from mms_workloads.sync.leases import Progress
from mms_workloads.sync.severing import Severing
from mms_workloads.sync.shard_client import ShardClient, Unreached
from mms_workloads.tasks import unfit
from mms_workloads.train import checkpoint, cpu, device, learner, precision, state
from mms_workloads.train.checkpoints import Checkpointer
from mms_workloads.train.guarding import Guarding, PartedError
from mms_workloads.train.learner import Place
from mms_workloads.train.leasing import Leaser
from mms_workloads.train.lender import Lender
from mms_workloads.train.loop import Left, run_rounds
from mms_workloads.train.parameter_server import ParameterServer
from mms_workloads.train.publisher import Held, Publisher
from mms_workloads.train.ring import Ring
from mms_workloads.transport.channel import Fence, Greeting, Listener, PeerLost, Refused, Security, connect
from mms_workloads.transport.ring import RingTransport
from mms_workloads.transport.staged import StagedRing

if TYPE_CHECKING:
    from mms_workloads.embedding.learner import EmbeddingLearner
    from mms_workloads.sync.control import Inbox
    from mms_workloads.train.communicator import Communicator
    from mms_workloads.train.learner import Learner
    from mms_workloads.train.pulse import Pulse
    from mms_workloads.train.state import State

BYE_SECONDS = 30.0  # how long a worker that failed waits for the master to hear of it
# Two peers that live connect in milliseconds; when one dies meanwhile the master announces the next epoch before this.
FORMING_SECONDS = 30.0
MORE_SECONDS = 0.5  # for those after one that was not reached: which ones they are, tells whose fault it is
PAGES_BYTES = 2 << 30  # of what was read, that is kept where nobody says how much
MOST_LOGGED = 1000  # bad records, of a worker
# How long a worker that was told to stop between two epochs waits for the next one: it may be the last that holds the
# parameters. Other members leave within a round, and a pod has 30 s.
STOP_SECONDS = 10.0


class Worker:
    def __init__(self, pod: Pod, pulse: Pulse, *, plain: bool) -> None:
        self.pod, self.pulse = pod, pulse
        clear = plain or pod.job.transport == "Plain"
        self.security = Security.plain() if clear else Security.mutual(pod.tls_dir)
        self.listener = Listener(pod.ip, self.security)
        self.state: State | None = None
        self.learner: Learner | None = None
        self.plan: plans.Plan | None = None
        self.plan_digest = ""
        self.dead: dict[int, str] = {}  # blocks of the plan that there is nothing to learn from, and why
        self.suspects: set[int] = set()  # blocks of which one has samples whose gradient is not finite: see Leaser
        self.communicator: Communicator | None = None
        self.epoch = 0
        self.given = False  # what this worker holds is durable, or others hold it, too
        self.lender = self._lend(plain=plain)
        self.publisher = Publisher.of(pod, self._published, plain=plain)
        self.control = Control(
            pod,
            f"{pod.ip}:{self.listener.port}",
            self._holds,
            beat=self.pulse.beat,
            plain=plain,
            pages=self.lender.address if self.lender else "",
            parameters=self.publisher.address if self.publisher else "",
            bf16=precision.supported(),
        )
        self.severing = Severing(lambda: self.control.urgent(self.epoch))
        self.control.on_over = self.severing.look
        keyring.HELD.ask = self.control.ask_key
        self.guarding = Guarding(pod.job.guard)
        self.logged = 0  # bad records
        self.reader = ThreadPoolExecutor(1, thread_name_prefix="reader")
        self.saver = Checkpointer(pod.job, self.control, pod.scratch)

    def _lend(self, *, plain: bool) -> Lender | None:
        """What is read of a store that is no mounted folder is kept, and lent to the other workers."""
        data, volume = self.pod.job.data, pages.HELD.volume
        volume.limit = data.cacheBytes or math.inf
        volume.pages_limit = data.cacheBytes or PAGES_BYTES
        if data.store.uri.startswith("file://"):
            return None
        held = Pages(self.pod.scratch / "pages", volume, data.blockBytes, pages.HELD.peers)
        lender = Lender(self.pod, held.kept, plain=plain)
        pages.HELD.pages, pages.HELD.peers.ask = held, lender.ask
        return lender

    def run(self) -> Outcome:
        """The outcome that the master gave. Raises JobError, Stopped."""
        with self.control as control:
            try:
                return self._until_told()
            except JobError as error:
                control.send(wire.FAILED, reason=error.reason, message=error.message, retryable=error.retryable)
                if not error.retryable and error.reason is not Reason.STALE_PEER:
                    bye = control.wait(lambda box: box.bye, BYE_SECONDS)
                    if bye:
                        return Outcome.model_validate(bye)
                raise

    def stop(self) -> None:
        """At the next round boundary: the lease goes back with it."""
        with self.control.changing() as box:
            box.stopping = True
        self.control.send(wire.STOPPING)
        overdue = threading.Timer(STOP_SECONDS, self._overdue)
        overdue.daemon = True
        overdue.start()

    def _overdue(self) -> None:
        with self.control.changing() as box:
            box.overdue = True

    def _may_leave(self) -> bool:
        """It was told to stop, and nothing is lost with it that could be kept."""
        box, served = self.control.inbox, self.pod.job.parameterServer is not None
        return box.stopping and (box.overdue or self.given or served or self._held() is None)

    def _until_told(self) -> Outcome:
        while True:
            box = self.control.wait(self._anything_to_do) and self.control.inbox
            if box.bye:
                bye: Outcome = box.bye
                return bye
            if box.refused:
                raise JobError(Reason.STALE_PEER, f"the master refused this pod: {box.refused}")
            if box.evicted:
                raise box.evicted
            if self._may_leave():
                self.control.send(wire.LEAVE)
                raise Stopped
            if box.tasks:
                self._count(box.tasks.popleft())
            elif box.announcement and self.control.newer(self.epoch):
                self._take_part(box.announcement)

    def _take_part(self, announcement: Announcement) -> None:
        """One membership epoch, from the report of what this worker holds to the end of the epoch."""
        self.epoch = announcement.epoch
        self.severing.renew()
        structlog.contextvars.bind_contextvars(epoch=self.epoch)
        session = self.control.session
        place = Place(announcement.ranks.index(self.pod.rank), len(announcement.ranks))
        served = self.pod.job.parameterServer is not None
        try:
            self._prepare()
            held = self._held()
            self.control.send(
                wire.READY,
                epoch=self.epoch,
                step=held.agreement.step if held else None,
                lineage=held.agreement.lineage if held else None,
                progress=held.agreement.progress.document() if held else None,
                dead=list(self.dead.items()),
            )
            self.control.wait(lambda box: box.begin or self._may_leave() or self._newer(self.epoch))
            begin = self.control.inbox.begin
            if begin is None or begin["epoch"] != self.epoch:
                return
            left = self._train(announcement, place, begin)
            if left is Left.FINISHED and place.position == 0 and isinstance(self.communicator, ParameterServer):
                self._gather(self.communicator)
        except (Superseded, PeerLost, Refused, PartedError) as error:
            logs.logger().info("left the epoch", why=str(error))
            self._leave()
            if self.state:
                self.state.reset()
            if isinstance(error, PartedError):
                self._part(error)
            places = error.places if isinstance(error, PeerLost) else ()
            unreached = [announcement.ranks[place] for place in places]
            shards = error.shards if isinstance(error, Unreached) else ()
            self.control.send(wire.BROKEN, epoch=self.epoch, why=str(error), unreached=unreached, shards=shards)
            self.control.wait(lambda _: self._may_leave() or self._newer(self.epoch))
            return
        assert self.state is not None  # noqa: S101 - made by _agree
        self._leave()
        if served and left is not Left.FINISHED:
            return
        if left in {Left.SUSPEND, Left.ALL_STOP}:
            self.given = self.saver.save_last(self.state, place, lambda: self._newer(self.epoch))
        elif left is Left.FINISHED and place.position == 0:
            self.given = self._export(self.state, session)
        else:
            self.given = left is not Left.NEWER_EPOCH

    def _gather(self, communicator: ParameterServer) -> None:
        """What this worker exports. Raises PeerLost, JobError."""
        assert self.state is not None  # noqa: S101 - made by _agree
        try:
            communicator.gather(self.state, self.pod.scratch)
        except OSError as error:
            raise JobError(
                Reason.INTERNAL, f"there is no room for the artifact in this pod's scratch folder: {error.strerror}"
            ) from error

    def _part(self, error: PartedError) -> None:
        """What this worker holds may be damaged. Raises JobError where that is certain."""
        self.control.send(
            wire.ANOMALY, anomaly="Corruption", rank=None, block=None, action=str(error), epoch=self.epoch
        )
        if not error.odd:
            return
        self.state = None
        if error.parting.majority:
            raise JobError(
                Reason.WORKER_UNSOUND, f"{error}; this worker is outvoted, and its pod is replaced", retryable=True
            )

    def _train(self, announcement: Announcement, place: Place, begin: dict[str, Any]) -> Left:
        assert self.learner is not None  # noqa: S101 - made by _prepare
        job = self.pod.job
        # The shards may have begun in another layout than was announced.
        announcement = replace(announcement, shards=tuple(begin.get("shards", announcement.shards)))
        self.communicator = communicator = self._connect(announcement, place)
        if self.control.urgent(self.epoch):
            raise Superseded("a member was lost while the epoch was formed")
        own = self._agree(communicator, begin)
        self.given = False
        alone = job.parameterServer is not None and job.parameterServer.consistency != "Synchronous"
        own.agreement.told = 0.0 if alone else None
        communicator.attach(own)
        logs.logger().info("epoch begins", ranks=announcement.ranks, step=own.agreement.step)
        leaser = Leaser(
            self.control,
            self.epoch,
            self.learner,
            own.agreement,
            self.reader,
            members=place.members,
            mixed=self.learner.mixed(place),
            alone=alone,
            dead=self.dead,
            suspects=self.suspects,
        )
        leads = place.position == 0
        if alone:
            place = Place(0, self.learner.job.workers)  # the same share whoever is there: see Leaser
        try:
            return run_rounds(
                self.learner,
                own,
                place,
                communicator=communicator,
                leaser=leaser,
                control=self.control,
                epoch=self.epoch,
                saver=self.saver,
                pulse=self.pulse,
                guard=job.guard,
                leads=leads,
            )
        finally:
            leaser.close()

    def _connect(self, announcement: Announcement, place: Place) -> Communicator:
        pod, job = self.pod, self.pod.job
        fence = Fence(job.job.uid, job.job.run, pod.attempt, announcement.epoch)
        if job.parameterServer is not None:
            return self._connect_to_shards(announcement, fence, job.parameterServer, place.position)
        transport = RingTransport.form(
            place.position,
            [_split(address) for address in announcement.addresses],
            self.listener,
            self.security,
            fence,
            rank=pod.rank,
            incarnation=pod.incarnation,
            abort=self.severing.abort,
            timeout=FORMING_SECONDS,
        )
        own = device.chosen()
        collectives = transport if own == device.CPU else StagedRing(transport, own)
        return Ring(collectives, job.compression, self.guarding)

    def _connect_to_shards(
        self, announcement: Announcement, fence: Fence, spec: contract.ParameterServer, place: int
    ) -> ParameterServer:
        assert self.learner is not None  # noqa: S101 - made by _prepare
        greeting = Greeting(fence, "worker", self.pod.rank, self.pod.incarnation, "push")
        abort, clients = self.severing.abort, list[ShardClient]()
        lost: dict[int, PeerLost] = {}
        for shard, address in enumerate(announcement.shards):
            seconds = MORE_SECONDS if lost else FORMING_SECONDS
            try:
                clients.append(ShardClient(connect(*_split(address), self.security, greeting, abort, seconds)))
            except PeerLost as error:
                lost[shard] = error
        if lost:
            for client in clients:
                client.channel.close()
            raise Unreached("; ".join(map(str, lost.values())), () if abort.is_set() else tuple(lost))
        layout = Layout(tuple(self.learner.tables()), len(clients))
        synchronous = spec.consistency == "Synchronous"
        return ParameterServer(
            clients, layout, self.pod.job.compression, self.guarding, position=place, synchronous=synchronous
        )

    def _agree(self, communicator: Communicator, begin: dict[str, Any]) -> State:
        """All members start from the state that the master chose."""
        assert self.learner is not None  # noqa: S101 - made by _prepare
        if self._held() is None or begin["fresh"]:
            self.state = self.learner.start()
        assert self.state is not None  # noqa: S101 - see above
        if self.pod.job.parameterServer is not None:
            communicator.share(self.state, begin["source"])
        elif begin["checkpoint"]:
            # Each member reads it for itself: object stores and page caches give it to all as soon as to one, and it
            # depends on no peer. A single server's link carries it once for each.
            self._load(self.state, CheckpointRef.model_validate(begin["checkpoint"]))
        elif not begin["equal"]:
            communicator.share(self.state, begin["source"])
        state.agree(self.state, begin["step"], begin["lineage"], Progress.read(begin["progress"]))
        return self.state

    def _load(self, own: State, reference: CheckpointRef) -> None:
        """Raises Superseded when the checkpoint is damaged: the master then takes the one before."""
        self.saver.forget()  # what is read takes its place
        try:
            again.while_away(
                lambda: own.adopt(
                    checkpoint.load(self.pod.job.storage, reference, self.pod.scratch, into=own.tables())
                ),
                self._over,
            )
        except JobError as error:
            self.state = None  # it may be written in part
            if not checkpoints.damaged(error):
                if error.retryable and self._over(0):
                    raise Superseded("the epoch ended before its checkpoint was read") from error
                raise
            self.control.send(wire.CHECKPOINT_INVALID, uri=reference.uri, message=error.message)
            raise Superseded(error.message) from error

    def _prepare(self) -> None:
        """What follows from the plan, once: a master that had nothing of it left may have counted changed data anew."""
        packed = self.control.inbox.plan
        assert packed is not None  # noqa: S101 - the master sends it before any epoch
        digest = plans.digest(packed)
        if self.learner is None or self.plan_digest != digest:
            self.state, self.plan, self.plan_digest, self.dead = None, plans.unpack(packed), digest, {}
            self.suspects = set()
            self.learner = learner.make(self.pod, self.plan, digest)
            if self.pod.job.task.wordEmbedding is None:
                memory.keep()

    def _count(self, message: wire.Message) -> None:
        fields, job = message.fields, self.pod.job
        uris = {int(k): v for k, v in fields["uris"].items()}
        segments = [Segment(*s) for s in fields["segments"]]
        dataset = bytes.fromhex(fields["dataset"]) if "dataset" in fields else None
        reader = readers.counting(job.data.store, uris, segments, self.pod.scratch, dataset=dataset)
        if "format" in fields:
            survey, sizes = records.count(reader, segments, job.data, fields["format"], unfit.judge(job.task))
            bare = job.privacy is not None or dataset is not None
            self.logged += records.log_bad(survey, uris, max(0, MOST_LOGGED - self.logged), bare=bare)
            found = survey.pack()
        else:
            folder = None if dataset else self.pod.scratch  # of encrypted data nothing may be kept
            counts, sizes = corpus.count(reader, segments, job.task.wordEmbedding, threads=cpu.limit(), folder=folder)
            found = vocabulary.pack_counts(counts)
        if dataset is not None:
            keyring.HELD.forget(s.file for s in segments)
        self.control.send(wire.COUNTED, found, task=fields["task"], sizes=sizes)

    def _export(self, own: State, session: int) -> bool:
        """Whether it is durable. session: of the connection over which the master asked for it; another one means that
        it has asked others.
        """
        assert self.learner is not None and self.plan is not None  # noqa: S101, PT018 - made by _prepare
        learner_, plan = self.learner, self.plan
        master = claims.name_of(self.pod.job, self.pod.attempt, self.control.master_incarnation)

        def asked() -> bool:
            return self.control.session == session

        def by_the_newest() -> bool:
            return asked() and not claims.newer(self.pod.job.storage, master)

        try:
            ref = again.while_away(
                lambda: artifact.publish(self.pod, learner_, own, plan, by_the_newest),
                lambda seconds: self._over(seconds) or not asked(),
            )
        except JobError as error:
            if not error.retryable or (asked() and not self._over(0)):
                raise
            logs.logger().warning("artifact not finished", why=error.message)
            return False
        if ref is None:
            why = (
                "another master has claimed the storage"
                if asked()
                else "the connection to the master was lost meanwhile"
            )
            logs.logger().warning("artifact not finished", why=why)
            return False
        logs.logger().info("artifact", uri=ref.uri, digest=ref.digest, metrics=ref.metrics)
        self.control.send(wire.EXPORTED, artifact=ref.model_dump(mode="json"))
        return True

    def _held(self) -> State | None:
        """The state that counts; one that no step was agreed on is none."""
        return self.state if self.state and self.state.agreement.holds else None

    def _holds(self) -> tuple[int, int | None]:
        held = self._held()
        return self.epoch, held.agreement.step if held else None

    def _published(self) -> Held | None:
        """In any thread."""
        found, own = self.learner, self._held()
        if found is None or not isinstance(own, EmbeddingState | PulledState):
            return None
        learner_ = cast("EmbeddingLearner", found)
        vectors = own.working.vectors[: len(learner_.vocabulary)] if isinstance(own, EmbeddingState) else None
        return Held(learner_, self.epoch, self.plan_digest, lambda: vectors, step=own.agreement.step)

    def _anything_to_do(self, box: Inbox) -> bool:
        return bool(self._may_leave() or box.tasks or self._newer(self.epoch))

    def _newer(self, epoch: int) -> bool:
        box = self.control.inbox
        over = (box.bye, box.refused, box.evicted)
        return self.control.newer(epoch) or any(one is not None for one in over)

    def _over(self, seconds: float) -> bool:
        """Waits so long; whether the epoch is over, or this pod is to end."""
        return bool(self.control.wait(lambda box: box.stopping or self._newer(self.epoch), seconds))

    def _leave(self) -> None:
        """No connection of the epoch is used again; peers that still wait on one are woken."""
        self.severing.abort.set()
        communicator, self.communicator = self.communicator, None
        if communicator:
            communicator.close()


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)
