"""Routes are what the Gateway API's own CRDs take. tests/e2e/test_gateway.py asks an implementation."""

from __future__ import annotations

import json
import subprocess
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from mms_operator.engine import kubeapi
from mms_operator.engine.resources import BY_KIND, GRPC_ROUTE, HTTP_ROUTE, ROUTES, Resource
from tests.api.crds import Object, eventually
from tests.unit.plan.serving_world import CANARY
from tests.unit.plan.test_gateway import world

if TYPE_CHECKING:
    from mms_cluster.apionly import ApiOnly

pytestmark = pytest.mark.api

MODULE = "sigs.k8s.io/gateway-api@v1.3.0"


@pytest.fixture(scope="module")
def gateway_api(apiserver: ApiOnly) -> None:
    """The CRDs of the standard channel, as they were released."""
    told = subprocess.run(["go", "mod", "download", "-json", MODULE], check=True, capture_output=True, text=True)
    folder = Path(json.loads(told.stdout)["Dir"], "config", "crd", "standard")
    for route in ROUTES:
        crd = yaml.safe_load((folder / f"gateway.networking.k8s.io_{route.plural}.yaml").read_text())
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd['metadata']['name']}"
        assert apiserver.api.apply(path, crd) == ""
        eventually(partial(apiserver.api.get, route.path()))


def routes() -> dict[str, Object]:
    """While a canary gets a part, some say that they want it, and copies go there."""
    found = world(CANARY, nextHeader={"name": "x-version", "value": "next"}, shadow={"percent": 30})
    found.serve("b")
    found.settle()
    return {kind: found.objects[f"{kind}/words"] for kind in ("HTTPRoute", "GRPCRoute")}


@pytest.mark.usefixtures("gateway_api")
@pytest.mark.parametrize("kind", ["HTTPRoute", "GRPCRoute"])
def test_a_route_is_taken_as_it_is_planned(apiserver: ApiOnly, namespace: str, kind: str) -> None:
    planned = routes()[kind]
    path = BY_KIND[kind].path(namespace, "words")
    sent = {**planned, "metadata": {**planned["metadata"], "namespace": namespace}}
    assert apiserver.api.apply(path, sent) == ""
    stored = apiserver.api.get(path) or {}
    rules = stored["spec"]["rules"]
    assert [one["weight"] for one in rules[1]["backendRefs"]] == [80, 20]
    assert rules[1]["filters"][0]["requestMirror"]["percent"] == 30
    assert rules[0]["matches"][0]["headers"][0] == {"type": "Exact", "name": "x-version", "value": "next"}
    assert stored["spec"]["parentRefs"][0]["sectionName"] == ("https" if kind == "HTTPRoute" else "grpc")


@pytest.mark.usefixtures("gateway_api")
async def test_the_operator_sees_whether_the_cluster_has_them(
    apiserver: ApiOnly, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(apiserver.kubeconfig))
    api = kubeapi.KubeApi(await kubeapi.load_configuration())
    try:
        assert await api.serves(HTTP_ROUTE)
        assert await api.serves(GRPC_ROUTE)
        assert not await api.serves(Resource("TCPRoute", "gateway.networking.k8s.io", "v1", "tcproutes"))
        assert not await api.serves(Resource("Nothing", "nothing.example.com", "v1", "nothings"))
    finally:
        await api.close()
