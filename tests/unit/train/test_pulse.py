"""When a worker counts as hung: a pure verdict over its signs of life."""

from __future__ import annotations

import os

import pytest

from mms_workloads.train import pulse as pulses
from mms_workloads.train.pulse import FLOOR_SECONDS, SILENT_SECONDS, SLOWEST, UNKNOWN_SECONDS, Pulse, Signs

NOW = 10_000.0


@pytest.mark.parametrize(
    ("signs", "verdict"),
    [
        (Signs(0, 0, 0, 0), None),
        (Signs(NOW - SILENT_SECONDS + 1, 0, 0, 0), None),
        (Signs(NOW - SILENT_SECONDS - 1, 0, 0, 0), "no sign of life for 6 s"),
        (Signs(NOW, NOW - FLOOR_SECONDS + 1, 0.1, 3), None),
        (Signs(NOW, NOW - FLOOR_SECONDS - 1, 0.1, 3), "computation takes 11 s, up to 0.1 s were expected"),
        (Signs(NOW, NOW - 3 * SLOWEST + 1, 3.0, 9), None),
        (Signs(NOW, NOW - 3 * SLOWEST - 1, 3.0, 9), "takes 61 s"),
        (Signs(NOW, NOW - UNKNOWN_SECONDS + 1, 0.1, 2), None),
        (Signs(NOW, NOW - UNKNOWN_SECONDS - 1, 0.1, 2), "takes 601 s"),
    ],
    ids=[
        "not begun", "beats", "stopped", "computes", "deadlocked", "slow as it was", "slower than ever", "first rounds",
        "first round never ends",
    ],
)  # fmt: skip
def test_verdict(signs: Signs, verdict: str | None) -> None:
    found = signs.verdict(NOW)
    assert (found is None) if verdict is None else (found is not None and verdict in found)


def test_signs_cross_a_fork() -> None:
    pulse = Pulse()
    child = os.fork()
    if child == 0:
        pulse.beat()
        with pulse.computing(5):
            pass
        os._exit(0)
    os.waitpid(child, 0)
    signs = pulse.signs()
    assert signs.beat > 0
    assert (signs.since, signs.count) == (0, 1)
    assert signs.usual == 0, "nothing had been computed before"


def test_rounds_without_data_say_nothing() -> None:
    pulse = Pulse()
    for _ in range(9):
        with pulse.computing(0):
            pass
    assert pulse.signs().count == 0


def test_a_larger_round_may_take_longer_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten workers one is left, and its rounds are as large as all of theirs were."""
    clock = [NOW]
    monkeypatch.setattr(pulses.time, "monotonic", lambda: clock[0])
    pulse = Pulse()
    for work in (4, 2, 4):
        with pulse.computing(work):
            clock[0] += work / 4
    with pulse.computing(100):
        assert pulse.signs().usual == 25
        clock[0] += 400
        assert pulse.signs().verdict(clock[0]) is None
    with pulse.computing(1):
        assert pulse.signs().usual == 400, "as long as any before"
