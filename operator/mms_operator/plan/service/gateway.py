"""Routes of the Gateway API: which part of requests each version gets, exactly. Pure builders.

A route's backends are two Services, one of the version that answers and one of the next one. Weights are those of the
rollout's step as soon as all of its pods answer, whatever number of pods that is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mms_operator.api.rollout import Canary, Strategy
from mms_operator.plan.service import objects
from mms_workloads import contract

if TYPE_CHECKING:
    from mms_operator.api.gateway import Gateway, Listener
    from mms_operator.api.service_status import RolloutStatus, ServedVersion, Versions
    from mms_operator.plan.service.course import Course
    from mms_operator.plan.service.objects import Serving
    from mms_operator.plan.service.seen import Seen
    from mms_operator.plan.types import Object

API_VERSION = "gateway.networking.k8s.io/v1"
MISSING = (
    "spec.traffic.gateway: the cluster has no Gateway API (gateway.networking.k8s.io/v1, HTTPRoute and GRPCRoute): "
    "install its CRDs and restart the operator, or take gateway out of the spec"
)


def stable_service(serving: Serving, version: ServedVersion) -> Object:
    """Leads to the pods of the version that answers, and no others."""
    return objects.service_of(serving, f"{serving.name}-stable", version)


def routes(serving: Serving, gateway: Gateway, course: Course, seen: Seen) -> list[Object]:
    """None before a version answers."""
    stable, following = course.status.versions.stable, course.status.versions.next
    if stable is None:
        return []
    own = following is not None and following.lineage != stable.lineage and course.status.rollout is not None
    ready = seen.ready_of(following) if own and following else 0
    share = weight(serving, course.status.rollout, course.status.versions, course.route, seen) if own else 0
    to = _Backends(serving, gateway, share if ready else 0, looked_at=ready > 0)
    made = []
    if gateway.http is not None:
        made.append(to.route("HTTPRoute", gateway.http, contract.TRITON_HTTP_PORT))
    if gateway.grpc is not None:
        made.append(to.route("GRPCRoute", gateway.grpc, contract.TRITON_GRPC_PORT))
    return made


def weight(
    serving: Serving, state: RolloutStatus | None, versions: Versions, route: ServedVersion | None, seen: Seen
) -> int:
    """Percent of requests for the next version. route: the only version that clients are sent to; None: both."""
    if state is None or versions.next is None or versions.stable is None:
        return 0
    if route is not None and route.digest == versions.stable.digest:
        return 0
    how = serving.spec.rollout
    if how.strategy is Strategy.CANARY and not state.rollback and state.step <= state.steps:
        return _of_step(how.canary or Canary(), state)
    following, stable = seen.ready_of(versions.next), seen.ready_of(versions.stable)
    part = round(100 * following / max(1, following + stable))
    if how.strategy is Strategy.CANARY and not state.rollback and state.steps:
        return max(part, (how.canary or Canary()).steps[-1].percent)  # no step back while the last pods are replaced
    return part


def _of_step(canary: Canary, state: RolloutStatus) -> int:
    """What the step says once its pods answer; until then what the one before said."""
    reached = state.step if state.reachedTime else state.step - 1
    return canary.steps[reached - 1].percent if reached else 0


@dataclass(frozen=True)
class _Backends:
    """share: percent of requests for the next version. looked_at: whether it has pods that answer."""

    serving: Serving
    gateway: Gateway
    share: int
    looked_at: bool

    def route(self, kind: str, listener: Listener, port: int) -> Object:
        stable, following = f"{self.serving.name}-stable", f"{self.serving.name}-next"
        rule: dict[str, Any] = {"backendRefs": [_backend(stable, port, 100 - self.share)]}
        rules = [rule]
        if self.looked_at:
            rule["backendRefs"].append(_backend(following, port, self.share))
            if self.gateway.shadow is not None:
                mirror = {"backendRef": {"name": following, "port": port}, "percent": self.gateway.shadow.percent}
                rule["filters"] = [{"type": "RequestMirror", "requestMirror": mirror}]
            if self.gateway.nextHeader is not None:
                match = {"name": self.gateway.nextHeader.name, "value": self.gateway.nextHeader.value}
                rules.insert(0, {"matches": [{"headers": [match]}], "backendRefs": [_backend(following, port, 100)]})
        parent = {"name": listener.name, "namespace": listener.namespace, "sectionName": listener.sectionName}
        spec: dict[str, Any] = {"parentRefs": [{key: value for key, value in parent.items() if value}], "rules": rules}
        if listener.hostnames:
            spec["hostnames"] = listener.hostnames
        metadata = {"name": self.serving.name, "labels": objects.labels(self.serving)}
        return {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}


def _backend(name: str, port: int, weight: int) -> dict[str, Any]:
    return {"name": name, "port": port, "weight": weight}
