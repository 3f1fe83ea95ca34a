"""What runs in the cluster as part of it: DNS."""

from __future__ import annotations

import ipaddress
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mms_cluster.controlplane import DNS_IP
from mms_cluster.errors import ClusterError

if TYPE_CHECKING:
    from mms_cluster.kubeapi import Api
    from mms_cluster.report import Reporter

DNS_IMAGE = "localhost/mms-coredns:1"
DNS_SECONDS = 90
READY_PORT = 8181
_NAMESPACE = "/api/v1/namespaces/kube-system"
DNS_DEPLOYMENT = "/apis/apps/v1/namespaces/kube-system/deployments/coredns"
_RBAC = "/apis/rbac.authorization.k8s.io/v1"


def nameservers(resolv_conf: str) -> list[str]:
    """The nameservers that a pod can reach: those on the host's loopback address it cannot."""
    found = [line.split()[1] for line in resolv_conf.splitlines() if line.split()[:1] == ["nameserver"]]
    return [address for address in found if not ipaddress.ip_address(address.partition("%")[0]).is_loopback]


def corefile(upstream: list[str]) -> str:
    """Short caching: tests make and delete services by the second."""
    forward = f"    forward . {' '.join(upstream)}\n" if upstream else ""
    return f"""\
.:53 {{
    errors
    health :8080
    ready :{READY_PORT}
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        pods insecure
        ttl 2
    }}
{forward}    cache 2
    loadbalance
}}
"""


def dns_manifests(upstream: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """(path, object) in the order to apply them."""
    meta = {"name": "coredns", "namespace": "kube-system"}
    role = {"name": "system:coredns"}
    return [
        (f"{_NAMESPACE}/serviceaccounts/coredns", {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta}),
        (f"{_RBAC}/clusterroles/system:coredns", {
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": role,
            "rules": [
                {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
            ],
        }),
        (f"{_RBAC}/clusterrolebindings/system:coredns", {
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": role,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:coredns"},
            "subjects": [{"kind": "ServiceAccount", **meta}],
        }),
        (f"{_NAMESPACE}/configmaps/coredns", {
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"Corefile": corefile(upstream)},
        }),
        (f"{_NAMESPACE}/services/kube-dns", {
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "kube-dns", "namespace": "kube-system"},
            "spec": {
                "clusterIP": DNS_IP, "selector": {"k8s-app": "kube-dns"},
                "ports": [
                    {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
                    {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53},
                ],
            },
        }),
        (DNS_DEPLOYMENT, _dns_deployment(meta)),
    ]  # fmt: skip


def _dns_deployment(meta: dict[str, str]) -> dict[str, Any]:
    """No readiness probe: a kubelet that starts again takes a pod of the last ten seconds for unready until it has
    probed it, and the only replica for away. `unready` asks the pod itself.
    """
    labels = {"k8s-app": "kube-dns"}
    container = {
        "name": "coredns",
        "image": DNS_IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "args": ["-conf", "/etc/coredns/Corefile"],
        "ports": [{"name": "dns", "containerPort": 53, "protocol": "UDP"}, {"name": "dns-tcp", "containerPort": 53}],
        "resources": {"requests": {"cpu": "20m", "memory": "32Mi"}, "limits": {"memory": "128Mi"}},
        "livenessProbe": {"httpGet": {"path": "/health", "port": 8080}, "periodSeconds": 10},
        "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns", "readOnly": True}],
    }
    spec = {
        "serviceAccountName": "coredns",
        "priorityClassName": "system-cluster-critical",
        "dnsPolicy": "Default",
        "containers": [container],
        "volumes": [{"name": "config", "configMap": {"name": "coredns"}}],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": meta,
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }


def dns(api: Api, report: Reporter) -> None:
    """Apply CoreDNS and wait until it answers."""
    for path, manifest in dns_manifests(nameservers(Path("/etc/resolv.conf").read_text())):
        if said := api.apply(path, manifest):
            raise ClusterError(f"The API server refused {manifest['kind']} of the cluster's DNS: {said}")
    with report.step("waiting for DNS"):
        deadline = time.monotonic() + DNS_SECONDS
        while state := unready(api):
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"DNS is not ready after {DNS_SECONDS} s ({state}): "
                    f"`kubectl -n kube-system describe pod -l k8s-app=kube-dns` says why.\n{_described(_pods(api))}"
                )
            time.sleep(0.2)


def unready(api: Api) -> str:
    """What there is against DNS answering; "" when it does."""
    if state := unavailable(api.get(DNS_DEPLOYMENT)):
        return state
    pods = [pod for pod in _pods(api) if pod["status"].get("phase") not in {"Failed", "Succeeded"}]
    if not pods:
        return "it has no pods"
    for pod in pods:
        name = pod["metadata"]["name"]
        status, body = api.request("GET", f"{_NAMESPACE}/pods/{name}:{READY_PORT}/proxy/ready", timeout=5)
        if status != 200:
            return f"{name} says {status} {body.decode(errors='replace')[:200]}"
    return ""


def unavailable(deployment: dict[str, Any] | None) -> str:
    """What a Deployment says against all of its current replicas being available; "" when they are."""
    if deployment is None:
        return "there is no Deployment"
    status, wanted = deployment.get("status", {}), deployment["spec"]["replicas"]
    if status.get("observedGeneration") != deployment["metadata"]["generation"]:
        return "not seen by the controller yet"
    updated, available = status.get("updatedReplicas", 0), status.get("availableReplicas", 0)
    return "" if updated == available == wanted else f"{available} of {wanted} replicas are available"


def _pods(api: Api) -> list[dict[str, Any]]:
    """Those that are not on their way out."""
    pods = api.get(f"{_NAMESPACE}/pods?labelSelector=k8s-app%3Dkube-dns") or {"items": []}
    return [pod for pod in pods["items"] if "deletionTimestamp" not in pod["metadata"]]


def _described(pods: list[dict[str, Any]]) -> str:
    lines = []
    for pod in pods:
        waiting = [
            f"{state['waiting'].get('reason')} {state['waiting'].get('message', '')}"
            for status in pod["status"].get("containerStatuses", [])
            if "waiting" in (state := status["state"])
        ]
        lines.append(f"{pod['metadata']['name']} {pod['status'].get('phase')} {' '.join(waiting)}")
    return "\n".join(lines) or "It has no pods: see the log of kube-controller-manager."
