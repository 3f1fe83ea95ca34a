"""A node's containers: ended without asking containerd, which may already be dead.

They are found by their control groups, and their shims by the socket that these report to.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from mms_cluster import cgroups, process
from mms_cluster.errors import ClusterError

if TYPE_CHECKING:
    from mms_cluster.settings import Node


def end(node: Node) -> None:
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


def forget(node: Node) -> None:
    """End them, with all that a reboot of the machine would take of them; images and the disks of pods stay.

    What containerd wrote of running ones would only mislead it.
    """
    end(node)
    cgroups.kill(node.cgroup)
    cgroups.remove(node.cgroup)
    unmount(node.folder)
    for folder in ("state", "runc"):
        shutil.rmtree(node.folder / "containerd" / folder, ignore_errors=True)


def shims(socket: Path) -> list[int]:
    """The processes that hold a container for the containerd at `socket`."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            argv = file.read_bytes().decode(errors="replace").split("\0")
            if "containerd-shim" in argv[0] and str(socket) in argv:
                found.append(int(file.parent.name))
    return found


def unmount(folder: Path) -> None:
    """Take away all mounts in `folder`. Raises ClusterError when one stays: what is in it may be somebody else's."""
    for mount in mounts_below(_mountinfo(), folder):
        subprocess.run(["umount", "--lazy", mount], check=True)
    if mounts_below(_mountinfo(), folder):
        raise ClusterError(f"something is still mounted in {folder}: unmount it, and run this again.")


def mounts_below(mountinfo: str, folder: Path) -> list[str]:
    """Mount points in `folder` of the text of /proc/self/mountinfo, the last mounted first."""
    points = [line.split()[4].encode().decode("unicode_escape") for line in mountinfo.splitlines()]
    return [point for point in reversed(points) if point.startswith(f"{folder}/")]


def _mountinfo() -> str:
    return Path("/proc/self/mountinfo").read_text()
