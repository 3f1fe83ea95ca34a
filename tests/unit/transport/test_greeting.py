"""What a peer says of itself is read before it is compared with anything."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from mms_workloads.transport.frames import Fence, Greeting

GOOD = Greeting(Fence("u", 1, 1, 7), "worker", 0, 2, "push")


def test_a_greeting_is_read() -> None:
    assert Greeting.read(asdict(GOOD)) == GOOD


@pytest.mark.parametrize(
    "change",
    [
        {"rank": "0"},
        {"role": ["worker"]},
        {"purpose": None},
        {"incarnation": 2.0},
        {"fence": {"uid": "u", "run": 1, "attempt": "1", "epoch": 7}},
        {"fence": {"uid": "u", "run": 1, "attempt": 1, "epoch": True}},
        {"fence": {"uid": "u"}},
        {"fence": None},
        {"more": 1},
    ],
    ids=str,
)
def test_what_is_no_greeting_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no greeting"):
        Greeting.read({**asdict(GOOD), **change})
