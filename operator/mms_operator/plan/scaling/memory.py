"""What is remembered of a service between two decisions; lost with the operator, and learnt again within minutes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mms_operator.plan.scaling.objective import Memory

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from mms_operator.plan.scaling.traffic import Sample


@dataclass(frozen=True)
class ScalingMemory:
    since: datetime  # when it began
    counted: datetime  # until when requests are counted
    asked: datetime  # when the last one came
    told: datetime  # when numbers were last put into the status
    samples: Mapping[str, Sample] = field(default_factory=dict)  # by the pods' uids
    objective: Memory = field(default_factory=Memory)
    changes: tuple[tuple[datetime, int], ...] = ()  # of the last minute: when, and how many replicas there were before
    connections: int = 0  # that the activators had had
    started: frozenset[str] = frozenset()  # uids of pods whose start has been counted
    corrections: Mapping[str, float] = field(default_factory=dict)  # of capacities, by template
    p99: float | None = None  # seconds
    recent: tuple[tuple[float, int], ...] = ()  # seconds of an interval and the requests that came, the last one first
