"""What the agents of a service's pods are asked, and what they hear by their pods' annotations. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mms_operator.api import names
from mms_operator.api.rollout import Strategy
from mms_operator.plan.service import inputs, live, objects, precision, pretrained, swapping
from mms_operator.plan.types import AgentCalls, Annotation

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mms_operator.api.service_status import ServedVersion
    from mms_operator.plan.service.course import Course, Look
    from mms_operator.plan.types import Object

SWAP_SECONDS = 0.5  # between two questions to an agent while its pod is to take another artifact
COUNT_SECONDS = 2.0  # of an interval whose requests decide about replicas
SAMPLE_SECONDS = 5.0  # of an interval that an analysis counts
LIVE_SECONDS = 5.0  # while pods follow a running training
QUIET_SECONDS = 10.0  # and otherwise


def reference(course: Course, version: ServedVersion) -> ServedVersion | None:
    """What a version is compared with: what answers while it is rolled out."""
    versions = course.status.versions
    rolled_out = versions.next is not None and versions.next.digest == version.digest
    return versions.stable if rolled_out else None


def told(look: Look, course: Course) -> tuple[Annotation, ...]:
    """What pods hear: which artifact to take (what is being rolled out, else what is stable), how much to ask."""
    values: dict[str, dict[str, str]] = {}
    if course.tell and course.take is not None:
        file = objects.serve_file(look.serving, course.take, reference(course, course.take))
        text = file.model_copy(update={"attempt": course.attempt}).model_dump_json(exclude_none=True)
        values = {pod.uid: {names.ANNOTATION_SERVE: text} for pod in course.tell}
    analysis = look.serving.spec.rollout.analysis
    probes = str(analysis.probesPerSecond) if analysis and _is_analysed(course) else None
    for pod in look.seen.pods:
        said = (pod["metadata"].get("annotations") or {}).get(names.ANNOTATION_PROBE)
        if said != probes and "deletionTimestamp" not in pod["metadata"] and (probes or said not in {None, "0"}):
            values.setdefault(pod["metadata"]["uid"], {})[names.ANNOTATION_PROBE] = probes or "0"
    orders = inputs.orders(look, course) if _is_analysed(course) else {}
    for pod in look.seen.pods:
        order = orders.get(pod["metadata"]["uid"], "")
        if inputs.said(pod) != order and "deletionTimestamp" not in pod["metadata"]:
            values.setdefault(pod["metadata"]["uid"], {})[names.ANNOTATION_INPUTS] = order
    _tell_followers(look, course, values)
    called = {pod["metadata"]["uid"]: pod["metadata"]["name"] for pod in look.seen.pods}
    return tuple(Annotation(look.serving.namespace, called[uid], uid, found) for uid, found in values.items())


def asked(look: Look, course: Course) -> AgentCalls | None:
    """The pods whose agents are asked: where they may serve another artifact than they began with, or are compared."""
    versions = course.status.versions
    stable, analysed = versions.stable, _is_analysed(course)
    if look.scaled.status is not None:
        moves, hosts = bool(course.tell) or course.swaps, _hosts(look.seen.pods)
        period = SAMPLE_SECONDS if analysed else SWAP_SECONDS if moves else COUNT_SECONDS
        return AgentCalls(hosts, period, each=True) if hosts else None
    server = look.serving.spec.server
    if any(pretrained.unknown(one) or precision.unknown(one, server) for one in (stable, versions.next)):
        hosts = _hosts(look.seen.pods)
        return AgentCalls(hosts, COUNT_SECONDS) if hosts else None
    if stable is None:
        return None
    heard = any(swapping.told(pod) for pod in look.seen.began_with(stable.lineage))
    swaps = look.serving.spec.rollout.strategy is Strategy.HOT_SWAP or stable.base is not None or heard
    follows = stable.live or bool(versions.next and versions.next.live)
    swaps = swaps or follows
    if not (swaps or analysed):
        return None
    lineages = {one.lineage for one in (stable, versions.next) if one}
    mine = [pod for lineage in lineages for pod in look.seen.began_with(lineage)]
    hosts = _hosts(mine)
    if analysed:
        return AgentCalls(hosts, SAMPLE_SECONDS, each=True)
    moves = versions.next is not None or bool(course.tell)
    if moves:
        return AgentCalls(hosts, SWAP_SECONDS)
    return AgentCalls(hosts, LIVE_SECONDS, each=True) if follows else AgentCalls(hosts, QUIET_SECONDS)


def _tell_followers(look: Look, course: Course, values: dict[str, dict[str, str]]) -> None:
    """How to follow, as soon as it is said; a pod's file says the same a minute later."""
    stable = course.status.versions.stable
    if stable is None or not stable.live:
        return
    text = live.orders(look.serving.spec.rollout, course.status.live).model_dump_json()
    for pod in look.seen.began_with(stable.lineage):
        said = (pod["metadata"].get("annotations") or {}).get(names.ANNOTATION_LIVE)
        if said != text and "deletionTimestamp" not in pod["metadata"]:
            values.setdefault(pod["metadata"]["uid"], {})[names.ANNOTATION_LIVE] = text


def _hosts(pods: Iterable[Object]) -> dict[str, str]:
    return {pod["metadata"]["uid"]: ip for pod in pods if (ip := (pod.get("status") or {}).get("podIP"))}


def _is_analysed(course: Course) -> bool:
    state = course.status.rollout
    return course.status.versions.next is not None and state is not None and state.analysis is not None
