"""How much memory this process may still take."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

from mms_workloads import control_group
from mms_workloads.contract import Reason
from mms_workloads.store import JobError

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of malloc.h
_MOST_MAPPED = 32 << 20  # bytes: glibc takes no larger threshold
MEMINFO = Path("/proc/meminfo")


def available(cgroup: Path = control_group.ROOT, meminfo: Path = MEMINFO) -> int | None:
    """Bytes: the system's, or what the container's limit leaves. None where neither is told."""
    found = []
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        pass
    left = control_group.memory_left(cgroup)
    if left is not None:
        found.append(left)
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


def keep() -> None:
    """From now on what is freed stays with the process, for the next step of a network, which needs as much: the page
    faults of memory that comes and goes cost small networks much of their time. Where the C library is glibc.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, _MOST_MAPPED)
        library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)


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
