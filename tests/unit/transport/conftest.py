"""Certificates of a job, and both ways to protect a connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mms_workloads.transport.channel import Security
from tests.unit.transport.peers import folders

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with certificates by role."""
    return folders(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(params=["Plain", "MutualTLS"])
def security(request: pytest.FixtureRequest, job: dict[str, Path]) -> Security:
    return Security.plain() if request.param == "Plain" else Security.mutual(job["worker"])
