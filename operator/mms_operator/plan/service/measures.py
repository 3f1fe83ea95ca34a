"""What is known of a service's requests and its pods: counted, measured, and put into the status. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from mms_operator.api import names
from mms_operator.api.autoscaling import DECISIONS, CapacityPoint, CapacityStatus
from mms_operator.plan import pods
from mms_operator.plan.conditions import rfc3339
from mms_operator.plan.scaling import capacity, objective, traffic
from mms_operator.plan.scaling.memory import ScalingMemory
from mms_operator.plan.service.objects import template

if TYPE_CHECKING:
    from mms_operator.api.autoscaling import AutoscalingStatus
    from mms_operator.api.service_status import ServedVersion, ServiceStatus
    from mms_operator.plan.service.objects import Serving
    from mms_operator.plan.service.seen import Seen
    from mms_operator.plan.types import Interval, Object, ObservedService

TELL_SECONDS = 30.0  # between two times that the status gets other numbers
TOLD_CHANGE = 0.03  # of a capacity, for the status to say so
AHEAD = timedelta(seconds=30)  # what lies so far in the future was known before the clock was set back
RECENT = 30  # intervals: about a minute
CAPACITIES = 3
NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Sight:
    """What is decided from. named: the version that the spec names, where there is one."""

    serving: Serving
    status: ServiceStatus
    seen: Seen
    observed: ObservedService
    named: ServedVersion | None
    now: datetime

    @property
    def versions(self) -> list[ServedVersion]:
        """Those that pods are of, the one that they are made of now last."""
        found = self.status.versions
        return [one for one in (found.stable, found.next, self.named) if one is not None]

    @property
    def objective_seconds(self) -> float:
        wanted = self.serving.spec.objective
        return wanted.latencyP99Milliseconds / 1000 if wanted else math.inf


@dataclass(frozen=True)
class Came:
    """Requests of so many seconds; pending: those that wait now. late: the part beyond the objective."""

    seconds: float
    arrivals: int
    answered: int
    pending: int
    late: float


def remembered(sight: Sight) -> ScalingMemory:
    """What is known, or nothing: at first, and where the clock has been set back, as times are in all parts of it."""
    found, now = sight.observed.scaling, sight.now
    if found is None or max(found.counted, found.asked) - now > AHEAD:
        return ScalingMemory(since=now, counted=now, asked=now, told=NEVER)
    return found


def silent(sight: Sight) -> int:
    """Ready pods that do not say what they have to do."""
    ready = (pod["metadata"]["uid"] for pod in sight.seen.pods if pods.is_ready(pod))
    said = sight.observed.agents
    return sum(uid not in said or traffic.sample(said[uid]) is None for uid in ready)


def counted(sight: Sight, memory: ScalingMemory) -> tuple[ScalingMemory, Came | None]:
    """What came since the last time, where enough time has passed and every ready pod tells.

    None: nothing is to be counted yet. What is counted later is of all the time until then.
    """
    if not _due(sight, memory) or silent(sight):
        return memory, None
    found, said, seconds = _heard(sight, memory)
    made = {pod["metadata"]["uid"] for pod in sight.seen.pods}
    kept = {uid: one for uid, one in memory.samples.items() if uid in made}
    p99 = found.p99 if found.p99 is not None else memory.p99 if found.pending else None
    came = Came(seconds, found.arrivals, found.answered, found.pending, found.late)
    recent = ((seconds, came.arrivals), *memory.recent)[:RECENT]
    assert sight.observed.interval is not None  # noqa: S101 - it is due
    ended = sight.observed.interval.ended
    return replace(memory, counted=ended, samples=kept | said, p99=p99, recent=recent), came


def guessed(sight: Sight, memory: ScalingMemory) -> Came | None:
    """What came since the last time to pods that tell, and as much to each ready one that does not."""
    missing = silent(sight)
    if not _due(sight, memory) or missing >= sight.seen.ready:
        return None
    found, _, seconds = _heard(sight, memory)
    part = sight.seen.ready / (sight.seen.ready - missing)
    arrivals, answered, pending = (round(n * part) for n in (found.arrivals, found.answered, found.pending))
    return Came(seconds, arrivals, answered, pending, found.late)


def _due(sight: Sight, memory: ScalingMemory) -> bool:
    interval = sight.observed.interval
    if interval is None or interval.ended - sight.now > AHEAD:
        return False
    return _seconds(interval, memory) >= objective.EVERY_SECONDS * 0.75


def _seconds(interval: Interval, memory: ScalingMemory) -> float:
    return (interval.ended - memory.counted).total_seconds()


def _heard(sight: Sight, memory: ScalingMemory) -> tuple[traffic.Traffic, dict[str, traffic.Sample], float]:
    """What came to the pods that tell, what they have counted so far, and in how many seconds."""
    observed = sight.observed
    assert observed.interval is not None  # noqa: S101 - it is due
    said = {uid: one for uid, report in observed.agents.items() if (one := traffic.sample(report))}
    loads = {uid: report.load for uid, report in observed.agents.items() if report.load}
    made = {pod["metadata"]["uid"]: pod["metadata"].get("creationTimestamp") for pod in sight.seen.pods}
    # Of pods that were there before anything was remembered, what they had counted is past.
    past = {uid: one for uid, one in said.items() if uid in made and _before(made[uid], memory.since)}
    before = past | dict(memory.samples)
    return (
        traffic.between(before, said, loads, sight.objective_seconds), said, _seconds(observed.interval, memory)
    )  # fmt: skip


def _before(made: str | None, moment: datetime) -> bool:
    return made is None or datetime.fromisoformat(made) < moment


def asked(sight: Sight, memory: ScalingMemory, came: Came | None) -> ScalingMemory:
    """When somebody last asked, of the pods or the activators. Of a pod that says nothing nobody knows."""
    held = sight.observed.activator
    connections = held.connections if held else memory.connections
    now = bool(came and (came.arrivals or came.pending)) or bool(held and held.waiting)
    now |= connections > memory.connections or bool(silent(sight))
    return replace(memory, asked=sight.now if now else memory.asked, connections=connections)


def starts(sight: Sight, known: AutoscalingStatus, memory: ScalingMemory) -> tuple[AutoscalingStatus, ScalingMemory]:
    """The times that pods took to start.

    One that was measured, one that was ready before, and one in which a container has been started again tell nothing.
    """
    observed = sight.observed
    ready = [pod for pod in sight.seen.pods if pods.is_ready(pod)]
    # One that is not ready for a moment does not start anew.
    there = {pod["metadata"]["uid"] for pod in sight.seen.pods}
    counted = there & memory.started if observed.scaling else {pod["metadata"]["uid"] for pod in ready}
    fresh = [pod for pod in ready if pod["metadata"]["uid"] not in counted]
    told = [
        took
        for pod in fresh
        if (report := observed.agents.get(pod["metadata"]["uid"])) and not report.measured
        if not _restarted(pod)
        if (took := _seconds_to_ready(pod)) is not None
    ]
    heard = {pod["metadata"]["uid"] for pod in fresh if pod["metadata"]["uid"] in observed.agents}
    memory = replace(memory, started=frozenset(counted | heard))
    if not told:
        return known, memory
    last = [*(f"{one:.1f}" for one in told), *known.coldStarts][:DECISIONS]
    ordered = sorted(float(one) for one in last)
    typical = ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))]
    return known.model_copy(update={"coldStarts": last, "coldStartSeconds": f"{typical:.1f}"}), memory


def _restarted(pod: Object) -> bool:
    status = pod.get("status") or {}
    kinds = "containerStatuses", "initContainerStatuses"  # sidecars are of the latter
    return any(one.get("restartCount") for kind in kinds for one in status.get(kind) or ())


def _seconds_to_ready(pod: Object) -> float | None:
    for condition in (pod.get("status") or {}).get("conditions") or ():
        if condition["type"] == "Ready" and condition["status"] == "True" and condition.get("lastTransitionTime"):
            made = datetime.fromisoformat(pod["metadata"]["creationTimestamp"])
            return max(0.0, (datetime.fromisoformat(condition["lastTransitionTime"]) - made).total_seconds())
    return None


def templates(sight: Sight) -> set[str | None]:
    """Of the pods that there are; None is that of one which has none."""
    found = (pod["metadata"].get("annotations") or {} for pod in sight.seen.pods)
    return {one.get(names.ANNOTATION_CAPACITY) for one in found}


def capacities(sight: Sight, known: AutoscalingStatus) -> AutoscalingStatus:
    """With what pods have found out about themselves."""
    have = {one.template for one in known.capacity}
    added = []
    for pod in sight.seen.pods:
        report = sight.observed.agents.get(pod["metadata"]["uid"])
        name = (pod["metadata"].get("annotations") or {}).get(names.ANNOTATION_CAPACITY)
        if name is None or name in have or report is None or not report.measured or not report.measured.curve:
            continue
        have.add(name)
        points = [
            CapacityPoint(
                concurrency=point.concurrency,
                requestsPerSecond=f"{point.rate:.4g}",
                latencyP99Milliseconds=f"{1000 * point.p99:.4g}",
            )
            for point in report.measured.curve
            if point.rate > 0
        ]
        if not points:
            continue
        found = report.measured.batching
        made = CapacityStatus(
            template=name,
            curve=points[:20],
            requestsPerSecond="0",
            measuredTime=rfc3339(sight.now),
            preferredBatchSize=(found.preferredBatchSize or None) if found else None,
            maxQueueDelayMicroseconds=found.maxQueueDelayMicroseconds if found else None,
            instances=found.instances if found else None,
        )
        added.append(with_correction(made, 1.0, sight.objective_seconds))
    if not added:
        return known
    mine = {template(sight.serving, one) for one in sight.versions}
    kept = sorted(known.capacity, key=lambda one: one.template not in mine)
    return known.model_copy(update={"capacity": [*added, *kept][:CAPACITIES]})


def with_correction(one: CapacityStatus, correction: float, objective_seconds: float) -> CapacityStatus:
    rate = capacity.of_curve(curve(one), objective_seconds, correction).capacity.rate
    return one.model_copy(update={"correction": f"{correction:.4f}", "requestsPerSecond": f"{rate:.4g}"})


def failed(sight: Sight) -> dict[str, str]:
    """Templates whose pods have tried to find out what they can do, and could not; why, and what helps."""
    found = {}
    for pod in sight.seen.pods:
        report = sight.observed.agents.get(pod["metadata"]["uid"])
        name = (pod["metadata"].get("annotations") or {}).get(names.ANNOTATION_CAPACITY)
        if name and report and report.measured and not any(point.rate > 0 for point in report.measured.curve):
            why = f"pod {pod['metadata']['name']}: {report.measured.error or 'it answered nothing'}"
            # Without golden questions, as of a Triton repository, the next pod could not be measured either.
            remedy = "delete the pod to try again" if report.goldenCases else "set autoscaling.mode to External or Off"
            found[name] = f"{why}: {remedy}"
    return found


def correction(one: CapacityStatus, memory: ScalingMemory) -> float:
    """What clients have shown since it was measured, as a factor."""
    return memory.corrections.get(one.template, float(one.correction))


def curve(one: CapacityStatus) -> list[capacity.Point]:
    return [
        capacity.Point(p.concurrency, float(p.requestsPerSecond), float(p.latencyP99Milliseconds) / 1000)
        for p in one.curve
    ]


def told(
    sight: Sight, known: AutoscalingStatus, memory: ScalingMemory, came: Came | None, why: str | None = None
) -> tuple[AutoscalingStatus, ScalingMemory]:
    """With the numbers of now, from time to time."""
    if came is None or (sight.now - memory.told).total_seconds() < TELL_SECONDS:
        return known, memory
    corrected = []
    for one in known.capacity:
        now = correction(one, memory)
        moved = abs(now / float(one.correction) - 1) >= TOLD_CHANGE
        corrected.append(with_correction(one, now, sight.objective_seconds) if moved else one)
    numbers = {
        "capacity": corrected,
        "requestsPerSecond": _short(_rate(memory)),
        "latencyP99Milliseconds": _short(1000 * memory.p99 if memory.p99 is not None else None),
    }
    return known.model_copy(update=numbers | ({"reason": why[:512]} if why else {})), replace(memory, told=sight.now)


def _rate(memory: ScalingMemory) -> float:
    seconds = sum(one for one, _ in memory.recent)
    return sum(arrivals for _, arrivals in memory.recent) / seconds if seconds else 0.0


def _short(value: float | None) -> str | None:
    """Two digits that count: numbers that differ by less are none to write a status for."""
    if value is None:
        return None
    digits = 1 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{round(value, digits):g}"
