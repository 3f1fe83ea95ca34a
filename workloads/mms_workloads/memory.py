"""How much memory this process may still take."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

from mms_workloads.contract import Reason
from mms_workloads.store import JobError

_MMAP_THRESHOLD, _ARENA_MAX = -3, -8  # of malloc.h
RECLAIMED = ("active_file", "inactive_file", "slab_reclaimable")
CGROUP, MEMINFO = Path("/sys/fs/cgroup"), Path("/proc/meminfo")


def available(cgroup: Path = CGROUP, meminfo: Path = MEMINFO) -> int | None:
    """Bytes: the system's, or what the container's limit leaves. None where neither is told."""
    found = []
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        pass
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        if limit != "max":
            used = int((cgroup / "memory.current").read_text())
            stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
            # Copies of files count as used, and go when memory is wanted.
            found.append(int(limit) - used + sum(int(stat.get(name, 0)) for name in RECLAIMED))
    except (OSError, ValueError):
        pass
    return min(found, default=None)


def give_back() -> None:
    """From now on what is freed of a megabyte or more goes back to the system at once, and threads have no heaps of
    their own, each of which would keep as much as it ever needed; where the C library is glibc. For programs that make
    few such buffers: each costs its page faults anew.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, 1 << 20)
        library.mallopt(_ARENA_MAX, 1)


def trim() -> None:
    """Gives freed memory back to the system, where the C library is glibc: it keeps most of what many threads freed."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def need(size: int, what: str, remedy: str) -> None:
    """size: bytes. Raises JobError OutOfMemory when they are not there: before the kernel kills for want of them."""
    there = available()
    if there is not None and size > there:
        raise JobError(
            Reason.OUT_OF_MEMORY,
            f"{what} takes {size / 2**30:.2f} GiB of memory and {max(0, there) / 2**30:.2f} GiB are free: {remedy}",
        )
