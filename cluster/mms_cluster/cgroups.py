"""A node's control groups: made in every hierarchy, emptied and removed."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from mms_cluster.errors import ClusterError
from mms_cluster.process import wait_gone

KILL_SECONDS = 20


def hierarchies(mounts: str) -> tuple[str, list[str]]:
    """("v2", [folder]) or ("v1", all folders) of the text of /proc/self/mounts.

    With version 1, one of version 2 may be mounted beside it, without controllers: runc enters that too.
    """
    found = [(fields[1], fields[2]) for fields in (line.split() for line in mounts.splitlines()) if len(fields) > 2]
    v1 = dict.fromkeys(folder for folder, kind in found if kind == "cgroup")
    v2 = dict.fromkeys(folder for folder, kind in found if kind == "cgroup2")
    return ("v1", [*v1, *v2]) if v1 else ("v2", list(v2)[:1])


def ensure(group: str) -> None:
    """Make `group` below the root of each hierarchy.

    Raises ClusterError when the machine has none mounted.
    """
    version, folders = hierarchies(Path("/proc/self/mounts").read_text())
    if not folders:
        raise ClusterError("No control groups are mounted at /sys/fs/cgroup: mount cgroup2 there.")
    for folder in map(Path, folders):
        if version == "v2":
            _delegate(folder)
        (folder / group).mkdir(exist_ok=True)
        # A cpuset of version 1 is born empty, and no process can enter it so.
        for name in ("cpuset.cpus", "cpuset.mems"):
            if version == "v1" and (folder / name).exists() and not (folder / group / name).read_text().strip():
                (folder / group / name).write_text((folder / name).read_text())


def kill(group: str) -> None:
    """End every process in `group` and below: the containers of a node.

    Raises ClusterError when one survives.
    """
    if not wait_gone(lambda: not _kill_round(group), KILL_SECONDS):
        raise ClusterError(f"processes {_members(group)} of the cluster's containers do not die: see `ps` and dmesg.")


def remove(group: str) -> None:
    """Remove `group` with all below it; it must be empty of processes."""
    for root in _roots(group):
        for folder, _, _ in os.walk(root, topdown=False):
            if not wait_gone(lambda folder=folder: _rmdir(folder), 5):  # type: ignore[misc]
                raise ClusterError(f"{folder} cannot be removed: a process is still in it (see its cgroup.procs).")


def _kill_round(group: str) -> set[int]:
    members = _members(group)
    for pid in members:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return members


def _members(group: str) -> set[int]:
    found: set[int] = set()
    for root in _roots(group):
        for folder, _, _ in os.walk(root):
            with contextlib.suppress(OSError):
                found.update(map(int, Path(folder, "cgroup.procs").read_text().split()))
    return found


def _roots(group: str) -> list[Path]:
    _, folders = hierarchies(Path("/proc/self/mounts").read_text())
    return [root for root in (Path(folder) / group for folder in folders) if root.exists()]


def _rmdir(folder: str) -> bool:
    try:
        Path(folder).rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _delegate(folder: Path) -> None:
    """Let groups below the root of version 2 use its controllers."""
    enabled = (folder / "cgroup.subtree_control").read_text().split()
    for controller in (folder / "cgroup.controllers").read_text().split():
        if controller not in enabled:
            with contextlib.suppress(OSError):
                (folder / "cgroup.subtree_control").write_text(f"+{controller}")
