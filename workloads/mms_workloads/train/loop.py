"""Training within one membership epoch: lease, compute, exchange, until the epoch or the work ends."""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING

from mms_workloads.logs import logger
from mms_workloads.sync import wire
from mms_workloads.train.communicator import NO_FLAGS, Communicator, Contribution, Flag

if TYPE_CHECKING:
    from mms_workloads.sync.control import Control
    from mms_workloads.train.checkpoints import Checkpointer
    from mms_workloads.train.learner import Learner, Place
    from mms_workloads.train.leasing import Leaser
    from mms_workloads.train.pulse import Pulse
    from mms_workloads.train.state import State


EMPTY_ROUND_SECONDS = 0.02  # between two of a worker that waits for others to finish their blocks


class Left(Enum):
    """Why all ranks left the epoch at the same round boundary."""

    FINISHED = auto()
    NEWER_EPOCH = auto()
    SUSPEND = auto()
    ALL_STOP = auto()  # every pod was told to end: nobody is left who would hold the parameters


def run_rounds(
    learner: Learner,
    state: State,
    place: Place,
    *,
    communicator: Communicator,
    leaser: Leaser,
    control: Control,
    epoch: int,
    saver: Checkpointer,
    pulse: Pulse,
    leads: bool,
) -> Left:
    """leads: writes the artifact. Where ranks do not step together the others make empty rounds till it has: a worker
    that made none any more would hold up those that may not be too far ahead of it.

    Raises transport.PeerLost, control.Superseded, store.JobError.
    """
    epochs, stepping = learner.job.optimizer.epochs, False
    while state.agreement.fraction(learner.trained_on, epochs) < 1 or (state.agreement.told is not None and not leads):
        slices = leaser.take(learner.batch(place))
        if state.agreement.told is not None and not slices:
            control.wait(lambda box: box.bye or control.newer(epoch), EMPTY_ROUND_SECONDS)
        communicator.prepare(state, lambda: learner.rows(slices))  # noqa: B023 - called at once
        rate = learner.rate(state, place.members)
        with pulse.computing():
            stats = learner.compute(state, slices, place)
        contributions = communicator.exchange(state, Contribution(slices, stats, _flags(control, epoch)), rate)
        if not stepping:
            stepping = True
            logger().info("stepping", step=state.agreement.step)
        if place.position == 0 or state.agreement.told is not None:
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
        if flags & Flag.CHECKPOINT:
            saver.save(state, place)
    return Left.FINISHED


def _flags(control: Control, epoch: int) -> Flag:
    box, flags = control.inbox, NO_FLAGS
    if control.newer(epoch):
        flags |= Flag.NEWER_EPOCH
    if box.suspend:
        flags |= Flag.SUSPEND
    if box.stopping:
        flags |= Flag.LEAVING
    if box.checkpoint:
        flags |= Flag.CHECKPOINT
        with control.changing():
            box.checkpoint = False
    return flags


def _report(control: Control, epoch: int, state: State, contributions: list[Contribution]) -> None:
    stats = [c.stats for c in contributions]
    control.send(
        wire.PROGRESS,
        epoch=epoch,
        step=state.agreement.step,
        slices=[[s.data_epoch, s.block, s.start, s.stop, s.size] for c in contributions for s in c.slices],
        samples=sum(s.samples for s in stats),
        weight=sum(s.weight for s in stats),
        loss=sum(s.loss * s.weight for s in stats),
        skipped=[c.stats.samples for c in contributions if not c.applied],
        notFinite=[i for i, c in enumerate(contributions) if Flag.NOT_FINITE in c.flags],
    )
