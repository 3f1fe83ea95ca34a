"""How many replicas a service is to have now, by its objective; what is known of its requests and its pods. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from mms_operator.api.autoscaling import DECISIONS, AutoscalingStatus, Mode, ScalingDecision
from mms_operator.plan.conditions import rfc3339
from mms_operator.plan.scaling import capacity, objective, schedule
from mms_operator.plan.scaling.memory import ScalingMemory
from mms_operator.plan.scaling.types import Decision, Observed
from mms_operator.plan.service import measures
from mms_operator.plan.service.objects import template

if TYPE_CHECKING:
    from mms_operator.plan.service.measures import Came, Sight
    from mms_workloads.contract import Batching

COLD_START_SECONDS = 15.0  # until one has been measured
MINUTE = timedelta(minutes=1)
MOST_BINS = 30  # that are made of one interval
NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Scaled:
    """status: None where nobody wants to know. replicas: what spec.replicas is to be; None: as it is."""

    status: AutoscalingStatus | None = None
    memory: ScalingMemory | None = None
    replicas: int | None = None
    template: str | None = None  # of pods that are to find out what they can do; None: none are

    def batching(self, name: str, asked: Batching) -> Batching:
        """How pods of that template do the most, where one has found out; else what is asked for."""
        for one in self.status.capacity if self.status else ():
            if one.template == name and one.instances:
                tuned = {
                    "preferredBatchSize": one.preferredBatchSize or 0,
                    "maxQueueDelayMicroseconds": one.maxQueueDelayMicroseconds or 0,
                    "instances": one.instances,
                }
                return asked.model_copy(update=tuned)
        return asked


def advance(sight: Sight) -> Scaled:
    """From what was seen since the last time. The same arguments give the same answer."""
    spec, now, held = sight.serving.spec, sight.now, sight.observed.activator
    if spec.autoscaling.mode is Mode.OFF and spec.objective is None:
        return Scaled()
    memory = sight.observed.scaling or ScalingMemory(now, now, now, NEVER)
    known = sight.status.autoscaling or AutoscalingStatus()
    known = known.model_copy(update={"activatorPort": held.port if held else known.activatorPort})
    known, memory = measures.starts(sight, known, memory)
    known = measures.capacities(sight, known)
    memory, came = measures.counted(sight, memory)
    memory = measures.asked(sight, memory, came)
    if spec.autoscaling.mode is not Mode.OBJECTIVE:
        return Scaled(*measures.told(sight, known, memory, came))
    return _Deciding(sight).decide(known, memory, came)


@dataclass(frozen=True)
class _Deciding:
    sight: Sight

    def decide(self, known: AutoscalingStatus, memory: ScalingMemory, came: Came | None) -> Scaled:
        present = wanted = self.sight.serving.spec.replicas
        why = known.reason
        found = self._capacity(known, memory)
        if found is None:
            wanted, why = max(1, present), "what a pod can do is not known until the first one has been measured"
        elif came is not None:
            memory = self._corrected(known, memory, found, came)
            memory, decision = self._by_objective(known, memory, came, found)
            wanted = decision.replicas
            slow = "" if found.met else "even one request at a time takes longer than the objective; "
            why = f"{slow}{decision.why}"
        wanted, why = self._within(wanted, why, memory)
        why = why[:512]
        changes = tuple((at, before) for at, before in memory.changes if self.sight.now - at < MINUTE)
        if wanted != present:
            changes = (*changes, (self.sight.now, present))
            entry = ScalingDecision(time=rfc3339(self.sight.now), replicas=wanted, reason=why)
            history = [entry, *known.history][:DECISIONS]
            known = known.model_copy(update={"replicas": wanted, "reason": why, "history": history})
        elif known.replicas is None:
            known = known.model_copy(update={"replicas": wanted, "reason": why})
        known, memory = measures.told(self.sight, known, replace(memory, changes=changes), came, why)
        name = self._template()
        unknown = name if name not in {one.template for one in known.capacity} else None
        return Scaled(known, memory, None if wanted == present else wanted, unknown)

    def _template(self) -> str | None:
        """Of the pods that are made now."""
        versions = self.sight.versions
        return template(self.sight.serving, versions[-1]) if versions else None

    def _capacity(self, known: AutoscalingStatus, memory: ScalingMemory) -> capacity.Known | None:
        """The least of those of the versions that are there; of others, where theirs is not known."""
        seconds = self.sight.objective_seconds
        mine = {template(self.sight.serving, one) for one in self.sight.versions}
        there = [one for one in known.capacity if one.template in mine] or known.capacity[:1]
        found = [capacity.of_curve(measures.curve(one), seconds, measures.correction(one, memory)) for one in there]
        return min(found, key=lambda one: one.capacity.rate, default=None)

    def _corrected(
        self, known: AutoscalingStatus, memory: ScalingMemory, found: capacity.Known, came: Came
    ) -> ScalingMemory:
        """With what clients show of the pods' capacity."""
        ready = self.sight.seen.ready
        if not ready or ready != self.sight.serving.spec.replicas:
            return memory  # those that start take requests, too, and those that go
        rate = came.arrivals / came.seconds / ready
        corrections = {
            one.template: capacity.corrected(measures.correction(one, memory), found.capacity, rate, came.late)
            for one in known.capacity
        }
        return replace(memory, corrections=corrections)

    def _by_objective(
        self, known: AutoscalingStatus, memory: ScalingMemory, came: Came, found: capacity.Known
    ) -> tuple[ScalingMemory, Decision]:
        """In steps of the same length, whatever time has passed since the last one."""
        scaling = self.sight.serving.spec.autoscaling
        spec = objective.Spec(
            found.capacity,
            float(known.coldStartSeconds or COLD_START_SECONDS),
            least=scaling.minReplicas,
            most=scaling.maxReplicas,
        )
        bins = min(MOST_BINS, max(1, round(came.seconds / objective.EVERY_SECONDS)))
        carried, decision = memory.objective, Decision(scaling.minReplicas, "")
        began = memory.counted.timestamp() - came.seconds
        for number in range(bins):
            arrivals = came.arrivals * (number + 1) // bins - came.arrivals * number // bins
            ready = self.sight.seen.ready
            seen = Observed(
                now=began + (number + 1) * objective.EVERY_SECONDS,
                ready=ready,
                starting=max(0, self.sight.serving.spec.replicas - ready),
                arrivals=arrivals,
                late=round(came.late * arrivals),
                waiting=came.pending,
                busy=float(came.pending),
            )
            carried, decision = objective.decide(spec, carried, seen)
        return replace(memory, objective=carried), decision

    def _within(self, wanted: int, why: str, memory: ScalingMemory) -> tuple[int, str]:
        """Within what the spec allows, with zero where nobody has asked for long."""
        scaling, present = self.sight.serving.spec.autoscaling, self.sight.serving.spec.replicas
        held = self.sight.observed.activator
        timed = schedule.replicas(scaling.schedules, self.sight.now)
        if timed > wanted:
            wanted, why = timed, f"a schedule wants {timed} at least; else {why}"
        least = max(1, min(scaling.minReplicas, scaling.maxReplicas))
        wanted = min(max(wanted, least), scaling.maxReplicas)
        if present == 0 and held is not None and held.waiting:
            return max(wanted, least), f"{held.waiting} connections wait for a pod"
        quiet = self.sight.now - memory.asked
        limit = scaling.scaleToZeroAfterSeconds
        if limit is not None and not timed:
            if present == 0:
                return 0, f"nobody has asked for {limit} s"
            if quiet >= timedelta(seconds=limit) and self.sight.seen.ready:
                if held is None:
                    return wanted, f"nobody has asked for {limit} s, but no activator is there to wake it; {why}"
                return 0, f"nobody has asked for {limit} s"
        if present == 0:
            return wanted, why
        before = [count for at, count in memory.changes if self.sight.now - at < MINUTE]
        if scaling.upPerMinute is not None and wanted > (most := min([present, *before]) + scaling.upPerMinute):
            wanted, why = max(present, most), f"upPerMinute allows {most}; {why}"
        if scaling.downPerMinute is not None and wanted < (least := max([present, *before]) - scaling.downPerMinute):
            wanted, why = min(present, least), f"downPerMinute allows {least}; {why}"
        return wanted, why
