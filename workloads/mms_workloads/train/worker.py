"""The worker: connect, count, then join membership epochs and train in them until the master says how the run ended."""

from __future__ import annotations

import argparse
import faulthandler
import signal
import sys
import threading

import structlog
import torch

from mms_workloads import artifact, logs
from mms_workloads.contract import EXIT_DONE, EXIT_PERMANENT, EXIT_RETRY, CheckpointRef, Outcome, Reason, WordEmbedding
from mms_workloads.data import vocabulary
from mms_workloads.data.blocks import Segment
from mms_workloads.embedding import evaluation, skipgram
from mms_workloads.pod import Pod, failed, read_pod, termination_log, write_outcome
from mms_workloads.store import JobError
from mms_workloads.sync import plan as plans
from mms_workloads.sync import wire
from mms_workloads.train import checkpoint, corpus, cpu, groups
from mms_workloads.train.checkpoints import Checkpointer
from mms_workloads.train.communicator import Ring
from mms_workloads.train.control import Announcement, Control, Superseded
from mms_workloads.train.loop import Left, Training, run_rounds
from mms_workloads.train.state import State

BYE_SECONDS = 30.0  # how long a worker that failed waits for the master to hear of it


class Stopped(Exception):  # noqa: N818 - the pod was told to stop
    pass


class Worker:
    def __init__(self, pod: Pod, task: WordEmbedding, *, plain: bool) -> None:
        self.pod, self.task = pod, task
        self.state: State | None = None
        self.training: Training | None = None
        self.plan: plans.Plan | None = None
        self.group: groups.Group | None = None
        self.epoch = 0
        self.control = Control(pod, self._holds, plain=plain)
        self.control.on_urgent = self._break_group
        self.saver = Checkpointer(pod.job, self.control, pod.scratch)

    def run(self) -> Outcome:
        """The outcome that the master gave. Raises JobError, Stopped."""
        with self.control as control:
            try:
                while True:
                    box = control.wait(self._anything_to_do) and control.inbox
                    if box.bye:
                        return box.bye
                    if box.refused:
                        raise JobError(Reason.STALE_PEER, f"the master refused this pod: {box.refused}")
                    if box.stopping:
                        control.send(wire.LEAVE)
                        raise Stopped
                    if box.tasks:
                        self._count(box.tasks.popleft())
                    elif box.announcement and box.announcement.epoch > self.epoch:
                        self._take_part(box.announcement)
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

    def _take_part(self, announcement: Announcement) -> None:
        """One membership epoch, from the report of what this worker holds to the end of the epoch."""
        self.epoch = announcement.epoch
        structlog.contextvars.bind_contextvars(epoch=self.epoch)
        state = self.state
        try:
            self._prepare()
            self.control.send(
                wire.READY,
                epoch=self.epoch,
                step=state.step if state else None,
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
            if not self.control.inbox.stopping:
                self.control.wait(lambda box: box.stopping or self._newer(self.epoch))
            return
        self._leave_group()
        if left is Left.NEWER_EPOCH:
            return
        assert self.state is not None  # noqa: S101 - rounds need one
        if announcement.ranks[0] == self.pod.rank:
            if left is Left.SUSPEND:
                self.saver.save_last(self.state)
            else:
                self._export(self.state)

    def _train(self, announcement: Announcement, begin: dict[str, object]) -> Left:
        assert self.training is not None  # noqa: S101 - made by _prepare
        self.group = groups.form(announcement, self.pod.rank, self.control, self.pod.ip)
        if self.control.urgent(self.epoch):
            raise Superseded("a member was lost while the group was formed")
        ring = Ring(self.group)
        self._agree(ring, begin)
        assert self.state is not None  # noqa: S101 - made by _agree
        logs.logger().info("epoch begins", ranks=announcement.ranks, step=self.state.step)
        ranks = len(announcement.ranks)
        return run_rounds(self.training, self.state, self.epoch, ranks, ring, self.control, self.saver)

    def _agree(self, ring: Ring, begin: dict[str, object]) -> None:
        """All members start from the state that the master chose."""
        job, plan = self.pod.job, self.plan
        assert plan is not None and self.group is not None  # noqa: S101, PT018 - made by _prepare and _train
        applied, step, source = begin["applied"], begin["step"], begin["source"]
        assert isinstance(applied, list) and isinstance(step, int) and isinstance(source, int)  # noqa: S101, PT018
        if self.state is None:
            size, dimensions = len(plan.vocabulary), self.task.dimensions
            self.state = State.start(
                skipgram.initial_parameters(size, dimensions, job.optimizer.seed), -1, [0] * len(applied)
            )
        if begin["checkpoint"] and self.group.position == source:
            ref = CheckpointRef.model_validate(begin["checkpoint"])
            try:
                loaded = checkpoint.load(job.storage, ref, self.pod.scratch)
            except JobError as error:
                if error.retryable:
                    raise
                self.control.send(wire.CHECKPOINT_INVALID, uri=ref.uri, message=error.message)
                raise Superseded(error.message) from error
            self.state.base.vectors.copy_(loaded.vectors)
            self.state.base.contexts.copy_(loaded.contexts)
        if not begin["equal"]:
            ring.share(self.state, source)
        self.state.step, self.state.applied = step, list(applied)

    def _prepare(self) -> None:
        """What follows from the plan, once."""
        if self.training is None:
            packed = self.control.inbox.plan
            assert packed is not None  # noqa: S101 - the master sends it before any epoch
            self.plan = plans.unpack(packed)
            text = corpus.Corpus(self.pod.job.data.store, self.plan, self.task, self.pod.scratch)
            self.training = Training.of(self.pod.job, self.task, self.plan, text)

    def _count(self, message: wire.Message) -> None:
        fields = message.fields
        uris = {int(k): v for k, v in fields["uris"].items()}
        segments = [Segment(*s) for s in fields["segments"]]
        counts, sizes = corpus.count(self.pod.job.data.store, uris, segments, self.task, self.pod.scratch)
        self.control.send(wire.COUNTED, vocabulary.pack_counts(counts), task=fields["task"], sizes=sizes)

    def _export(self, state: State) -> None:
        training, plan = self.training, self.plan
        assert training is not None and plan is not None  # noqa: S101, PT018 - made by _prepare
        report = evaluate(training, plan, state.base)
        ref = artifact.publish(self.pod.job, self.pod.job_digest, state.base, plan, report, self.pod.scratch)
        logs.logger().info("artifact", uri=ref.uri, digest=ref.digest, metrics=ref.metrics)
        self.control.send(wire.EXPORTED, artifact=ref.model_dump(mode="json"))

    def _holds(self) -> tuple[int, int | None]:
        state = self.state
        return self.epoch, state.step if state and state.step >= 0 else None

    def _anything_to_do(self, box: object) -> bool:
        inbox = self.control.inbox
        return bool(inbox.bye or inbox.refused or inbox.stopping or inbox.tasks or self._newer(self.epoch))

    def _newer(self, epoch: int) -> bool:
        box = self.control.inbox
        newer = box.announcement is not None and box.announcement.epoch > epoch
        return newer or box.bye is not None or box.refused is not None

    def _break_group(self, epoch: int) -> None:
        group = self.group
        if group and epoch > self.epoch:
            group.break_connections()

    def _leave_group(self) -> None:
        group, self.group = self.group, None
        if group:
            group.leave()


def evaluate(training: Training, plan: plans.Plan, parameters: skipgram.Parameters) -> dict[str, object]:
    """evaluation.json: metrics with how they were measured."""
    seed = training.job.optimizer.seed
    chosen = (training.held_out or training.trained_on)[: evaluation.MAX_BLOCKS]
    tokens = (training.corpus.tokens(block) for block in chosen)
    name = "contextAUC" if training.held_out else "trainingContextAUC"
    metrics = {name: evaluation.context_auc(parameters.vectors, tokens, training.words, training.task.window, seed)}
    related = evaluation.related_auc(parameters.vectors, plan.vocabulary.words, seed)
    if related is not None:
        metrics["relatedAUC"] = related
    return {
        "metrics": metrics,
        "vocabulary": len(plan.vocabulary),
        "words": sum(plan.vocabulary.counts),
        "blocks": len(training.corpus.blocks),
        "heldOutBlocks": chosen if training.held_out else [],
        "method": evaluation.__doc__,
    }


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
        pod.scratch.mkdir(parents=True, exist_ok=True)
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


if __name__ == "__main__":
    sys.exit(main())
