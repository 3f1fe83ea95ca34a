"""Inputs of clients that both versions of a rollout answer: which pods sample them, and what came of it. Pure.

The inputs go from pod to pod, sealed with keys that the agents make for themselves; the operator hears the public keys
and the counts, and tells each pod the others' keys and addresses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mms_operator.api import names
from mms_operator.api.service_status import LiveInputsStatus
from mms_operator.api.types import ModelFormat
from mms_operator.plan import pods
from mms_workloads.contract import InputOrders, InputPeer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mms_operator.api.rollout import Analysis
    from mms_operator.api.service import ServiceSpec
    from mms_operator.plan.analysis.disagreement import Disagreement
    from mms_operator.plan.service.course import Course, Look
    from mms_operator.plan.types import Interval, Object
    from mms_workloads.contract import AgentReport

# Tasks whose answers are vectors, pictures and texts that are made up: two versions' are never the same.
INCOMPARABLE = frozenset({"textEmbedding", "imageGeneration", "languageModel"})
SENDERS, TAKERS = 16, 8  # pods that sample, and that compare, at most: annotations stay small
DIGITS = 3  # of a pod's part of a second


@dataclass(frozen=True)
class Pair:
    """The two versions that are compared, by their digests. comparisons: whether the stable one may bring some."""

    canary: str
    stable: str
    comparisons: bool = True


def problem(spec: ServiceSpec) -> str | None:
    """Why no inputs of clients could ever be compared, as far as the spec says it. The agents say the rest."""
    analysis, model = spec.rollout.analysis, spec.model.pretrained
    if analysis is None or analysis.liveInputs is None or model is None:
        return None
    task = (model.pipeline or {}).get("task")
    if model.format is ModelFormat.TRITON_REPOSITORY:
        why = "requests to a Triton repository are not seen"
    elif task in INCOMPARABLE:
        why = f"answers of {task} cannot be compared"
    else:
        return None
    return f"spec.rollout.analysis.liveInputs: {why}: leave it out"


def orders(look: Look, course: Course) -> dict[str, str]:
    """What each pod is to be told, by its uid, while a rollout is analysed. Those that are not in it: nothing."""
    analysis, versions = look.serving.spec.rollout.analysis, course.status.versions
    if analysis is None or analysis.liveInputs is None or versions.next is None or versions.stable is None:
        return {}
    pair = Pair(versions.next.digest, versions.stable.digest)
    there = sorted(
        (pod for pod in look.seen.pods if pods.is_ready(pod) and "deletionTimestamp" not in pod["metadata"]),
        key=lambda pod: str(pod["metadata"]["name"]),
    )
    stable = [pod for pod in there if _serves(look, pod) == pair.stable][:SENDERS]
    following = [pod for pod in there if _serves(look, pod) == pair.canary][:TAKERS]
    rate = float(analysis.liveInputs.perSecond)
    told = InputOrders(stable=pair.stable, next=pair.canary, perSecond=rate)
    if course.swaps:
        own = told.model_copy(update={"both": True, "perSecond": _part(rate, following)})
        return {_uid(pod): own.model_dump_json() for pod in following}
    sends = {"to": _peers(look, following), "perSecond": _part(rate, stable)}
    takes = {"senders": [key for pod in stable if (key := _key(look, pod))], "perSecond": rate}
    return {
        **{_uid(pod): told.model_copy(update=sends).model_dump_json() for pod in stable},
        **{_uid(pod): told.model_copy(update=takes).model_dump_json() for pod in following},
    }


def compared(interval: Interval, pair: Pair) -> tuple[int, int]:
    """Inputs that both answered in the interval, and those that they answered otherwise."""
    total = differing = 0
    for uid, after in interval.after.items():
        before = interval.before.get(uid)
        now, then = after.inputs, before.inputs if before else None
        if before is None or now is None or after.digest != pair.canary or now.reference != pair.stable:
            continue
        # What an agent had counted before it was heard for the first time may have been counted already.
        if then is None or then.key != now.key or then.reference not in {"", now.reference}:
            continue
        more, other = now.compared - then.compared, now.differing - then.differing
        if 0 <= other <= more:
            total, differing = total + more, differing + other
    return total, differing


def status(
    analysis: Analysis,
    counted: Disagreement | None,
    interval: Interval | None,
    pair: Pair,
    known: LiveInputsStatus | None,
) -> LiveInputsStatus | None:
    if analysis.liveInputs is None or counted is None:
        return None
    message = known.message if known and interval is None else _left_out(interval.after, pair) if interval else ""
    return LiveInputsStatus(compared=counted.compared, differing=counted.differing, message=message[:512])


def _left_out(reports: Mapping[str, AgentReport], pair: Pair) -> str:
    """What a pod says of inputs that are not compared."""
    mine = [one.inputs for one in reports.values() if one.inputs and one.digest in {pair.canary, pair.stable}]
    said = next((one.message for one in mine if one.message), "")
    large = sum(one.large for one in mine)
    left_out = f"{large} were too large to be taken" if large else ""
    return "; ".join(one for one in (said, left_out) if one)


def _serves(look: Look, pod: Object) -> str | None:
    report = look.seen.agents.get(_uid(pod))
    return report.digest if report else None


def _key(look: Look, pod: Object) -> str:
    report = look.seen.agents.get(_uid(pod))
    return report.inputs.key if report and report.inputs else ""


def _peers(look: Look, following: Sequence[Object]) -> list[InputPeer]:
    hosts = ((pod, (pod.get("status") or {}).get("podIP")) for pod in following)
    return [InputPeer(host=host, key=key) for pod, host in hosts if host and (key := _key(look, pod))]


def _part(rate: float, among: Sequence[Object]) -> float:
    return max(10.0**-DIGITS, round(rate / max(1, len(among)), DIGITS))


def _uid(pod: Object) -> str:
    uid: str = pod["metadata"]["uid"]
    return uid


def said(pod: Object) -> str:
    """What a pod was told last."""
    return str((pod["metadata"].get("annotations") or {}).get(names.ANNOTATION_INPUTS) or "")
