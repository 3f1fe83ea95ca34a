"""PID 1 of a worker's or shard's pod: python -m mms_workloads.train.supervisor

The kernel keeps signals from a PID 1 that has no handler for them. This one has, before it imports what takes seconds:
a pod that is told to stop meanwhile has nothing to leave behind. What it does then, the module supervising says.
"""

from __future__ import annotations

import os
import signal
import sys


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: os._exit(128 + number))
    from mms_workloads.train import supervising  # noqa: PLC0415 - see above

    return supervising.main()


if __name__ == "__main__":
    sys.exit(main())
