"""Takes the cluster down, or one of its nodes, and takes away everything it left on the machine.

It depends on nothing that may already be dead (see `containers`). Only what is ours by its folder, label or record is
touched.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from mms_cluster import cgroups, containers, network, nodenet, process, settings
from mms_cluster.errors import ClusterError
from mms_cluster.paths import locked

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mms_cluster.kubeapi import Api
    from mms_cluster.report import Reporter
    from mms_cluster.settings import Layout, Node

# First what would start things again, last what the others need to end well.
ORDER = ("kubelet", "kube-proxy", "network-policies", "kube-scheduler", "kube-controller-manager", "containerd",
         "kube-apiserver", "etcd")  # fmt: skip
GRACE_SECONDS = 5.0
DEVICE_PLUGINS = Path("/var/lib/kubelet/device-plugins")
CONTAINER_LOGS = Path("/var/log/containers")
CNI_RESULTS = Path("/var/lib/cni/results")


def down(layout: Layout, report: Reporter) -> None:
    """Nothing of the cluster is left when this returns, but the built tools and the logs of its processes."""
    if not layout.settings.exists() and not any(layout.run.glob("*.pid")):
        report.line(f"there is no cluster in {layout.state}")
        return
    if os.geteuid() != 0:
        raise ClusterError("Taking the cluster down takes root, as bringing it up did: run it with sudo.")
    with locked(layout.lock, report):
        nodes = settings.present(layout)
        names = sorted((record.stem for record in layout.run.glob("*.pid")), key=_rank)
        report.line("stopping Kubernetes")
        for name in (name for name in names if _rank(name) < ORDER.index("containerd")):
            process.stop(layout.record(name), GRACE_SECONDS)
        report.line("stopping containers")
        for node in nodes:
            containers.end(node)
        for name in (name for name in names if _rank(name) >= ORDER.index("containerd")):
            process.stop(layout.record(name), GRACE_SECONDS)
        report.line("taking away mounts, networks and control groups")
        for node in nodes:
            cgroups.kill(node.cgroup)
            cgroups.remove(node.cgroup)
        containers.unmount(layout.state)
        for node in nodes:
            nodenet.remove(node)
        network.remove(layout.state, layout.sysctls)
        _remove_strays(layout.state, layout.logs)
        _remove_state(layout, nodes)
    report.line("the cluster is down")


def remove(layout: Layout, node: Node, api: Api, report: Reporter) -> None:
    """Take one node out of a cluster that is up, not node 0. Its pods are deleted: their controllers make others."""
    report.line(f"taking {node.name} away")
    kubelet, containerd, proxy = map(layout.record, node.daemons)
    process.stop(kubelet, GRACE_SECONDS)
    _delete(api, f"/api/v1/nodes/{node.name}")
    process.stop(proxy, GRACE_SECONDS)
    containers.end(node)
    process.stop(containerd, GRACE_SECONDS)
    containers.forget(node)
    nodenet.remove(node)
    nodenet.forget(node)
    # Only now: until the scheduler has heard that the node is gone, it may give it another one.
    for pod in (api.get(f"/api/v1/pods?fieldSelector=spec.nodeName%3D{node.name}") or {"items": []})["items"]:
        meta = pod["metadata"]
        _delete(api, f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}", {"gracePeriodSeconds": 0})
    pods = layout.logs / "pods" / node.name
    _remove_strays(node.folder, pods)
    shutil.rmtree(pods, ignore_errors=True)
    for file in (layout.state / "pki").glob(f"{node.name}.*"):
        file.unlink()
    shutil.rmtree(node.folder)


def _delete(api: Api, path: str, options: dict[str, int] | None = None) -> None:
    status, body = api.request("DELETE", path, options)
    if status not in {200, 202, 404}:
        raise ClusterError(
            f"The API server did not delete {path} ({status} {body.decode(errors='replace')[:300]}): run `up` again."
        )


def _rank(name: str) -> int:
    return next((rank for rank, prefix in enumerate(ORDER) if name.startswith(prefix)), 0)


def _remove_strays(folder: Path, logs: Path) -> None:
    """What network plugins and kubelets with these folders keep at paths that cannot be configured."""
    for result in CNI_RESULTS.glob("*"):
        # The result of each plugin names the pod's network namespace, which lies below the node's folder.
        # Those of other clusters come and go meanwhile.
        with contextlib.suppress(FileNotFoundError):
            if f"{folder}/" in result.read_text():
                result.unlink()
    for link in CONTAINER_LOGS.glob("*.log"):
        if link.is_symlink() and str(link.readlink()).startswith(f"{logs}/"):
            link.unlink()
    if not _kubelets():
        (DEVICE_PLUGINS / "kubelet.sock").unlink(missing_ok=True)
    empty: Iterable[Path] = (
        CNI_RESULTS, CNI_RESULTS.parent / "networks", CNI_RESULTS.parent, CONTAINER_LOGS, DEVICE_PLUGINS,
        DEVICE_PLUGINS.parent, Path("/run/containerd/s"), Path("/run/containerd/fifo"), Path("/run/containerd"),
    )  # fmt: skip
    for shared in empty:
        with contextlib.suppress(OSError):
            shared.rmdir()


def _kubelets() -> list[int]:
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if b"kubelet" in file.read_bytes().split(b"\0", 2)[:2]:
                found.append(int(file.parent.name))
    return found


def _remove_state(layout: Layout, nodes: list[Node]) -> None:
    """The settings go last: they say that there is something to take down."""
    for folder in (
        *(node.folder for node in nodes),
        layout.state / "etcd",
        layout.state / "pki",
        layout.run,
        layout.state / "volume-plugins",
    ):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(layout.logs / "pods", ignore_errors=True)
    layout.kubeconfig.unlink(missing_ok=True)
    layout.settings.unlink(missing_ok=True)
