"""Which running pod is to take the next version now. Pure.

One pod at a time, by name; what fails in one is told to no other. Pods are told by an annotation, and what they serve
their agents say.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from pydantic import ValidationError

from mms_operator.api import names
from mms_operator.api.rollout import HotSwap, Strategy
from mms_operator.api.service_status import RolloutPhase
from mms_operator.plan import pods
from mms_operator.plan.conditions import rfc3339, since
from mms_operator.plan.service.rollout import DAY_SECONDS, Gate, waits_for
from mms_workloads.contract import ServeFile

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from mms_operator.api.rollout import Rollout
    from mms_operator.api.service_status import RolloutStatus
    from mms_operator.plan.service.seen import Seen
    from mms_operator.plan.types import Object
    from mms_workloads.contract import SwapReport

STEPS = 1  # the first pod alone; beyond it all pods


@dataclass(frozen=True)
class Running:
    """A pod that could take a version."""

    name: str
    uid: str
    ready: bool
    told: str | None  # digest of what it was last told to take
    attempt: str  # of what rollout that was
    serves: str | None  # as its agent says; None: nothing yet
    swap: SwapReport | None


@dataclass(frozen=True)
class Swap:
    """What is to be done now."""

    tell: tuple[Running, ...]  # those that are to take the version
    status: RolloutStatus
    done: bool = False
    failed: tuple[Running, SwapReport] | None = None  # it cannot take it, and another pod may only on the way back
    tries: tuple[Running, SwapReport] | None = None  # it has failed, and is tried again
    requeue: float | None = None  # seconds until time alone moves it on


def running(seen: Seen, lineage: str) -> list[Running]:
    """The pods that began with a version and are not ending, by name."""
    found = []
    for pod in seen.began_with(lineage):
        if "deletionTimestamp" in pod["metadata"]:
            continue
        report, file = seen.agents.get(pod["metadata"]["uid"]), told(pod)
        found.append(
            Running(
                name=pod["metadata"]["name"],
                uid=pod["metadata"]["uid"],
                ready=pods.is_ready(pod),
                told=file.artifact.digest if file else None,
                attempt=file.attempt if file else "",
                serves=report.digest if report else None,
                swap=report.swap if report else None,
            )
        )
    return sorted(found, key=lambda one: one.name)


def told(pod: Object) -> ServeFile | None:
    """What a pod's annotation tells it to take."""
    text = (pod["metadata"].get("annotations") or {}).get(names.ANNOTATION_SERVE)
    try:
        return ServeFile.model_validate_json(text) if text else None
    except ValidationError:
        return None


def astray(fleet: Sequence[Running], stable: str) -> tuple[Running, ...]:
    """Pods that are to serve what is stable and were told otherwise, or say otherwise and were told nothing."""
    return tuple(one for one in fleet if (one.told or one.serves) not in {None, stable})


def returning(fleet: Sequence[Running], stable: str) -> tuple[Running, ...]:
    """Pods that serve another artifact than what is stable, whatever they were told."""
    return tuple(one for one in fleet if one.serves not in {None, stable})


@dataclass(frozen=True)
class Goal:
    """What the pods are to take. `gate`: whether the others may follow the first one."""

    digest: str
    attempt: str
    gate: Gate = Gate.OPEN


def advance(rollout: Rollout, state: RolloutStatus, fleet: Sequence[Running], goal: Goal, now: datetime) -> Swap:
    """One look at a rollout into running pods."""
    have = [one for one in fleet if one.serves == goal.digest and one.ready]
    state = state.model_copy(
        update={
            "strategy": Strategy.LIVE_SYNC if rollout.strategy is Strategy.LIVE_SYNC else Strategy.HOT_SWAP,
            "steps": STEPS,
            "phase": RolloutPhase.PROGRESSING,
            "percent": round(100 * len(have) / max(1, len(fleet))),
        }
    )
    failures = [(one, one.swap) for one in fleet if one.swap and _failed(one, one.swap, goal)]
    hopeless = next((found for found in failures if not found[1].retryable), None)
    tries = failures[0] if failures else None
    everybody = bool(fleet) and len(have) == len(fleet)
    waiting = [one for one in fleet if not _told(one, goal) and one.serves != goal.digest]
    if state.rollback:  # it has answered before: all of them
        return _done(state) if everybody else Swap(tuple(waiting), state, failed=hopeless, tries=tries)
    if hopeless:
        return Swap((), state, failed=hopeless)
    if len(fleet) - len(waiting) > len(have):  # one is taking it, or has it and is not ready
        return Swap((), state.model_copy(update={"reachedTime": None}), tries=tries)
    paused = state.model_copy(update={"phase": RolloutPhase.PAUSED})
    holds = state.paused or rollout.paused
    if have and state.step <= STEPS:
        how = rollout.hotSwap or HotSwap()
        began = since(state.reachedTime, now)
        state = state.model_copy(update={"reachedTime": rfc3339(began)})
        left = (began + timedelta(seconds=how.seconds) - now).total_seconds()
        if holds:
            return Swap((), paused.model_copy(update={"reachedTime": rfc3339(began)}))
        if (waits := waits_for(left, goal.gate, approval=how.approval)) is not None:
            requeue = min(left, DAY_SECONDS) if waits is RolloutPhase.WAITING else None
            return Swap((), state.model_copy(update={"phase": waits}), requeue=requeue)
        state = state.model_copy(update={"step": STEPS + 1, "reachedTime": None})
    if everybody:
        return _done(state)
    if holds:
        return Swap((), paused)
    following = next((one for one in waiting if one.ready), None)
    return Swap((following,) if following else (), state)


def _done(state: RolloutStatus) -> Swap:
    return Swap((), state.model_copy(update={"phase": RolloutPhase.COMPLETE, "percent": 100}), done=True)


def _told(one: Running, goal: Goal) -> bool:
    return (one.told, one.attempt) == (goal.digest, goal.attempt)


def _failed(one: Running, swap: SwapReport, goal: Goal) -> bool:
    return _told(one, goal) and swap.phase == "Failed" and (swap.digest, swap.attempt) == (goal.digest, goal.attempt)
