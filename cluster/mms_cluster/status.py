"""What runs of the cluster, and whether that is all of it."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

from mms_cluster import addons, nodenet, process, settings
from mms_cluster.kubeapi import Api
from mms_cluster.up import POLICIES, node_unready

if TYPE_CHECKING:
    from mms_cluster.settings import Layout

CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", POLICIES)
ON_NODES = ("containerd", "kubelet", "kube-proxy")


def status(layout: Layout) -> tuple[list[str], bool]:
    """(lines to show, whether everything is as it should be)."""
    chosen = settings.load(layout)
    if chosen is None:
        return [f"there is no cluster in {layout.state}"], False
    nodes = settings.nodes(layout)
    api = Api(chosen.secure_port, layout.state / "pki")
    states = {name: _daemon(layout, name) for name in expected([node.index for node in nodes])}
    if (layout.state / "pki" / "admin.crt").exists():
        states["API server"] = api.unready() or "ready"
        for node in nodes:
            unready = node_unready(api.get(f"/api/v1/nodes/{node.name}"), dt.datetime.fromtimestamp(0, dt.UTC))
            states[node.name] = unready or f"Ready, {node.ip}, pods {node.pod_cidr}"
            if not nodenet.exists(node):
                states[node.name] = "is lost: `up` boots it"
            elif nodenet.is_cut(node):
                states[node.name] = f"is cut off: `heal {node.name}` or `up` mends it ({states[node.name]})"
        states["DNS"] = addons.unready(api) or "available"
    for node in settings.superfluous(layout):
        states[node.name] = "is not wanted any more: `up` takes the rest of it away"
    good = ("process", "ready", "Ready,", "available")
    width = max(map(len, states))
    lines = [f"{name:<{width}}  {state}" for name, state in states.items()]
    return [*lines, f"kubeconfig: {layout.kubeconfig}"], all(state.split()[0] in good for state in states.values())


def expected(indexes: list[int]) -> list[str]:
    """The names of the processes of a cluster with these nodes."""
    return [*CONTROL_PLANE, *(f"{name}-{index}" for index in indexes for name in ON_NODES)]


def _daemon(layout: Layout, name: str) -> str:
    record = process.read_record(layout.record(name))
    if record and process.alive(record):
        return f"process {record.pid}"
    return f"does not run: `up` starts it again; its log is {layout.log(name)}"
