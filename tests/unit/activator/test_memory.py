"""The activator is on every cluster, whatever it has to do: what it imports must stay small."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

MIB = 60
SCRIPT = """
import mms_operator.activator.__main__
print(open("/proc/self/status").read().split("VmRSS:")[1].split("kB")[0])
"""


def test_memory() -> None:
    root = Path(__file__).parents[3]
    path = os.pathsep.join(str(root / name) for name in ("operator", "workloads"))
    told = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(told.stdout) < MIB * 1024
