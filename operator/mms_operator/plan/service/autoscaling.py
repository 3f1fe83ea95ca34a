"""How many replicas a service is to have now, by its objective; what is known of its requests and its pods. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from mms_operator.api.autoscaling import DECISIONS, AutoscalingStatus, Mode, ScalingDecision
from mms_operator.plan.conditions import rfc3339
from mms_operator.plan.scaling import capacity, objective, schedule
from mms_operator.plan.scaling.types import Decision, Observed
from mms_operator.plan.service import measures
from mms_operator.plan.service.objects import template

if TYPE_CHECKING:
    from mms_operator.plan.scaling.memory import ScalingMemory
    from mms_operator.plan.service.measures import Came, Sight
    from mms_workloads.contract import Batching

COLD_START_SECONDS = 15.0  # until one has been measured
MINUTE = timedelta(minutes=1)
MOST_BINS = 30  # that are made of one interval


@dataclass(frozen=True)
class Scaled:
    """status: None where nobody wants to know. replicas: what spec.replicas is to be; None: as it is."""

    status: AutoscalingStatus | None = None
    memory: ScalingMemory | None = None
    replicas: int | None = None
    template: str | None = None  # of pods that are to find out what they can do; None: none are
    decided: bool = False  # whether it wants another number than the last time

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
    spec, held = sight.serving.spec, sight.observed.activator
    if spec.autoscaling.mode is Mode.OFF and spec.objective is None:
        return Scaled()
    memory = measures.remembered(sight)
    known = sight.status.autoscaling or AutoscalingStatus()
    known = known.model_copy(update={"activatorPort": held.port if held else known.activatorPort})
    known, memory = measures.starts(sight, known, memory)
    known = measures.capacities(sight, known)
    memory, came = measures.counted(sight, memory)
    memory = measures.asked(sight, memory, came)
    if spec.autoscaling.mode is not Mode.OBJECTIVE:
        known = known.model_copy(update={"replicas": None, "reason": ""})
        if spec.autoscaling.mode is Mode.OFF:
            known = known.model_copy(update={"activatorPort": None})
        return Scaled(*measures.told(sight, known, memory, came))
    return _Deciding(sight).decide(known, memory, came)


@dataclass(frozen=True)
class _Deciding:
    sight: Sight

    def decide(self, known: AutoscalingStatus, memory: ScalingMemory, came: Came | None) -> Scaled:
        present = wanted = self.sight.serving.spec.replicas
        why = known.reason
        found = self._capacity(known, memory)
        name, failed = self._template(), measures.failed(self.sight)
        held_up = False  # whether it would decide, and cannot
        if found is None:
            wanted, why = max(1, present), "what a pod can do is not known until the first one has been measured"
            if held_up := name in failed:
                why = f"what a pod can do could not be measured: {failed[name]}"
        elif missing := measures.silent(self.sight):
            held_up = True
            wanted, why = self._in_part(known, memory, found, missing)
        elif came is not None:
            memory = self._corrected(known, memory, came)
            memory, decision = self._by_objective(known, memory, came, found)
            wanted = decision.replicas
            slow = "" if found.met else "even one request at a time takes longer than the objective; "
            why = f"{slow}{decision.why}"
        wanted, why = self._within(wanted, why, memory)
        why = why[:512]
        changes = tuple((at, before) for at, before in memory.changes if self.sight.now - at < MINUTE)
        decided = wanted not in {present, known.replicas}
        if decided:
            changes = (*changes, (self.sight.now, present))
            entry = ScalingDecision(time=rfc3339(self.sight.now), replicas=wanted, reason=why)
            history = [entry, *known.history][:DECISIONS]
            known = known.model_copy(update={"replicas": wanted, "reason": why, "history": history})
        elif known.replicas is None or held_up or (known.replicas != wanted and came is not None):
            known = known.model_copy(update={"replicas": wanted, "reason": why})
        known, memory = measures.told(self.sight, known, replace(memory, changes=changes), came, why)
        unknown = name if name not in {one.template for one in known.capacity} and name not in failed else None
        return Scaled(known, memory, None if wanted == present else wanted, unknown, decided)

    def _in_part(
        self, known: AutoscalingStatus, memory: ScalingMemory, found: capacity.Known, missing: int
    ) -> tuple[int, str]:
        """No fewer pods, and more where those that say what they have to do show it: the others do not count, then."""
        present = self.sight.serving.spec.replicas
        silent = f"{missing} ready pods do not say what they have to do"
        came = measures.guessed(self.sight, memory)
        if came is not None:
            _, decision = self._by_objective(known, memory, came, found)
            if (wanted := decision.replicas + missing) > present:
                return wanted, f"{silent}, and are not counted; {decision.why}"
        return present, f"{silent}: there will be no fewer until they do"

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

    def _corrected(self, known: AutoscalingStatus, memory: ScalingMemory, came: Came) -> ScalingMemory:
        """With what clients show of the pods' capacity."""
        ready = self.sight.seen.ready
        if not ready or ready != self.sight.serving.spec.replicas:
            return memory  # those that start take requests, too, and those that go
        made = measures.templates(self.sight)
        one = next((one for one in known.capacity if {one.template} == made), None)
        if one is None:
            return memory  # what came is not known by versions
        rate = came.answered / came.seconds / ready
        before = measures.correction(one, memory)
        curve = capacity.of_curve(measures.curve(one), self.sight.objective_seconds, before)
        after = capacity.corrected(before, curve.capacity, rate, came.late)
        there = {one.template for one in known.capacity}
        kept = {name: value for name, value in memory.corrections.items() if name in there}
        return replace(memory, corrections=kept | {one.template: after})

    def _by_objective(
        self, known: AutoscalingStatus, memory: ScalingMemory, came: Came, found: capacity.Known
    ) -> tuple[ScalingMemory, Decision]:
        """In steps of the same length, whatever time has passed since the last one; of a long one, as many as count."""
        scaling = self.sight.serving.spec.autoscaling
        spec = objective.Spec(
            found.capacity,
            float(known.coldStartSeconds or COLD_START_SECONDS),
            least=scaling.minReplicas,
            most=scaling.maxReplicas,
        )
        bins = min(MOST_BINS, max(1, round(came.seconds / objective.EVERY_SECONDS)))
        carried, decision = memory.objective, Decision(scaling.minReplicas, "")
        began = memory.counted.timestamp() - bins * objective.EVERY_SECONDS
        came_in_bins = round(came.arrivals * bins * objective.EVERY_SECONDS / came.seconds)
        for number in range(bins):
            arrivals = came_in_bins * (number + 1) // bins - came_in_bins * number // bins
            # Pods of a version that is looked at, or kept for a while, are not part of what is asked for.
            ready = min(self.sight.seen.ready, self.sight.serving.spec.replicas)
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
        if scaling.scaleToZeroAfterSeconds is not None and not timed:
            asleep, quiet = self._asleep(scaling.scaleToZeroAfterSeconds, memory)
            if asleep:
                return 0, quiet
            why = f"{quiet}; {why}" if quiet else why
        return self._bounded(wanted, why, memory) if present else (wanted, why)

    def _asleep(self, limit: int, memory: ScalingMemory) -> tuple[bool, str]:
        """Whether there are to be no pods, and why, or why not although nobody has asked."""
        held, said = self.sight.observed.activator, f"nobody has asked for {limit} s"
        if self.sight.serving.spec.replicas == 0:
            return True, said
        if self.sight.now - memory.asked < timedelta(seconds=limit) or not self.sight.seen.ready:
            return False, ""
        stable = self.sight.status.versions.stable
        if stable is not None and stable.live:
            return False, f"{said}, but its parameters are nowhere else"
        if held is None or not held.addresses:
            return False, f"{said}, but no activator is there to wake it"
        return True, said

    def _bounded(self, wanted: int, why: str, memory: ScalingMemory) -> tuple[int, str]:
        """No faster than the spec allows."""
        scaling, present = self.sight.serving.spec.autoscaling, self.sight.serving.spec.replicas
        before = [count for at, count in memory.changes if self.sight.now - at < MINUTE]
        if scaling.upPerMinute is not None and wanted > (most := min([present, *before]) + scaling.upPerMinute):
            return max(present, most), f"upPerMinute allows {most}; {why}"
        if scaling.downPerMinute is not None and wanted < (least := max([present, *before]) - scaling.downPerMinute):
            return min(present, least), f"downPerMinute allows {least}; {why}"
        return wanted, why
