"""How many pods a service has, where something else than `spec.replicas` in a manifest decides."""

from __future__ import annotations

from enum import StrEnum

from pydantic import ConfigDict, Field

from mms_operator.api.types import Model, rules

DECISIONS = 20
TIME_PATTERN = r"^([01][0-9]|2[0-3]):[0-5][0-9]$"


class Objective(Model):
    """What answers are to be like."""

    latencyP99Milliseconds: int = Field(
        ge=1, le=600_000, description="99 of 100 requests are in Triton (queue and computing) for at most so long."
    )


class Mode(StrEnum):
    OFF = "Off"
    OBJECTIVE = "Objective"
    EXTERNAL = "External"


class Day(StrEnum):
    MONDAY = "Monday"
    TUESDAY = "Tuesday"
    WEDNESDAY = "Wednesday"
    THURSDAY = "Thursday"
    FRIDAY = "Friday"
    SATURDAY = "Saturday"
    SUNDAY = "Sunday"


class Schedule(Model):
    """At least so many replicas at certain times."""

    start: str = Field(description="Time of day, as 08:00.", pattern=TIME_PATTERN, max_length=5)
    end: str = Field(
        description="Time of day; at or before `start` it is of the next day.", pattern=TIME_PATTERN, max_length=5
    )
    days: list[Day] = Field(
        default_factory=list, max_length=7, description="Days on which it starts. Absent: every day."
    )
    timeZone: str = Field(
        default="UTC", max_length=64, description="Of the IANA database, such as Europe/Berlin.", min_length=1
    )
    replicas: int = Field(ge=1, le=1000, description="How many there are at least, whatever comes.")


class Autoscaling(Model):
    """Who decides about `spec.replicas`."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("self.minReplicas <= self.maxReplicas", "minReplicas must not be above maxReplicas"),
            (
                "self.mode == 'Objective' || !has(self.scaleToZeroAfterSeconds)",
                "scaleToZeroAfterSeconds needs mode Objective: what scales from outside decides about zero itself",
            ),
            (
                (
                    "self.mode == 'Objective' || self.minReplicas == 1 && self.maxReplicas == 10 "
                    "&& !has(self.upPerMinute) && !has(self.downPerMinute) "
                    "&& (!has(self.schedules) || self.schedules.size() == 0)"
                ),
                (
                    "minReplicas, maxReplicas, upPerMinute, downPerMinute and schedules need mode Objective: an HPA "
                    "and KEDA have limits of their own"
                ),
            ),
            (
                "!has(self.schedules) || self.schedules.all(one, one.replicas <= self.maxReplicas)",
                "a schedule's replicas must not be above maxReplicas",
            ),
        )
    )

    mode: Mode = Field(
        default=Mode.OFF,
        description="Objective: the operator sets spec.replicas, so that spec.objective is met. External: an HPA or "
        "KEDA does, by the scale subresource; the operator measures, and holds connections while there are no pods. "
        "Off: nobody but you.",
    )
    minReplicas: int = Field(default=1, ge=1, le=1000, description="With Objective: at least, while anybody asks.")
    maxReplicas: int = Field(default=10, ge=1, le=1000, description="With Objective: at most.")
    scaleToZeroAfterSeconds: int | None = Field(
        default=None,
        ge=10,
        le=604_800,
        description="After so long without a request all pods end. The next connection is held until one is ready. "
        "Absent: never.",
    )
    upPerMinute: int | None = Field(
        default=None, ge=1, le=1000, description="Replicas that may be added within a minute. Absent: any number."
    )
    downPerMinute: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="Replicas that may be taken away within a minute, but for the last step to zero. "
        "Absent: any number.",
    )
    schedules: list[Schedule] = Field(
        default_factory=list, max_length=10, description="Times with more replicas than come by the objective."
    )


class CapacityPoint(Model):
    """What one pod did with so many requests at a time."""

    concurrency: int = Field(ge=1, description="Requests at a time.")
    requestsPerSecond: str = Field(max_length=24, description="That were answered.")
    latencyP99Milliseconds: str = Field(max_length=24, description="Of these.")


class CapacityStatus(Model):
    """What one pod can do."""

    template: str = Field(max_length=64, description="Of which pods: a digest of the version and of spec.server.")
    curve: list[CapacityPoint] = Field(
        min_length=1, max_length=20, description="Measured before the pod answered clients."
    )
    requestsPerSecond: str = Field(max_length=24, description="That a pod answers within the objective.")
    correction: str = Field(
        default="1", max_length=24, description="What clients have shown since, as a factor of that: it is in it."
    )
    preferredBatchSize: int | None = Field(default=None, ge=1, description="With autotune: the best; absent: none.")
    maxQueueDelayMicroseconds: int | None = Field(default=None, ge=0, description="With autotune: the best.")
    instances: int | None = Field(default=None, ge=1, description="With autotune: the best.")
    measuredTime: str = Field(max_length=40, json_schema_extra={"format": "date-time"}, description="When.")


class ScalingDecision(Model):
    """One change of `spec.replicas`."""

    time: str = Field(json_schema_extra={"format": "date-time"}, description="When.")
    replicas: int = Field(ge=0, description="How many there were to be from then on.")
    reason: str = Field(max_length=512, description="Why.")


class AutoscalingStatus(Model):
    """What is known, and what was decided."""

    replicas: int | None = Field(default=None, ge=0, description="How many the last decision wanted.")
    reason: str = Field(default="", max_length=512, description="Why.")
    requestsPerSecond: str | None = Field(default=None, max_length=24, description="That come, over the last minute.")
    latencyP99Milliseconds: str | None = Field(
        default=None,
        max_length=24,
        description="In which 99 of 100 requests of the last minute were answered, in Triton.",
    )
    capacity: list[CapacityStatus] = Field(
        default_factory=list, max_length=3, description="Of the pods that are there, the newest first."
    )
    coldStartSeconds: str | None = Field(
        default=None, max_length=24, description="From a pod's making to its first answer, of nine in ten."
    )
    coldStarts: list[str] = Field(
        default_factory=list, max_length=DECISIONS, description="Of the last pods, in seconds."
    )
    activatorPort: int | None = Field(
        default=None,
        ge=1,
        le=65_535,
        description="Where the activator holds this service's HTTP connections; the next port is for gRPC.",
    )
    history: list[ScalingDecision] = Field(
        default_factory=list, max_length=DECISIONS, description="The last changes, the newest first."
    )
