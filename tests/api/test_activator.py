"""What the activator learns from a real API server, with the rights that the chart gives it."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from mms_cluster.ports import free_ports
from mms_operator import rbac
from mms_operator.activator.doors import Doors
from mms_operator.activator.feeds import feeds
from mms_operator.activator.kube import Server, follow
from mms_operator.activator.table import Table
from mms_operator.engine.resources import BY_KIND
from tests.api.crds import Kind, Object, good
from tests.unit.plan.scaled_world import ScaledWorld

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from mms_cluster.apionly import ApiOnly

pytestmark = pytest.mark.api

ROLE = "activator-test"
SCALED: Object = {
    "replicas": 0,
    "model": {"artifact": {"uri": "s3://mms/a", "digest": "sha256:" + "a" * 64}},
    "autoscaling": {"mode": "External"},
}  # an artifact that nobody has: no pod is wanted


@pytest.fixture
def server(apiserver: ApiOnly, crds: object, namespace: str, tmp_path: Path) -> Server:
    """As a service account with those rights."""
    group = "rbac.authorization.k8s.io"
    account = f"/api/v1/namespaces/{namespace}/serviceaccounts/activator"
    role = {"apiVersion": f"{group}/v1", "kind": "ClusterRole", "metadata": {"name": ROLE}}
    role |= {"rules": rbac.rules(rbac.ACTIVATOR)}
    binding = {
        "apiVersion": f"{group}/v1", "kind": "ClusterRoleBinding", "metadata": {"name": f"{ROLE}-{namespace}"},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": ROLE},
        "subjects": [{"kind": "ServiceAccount", "name": "activator", "namespace": namespace}],
    }  # fmt: skip
    metadata = {"name": "activator", "namespace": namespace}
    for path, obj in (
        (account, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}),
        (f"/apis/{group}/v1/clusterroles/{ROLE}", role),
        (f"/apis/{group}/v1/clusterrolebindings/{ROLE}-{namespace}", binding),
    ):
        assert apiserver.api.apply(path, obj) == ""
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    status, body = apiserver.api.request("POST", f"{account}/token", request)
    assert status == 201, body
    token = tmp_path / "token"
    token.write_text(json.loads(body)["status"]["token"])
    return Server(apiserver.url, token, apiserver.api.pki / "ca.crt")


@asynccontextmanager
async def following(server: Server) -> AsyncIterator[Doors]:
    doors = Doors(Table(), "127.0.0.1")
    async with server.session() as session:
        tasks = [asyncio.create_task(follow(server, session, feed)) for feed in feeds(doors, ())]
        yield doors
        # Before the watches: of one that is cancelled TLS would say goodbye, for longer than the loop lives.
        await session.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await doors.close()


async def until(doors: Doors, true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.02)
            await doors.update()


def part(namespace: str, *ready: bool) -> Object:
    """As the control plane writes them: with the Service's labels."""
    labels = {
        "kubernetes.io/service-name": "words",
        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
        "mms.dev/service": "words",
    }
    return {
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "words-abc", "namespace": namespace, "labels": labels},
        "endpoints": [
            {"addresses": [f"10.1.0.{n}"], "conditions": {"ready": one}} for n, one in enumerate(ready, start=1)
        ],
        "ports": [{"name": "http", "port": 8000, "protocol": "TCP"}, {"name": "grpc", "port": 8001, "protocol": "TCP"}],
    }  # fmt: skip


async def test_it_follows_services_and_their_pods(
    apiserver: ApiOnly, server: Server, services: Kind, namespace: str
) -> None:
    key, port = f"{namespace}/words", free_ports(1)[0]
    slices = BY_KIND["EndpointSlice"].path(namespace, "words-abc")
    good(services.create({"spec": {**SCALED, "model": {**SCALED["model"], "trainingRef": None}}}))
    async with following(server) as doors:
        good(services.change({"status": {"autoscaling": {"activatorPort": port}}}, "/status"))
        await until(doors, lambda: doors.table.ports.get(key) == port)
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        assert (await doors.report(-1)).services[key].port == port
        writer.close()
        await writer.wait_closed()
        assert apiserver.api.apply(slices, part(namespace, True, False, True)) == ""
        await until(doors, lambda: len(doors.table.backends(key, "grpc")) == 2)
        assert doors.table.backends(key, "http") == [("10.1.0.1", 8000), ("10.1.0.3", 8000)]
        assert apiserver.api.apply(slices, part(namespace)) == ""
        await until(doors, lambda: not doors.table.backends(key, "http"))
        good(services.request("DELETE", "/words"))
        await until(doors, lambda: key not in doors.table.ports)


def test_the_slice_that_leads_to_it_is_taken(apiserver: ApiOnly, namespace: str) -> None:
    found = ScaledWorld(SCALED)
    found.look()
    found.look()
    planned = found.objects["EndpointSlice/words-activator"]
    sent = {**planned, "metadata": {**planned["metadata"], "namespace": namespace}}
    assert apiserver.api.apply(BY_KIND["EndpointSlice"].path(namespace, "words-activator"), sent) == ""
