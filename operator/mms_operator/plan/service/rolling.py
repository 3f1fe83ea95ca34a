"""One version takes the place of another: by pods of its own, in running pods, or in the Deployment that is there."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from mms_operator.api.names import Reason
from mms_operator.api.rollout import Strategy
from mms_operator.api.service_status import MOST_WORDS, Outcome, RolloutPhase, RolloutStatus, Versions
from mms_operator.plan.conditions import rfc3339, since
from mms_operator.plan.service import gateway, history, inputs, judging, rollout, saying, swapping, trouble
from mms_operator.plan.service.course import Course
from mms_operator.plan.service.judging import Judgement
from mms_operator.plan.service.rollout import Route
from mms_operator.plan.service.saying import State
from mms_workloads import contract

if TYPE_CHECKING:
    from datetime import datetime

    from mms_operator.api.service_status import ServedVersion
    from mms_operator.plan.service.course import Look
    from mms_operator.plan.service.swapping import Swap


def under_way(look: Look, chosen: ServedVersion) -> RolloutStatus | None:
    """The rollout of this version by this strategy, where it has begun."""
    following, state = look.status.versions.next, look.status.rollout
    if state is None or following is None or following.digest != chosen.digest:
        return None
    ours = state.rollback or state.strategy is look.serving.spec.rollout.strategy
    return state if ours and state.phase not in {RolloutPhase.COMPLETE, RolloutPhase.ABORTED} else None


def roll_out(look: Look, chosen: ServedVersion, stable: ServedVersion) -> Course:
    """By pods of its own, as far as it may go now."""
    how, replicas, seen = look.serving.spec.rollout, look.replicas, look.seen
    begun = under_way(look, chosen) or rollout.begin(how, replicas, look.now)
    judgement = _judged(look, chosen, stable, begun)
    begun = begun.model_copy(update={"analysis": judgement.status})
    if judgement.give_up is not None:
        return _given_up(look, chosen, stable, begun, judgement.give_up)
    pods_of = rollout.Fleets(replicas, seen.fleet(stable, replicas), seen.fleet(chosen, replicas))
    step = rollout.advance(how, begun, pods_of, look.now, judgement.gate)
    fleets = ((chosen, step.next_replicas), (stable, step.stable_replicas))
    if not step.done:
        versions = Versions(stable=look.counted(stable), next=look.counted(chosen))
        route = stable if step.route is Route.STABLE else None
        progress = _routed(look, versions, route, step.status)
        state = trouble.of(look.serving, chosen, seen) or saying.rolling(
            versions.next or chosen, stable, progress, by_route=look.serving.spec.traffic.gateway is not None
        )
        status = look.status_with(versions=versions, rollout=progress, keptUntil=None)
        return Course(status, state, fleets, route, step.requeue)
    keep = look.keep_seconds if how.strategy is Strategy.BLUE_GREEN and not begun.rollback else 0
    status = look.status_with(
        versions=Versions(stable=look.counted(chosen), previous=look.counted(stable) if keep else None),
        rollout=step.status,
        history=history.record(look.status.history, chosen, Outcome.SERVED, look.now),
        keptUntil=rfc3339(look.now + timedelta(seconds=keep)) if keep else None,
    )
    return Course(status, saying.served(chosen, replicas), fleets, chosen)


def _routed(look: Look, versions: Versions, route: ServedVersion | None, state: RolloutStatus) -> RolloutStatus:
    """Where a Gateway splits the requests its weight is the part that the next version has, whatever its pods."""
    if look.serving.spec.traffic.gateway is None:
        return state
    share = gateway.weight(look.serving, state, versions, route, look.seen)
    return state.model_copy(update={"percent": share})


def in_place(look: Look, chosen: ServedVersion, stable: ServedVersion) -> Course:
    """Pods that began with this very version and took another, and cannot take it back as they are.

    Its Deployment is theirs: so that one replaces them, each by one that answers.
    """
    replicas, begun = look.replicas, under_way(look, chosen)
    begun = begun or rollout.begin(look.serving.spec.rollout, replicas, look.now, rollback=True)
    fleets = ((chosen, replicas),)
    if look.seen.is_for(chosen) and look.seen.fleet(chosen, replicas).complete:
        past = history.record(look.status.history, chosen, Outcome.SERVED, look.now)
        ended = begun.model_copy(update={"phase": RolloutPhase.COMPLETE, "percent": 100})
        versions = Versions(stable=look.counted(chosen))
        status = look.status_with(versions=versions, rollout=ended, history=past, keptUntil=None)
        return Course(status, saying.served(chosen, replicas), fleets, chosen)
    state = trouble.of(look.serving, chosen, look.seen) or saying.rolling(chosen, stable, begun)
    versions = Versions(stable=look.counted(stable), next=look.counted(chosen))
    status = look.status_with(versions=versions, rollout=begun, keptUntil=None)
    return Course(status, state, fleets, chosen, swaps=True)


def can_swap(look: Look, chosen: ServedVersion, stable: ServedVersion) -> bool:
    """Whether the running pods are to take the version: they have the keys of the store that they began with."""
    serving = look.serving
    asked = serving.spec.rollout.strategy in {Strategy.HOT_SWAP, Strategy.LIVE_SYNC} or chosen.digest == stable.lineage
    same = serving.location(chosen).secret == serving.location(stable).secret
    # A training is followed with its own certificate, which pods have from their beginning.
    reads = not chosen.live or chosen.training == stable.training
    begun = under_way(look, chosen)
    refused = begun is not None and begun.newPods is not None
    return asked and same and reads and not refused and stable.lineage in look.seen.deployments


def swap(look: Look, chosen: ServedVersion, stable: ServedVersion) -> Course:
    """In the running pods, as far as it may go now. `chosen.base` says whose pods they are."""
    how, replicas = look.serving.spec.rollout, look.replicas
    begun = under_way(look, chosen)
    if begun is None:
        held_still = look.status.live is not None and look.status.live.paused
        begun = rollout.begin(how, replicas, look.now).model_copy(update={"paused": held_still})
    judgement = _judged(look, chosen, stable, begun)
    begun = begun.model_copy(update={"analysis": judgement.status})
    if judgement.give_up is not None:
        return _given_up(look, chosen, stable, begun, judgement.give_up)
    goal = swapping.Goal(chosen.digest, begun.startTime, judgement.gate)
    found = swapping.advance(how, begun, swapping.running(look.seen, stable.lineage), goal, look.now)
    if found.failed:
        pod, report = found.failed
        new_pods = begun.rollback and chosen.digest != stable.lineage
        if report.reason == contract.Reason.NEW_PODS_NEEDED or new_pods:
            return _by_new_pods(look, chosen, stable, begun, report.message)
        if not begun.rollback:  # what a rollback leaves is not to come back because of one pod
            return _given_up(look, chosen, stable, found.status, saying.refused_by(pod.name, chosen, report))
    if found.done:
        past = history.record(look.status.history, chosen, Outcome.SERVED, look.now)
        versions = Versions(stable=look.counted(chosen))
        status = look.status_with(versions=versions, rollout=found.status, history=past, keptUntil=None)
        return Course(status, saying.served(chosen, replicas), ((chosen, replicas),), chosen)
    state = _progressed(begun, found.status, look.now)
    versions = Versions(stable=look.counted(stable), next=look.counted(chosen))
    said = (
        trouble.of(look.serving, stable, look.seen)
        or _slow(look, chosen, found, state)
        or saying.rolling(versions.next or chosen, stable, state)
    )
    status = look.status_with(versions=versions, rollout=state, keptUntil=None)
    return Course(
        status, said, ((stable, replicas),), stable, found.requeue,
        tell=found.tell, take=chosen, attempt=begun.startTime, swaps=True,
    )  # fmt: skip


def _by_new_pods(
    look: Look, chosen: ServedVersion, stable: ServedVersion, begun: RolloutStatus, why: str
) -> Course:  # fmt: skip
    """Running pods have said that they cannot take the version: new ones begin with it."""
    started = rollout.begin(look.serving.spec.rollout, look.replicas, look.now, rollback=begun.rollback)
    started = started.model_copy(update={"newPods": why[:MOST_WORDS], "paused": begun.paused})
    status = look.status_with(versions=Versions(stable=stable, next=chosen), rollout=started)
    own = chosen.model_copy(update={"base": None})
    replaced = in_place if own.lineage == stable.lineage else roll_out
    return replaced(replace(look, status=status), own, stable)


def _progressed(before: RolloutStatus, after: RolloutStatus, now: datetime) -> RolloutStatus:
    """With the time since when nothing has moved."""
    same = (before.phase, before.step, before.percent) == (after.phase, after.step, after.percent)
    began = since(before.progressTime if same else None, now)
    return after.model_copy(update={"progressTime": rfc3339(began)})


def _slow(look: Look, chosen: ServedVersion, found: Swap, state: RolloutStatus) -> State | None:
    """A pod that fails to take the version and tries again, or one that has not for too long."""
    deadline = timedelta(seconds=look.serving.spec.rollout.progressDeadlineSeconds)
    moves = state.phase is RolloutPhase.PROGRESSING and state.progressTime is not None
    late = moves and look.now - since(state.progressTime, look.now) > deadline
    if found.failed:
        pod, report = found.failed
        why = f"{saying.refused_by(pod.name, chosen, report)}: delete the pod, and one that begins with it is made"
        return State(ready=False, reason=report.reason or Reason.ROLLING_OUT, message=why, waits=False)
    if found.tries:
        pod, report = found.tries
        why = f"{saying.refused_by(pod.name, chosen, report)}; it tries again"
        return State(ready=False, reason=report.reason or Reason.ROLLING_OUT, message=why, waits=not late)
    if late:
        message = f"no pod has taken the version for {deadline.total_seconds():.0f} s: the agents' logs say more"
        return State(ready=False, reason=Reason.PROGRESS_DEADLINE, message=message, waits=False)
    return None


def _judged(look: Look, chosen: ServedVersion, stable: ServedVersion, state: RolloutStatus) -> Judgement:
    """What the analysis says, where there is one, until all pods are being replaced."""
    analysis = look.serving.spec.rollout.analysis
    if analysis is None or state.rollback:
        return Judgement(None)
    if state.steps and state.step > state.steps:
        return Judgement(state.analysis)
    trained = stable.pretrained is None and not stable.live
    pair = inputs.Pair(chosen.digest, stable.digest, comparisons=trained)
    return judging.judge(analysis, state, pair, look.interval, look.now)


def _given_up(look: Look, chosen: ServedVersion, stable: ServedVersion, state: RolloutStatus, why: str) -> Course:
    """Nobody asked for it: the status says why."""
    past = history.record(look.status.history, chosen, Outcome.ABORTED, look.now, why)
    ended = state.model_copy(update={"phase": RolloutPhase.ABORTED, "percent": 0, "paused": False})
    versions = Versions(stable=look.counted(stable))
    status = look.status_with(versions=versions, rollout=ended, history=past, keptUntil=None)
    return Course(status, saying.given_up(past[0], stable), ((stable, look.replicas),), stable)
