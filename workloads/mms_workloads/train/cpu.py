"""What the container may use, as its cgroup (version 2) says."""

from __future__ import annotations

import math
import os
from pathlib import Path

MEMORY_REMEDY = (
    "the worker ran out of memory: raise workers.resources' memory limit, or lower dimensions or maxVocabulary"
)
_CGROUP = Path("/sys/fs/cgroup")


def limit(cgroup: Path = _CGROUP) -> int:
    """Threads for torch: the whole processors of the CPU limit, at least 1.

    Without a limit other workers share the node's processors, and threads that wait for descheduled ones by spinning
    make all of them several times slower than one thread each (measured: 0.12 M words/s instead of 1 M): then it is 1.
    """
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
        processors = 1 if quota == "max" else math.floor(int(quota) / int(period))
    except (OSError, ValueError):
        processors = 1
    return max(1, min(processors, len(os.sched_getaffinity(0))))


def memory_kills(cgroup: Path = _CGROUP) -> int:
    """How many processes of the cgroup the kernel has killed for want of memory."""
    try:
        lines = (cgroup / "memory.events").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    except (OSError, ValueError, StopIteration):
        return 0
