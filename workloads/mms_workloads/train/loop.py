"""Training within one membership epoch: lease, compute, exchange, until the epoch or the work ends."""

from __future__ import annotations

import time
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING, Any

from mms_workloads.logs import logger
from mms_workloads.train.communicator import NO_FLAGS, Communicator, Contribution, Flag, Health
from mms_workloads.train.guarding import Comparisons, verdicts
from mms_workloads.train.state import checksum

if TYPE_CHECKING:
    from mms_workloads.contract import Guard, PrivacyReport
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
    LEAVING = auto()  # this pod was told to end, and others have what it holds
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
    guard: Guard,
    leads: bool,
) -> Left:
    """leads: writes the artifact. Where ranks do not step together the others make empty rounds till it has: a worker
    that made none any more would hold up those that may not be too far ahead of it.

    What is saved was compared just before.

    Raises transport.PeerLost, control.Superseded, guarding.PartedError, store.JobError.
    """
    epochs, rounds, said = learner.job.optimizer.epochs, 0, False
    comparisons = Comparisons()
    comparing = guard.corruption != "Off" and learner.job.syncMode == "Ring" and place.members > 1
    while state.agreement.fraction(learner.trained_on, epochs) < 1 or (state.agreement.told is not None and not leads):
        slices = leaser.take(learner.batch(place))
        if state.agreement.told is not None and not slices:
            control.wait(lambda box: box.bye or control.newer(epoch), EMPTY_ROUND_SECONDS)
        live = leaser.live(slices)
        communicator.prepare(state, partial(learner.rows, live))
        rate = learner.rate(state, place.members)
        check = checksum(state) if comparing and comparisons.due else -1
        started = time.perf_counter()
        with pulse.computing(sum(s.stop - s.start for s in live)):
            stats = learner.compute(state, live, place)
        health = Health(seconds=time.perf_counter() - started, checksum=check)
        mine = Contribution(slices, stats, _flags(control, epoch), health)
        contributions = communicator.exchange(state, mine, rate, partial(learner.compute, state, live, place))
        if not rounds:
            logger().info("stepping", step=state.agreement.step)
        rounds += 1
        comparisons.made(contributions)
        leaser.made(finite=Flag.NOT_FINITE not in contributions[place.position].flags)
        if place.position == 0 and (slices or state.agreement.told is None):  # a push of nothing is no step
            beside = {} if said else {"precision": learner.precision(state)}
            _report(control, epoch, state, contributions, guard=guard, privacy=stats.privacy, beside=beside)
            said = True
        flags = NO_FLAGS
        for contribution in contributions:
            flags |= contribution.flags
        everybody = all(Flag.LEAVING in contribution.flags for contribution in contributions)
        if comparing and (everybody or _saves(flags)):
            communicator.compare(checksum(state))
        if left := _left(flags, mine, everybody=everybody):
            return left
        if flags & Flag.CHECKPOINT:
            saver.save(state, place)
    return Left.FINISHED


def _left(flags: Flag, mine: Contribution, *, everybody: bool) -> Left | None:
    """Why all ranks leave after a round; None: they go on. flags: of all of them; everybody: all were told to end."""
    if flags & Flag.SUSPEND:
        return Left.SUSPEND
    if everybody:
        return Left.ALL_STOP
    if flags & (Flag.NEWER_EPOCH | Flag.LEAVING):
        return Left.LEAVING if mine.flags & Flag.LEAVING else Left.NEWER_EPOCH
    return None


def _saves(flags: Flag) -> bool:
    """Whether ranks save what they hold at the end of the round."""
    leave = flags & (Flag.NEWER_EPOCH | Flag.LEAVING)
    return bool(flags & Flag.SUSPEND or (flags & Flag.CHECKPOINT and not leave))


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


def _report(
    control: Control,
    epoch: int,
    state: State,
    contributions: list[Contribution],
    *,
    guard: Guard,
    privacy: PrivacyReport | None,
    beside: dict[str, str | None],
) -> None:
    stats = [c.stats for c in contributions]
    applied = [c.stats for c in contributions if c.applied]
    fields: dict[str, Any] = {
        "step": state.agreement.step,
        "slices": [[[s.data_epoch, s.block, s.start, s.stop, s.size] for s in c.slices] for c in contributions],
        "samples": sum(s.samples for s in stats),
        "weight": sum(s.weight for s in applied),
        "loss": sum(s.loss * s.weight for s in applied),
        "of": [s.samples for s in stats],
        "seconds": [c.health.seconds for c in contributions],
        "verdicts": verdicts(contributions, guard),
        **beside,
    }
    if privacy:
        fields["privacy"] = privacy.model_dump()
    control.report(epoch, fields, at_once=not all(c.slices for c in contributions))
