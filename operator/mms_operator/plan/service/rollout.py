"""How far a rollout may go now: how many pods of which version, and which of them clients are sent to. Pure.

Each strategy is a list of stages. A stage says how many pods of the next version there are to be, who answers
meanwhile, and how long it lasts once these pods answer rightly; the last one replaces all. The first pod of a version
that has never answered is alone until its golden inferences were right, so that a bad version never has a second one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import Enum
from typing import TYPE_CHECKING

from mms_operator.api.rollout import BlueGreen, Canary, HotSwap, Rollout, Strategy
from mms_operator.api.service_status import RolloutPhase, RolloutStatus
from mms_operator.plan.conditions import rfc3339, since

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

SURGE = 0.25  # of the replicas: how many pods there may be at a time that do not answer yet
DAY_SECONDS = 86_400.0


class Route(Enum):
    """Which pods clients are sent to."""

    STABLE = "stable"
    BOTH = "both"
    NEXT = "next"


class Gate(Enum):
    """Whether the last step before all pods are replaced may end."""

    OPEN = "open"
    CLOSED = "closed"  # until the analysis says so
    WORD = "word"  # until somebody says so


@dataclass(frozen=True)
class Stage:
    """What a rollout does for a while."""

    pods: int  # of the next version
    stable: int  # of the one before, at least
    route: Route  # once the pods answer
    seconds: int = 0
    approval: bool = False
    at_once: bool = False  # all pods together, once the first one is right


@dataclass(frozen=True)
class Fleet:
    """The pods of a version."""

    wanted: int = 0  # its Deployment's spec.replicas
    ready: int = 0
    complete: bool = False  # the Deployment is as it was planned, and all of its pods answer


@dataclass(frozen=True)
class Fleets:
    """Who there is while one version takes the place of the other."""

    replicas: int  # that are wanted in all
    stable: Fleet
    following: Fleet  # of the version that is being rolled out


@dataclass(frozen=True)
class Step:
    """What is to be done now."""

    next_replicas: int
    stable_replicas: int
    route: Route
    status: RolloutStatus
    done: bool = False
    requeue: float | None = None  # seconds until time alone moves it on


def begin(rollout: Rollout, replicas: int, now: datetime, *, rollback: bool = False) -> RolloutStatus:
    """A rollout at its start. One that goes back to a version that has answered before takes no steps."""
    steps = len(stages(rollout, replicas)) - 1
    return RolloutStatus(
        strategy=rollout.strategy,
        phase=RolloutPhase.PROGRESSING,
        step=steps + 1 if rollback else 1,
        steps=steps,
        startTime=rfc3339(now),
        rollback=rollback,
    )


def stages(rollout: Rollout, replicas: int) -> Sequence[Stage]:
    """In their order; the last one replaces all pods."""
    match rollout.strategy:
        case Strategy.CANARY:
            parts = [
                (max(1, math.ceil(replicas * step.percent / 100)), step) for step in (rollout.canary or Canary()).steps
            ]
            steps = [
                Stage(pods, max(1, replicas - pods), Route.BOTH, step.seconds, step.approval) for pods, step in parts
            ]
            return [*steps, _last(replicas)]
        case Strategy.BLUE_GREEN:
            how = rollout.blueGreen or BlueGreen()
            preview = Stage(replicas, replicas, Route.STABLE, how.seconds, how.approval, at_once=True)
            return [preview, Stage(replicas, 0, Route.NEXT, at_once=True)]
        case Strategy.HOT_SWAP:  # new pods, where the running ones cannot take it: the first one is alone for a while
            swap = rollout.hotSwap or HotSwap()
            first = Stage(1, max(1, replicas - 1), Route.BOTH, swap.seconds, swap.approval)
            return [first, _last(replicas)]
        case Strategy.ROLLING_UPDATE | Strategy.LIVE_SYNC:
            return [_last(replicas)]


def _last(replicas: int) -> Stage:
    """All pods. One of the version before stays until all is done, so that an abort finds who answers."""
    return Stage(replicas, 1, Route.BOTH)


def promoted(state: RolloutStatus, *, fully: bool) -> RolloutStatus:
    """One step on, or to the last one."""
    step = state.steps + 1 if fully else min(state.step + 1, state.steps + 1)
    return state.model_copy(update={"step": step, "reachedTime": None, "paused": False})


def advance(rollout: Rollout, state: RolloutStatus, fleets: Fleets, now: datetime, gate: Gate = Gate.OPEN) -> Step:
    """One look at a rollout."""
    plan = stages(rollout, fleets.replicas)
    steps = len(plan) - 1
    # The spec may have been edited meanwhile: its steps are the ones that count.
    state = state.model_copy(update={"strategy": rollout.strategy, "steps": steps, "step": min(state.step, steps + 1)})
    paused = rollout.paused or state.paused
    while True:
        stage = plan[state.step - 1]
        last = state.step == steps + 1
        following = fleets.following
        if following.ready < stage.pods or (last and not following.complete):
            phase = RolloutPhase.PAUSED if paused else RolloutPhase.PROGRESSING
            # A step that was reached stays so while any of its pods answers: its time goes on, and a route's weight
            # stays, when a scaler wants more of them or one begins anew.
            reached = state.reachedTime if following.ready else None
            state = state.model_copy(update={"phase": phase, "reachedTime": reached})
            return _step(state, stage, fleets, hold=paused)
        if last:
            return _complete(state, stage, fleets.replicas)
        began = since(state.reachedTime, now)
        state = state.model_copy(update={"reachedTime": rfc3339(began)})
        left = (began + timedelta(seconds=stage.seconds) - now).total_seconds()
        waits = waits_for(left, gate if state.step == steps else Gate.OPEN, approval=stage.approval)
        if waits is None and not paused:
            state = promoted(state, fully=False)
            continue
        phase = RolloutPhase.PAUSED if paused or waits is None else waits
        step = _step(state.model_copy(update={"phase": phase}), stage, fleets, hold=paused)
        return replace(step, requeue=min(left, DAY_SECONDS) if phase is RolloutPhase.WAITING else None)


def waits_for(left: float, gate: Gate, *, approval: bool) -> RolloutPhase | None:
    """What keeps a step from ending; None: nothing does. left: seconds of its time."""
    if left > 0:
        return RolloutPhase.WAITING
    if gate is Gate.CLOSED:
        return RolloutPhase.ANALYSING
    return RolloutPhase.AWAITING_PROMOTION if approval or gate is Gate.WORD else None


def _complete(state: RolloutStatus, stage: Stage, replicas: int) -> Step:
    status = state.model_copy(update={"phase": RolloutPhase.COMPLETE, "percent": 100, "paused": False})
    return Step(replicas, replicas if stage.route is Route.NEXT else 0, Route.NEXT, status, done=True)


def _step(state: RolloutStatus, stage: Stage, fleets: Fleets, *, hold: bool) -> Step:
    following, both = fleets.following, stage.route is Route.BOTH
    answer = following.ready if both else 0
    return Step(
        next_replicas=min(following.wanted, stage.pods) if hold else _grown(state, stage, following),
        # Until pods of the next version answer, as many of the one before do.
        stable_replicas=max(stage.stable, fleets.replicas - following.ready) if both else fleets.replicas,
        route=Route.BOTH if both else Route.STABLE,
        status=state.model_copy(update={"percent": round(100 * answer / max(1, answer + fleets.stable.ready))}),
    )


def _grown(state: RolloutStatus, stage: Stage, following: Fleet) -> int:
    """How many pods of the next version there may be: those that answer, and a few on their way."""
    if state.rollback or (stage.at_once and following.ready):
        return stage.pods
    if not following.ready:
        return min(stage.pods, max(1, following.wanted))
    surge = max(1, math.ceil(SURGE * stage.pods))
    return min(stage.pods, max(following.ready + surge, following.wanted))
