"""A master for each test of its decisions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mms_workloads.sync import coordinator
from tests.unit.sync.masters import Clock, Master

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(coordinator, "time", clock)
    return clock


@pytest.fixture
def master(tmp_path: Path, clock: Clock) -> Master:
    return Master(tmp_path, clock)
