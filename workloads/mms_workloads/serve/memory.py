"""Whether another artifact fits into the container's memory, by its control group (Linux, cgroup v2)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")
MIB = 1 << 20


class NoRoomError(MemoryError):
    """It does not fit; the message has the figures and the remedy."""


def admit(folder: str, beside: Iterable[str], cgroup: Path = CGROUP, meminfo: Path = MEMINFO) -> None:
    """Whether the files of `folder` fit beside those that are mapped already. Raises NoRoomError.

    Mapped files can be dropped from memory and read again, which would make each answer wait for the disk: so there
    must be room for all of both beside what cannot be dropped.
    """
    limit = _limit(cgroup)
    if limit is None:
        _fits_on_node(size(folder), meminfo)
        return
    fixed = _fixed(cgroup)
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


def _limit(cgroup: Path) -> int | None:
    try:
        text = (cgroup / "memory.max").read_text().strip()
    except OSError:  # no control group of version 2: nothing can be said
        return None
    return None if text == "max" else int(text)


def _fixed(cgroup: Path) -> int:
    """Bytes that cannot be dropped: of processes, of the kernel on their behalf, and of shared memory."""
    rows = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    return sum(int(rows.get(name, 0)) for name in ("anon", "kernel", "shmem"))
