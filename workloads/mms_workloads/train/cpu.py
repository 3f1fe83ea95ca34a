"""What the container's processors allow, and what a user can do where its memory does not."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

from mms_workloads import control_group

if TYPE_CHECKING:
    from pathlib import Path

MEMORY_REMEDY = (
    "the worker ran out of memory: raise workers.resources' memory limit, or lower dimensions or maxVocabulary"
)


def limit(cgroup: Path = control_group.ROOT) -> int:
    """Threads for torch: the whole processors of the CPU limit, at least 1.

    Without a limit other workers share the node's processors, and threads that wait for descheduled ones by spinning
    make all of them several times slower than one thread each (measured: 0.12 M words/s instead of 1 M): then it is 1.
    """
    processors = math.floor(control_group.processors(cgroup) or 1)
    return max(1, min(processors, len(os.sched_getaffinity(0))))
