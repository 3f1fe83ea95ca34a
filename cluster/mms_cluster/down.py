"""Takes the cluster down, and takes away everything it left on the machine.

It depends on nothing that may already be dead: containers are found by their control groups and their shims by the
socket they report to, not by asking containerd. Only what is ours by its folder, label or record is touched.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from mms_cluster import cgroups, network, process, settings
from mms_cluster.errors import ClusterError
from mms_cluster.paths import locked

if TYPE_CHECKING:
    from collections.abc import Iterable

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
        nodes = settings.nodes(layout)
        names = sorted((record.stem for record in layout.run.glob("*.pid")), key=_rank)
        report.line("stopping Kubernetes")
        for name in (name for name in names if _rank(name) < ORDER.index("containerd")):
            process.stop(layout.record(name), GRACE_SECONDS)
        report.line("stopping containers")
        for node in nodes:
            _end_containers(node)
        for name in (name for name in names if _rank(name) >= ORDER.index("containerd")):
            process.stop(layout.record(name), GRACE_SECONDS)
        report.line("taking away mounts, networks and control groups")
        for node in nodes:
            cgroups.kill(node.cgroup)
            cgroups.remove(node.cgroup)
        for mount in mounts_below(Path("/proc/self/mountinfo").read_text(), layout.state):
            subprocess.run(["umount", "--lazy", mount], check=True)
        network.remove(layout.state, layout.sysctls)
        _remove_strays(layout)
        _remove_state(layout, nodes)
    report.line("the cluster is down")


def _rank(name: str) -> int:
    return next((rank for rank, prefix in enumerate(ORDER) if name.startswith(prefix)), 0)


def _end_containers(node: Node) -> None:
    """Kill the containers, then the processes of containerd that each is a child of."""
    cgroups.kill(node.cgroup)
    sockets = [file.read_text() for file in (node.folder / "containerd" / "state").glob("*/*/*/address")]
    for pid in shims(node.socket):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if not process.wait_gone(lambda: not shims(node.socket), 10):
        raise ClusterError(f"the shims {shims(node.socket)} of {node.name} do not die: see `ps` and dmesg.")
    for socket in sockets:
        Path(socket.removeprefix("unix://")).unlink(missing_ok=True)


def shims(socket: Path) -> list[int]:
    """The processes that hold a container for the containerd at `socket`."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            argv = file.read_bytes().decode(errors="replace").split("\0")
            if "containerd-shim" in argv[0] and str(socket) in argv:
                found.append(int(file.parent.name))
    return found


def mounts_below(mountinfo: str, folder: Path) -> list[str]:
    """Mount points in `folder` of the text of /proc/self/mountinfo, the last mounted first."""
    points = [line.split()[4].encode().decode("unicode_escape") for line in mountinfo.splitlines()]
    return [point for point in reversed(points) if point.startswith(f"{folder}/")]


def _remove_strays(layout: Layout) -> None:
    """What the kubelet and the network plugins keep at paths that cannot be configured."""
    for result in CNI_RESULTS.glob("*"):
        # The result of each plugin names the pod's network namespace, which lies below our state folder.
        if result.name.startswith(layout.label) or f"{layout.state}/" in result.read_text():
            result.unlink()
    for link in CONTAINER_LOGS.glob("*.log"):
        if link.is_symlink() and str(link.readlink()).startswith(f"{layout.logs}/"):
            link.unlink()
    if not _kubelets():
        (DEVICE_PLUGINS / "kubelet.sock").unlink(missing_ok=True)
    empty: Iterable[Path] = (
        CNI_RESULTS, CNI_RESULTS.parent / "networks", CNI_RESULTS.parent, CONTAINER_LOGS, DEVICE_PLUGINS,
        DEVICE_PLUGINS.parent, Path("/run/containerd/s"), Path("/run/containerd/fifo"), Path("/run/containerd"),
    )  # fmt: skip
    for folder in empty:
        with contextlib.suppress(OSError):
            folder.rmdir()


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
        if mounts_below(Path("/proc/self/mountinfo").read_text(), folder):
            raise ClusterError(f"something is still mounted in {folder}: unmount it, and run `down` again.")
        shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(layout.logs / "pods", ignore_errors=True)
    layout.kubeconfig.unlink(missing_ok=True)
    layout.settings.unlink(missing_ok=True)
