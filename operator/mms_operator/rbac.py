"""What the operator may do in the cluster: the one table. The chart renders it; a test compares it with real calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mms_operator.api import names

if TYPE_CHECKING:
    from collections.abc import Sequence

FOLLOW = ("list", "watch")
READ = ("get", *FOLLOW)
APPLY = ("create", "patch")  # server-side apply needs both


@dataclass(frozen=True)
class Rule:
    groups: tuple[str, ...]
    resources: tuple[str, ...]
    verbs: tuple[str, ...]
    why: str


RULES = (
    Rule((names.GROUP,), (names.TRAININGS, names.SERVICES), READ, "the custom resources that are carried out"),
    Rule((names.GROUP,), (names.TRAININGS,), ("delete",), "trainings whose ttlSecondsAfterFinished has passed"),
    Rule((names.GROUP,), (names.TRAININGS,), ("patch",), "the finalizer that holds a training for its last checkpoint"),
    Rule(
        (names.GROUP,),
        (f"{names.TRAININGS}/status", f"{names.SERVICES}/status"),
        ("update",),
        "their conditions and progress",
    ),
    Rule(
        (names.GROUP,),
        (f"{names.TRAININGS}/finalizers", f"{names.SERVICES}/finalizers"),
        ("update",),
        "owner references that block the owner's deletion, where the cluster enforces that right",
    ),
    Rule(
        ("",),
        ("pods",),
        (*READ, "create", "delete", "patch"),
        "master and workers of a training, which are replaced; serving pods, told by an annotation what to take",
    ),
    Rule(
        ("",),
        ("configmaps", "services"),
        (*READ, *APPLY, "delete"),
        "job files and the addresses of masters and servers",
    ),
    Rule(
        ("",),
        ("secrets",),
        (*READ, *APPLY),
        "a job's certificates and its copy of the store's keys; whether the Secrets that a spec names have their keys",
    ),
    Rule(("apps",), ("deployments",), (*READ, *APPLY, "delete"), "the servers of a model"),
    Rule(("networking.k8s.io",), ("networkpolicies",), (*READ, *APPLY, "delete"), "who may talk to a job's pods"),
    Rule(("policy",), ("poddisruptionbudgets",), (*READ, *APPLY, "delete"), "one server at a time in a drain"),
    Rule(
        (names.GROUP,),
        (f"{names.SERVICES}/scale",),
        ("patch",),
        "spec.replicas of services whose autoscaling has mode Objective",
    ),
    Rule(
        ("discovery.k8s.io",),
        ("endpointslices",),
        (*READ, *APPLY, "delete"),
        "the activator as an endpoint of services without pods",
    ),
    Rule(
        ("discovery.k8s.io",),
        ("endpointslices/restricted",),
        ("create", "patch"),
        "addresses outside the service's own pods, where the cluster enforces that right",
    ),
    Rule(
        ("gateway.networking.k8s.io",),
        ("httproutes", "grpcroutes"),
        (*READ, *APPLY, "delete"),
        "routes of services with traffic.gateway",
    ),
    Rule(("events.k8s.io",), ("events",), ("create",), "what happened, for kubectl describe"),
    Rule(
        ("coordination.k8s.io",),
        ("leases",),
        ("get", "create", "update"),
        "who leads; in the operator's namespace only",
    ),
)


ACTIVATOR = (
    Rule((names.GROUP,), (names.SERVICES,), FOLLOW, "the ports that it listens on for each service"),
    Rule(("discovery.k8s.io",), ("endpointslices",), FOLLOW, "the services' ready pods"),
)


def rules(table: Sequence[Rule] = RULES) -> list[dict[str, Any]]:
    """Of a ClusterRole, or of a Role in each namespace that is served: with scanning off, kopf needs no others."""
    return [
        {"apiGroups": list(rule.groups), "resources": list(rule.resources), "verbs": list(rule.verbs)} for rule in table
    ]
