"""What a user says of a rollout, by the annotation mms.dev/rollout. Pure.

    pause | resume | promote [all] | abort | rollback [VERSION | DIGEST] | retry     [ @ANYTHING]

A command is carried out once. It counts as another one when the annotation's text differs in any way: what follows an
@ is there for that, such as a time, so that the same can be said twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mms_operator.api import names
from mms_operator.api.names import Reason
from mms_operator.api.service_status import (
    LiveStatus,
    Outcome,
    RolloutPhase,
    RolloutStatus,
    ServedVersion,
    ServiceStatus,
    Versions,
)
from mms_operator.plan.service import history, rollout
from mms_operator.plan.service.saying import called
from mms_operator.plan.types import Event

if TYPE_CHECKING:
    from datetime import datetime

    from mms_operator.api.rollout import Rollout
    from mms_operator.plan.types import Object

LIMIT = 256  # characters


@dataclass(frozen=True)
class Context:
    """What a command is about. `source`: what the spec names; None where there is nothing yet."""

    rollout: Rollout
    replicas: int
    source: ServedVersion | None
    now: datetime


class RefusedError(Exception):
    """A command that cannot be carried out, and what can."""


def carry_out(cr: Object, status: ServiceStatus, context: Context) -> tuple[ServiceStatus, tuple[Event, ...]]:
    """The status as the annotation's command leaves it, and what is to be told of it."""
    text = (cr["metadata"].get("annotations") or {}).get(names.ANNOTATION_ROLLOUT)
    said = text[:LIMIT] if text else None
    if said == status.command:
        return status, ()
    status = status.model_copy(update={"command": said})
    if said is None:
        return status, ()
    try:
        return _carried_out(said, status, context), ()
    except RefusedError as error:
        message = f"annotation {names.ANNOTATION_ROLLOUT}: {said!r}: {error}"
        return status, (Event("Warning", str(Reason.COMMAND_REFUSED), message),)


def _carried_out(said: str, status: ServiceStatus, context: Context) -> ServiceStatus:
    match said.partition("@")[0].split():
        case ["pause" | "resume" as word]:
            return _paused(status, paused=word == "pause")
        case ["promote"]:
            return _with(status, rollout.promoted(_under_way(status), fully=False))
        case ["promote", "all"]:
            return _with(status, rollout.promoted(_under_way(status), fully=True))
        case ["abort"]:
            if _follows(status):
                return _back_to_the_one_before(status, context)
            _under_way(status)
            return abort(status, context.now)
        case ["rollback"]:
            return _back_to_the_one_before(status, context)
        case ["rollback", wanted]:
            return _back_to(status, _known(status, wanted), context)
        case ["retry"]:
            return _retried(status, context)
    raise RefusedError("say pause, resume, promote, promote all, abort, rollback, rollback VERSION or retry")


def abort(status: ServiceStatus, now: datetime) -> ServiceStatus:
    """What was being rolled out is given up. Without anything that is served there is nothing to go back to."""
    versions = status.versions
    if versions.next is None or versions.stable is None:
        raise RefusedError("nothing was served before, so there is nothing to go back to: serve another artifact")
    if status.rollout and status.rollout.rollback:  # what answers is what is wanted again
        past = history.record(status.history, versions.stable, Outcome.SERVED, now)
    else:
        past = history.record(status.history, versions.next, Outcome.ABORTED, now)
    ended = status.rollout and status.rollout.model_copy(
        update={"phase": RolloutPhase.ABORTED, "percent": 0, "paused": False, "reachedTime": None}
    )
    kept = Versions(stable=versions.stable, previous=versions.previous)
    return status.model_copy(update={"versions": kept, "history": past, "rollout": ended})


def _back_to_the_one_before(status: ServiceStatus, context: Context) -> ServiceStatus:
    """Out of a rollout: to what answers meanwhile. Otherwise to what was served before."""
    if status.versions.next is not None and not (status.rollout and status.rollout.rollback):
        return abort(status, context.now)
    entry = history.before(status.history, status.versions.stable)
    if entry is None:
        raise RefusedError("nothing was served before what is served now")
    return _back_to(status, history.pinned(entry), context)


def _back_to(status: ServiceStatus, target: ServedVersion, context: Context) -> ServiceStatus:
    stable = status.versions.stable
    if target.live:
        raise RefusedError(f"{called(target)} was served while it trained, and is kept nowhere: name an artifact")
    if stable is None:
        raise RefusedError("nothing is served yet, so there is nothing to go back from")
    past = status.history
    for left in (context.source, status.versions.next, stable):
        if left and left.digest != target.digest:
            outcome = Outcome.ROLLED_BACK if left.digest == stable.digest else Outcome.ABORTED
            past = history.record(past, left, outcome, context.now)
    past = history.forgiven(past, target.digest)
    if target.digest == stable.digest:
        versions = Versions(stable=stable, previous=status.versions.previous)
        return status.model_copy(update={"versions": versions, "history": past, "rollout": None})
    versions = Versions(stable=stable, next=target, previous=status.versions.previous)
    state = rollout.begin(context.rollout, context.replicas, context.now, rollback=True)
    return status.model_copy(update={"versions": versions, "history": past, "rollout": state})


def _known(status: ServiceStatus, wanted: str) -> ServedVersion:
    found = history.find(status.history, wanted)
    if len(found) != 1:
        known = ", ".join(called(one) for one in status.history) or "none"
        what = "several such versions" if found else "no such version"
        raise RefusedError(f"{what} in status.history: give a number, or six digits of a digest; known: {known}")
    return history.pinned(found[0])


def _retried(status: ServiceStatus, context: Context) -> ServiceStatus:
    if context.source is None or not history.given_up(status.history, context.source.digest):
        raise RefusedError("the version that the spec names was not given up")
    return status.model_copy(update={"history": history.forgiven(status.history, context.source.digest)})


def _follows(status: ServiceStatus) -> bool:
    """Whether what there is to command is the following of a running training."""
    stable = status.versions.stable
    return stable is not None and stable.live and status.versions.next is None


def _paused(status: ServiceStatus, *, paused: bool) -> ServiceStatus:
    """The rollout, or the following of a training."""
    stable = status.versions.stable
    if stable is None or not _follows(status):
        return _with(status, _under_way(status).model_copy(update={"paused": paused}))
    known = status.live or LiveStatus(phase="", run=stable.version or 1)
    return status.model_copy(update={"live": known.model_copy(update={"paused": paused})})


def _under_way(status: ServiceStatus) -> RolloutStatus:
    if status.versions.next is None or status.rollout is None:
        raise RefusedError("no rollout is under way")
    return status.rollout


def _with(status: ServiceStatus, state: RolloutStatus) -> ServiceStatus:
    return status.model_copy(update={"rollout": state})
