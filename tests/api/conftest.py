"""Fixtures of tests with the two kinds in a real API server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mms_operator.api.names import GROUP, SERVICES, TRAININGS, VERSION
from tests.api.crds import BASE, CRDS, Kind, Object, eventually

if TYPE_CHECKING:
    from mms_cluster.apionly import ApiOnly


@pytest.fixture(scope="session")
def crds(apiserver: ApiOnly) -> dict[str, Object]:
    """The CRDs, as the API server keeps them, once it serves them."""
    served = {}
    for crd in CRDS.values():
        name, plural = crd["metadata"]["name"], crd["spec"]["names"]["plural"]
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}"
        assert apiserver.api.apply(path, crd) == ""
        eventually(lambda url=f"/apis/{GROUP}/{VERSION}/{plural}": apiserver.api.get(url))
        served[name] = apiserver.api.get(path) or {}
    return served


@pytest.fixture
def kinds(apiserver: ApiOnly, crds: object, namespace: str) -> dict[str, Kind]:
    """By plural name, in the test's namespace."""
    return {plural: Kind(apiserver, namespace, plural) for plural in BASE}


@pytest.fixture
def trainings(kinds: dict[str, Kind]) -> Kind:
    return kinds[TRAININGS]


@pytest.fixture
def services(kinds: dict[str, Kind]) -> Kind:
    return kinds[SERVICES]
