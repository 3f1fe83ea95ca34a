"""Whether another artifact fits into the container's memory, by its control group."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mms_workloads import control_group

if TYPE_CHECKING:
    from collections.abc import Iterable

MEMINFO = Path("/proc/meminfo")
MIB = 1 << 20


class NoRoomError(MemoryError):
    """It does not fit; the message has the figures and the remedy."""


def admit(folder: str, beside: Iterable[str], cgroup: Path = control_group.ROOT, meminfo: Path = MEMINFO) -> None:
    """Whether the files of `folder` fit beside those that are mapped already. Raises NoRoomError.

    Mapped files can be dropped from memory and read again, which would make each answer wait for the disk: so there
    must be room for all of both beside what cannot be dropped.
    """
    limit = control_group.memory_limit(cgroup)
    if limit is None:
        _fits_on_node(size(folder), meminfo)
        return
    fixed = control_group.memory_fixed(cgroup)
    here, more = sum(map(size, beside)), size(folder)
    if fixed + here + more > limit:
        raise NoRoomError(
            f"it needs {more / MIB:.0f} MiB beside {(fixed + here) / MIB:.0f} MiB, of {limit / MIB:.0f} MiB: raise "
            "spec.server.resources.limits.memory, or roll out by another strategy"
        )


def _fits_on_node(more: int, meminfo: Path) -> None:
    """Without a limit the node's memory is the limit."""
    rows = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = 1024 * int(rows["MemAvailable"].split()[0])
    if more > free:
        raise NoRoomError(f"it needs {more / MIB:.0f} MiB, and the node has {free / MIB:.0f} MiB to give")


def size(folder: str) -> int:
    """Bytes of its files."""
    return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
