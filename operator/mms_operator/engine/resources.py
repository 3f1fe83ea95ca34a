"""The kinds that the operator reads or writes, and where they are in the API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from mms_operator.api import names


class Key(NamedTuple):
    """A custom resource: what the queue holds and the logs name."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.namespace}/{self.name}"


@dataclass(frozen=True)
class Resource:
    kind: str
    group: str
    version: str
    plural: str
    metadata_only: bool = False  # nothing but the metadata is ever read: the API server is asked for no more

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        parts = [root]
        if namespace:
            parts.append(f"namespaces/{namespace}")
        parts.append(self.plural)
        parts.extend(part for part in (name, subresource) if part)
        return "/".join(parts)


TRAINING = Resource(names.TRAINING, names.GROUP, names.VERSION, names.TRAININGS)
SERVICE = Resource(names.SERVICE, names.GROUP, names.VERSION, names.SERVICES)
POD = Resource("Pod", "", "v1", "pods")
DEPLOYMENT = Resource("Deployment", "apps", "v1", "deployments")
SECRET = Resource("Secret", "", "v1", "secrets", metadata_only=True)
CONFIG_MAP = Resource("ConfigMap", "", "v1", "configmaps", metadata_only=True)
K8S_SERVICE = Resource("Service", "", "v1", "services", metadata_only=True)
NETWORK_POLICY = Resource("NetworkPolicy", "networking.k8s.io", "v1", "networkpolicies", metadata_only=True)
DISRUPTION_BUDGET = Resource("PodDisruptionBudget", "policy", "v1", "poddisruptionbudgets", metadata_only=True)
ENDPOINT_SLICE = Resource("EndpointSlice", "discovery.k8s.io", "v1", "endpointslices", metadata_only=True)
HTTP_ROUTE = Resource("HTTPRoute", "gateway.networking.k8s.io", "v1", "httproutes", metadata_only=True)
GRPC_ROUTE = Resource("GRPCRoute", "gateway.networking.k8s.io", "v1", "grpcroutes", metadata_only=True)
EVENT = Resource("Event", "events.k8s.io", "v1", "events")
LEASE = Resource("Lease", "coordination.k8s.io", "v1", "leases")

OWNERS = (TRAINING, SERVICE)
CHILDREN = (POD, DEPLOYMENT, SECRET, CONFIG_MAP, K8S_SERVICE, NETWORK_POLICY, DISRUPTION_BUDGET, ENDPOINT_SLICE)
ROUTES = (HTTP_ROUTE, GRPC_ROUTE)  # kinds of the Gateway API, which a cluster need not have
WATCHED = OWNERS + CHILDREN
WHOLE = tuple(resource for resource in WATCHED if not resource.metadata_only)
BY_KIND = {resource.kind: resource for resource in (*WATCHED, *ROUTES, EVENT, LEASE)}

CHILD_SELECTOR = f"{names.LABEL_MANAGED_BY}={names.MANAGED_BY}"


def selector(resource: Resource) -> str:
    """The label selector of what is watched of a kind; empty for all of it."""
    return "" if resource in OWNERS else CHILD_SELECTOR
