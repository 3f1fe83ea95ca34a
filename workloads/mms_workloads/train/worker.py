"""The worker: connect, count, then join membership epochs and train in them until the master says how the run ended."""

from __future__ import annotations

import argparse
import faulthandler
import shutil
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

import structlog
import torch

from mms_workloads import artifact, logs
from mms_workloads.contract import EXIT_DONE, EXIT_PERMANENT, EXIT_RETRY, CheckpointRef, Outcome, Reason, WordEmbedding
from mms_workloads.data import vocabulary
from mms_workloads.data.blocks import Segment
from mms_workloads.embedding import evaluation, skipgram
from mms_workloads.pod import Pod, failed, read_pod, termination_log, write_outcome
from mms_workloads.store import JobError
from mms_workloads.sync import checkpoints, wire
from mms_workloads.sync import plan as plans
from mms_workloads.train import checkpoint, corpus, cpu, groups
from mms_workloads.train.checkpoints import Checkpointer
from mms_workloads.train.communicator import Ring
from mms_workloads.train.control import Announcement, Control, Superseded
from mms_workloads.train.loop import Left, Training, run_rounds
from mms_workloads.train.state import State

if TYPE_CHECKING:
    from pathlib import Path

    from mms_workloads.train.control import Inbox

BYE_SECONDS = 30.0  # how long a worker that failed waits for the master to hear of it


class Stopped(Exception):  # noqa: N818 - the pod was told to stop
    pass


class Worker:
    def __init__(self, pod: Pod, task: WordEmbedding, *, plain: bool) -> None:
        self.pod, self.task = pod, task
        self.state: State | None = None
        self.training: Training | None = None
        self.plan: plans.Plan | None = None
        self.plan_digest = ""
        self.group: groups.Group | None = None
        self.epoch = 0
        self.control = Control(pod, self._holds, plain=plain)
        self.control.on_over = self._break_group
        self.saver = Checkpointer(pod.job, self.control, pod.scratch)

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

    def _until_told(self) -> Outcome:
        while True:
            box = self.control.wait(self._anything_to_do) and self.control.inbox
            if box.bye:
                bye: Outcome = box.bye
                return bye
            if box.refused:
                raise JobError(Reason.STALE_PEER, f"the master refused this pod: {box.refused}")
            if box.stopping:
                self.control.send(wire.LEAVE)
                raise Stopped
            if box.tasks:
                self._count(box.tasks.popleft())
            elif box.announcement and self.control.newer(self.epoch):
                self._take_part(box.announcement)

    def _take_part(self, announcement: Announcement) -> None:
        """One membership epoch, from the report of what this worker holds to the end of the epoch."""
        self.epoch = announcement.epoch
        structlog.contextvars.bind_contextvars(epoch=self.epoch)
        session = self.control.session
        try:
            self._prepare()
            state = self._held()
            self.control.send(
                wire.READY,
                epoch=self.epoch,
                step=state.step if state else None,
                lineage=state.lineage if state else None,
                applied=state.applied if state else None,
            )
            self.control.wait(lambda box: box.begin or box.stopping or self._newer(self.epoch))
            begin = self.control.inbox.begin
            if begin is None or begin["epoch"] != self.epoch:
                return
            left = self._train(announcement, begin)
        except (Superseded, groups.PeerLost) as error:
            logs.logger().info("left the epoch", why=str(error))
            if self.state:
                self.state.reset()
            self._leave_group()
            self.control.send(wire.BROKEN, epoch=self.epoch, why=str(error))
            self.control.wait(lambda box: box.stopping or self._newer(self.epoch))
            return
        self._leave_group()
        assert self.state is not None  # noqa: S101 - made by _agree
        if left is Left.NEWER_EPOCH or announcement.ranks[0] != self.pod.rank:
            return
        if left is Left.FINISHED:
            self._export(self.state, session)
        else:
            self.saver.save_last(self.state)

    def _train(self, announcement: Announcement, begin: dict[str, Any]) -> Left:
        assert self.training is not None  # noqa: S101 - made by _prepare
        self.group = groups.form(announcement, self.pod.rank, self.control, self.pod.ip)
        if self.control.urgent(self.epoch):
            raise Superseded("a member was lost while the group was formed")
        ring = Ring(self.group)
        state = self._agree(ring, begin)
        logs.logger().info("epoch begins", ranks=announcement.ranks, step=state.step)
        return run_rounds(self.training, state, announcement, ring=ring, control=self.control, saver=self.saver)

    def _agree(self, ring: Ring, begin: dict[str, Any]) -> State:
        """All members start from the state that the master chose."""
        plan, group = self.plan, self.group
        assert plan is not None and group is not None  # noqa: S101, PT018 - made by _prepare and _train
        if self._held() is None:
            size, dimensions, seed = len(plan.vocabulary), self.task.dimensions, self.pod.job.optimizer.seed
            parameters = skipgram.initial_parameters(size, dimensions, seed)
            self.state = State.start(parameters, len(begin["applied"]))
        assert self.state is not None  # noqa: S101 - made by _agree
        if begin["checkpoint"] and group.position == begin["source"]:
            self._load(self.state, CheckpointRef.model_validate(begin["checkpoint"]))
        if not begin["equal"]:
            ring.share(self.state, begin["source"])
        self.state.agreed(begin["step"], begin["lineage"], begin["applied"])
        return self.state

    def _load(self, state: State, reference: CheckpointRef) -> None:
        """Raises Superseded when the checkpoint is damaged: the master then takes the one before."""
        try:
            loaded = checkpoint.load(self.pod.job.storage, reference, self.pod.scratch)
        except JobError as error:
            if not checkpoints.damaged(error):
                raise
            self.control.send(wire.CHECKPOINT_INVALID, uri=reference.uri, message=error.message)
            raise Superseded(error.message) from error
        state.base.vectors.copy_(loaded.vectors)
        state.base.contexts.copy_(loaded.contexts)
        state.reset()

    def _prepare(self) -> None:
        """What follows from the plan, once: a master that had nothing of it left may have counted changed data anew."""
        packed = self.control.inbox.plan
        assert packed is not None  # noqa: S101 - the master sends it before any epoch
        digest = plans.digest(packed)
        if self.training is None or self.plan_digest != digest:
            self.state, self.plan, self.plan_digest = None, plans.unpack(packed), digest
            cache = self.pod.scratch / f"blocks-{digest[-12:]}"
            text = corpus.Corpus(self.pod.job.data.store, self.plan, self.task, cache)
            self.training = Training.of(self.pod.job, self.task, self.plan, text)

    def _count(self, message: wire.Message) -> None:
        fields = message.fields
        uris = {int(k): v for k, v in fields["uris"].items()}
        segments = [Segment(*s) for s in fields["segments"]]
        counts, sizes = corpus.count(self.pod.job.data.store, uris, segments, self.task, self.pod.scratch)
        self.control.send(wire.COUNTED, vocabulary.pack_counts(counts), task=fields["task"], sizes=sizes)

    def _export(self, state: State, session: int) -> None:
        """session: of the connection over which the master asked for it; another one means that it has asked others."""
        training, plan = self.training, self.plan
        assert training is not None and plan is not None  # noqa: S101, PT018 - made by _prepare
        report = evaluate(training, plan, state.base)
        ref = artifact.publish(self.pod, state.base, plan, report, lambda: self.control.session == session)
        if ref is None:
            logs.logger().warning("artifact not finished", why="the connection to the master was lost meanwhile")
            return
        logs.logger().info("artifact", uri=ref.uri, digest=ref.digest, metrics=ref.metrics)
        self.control.send(wire.EXPORTED, artifact=ref.model_dump(mode="json"))

    def _held(self) -> State | None:
        """The state that counts; one that no step was agreed on is none."""
        return self.state if self.state and self.state.step >= 0 else None

    def _holds(self) -> tuple[int, int | None]:
        state = self._held()
        return self.epoch, state.step if state else None

    def _anything_to_do(self, box: Inbox) -> bool:
        return bool(box.stopping or box.tasks or self._newer(self.epoch))

    def _newer(self, epoch: int) -> bool:
        box = self.control.inbox
        return self.control.newer(epoch) or box.bye is not None or box.refused is not None

    def _break_group(self) -> None:
        group = self.group
        if group and self.control.urgent(self.epoch):
            group.break_connections()

    def _leave_group(self) -> None:
        group, self.group = self.group, None
        if group:
            group.leave()


def evaluate(training: Training, plan: plans.Plan, parameters: skipgram.Parameters) -> artifact.Evaluation:
    seed = training.job.optimizer.seed
    chosen = (training.held_out or training.trained_on)[: evaluation.MAX_BLOCKS]
    tokens = (training.corpus.tokens(block) for block in chosen)
    name = "contextAUC" if training.held_out else "trainingContextAUC"
    metrics = {name: evaluation.context_auc(parameters.vectors, tokens, training.words, training.task.window, seed)}
    related = evaluation.related_auc(parameters.vectors, plan.vocabulary.words, seed)
    if related is not None:
        metrics["relatedAUC"] = related
    return artifact.Evaluation(
        metrics=metrics,
        vocabulary=len(plan.vocabulary),
        words=sum(plan.vocabulary.counts),
        blocks=len(training.corpus.blocks),
        heldOutBlocks=chosen if training.held_out else [],
        method=evaluation.__doc__ or "",
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="mms_workloads.train.worker", description=__doc__)
    parser.add_argument("--plain-http", action="store_true", help="no TLS to the master: for tests only")
    arguments = parser.parse_args()
    return run(plain=arguments.plain_http)


def run(*, plain: bool = False) -> int:
    """The worker's process, from the environment to the exit code."""
    faulthandler.enable()
    logs.configure()
    log = termination_log()
    try:
        pod = read_pod()
        structlog.contextvars.bind_contextvars(job=f"{pod.job.job.namespace}/{pod.job.job.name}", rank=pod.rank)
        tidy(pod.scratch)
        torch.set_num_threads(cpu.limit())
        assert pod.job.task.wordEmbedding is not None  # noqa: S101 - read_pod refused the job file otherwise
        worker = Worker(pod, pod.job.task.wordEmbedding, plain=plain)
        # The handler only notes it; a thread tells, since the interrupted one may hold the inbox's lock.
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=worker.stop, daemon=True).start())
        outcome = worker.run()
    except Stopped:
        return 128 + signal.SIGTERM
    except JobError as error:
        outcome = failed(error)
    except MemoryError:
        outcome = Outcome(result="Failed", reason=Reason.OUT_OF_MEMORY, message=cpu.MEMORY_REMEDY, retryable=True)
    logs.logger().info("worker ends", result=outcome.result, reason=outcome.reason, message=outcome.message)
    write_outcome(log, outcome)
    if outcome.result != "Failed":
        return EXIT_DONE
    return EXIT_RETRY if outcome.retryable else EXIT_PERMANENT


def tidy(scratch: Path) -> None:
    """Makes the folder, without what a worker of this pod that was killed had on its way."""
    scratch.mkdir(parents=True, exist_ok=True)
    for pattern in ("checkpoint-*", "artifact-*"):
        for folder in scratch.glob(pattern):
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
