"""How a run ended, from whatever says so: the master's report, or what its pods wrote when they ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mms_operator.api.causes import RULES, Follows
from mms_operator.api.names import Role
from mms_operator.plan.training import causes
from mms_workloads.contract import Outcome, Reason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mms_operator.plan.pods import Ended, Seen
    from mms_operator.plan.stores import Location
    from mms_workloads.contract import StatusReport

# What is about a store, so that the message is complete only with the field of the spec that names it.
_ABOUT_STORES = frozenset(
    {
        Reason.CREDENTIALS_INVALID, Reason.DATA_EMPTY, Reason.DATA_INVALID, Reason.DATA_NOT_FOUND,
        Reason.DATA_UNREADABLE, Reason.STORAGE_DENIED, Reason.STORAGE_IN_USE, Reason.STORAGE_UNREACHABLE,
        Reason.VOCABULARY_TOO_SMALL,
    }
)  # fmt: skip
_DATA = "spec.data"
_ABOUT_DATA = frozenset(
    {Reason.DATA_EMPTY, Reason.DATA_INVALID, Reason.DATA_NOT_FOUND, Reason.DATA_UNREADABLE, Reason.VOCABULARY_TOO_SMALL}
)
_ABOUT_KEYS = frozenset({Reason.CREDENTIALS_INVALID, Reason.STORAGE_DENIED})


def of(report: StatusReport | None, pods: Sequence[Seen]) -> Outcome | None:
    """The outcome of the attempt; None while there is none that stands.

    A failure that another try may mend is no outcome: the pod is replaced, as far as the budget allows. A pod that was
    refused as stale says nothing about the run.
    """
    said = [report.outcome] if report and report.outcome else []
    ended = sorted(((pod.role != Role.MASTER, pod.name, pod.ended) for pod in pods if pod.ended), key=lambda p: p[:2])
    said += [end.outcome for _, _, end in ended if end.outcome]
    if good := next((outcome for outcome in said if outcome.result != "Failed"), None):
        return good
    if bad := next(
        (outcome for outcome in said if not outcome.retryable and outcome.reason != Reason.STALE_PEER), None
    ):
        return bad
    return next((_without_words(pod.name, pod.ended) for pod in pods if pod.ended and _is_final(pod)), None)


def _is_final(pod: Seen) -> bool:
    """A pod that ended with a code that no other try changes, and left no outcome: an image without our program."""
    cause = causes.of(pod)
    return cause is not None and RULES[cause].follows is Follows.FAILS


def _without_words(name: str, ended: Ended) -> Outcome:
    return Outcome(result="Failed", reason=ended.reason, message=f"pod {name}: {ended.message}")


def explain(outcome: Outcome, locations: Sequence[Location]) -> str:
    """The outcome's message with the field of the spec that it is about."""
    if outcome.reason not in _ABOUT_STORES:
        return outcome.message
    about = max(locations, key=lambda location: _shared(outcome.message, location.store.uri), default=None)
    if about is None or not _shared(outcome.message, about.store.uri):
        data = next((location for location in locations if location.field == _DATA), None)
        if data is None or outcome.reason not in _ABOUT_DATA:
            return outcome.message
        return f"{outcome.message}. ({_DATA}.uri is {data.store.uri})"
    denied = outcome.reason in _ABOUT_KEYS or "credentials" in outcome.message
    hint = about.whose() if denied else f"see {about.field}"
    return f"{outcome.message}. ({hint})"


def _shared(message: str, uri: str) -> int:
    """How much of a URI a message names: the whole, its folder without the pattern, or its bucket."""
    folder = uri.partition("*")[0].rpartition("/")[0]
    bucket = "/".join(uri.split("/")[:3])
    return max((len(part) for part in (uri, folder, bucket) if part and part in message), default=0)
