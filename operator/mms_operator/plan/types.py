"""What the planners are given and what they answer. Plain data: no input or output happens here.

A planner is a pure function of (custom resource, observed, settings, now). The engine gathers what is observed, calls
the planner, and applies the plan.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from mms_operator.plan.scaling.memory import ScalingMemory
    from mms_workloads.contract import AgentReport, Desired, StatusReport

Object = dict[str, Any]  # a Kubernetes object as JSON


@dataclass(frozen=True)
class Images:
    worker: str
    server: str
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()


@dataclass(frozen=True)
class DefaultStore:
    """The installation's store, for trainings that name none. Its keys are copied into a Secret of each training.

    It also serves data: where spec.data has an s3:// URI with neither endpoint nor secretRef, this store's endpoint and
    keys are used.
    """

    uri: str  # s3://bucket[/prefix]
    endpoint: str | None
    region: str | None
    access_key_id: str
    secret_access_key: str


@dataclass(frozen=True)
class PodPolicy:
    """What a podTemplate may ask for beyond the defaults; the chart's `policy`."""

    allow_host_path: bool = False
    allow_host_namespaces: bool = False
    allow_privileged: bool = False
    service_accounts: tuple[str, ...] = ()
    runtime_classes: tuple[str, ...] = ()
    volume_kinds: tuple[str, ...] = ("configMap", "secret", "emptyDir", "persistentVolumeClaim", "projected", "csi")


@dataclass(frozen=True)
class Settings:
    images: Images
    default_store: DefaultStore | None = None
    policy: PodPolicy = PodPolicy()
    operator_namespace: str = "mms-system"
    cluster_domain: str = "cluster.local"
    gateway_api: bool = False  # whether the cluster has its kinds


@dataclass(frozen=True)
class ReferencedSecret:
    """A Secret that a spec names. `keys` is None where it does not exist."""

    name: str
    keys: frozenset[str] | None


@dataclass(frozen=True)
class ObservedTraining:
    """What was seen of a training's surroundings."""

    pods: tuple[Object, ...] = ()  # metadata, spec.nodeName, status; of this training, in any phase
    certificates_expire: datetime | None = None  # None: some Secret of its roles' certificates is missing
    secrets: Mapping[str, ReferencedSecret] = field(default_factory=dict)  # by name
    report: StatusReport | None = None  # the master's last answer, of this uid, run and attempt
    confirmed: Desired | None = None  # what the master had confirmed when it gave the report
    master_error: str | None = None  # why the running master has not answered for a while
    master_silence: float | None = None  # seconds for which one that had answered has not
    pretrained: Object | None = None  # the ModelTraining that spec.pretrained names
    storage_owner: str | None = None  # namespace/name of the older training that has the same storage.uri
    served: frozenset[str] = frozenset()  # URIs of the artifacts that services of the namespace serve or name


@dataclass(frozen=True)
class Interval:
    """What the agents of serving pods said at two times, by the pods' uids."""

    began: datetime
    ended: datetime
    before: Mapping[str, AgentReport]
    after: Mapping[str, AgentReport]


@dataclass(frozen=True)
class Held:
    """What the activators say of a service, and how it is led to them."""

    addresses: tuple[str, ...]  # of the pods
    port: int  # where they take the service's HTTP connections; the next one is for gRPC
    waiting: int = 0  # connections that are held, because there is no pod
    connections: int = 0  # that came in all


@dataclass(frozen=True)
class ObservedService:
    """What was seen of a service's surroundings."""

    training: Object | None = None  # the ModelTraining that trainingRef names
    deployments: tuple[Object, ...] = ()  # one for each version
    pods: tuple[Object, ...] = ()
    secrets: Mapping[str, ReferencedSecret] = field(default_factory=dict)
    agents: Mapping[str, AgentReport] = field(default_factory=dict)  # by the pod's uid: what its agent said last
    interval: Interval | None = None  # between the last two times that the agents were asked
    scaling: ScalingMemory | None = None  # what the last plan wanted to be remembered
    activator: Held | None = None  # None: there is none that answers


@dataclass(frozen=True)
class Certificates:
    """Make, or make anew, the job's certificate authority and one leaf a role.

    The engine writes the Secrets <owner>-ca (the authority's key and the operator's client certificate) and
    <owner>-<role>-tls of each role, each annotated with the time of its expiry.
    """

    owner: Object  # the ModelTraining: namespace, ownerReferences and labels come from it
    labels: Mapping[str, str]
    master_dns_names: tuple[str, ...]
    lifetime_days: int
    roles: tuple[str, ...] = ("master", "worker")


@dataclass(frozen=True)
class Deletion:
    """Delete with a precondition: only the object with this uid."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str
    grace_seconds: int | None = None


@dataclass(frozen=True)
class Event:
    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True)
class MasterCall:
    """Tell the running master what is wanted, and ask it for its report."""

    host: str  # the master pod's IP
    server_name: str  # what its certificate must be for
    desired: Desired


@dataclass(frozen=True)
class AgentCalls:
    """Ask the agents of serving pods what they serve, and look again when one says something else."""

    hosts: Mapping[str, str]  # the pods' IPs by their uids
    period: float  # seconds
    each: bool = False  # whether each answer is to be looked at, and not only another one


@dataclass(frozen=True)
class Annotation:
    """Annotate a pod: only the one with this uid."""

    namespace: str
    name: str
    uid: str
    values: Mapping[str, str]


@dataclass(frozen=True)
class Plan:
    """What to do, in this order: status, certificates, waves of objects, deletions, the finalizer, annotations, events.

    The status is written first: it holds what must not be forgotten (incarnations, restarts) before the objects that
    depend on it are made. Objects of one wave are applied side by side. The engine prunes what it finds of the owner
    within PRUNED_KINDS that is not in `waves`, unless `prune` is False. Pods are never pruned, only deleted by name.
    """

    status: Object
    waves: tuple[tuple[Object, ...], ...] = ()
    certificates: Certificates | None = None
    deletions: tuple[Deletion, ...] = ()
    events: tuple[Event, ...] = ()
    master: MasterCall | None = None
    agents: AgentCalls | None = None
    annotations: tuple[Annotation, ...] = ()
    scale: int | None = None  # what spec.replicas is to be; None: as it is
    scaling: ScalingMemory | None = None  # to be given to the next plan
    requeue_after: float | None = None  # seconds
    prune: bool = True
    kept: frozenset[tuple[str, str]] = frozenset()  # kinds and names that are not pruned, although no wave has them
    finalizer: bool | None = None  # whether the custom resource is to have ours; None: as it is


PRUNED_KINDS = (
    "ConfigMap",
    "Deployment",
    "EndpointSlice",
    "GRPCRoute",
    "HTTPRoute",
    "NetworkPolicy",
    "PodDisruptionBudget",
    "Service",
)
