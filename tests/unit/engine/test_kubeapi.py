"""Calls as authorisation sees them, and what the API server's refusals mean."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from yarl import URL

from mms_operator.engine import kubeapi
from mms_operator.engine.kubeapi import ApiError, Call, call_of
from mms_operator.engine.resources import BY_KIND, LEASE, POD, TRAINING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path


@pytest.mark.parametrize(
    ("method", "url", "call"),
    [
        ("GET", "/api/v1/pods", Call("list", "", "pods")),
        ("GET", "/api/v1/pods?limit=500&labelSelector=a%3Db", Call("list", "", "pods")),
        ("GET", "/api/v1/pods?watch=true&resourceVersion=5", Call("watch", "", "pods")),
        ("GET", "/api/v1/namespaces/ns/pods", Call("list", "", "pods")),
        ("GET", "/api/v1/namespaces/ns/pods/p", Call("get", "", "pods")),
        ("GET", "/api/v1/namespaces/ns/pods/p/log", Call("get", "", "pods/log")),
        ("POST", "/api/v1/namespaces/ns/pods?fieldManager=x", Call("create", "", "pods")),
        ("DELETE", "/api/v1/namespaces/ns/pods/p", Call("delete", "", "pods")),
        ("DELETE", "/api/v1/namespaces/ns/pods", Call("deletecollection", "", "pods")),
        ("GET", "/api/v1/namespaces", Call("list", "", "namespaces")),
        ("GET", "/api/v1/namespaces/ns", Call("get", "", "namespaces")),
        ("GET", "/apis/mms.dev/v1alpha1/modeltrainings", Call("list", "mms.dev", "modeltrainings")),
        (
            "GET",
            "/apis/mms.dev/v1alpha1/namespaces/ns/modeltrainings?watch=true",
            Call("watch", "mms.dev", "modeltrainings"),
        ),
        (
            "PUT",
            "/apis/mms.dev/v1alpha1/namespaces/ns/modeltrainings/w/status",
            Call("update", "mms.dev", "modeltrainings/status"),
        ),
        ("PATCH", "/apis/apps/v1/namespaces/ns/deployments/d", Call("patch", "apps", "deployments")),
        ("GET", "/apis", None),
        ("GET", "/apis/mms.dev/v1alpha1", None),
        ("GET", "/api/v1", None),
        ("GET", "/version", None),
        ("GET", "/readyz", None),
    ],
)
def test_call_of(method: str, url: str, call: Call | None) -> None:
    assert call_of(method, URL(f"https://host:6443{url}")) == call


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (POD.path(), "/api/v1/pods"),
        (POD.path("ns", "p"), "/api/v1/namespaces/ns/pods/p"),
        (TRAINING.path("ns", "w", "status"), "/apis/mms.dev/v1alpha1/namespaces/ns/modeltrainings/w/status"),
        (LEASE.path("ns"), "/apis/coordination.k8s.io/v1/namespaces/ns/leases"),
    ],
)
def test_paths(path: str, expected: str) -> None:
    assert path == expected


@pytest.mark.parametrize("resource", BY_KIND.values(), ids=lambda resource: resource.kind)
def test_a_path_is_the_call_of_its_resource(resource: kubeapi.Resource) -> None:
    for namespace in (None, "ns"):
        url = URL(f"https://h{resource.path(namespace)}")
        assert call_of("GET", url) == Call("list", resource.group, resource.plural)


def status(**more: object) -> bytes:
    return json.dumps({"kind": "Status", "code": 403, "reason": "Forbidden", "message": "no", **more}).encode()


TERMINATING = {"causes": [{"reason": "NamespaceTerminating", "message": "x", "field": "metadata.namespace"}]}


@pytest.mark.parametrize(
    ("code", "answer", "said", "ends"),
    [
        pytest.param(403, status(), "403 Forbidden: no", False, id="a Status"),
        pytest.param(403, status(details=TERMINATING), "403 Forbidden: no", True, id="the namespace ends"),
        pytest.param(
            404,
            status(reason="NotFound", message='namespaces "x" not found'),
            '404 NotFound: namespaces "x" not found',
            True,
            id="the namespace is gone",
        ),
        pytest.param(
            404,
            status(reason="NotFound", message='pods "namespaces " not found'),
            '404 NotFound: pods "namespaces " not found',
            False,
            id="something else is gone",
        ),
        pytest.param(502, b"<html>bad gateway", "502 Unknown: <html>bad gateway", False, id="no JSON"),
        pytest.param(429, b'"slow down"', "429 Unknown: slow down", False, id="no object"),
        pytest.param(500, b"{}", "500 Unknown: ", False, id="an empty object"),
        pytest.param(500, b"\xff\xfe", "500 Unknown: ", False, id="no text"),
    ],
)
def test_refusals(code: int, answer: bytes, said: str, ends: bool) -> None:
    error = kubeapi._error(code, answer)
    assert isinstance(error, ApiError)
    assert error.status == code
    assert str(error).startswith(said)
    assert error.namespace_ends == ends


def write_kubeconfig(file: Path, server: str) -> Path:
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }
    file.write_text(json.dumps(content))
    return file


async def test_the_kubeconfig_that_the_environment_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(write_kubeconfig(tmp_path / "config", "https://somewhere:1")))
    assert (await kubeapi.load_configuration()).host == "https://somewhere:1"


async def test_no_answer_is_an_oserror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(write_kubeconfig(tmp_path / "config", "https://127.0.0.1:1")))
    calls: list[tuple[Call, int]] = []
    api = kubeapi.KubeApi(await kubeapi.load_configuration(), lambda call, status: calls.append((call, status)))
    try:
        with pytest.raises(OSError, match="no answer to GET /api/v1/namespaces/ns/pods/p"):
            await api.get(POD, "ns", "p")
        with pytest.raises(OSError, match="the watch of pods broke"):
            async for _ in api.watch(POD, None, "", 1, 5):
                pass
    finally:
        await api.close()
    assert calls == [(Call("get", "", "pods"), 0), (Call("watch", "", "pods"), 0)]


@asynccontextmanager
async def api_of(
    answer: Callable[[web.Request], Awaitable[web.StreamResponse]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[kubeapi.KubeApi]:
    """A server that answers everything so."""
    app = web.Application()
    app.router.add_route("*", "/{any:.*}", answer)
    async with TestServer(app) as server:
        monkeypatch.setenv("KUBECONFIG", str(write_kubeconfig(tmp_path / "config", str(server.make_url("")))))
        api = kubeapi.KubeApi(await kubeapi.load_configuration())
        try:
            yield api
        finally:
            await api.close()


@pytest.mark.parametrize("code", [429, 503, 504])
async def test_a_server_that_is_too_busy_has_refused_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """It would be told in the status of every object otherwise, and an overloaded server would get more to write."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=code, body=status(code=code, reason="Busy", message="later"))

    async with api_of(answer, tmp_path, monkeypatch) as api:
        with pytest.raises(OSError, match=f"no answer yet to POST .*pods: {code} Busy: later"):
            await api.create(POD, "ns", {})


async def test_a_watch_that_has_fallen_silent_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that a firewall has forgotten says nothing, not even that it has ended."""
    monkeypatch.setattr(kubeapi, "QUIET_SECONDS", 0.05)
    over = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'{"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "2"}}}\n')
        await over.wait()
        return response

    async with api_of(answer, tmp_path, monkeypatch) as api:
        events = api.watch(POD, None, "", 1, 300)
        assert (await anext(events))[0] == "BOOKMARK"
        with pytest.raises(OSError, match="the watch of pods broke"):
            await asyncio.wait_for(anext(events), 20)  # type: ignore[arg-type]
        over.set()
