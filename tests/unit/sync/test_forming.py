"""Whose state a membership epoch of a ring starts from."""

from __future__ import annotations

import pytest

from mms_workloads.contract import CheckpointRef
from mms_workloads.sync.forming import Held, decide
from mms_workloads.sync.leases import Progress

CHECKPOINT = (CheckpointRef(uri="file:///c", step=3, digest="sha256:0", time="t"), Progress([3]))


@pytest.mark.parametrize(
    ("steps", "step", "loads"),
    [
        ((5, None), 5, False),
        ((3, 2), 3, False),
        ((2, None), 3, True),  # it was cut off, and those that went on without it are gone
        ((None, None), 3, True),
    ],
)
def test_the_newest_counts_whoever_has_it(steps: tuple[int | None, ...], step: int, loads: bool) -> None:
    held = [Held(one, "a", None if one is None else Progress([one])) for one in steps]
    begin = decide(held, CHECKPOINT, 1)
    assert (begin.step, begin.progress, begin.checkpoint is not None) == (step, Progress([step]), loads)
