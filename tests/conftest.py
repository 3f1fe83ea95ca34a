"""Fixtures that tests with a real API server share, and ports that no two processes of tests take.

A line that a test prints and that begins with RESULT is shown at the end, since it is measured and not only proved.
"""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING

import pytest

from mms_cluster import ports
from mms_cluster.apionly import ApiOnly

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


WORKERS = 8  # of xdist that have ports of their own


def pytest_configure() -> None:
    """A port is found free some time before the program that it is for takes it."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % WORKERS
    size = len(ports.SPAN) // WORKERS
    ports.SPAN = ports.SPAN[worker * size : (worker + 1) * size]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [one for outcome in ("passed", "failed") for one in terminalreporter.getreports(outcome)]
    said = [line for one in reports for line in one.capstdout.splitlines() if line.startswith("RESULT ")]
    if said:
        terminalreporter.section("measured")
        terminalreporter.write_line("\n".join(dict.fromkeys(said)))


@pytest.fixture(scope="session")
def apiserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiOnly]:
    """An API server for the whole run; tests keep to a `namespace` of their own."""
    with ApiOnly(tmp_path_factory.mktemp("apiserver")) as api:
        yield api


@pytest.fixture
def kubeconfig(apiserver: ApiOnly, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The API server's kubeconfig, which KUBECONFIG names during the test."""
    monkeypatch.setenv("KUBECONFIG", str(apiserver.kubeconfig))
    return apiserver.kubeconfig


@pytest.fixture
def namespace(apiserver: ApiOnly) -> str:
    """A new namespace. Nothing removes it: namespaces end with their API server."""
    name = f"t-{uuid.uuid4().hex[:10]}"
    manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    assert apiserver.api.apply(f"/api/v1/namespaces/{name}", manifest) == ""
    return name
