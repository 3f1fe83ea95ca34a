"""What a process does with memory that it has freed."""

from __future__ import annotations

import subprocess
import sys

ROUNDS = 20
PROGRAM = f"""
import resource
from mms_workloads import memory

def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def step() -> None:
    of_layers = [bytearray(12 << 20) for _ in range(4)]

{{first}}
step()
before = faults()
for _ in range({ROUNDS}):
    step()
print(faults() - before)
"""


def test_what_a_step_needs_again_stays_with_the_process() -> None:
    assert faults("memory.keep()") < ROUNDS
    assert faults("memory.give_back()") > 10 * ROUNDS  # of huge pages 24 in each


def faults(first: str) -> int:
    """Pages that had to be found while as much memory was taken and freed again and again."""
    program = [sys.executable, "-c", PROGRAM.format(first=first)]
    found = subprocess.run(program, capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)})
    return int(found.stdout)
