"""What was served, and what was given up and is not tried again. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mms_operator.api.service_status import HISTORY, Outcome, PastVersion, ServedVersion
from mms_operator.plan.conditions import rfc3339

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

MESSAGE_LIMIT = 1024  # characters
PREFIX = 6  # digits of a digest that name it
GIVEN_UP = frozenset({Outcome.ABORTED, Outcome.ROLLED_BACK})


def record(
    history: Sequence[PastVersion], version: ServedVersion, outcome: Outcome, now: datetime, why: str | None = None
) -> list[PastVersion]:
    """The history with one more entry, which is the only one of its artifact."""
    known = version.model_dump(exclude={"time", "outcome", "base", "message"})
    entry = PastVersion.model_validate(
        {**known, "replicas": 0, "time": rfc3339(now), "outcome": outcome, "message": why and why[:MESSAGE_LIMIT]}
    )
    return _bounded([entry, *(one for one in history if one.digest != version.digest)])


def given_up(history: Sequence[PastVersion], digest: str) -> PastVersion | None:
    """Its entry, if the artifact was aborted or rolled back and is not tried again."""
    return next((one for one in history if one.digest == digest and one.outcome in GIVEN_UP), None)


def before(history: Sequence[PastVersion], stable: ServedVersion | None) -> PastVersion | None:
    """The artifact that was served before what is served now."""
    served = (
        one
        for one in history
        if one.outcome is Outcome.SERVED and not one.live and (not stable or one.digest != stable.digest)
    )
    return next(served, None)


def find(history: Sequence[PastVersion], wanted: str) -> list[PastVersion]:
    """The versions of that number, or else those whose digest begins so, of six digits at least."""
    numbered = [one for one in history if str(one.version) == wanted]
    digits = wanted.removeprefix("sha256:")
    if numbered or len(digits) < PREFIX:
        return numbered
    return [one for one in history if one.digest.removeprefix("sha256:").startswith(digits)]


def forgiven(history: Sequence[PastVersion], digest: str) -> list[PastVersion]:
    """The history without what keeps an artifact from being tried again: what was served once, was."""
    found = []
    for one in history:
        if one.digest != digest or one.outcome is Outcome.SERVED:
            found.append(one)
        elif one.outcome is Outcome.ROLLED_BACK:
            found.append(one.model_copy(update={"outcome": Outcome.SERVED, "message": None}))
    return found


def _bounded(history: list[PastVersion]) -> list[PastVersion]:
    """The newest, and in any case the last two that were served: what a rollback goes to."""
    kept = [one for one in history if one.outcome is Outcome.SERVED][:2]
    while len(history) > HISTORY:
        oldest = next(one for one in reversed(history) if one not in kept)
        history = [one for one in history if one is not oldest]
    return history


def pinned(entry: PastVersion) -> ServedVersion:
    return ServedVersion.model_validate(entry.model_dump(exclude={"time", "outcome", "replicas", "message"}))
