"""The edge of serving pods: nginx before Triton, as spec.traffic asks for it. Pure builders.

The kubelet ends a pod's containers in the order that this needs: the main container, which is the edge, then the
sidecars, Triton before the agent (KEP-753). So with an edge Triton is a sidecar. The pod is out of the Service first,
while the edge waits; then nginx ends gracefully; then nobody asks Triton any more.

The configuration is an annotation of the pod, which the kubelet writes into a file: part of the pods' template, so that
a change replaces pods one by one, and no pod reads what is meant for others. Secrets are mounted: what changes in them
comes to running pods.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mms_operator.api import names
from mms_operator.api.names import Reason
from mms_operator.plan.service.edge_config import DRAIN_SECONDS, nginx_conf
from mms_operator.plan.stores import SecretProblem
from mms_workloads import contract

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mms_operator.api.service import ServiceSpec
    from mms_operator.api.traffic import Traffic
    from mms_operator.plan.types import Object, ReferencedSecret

NAME = "edge"
MODULE = "mms_workloads.serve.edge"
RESOURCES = {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}}
VOLUMES = {"edge": contract.EDGE_DIR, "edge-run": contract.EDGE_RUN_DIR, "edge-keys": contract.EDGE_KEYS_DIR}
PRE_STOP_SECONDS = 5  # until every node has heard that the pod is leaving
TLS_KEYS = ("tls.crt", "tls.key")
# Metrics are for Prometheus, in other pods. Channels are the edge's, which knows how old clients' connections are.
TRITON_FLAGS = (
    "--http-address=127.0.0.1",
    "--grpc-address=127.0.0.1",
    "--metrics-address=0.0.0.0",
    f"--grpc-max-connection-age={2**31 - 1}",
)
# The kubelet cannot ask the pod's loopback, so its probe is a process, and a small one: bash opens connections itself.
_ASK = "exec 3<>/dev/tcp/127.0.0.1/{port} && printf 'GET {path} HTTP/1.0\\r\\n\\r\\n' >&3 && read -r _ status _ <&3"
TRITON_LIVES = (
    "bash",
    "-c",
    _ASK.format(port=contract.BEHIND_EDGE_HTTP_PORT, path="/v2/health/live") + ' && [ "$status" = 200 ]',
)


def references(spec: Object) -> list[str]:
    """The Secrets that a spec as it was written names."""
    traffic = spec.get("traffic") or {}
    places = (traffic.get("tls") or {}, traffic.get("apiKeys") or {})
    return [name for place in places if (name := (place.get("secretRef") or {}).get("name"))]


def secret_problem(traffic: Traffic, secrets: Mapping[str, ReferencedSecret]) -> SecretProblem | None:
    """What is wrong with the Secrets that the edge is given. One that was not looked at yet is given the benefit."""
    wanted = (
        ("tls", traffic.tls, TLS_KEYS, " and ".join(TLS_KEYS)),
        ("apiKeys", traffic.apiKeys, (), "a key for each client"),
    )
    for field, given, needed, words in wanted:
        if given is None or (seen := secrets.get(given.secretRef.name)) is None:
            continue
        about = f"spec.traffic.{field}.secretRef names the Secret {seen.name}"
        if seen.keys is None:
            return SecretProblem(Reason.SECRET_NOT_FOUND, f"{about}, which does not exist: create it with {words}")
        missing = [key for key in needed if key not in seen.keys]
        if missing or not seen.keys:
            has = ", ".join(sorted(seen.keys)) or "nothing"
            lacks = " and ".join(missing) or words
            return SecretProblem(Reason.SECRET_KEY_MISSING, f"{about}, which lacks {lacks} (it has {has}): add it")
    return None


def pod_annotations(traffic: Traffic) -> dict[str, str]:
    """What the pods are annotated with."""
    return {names.ANNOTATION_EDGE: nginx_conf(traffic)} if traffic.sidecar else {}


def volumes(traffic: Traffic) -> list[Object]:
    sources: list[Object] = [
        {
            "downwardAPI": {
                "items": [
                    {
                        "path": contract.EDGE_CONFIG,
                        "fieldRef": {"fieldPath": f"metadata.annotations['{names.ANNOTATION_EDGE}']"},
                    }
                ]
            }
        }
    ]
    if traffic.tls:
        items = [{"key": key, "path": f"tls/{key}"} for key in TLS_KEYS]
        sources.append({"secret": {"name": traffic.tls.secretRef.name, "items": items}})
    found = [
        {"name": "edge", "projected": {"defaultMode": 0o440, "sources": sources}},
        {"name": "edge-run", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}},
    ]
    if traffic.apiKeys:
        # Whatever its keys are called: a projected volume would want a path for each.
        found.append(
            {"name": "edge-keys", "secret": {"secretName": traffic.apiKeys.secretRef.name, "defaultMode": 0o440}}
        )
    return found


def container(spec: ServiceSpec, plain: Mapping[str, Any]) -> Object:
    """The edge. `plain`: a container of the pod with image and rights."""
    traffic = spec.traffic
    mounts = [
        {"name": "edge", "mountPath": contract.EDGE_DIR, "readOnly": True},
        {"name": "edge-run", "mountPath": contract.EDGE_RUN_DIR},
    ]
    if traffic.apiKeys:
        mounts.append({"name": "edge-keys", "mountPath": contract.EDGE_KEYS_DIR, "readOnly": True})
    alive = {"path": "/v2/health/live", "port": "http", "scheme": "HTTPS" if traffic.tls else "HTTP"}
    return {
        **plain,
        "ports": [
            {"name": "http", "containerPort": contract.TRITON_HTTP_PORT},
            {"name": "grpc", "containerPort": contract.TRITON_GRPC_PORT},
            {"name": "metrics", "containerPort": contract.TRITON_METRICS_PORT},
            {"name": "edge", "containerPort": contract.EDGE_PORT},
        ],
        "readinessProbe": {"httpGet": alive, "periodSeconds": 2, "timeoutSeconds": 5},
        "livenessProbe": {
            "httpGet": {"path": "/healthz", "port": "edge"},
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 6,
        },
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(PRE_STOP_SECONDS)]}}},
        "volumeMounts": mounts,
    }


def behind(triton: Mapping[str, Any]) -> Object:
    """Triton's container as a sidecar that only the pod can ask. Whether it is ready is seen through the edge."""
    kept = {key: value for key, value in triton.items() if key not in {"ports", "readinessProbe", "lifecycle"}}
    lives = {"exec": {"command": list(TRITON_LIVES)}}
    probes = {
        name: {**lives, "timeoutSeconds": 5, **{key: value for key, value in triton[name].items() if key != "httpGet"}}
        for name in ("startupProbe", "livenessProbe")
    }
    return {
        **kept,
        **probes,
        "restartPolicy": "Always",
        "command": [*triton["command"], *TRITON_FLAGS],
        "env": [*triton["env"], *environment()],
    }


def environment() -> list[Object]:
    """Where Triton is to be found behind the edge: of Triton's container and the agent's."""
    return [
        {"name": "MMS_TRITON_HTTP_PORT", "value": str(contract.BEHIND_EDGE_HTTP_PORT)},
        {"name": "MMS_TRITON_GRPC_PORT", "value": str(contract.BEHIND_EDGE_GRPC_PORT)},
    ]


def grace_seconds(exit_timeout: int) -> int:
    """From the pod's end to its containers': the Service, nginx, Triton, the agent."""
    return PRE_STOP_SECONDS + DRAIN_SECONDS + exit_timeout + 10
