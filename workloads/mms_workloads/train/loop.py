"""Training within one membership epoch: lease, train, exchange, until the epoch or the work ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING

import torch

from mms_workloads.data import blocks
from mms_workloads.embedding import skipgram
from mms_workloads.embedding.skipgram import BlockStats
from mms_workloads.sync import wire
from mms_workloads.sync.leases import Lease, fraction
from mms_workloads.train.communicator import NO_FLAGS, Communicator, Contribution, Flag
from mms_workloads.train.control import Announcement, Control, Superseded

if TYPE_CHECKING:
    from mms_workloads.contract import JobFile, WordEmbedding
    from mms_workloads.sync.plan import Plan
    from mms_workloads.train.checkpoints import Checkpointer
    from mms_workloads.train.corpus import Corpus
    from mms_workloads.train.state import State

_NOTHING = BlockStats(0, 0.0, 0.0)


class Left(Enum):
    """Why all ranks left the epoch at the same round boundary."""

    FINISHED = auto()
    NEWER_EPOCH = auto()
    SUSPEND = auto()
    ALL_STOP = auto()  # every pod was told to end: nobody is left who would hold the parameters


@dataclass(slots=True)
class Training:
    """What stays the same over the epochs of a run, on one worker."""

    job: JobFile
    task: WordEmbedding
    corpus: Corpus
    words: skipgram.Distribution
    trained_on: list[int]  # block numbers
    held_out: list[int]
    rng: torch.Generator = field(default_factory=torch.Generator)

    @classmethod
    def of(cls, job: JobFile, task: WordEmbedding, plan: Plan, corpus: Corpus) -> Training:
        count = len(corpus.blocks)
        words = skipgram.distribution(torch.tensor(plan.vocabulary.counts), task.subsample)
        return cls(job, task, corpus, words, blocks.training(count), blocks.held_out(count))

    def progress(self, state: State) -> float:
        return fraction(state.applied, self.trained_on, self.job.optimizer.epochs)

    def train(self, state: State, lease: Lease, ranks: int) -> BlockStats:
        """One block, in the working copy. The result depends on the lease and the base only, whoever computes it."""
        optimizer = self.job.optimizer
        self.rng.manual_seed((optimizer.seed * 1_000_003 + lease.data_epoch) * 1_000_003 + lease.block)
        start = self.progress(state)
        end = start + ranks / (len(self.trained_on) * optimizer.epochs)
        rates = (
            skipgram.learning_rate(optimizer.learningRate, start),
            skipgram.learning_rate(optimizer.learningRate, end),
        )
        tokens = self.corpus.tokens(lease.block)
        return skipgram.train_block(
            state.working, state.touches, tokens, self.words, self.task, rng=self.rng, rates=rates
        )


def run_rounds(
    training: Training,
    state: State,
    announcement: Announcement,
    *,
    ring: Communicator,
    control: Control,
    saver: Checkpointer,
) -> Left:
    """Raises groups.PeerLost, control.Superseded, store.JobError."""
    epoch, ranks = announcement.epoch, len(announcement.ranks)
    while training.progress(state) < 1:
        lease = take_lease(control, epoch)
        stats = training.train(state, lease, ranks) if lease else _NOTHING
        rate = skipgram.learning_rate(training.job.optimizer.learningRate, training.progress(state))
        contributions = ring.exchange(state, Contribution(lease, stats, _flags(control, epoch)), rate)
        _report(control, epoch, state, contributions)
        flags = NO_FLAGS
        for contribution in contributions:
            flags |= contribution.flags
        if flags & Flag.SUSPEND:
            return Left.SUSPEND
        if all(Flag.LEAVING in contribution.flags for contribution in contributions):
            return Left.ALL_STOP
        if flags & (Flag.NEWER_EPOCH | Flag.LEAVING):
            return Left.NEWER_EPOCH
        saver.save_if_asked(state)
    return Left.FINISHED


def take_lease(control: Control, epoch: int) -> Lease | None:
    """The master's next block; None when there is none for this round. Raises Superseded.

    A master that has announced the next epoch leases no block of this one any more: the members then make one more
    round without blocks, in which they tell each other to leave.
    """
    with control.changing() as box:
        box.leased = None
    control.send(wire.LEASE, epoch=epoch)
    answer = (
        control.wait(lambda box: box.leased or control.urgent(epoch) or control.newer(epoch)) and control.inbox.leased
    )
    if control.urgent(epoch):
        raise Superseded(f"epoch {epoch} ended before a block was leased")
    if answer is None:
        return None
    return None if answer["block"] is None else Lease(answer["data_epoch"], answer["block"])


def _flags(control: Control, epoch: int) -> Flag:
    box, flags = control.inbox, NO_FLAGS
    if control.newer(epoch):
        flags |= Flag.NEWER_EPOCH
    if box.suspend:
        flags |= Flag.SUSPEND
    if box.stopping:
        flags |= Flag.LEAVING
    return flags


def _report(control: Control, epoch: int, state: State, contributions: list[Contribution]) -> None:
    stats = [c.stats for c in contributions]
    control.send(
        wire.PROGRESS,
        epoch=epoch,
        step=state.step,
        leases=[[c.lease.data_epoch, c.lease.block] for c in contributions if c.lease],
        words=sum(s.words for s in stats),
        pairs=sum(s.pairs for s in stats),
        loss=sum(s.loss * s.pairs for s in stats),
    )
