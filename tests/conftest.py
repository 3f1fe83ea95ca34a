"""Fixtures that tests with a real API server share."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest

from mms_cluster.apionly import ApiOnly

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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
