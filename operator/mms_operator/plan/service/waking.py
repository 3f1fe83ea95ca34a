"""When clients are led to the activators, too: while no pod answers. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mms_operator.api.autoscaling import Mode
from mms_operator.plan import pods
from mms_operator.plan.service import objects

if TYPE_CHECKING:
    from mms_operator.plan.service.course import Course, Look
    from mms_operator.plan.types import Held

KNOWN_SECONDS = 5.0  # after a pod's readiness, until which some node may not have heard of it: activators pass through
LOOK_SECONDS = 30.0  # between two looks at a service whose agents are not asked: a schedule may begin


def awake(look: Look, course: Course) -> bool:
    """Whether the pods that the Service leads to answer, and every node knows it."""
    if look.serving.spec.autoscaling.mode is Mode.OFF:
        return True
    if not look.replicas:
        return False
    asked = look.seen.began_with(course.route.lineage) if course.route else look.seen.pods
    return any((pods.ready_seconds(pod, look.now) or 0.0) >= KNOWN_SECONDS for pod in asked)


def kept(look: Look, course: Course, held: Held | None) -> frozenset[tuple[str, str]]:
    """What leads to activators stays while nobody knows which there are: after a start, or when none answers."""
    if held is None or held.addresses or awake(look, course):
        return frozenset()
    return frozenset(("EndpointSlice", name) for name in objects.activated(look.serving))


def requeue(look: Look, wanted: float | None) -> float | None:
    """Seconds until the next look."""
    if look.scaled.status is None or look.seen.pods:
        return wanted
    return min(wanted, LOOK_SECONDS) if wanted is not None else LOOK_SECONDS
