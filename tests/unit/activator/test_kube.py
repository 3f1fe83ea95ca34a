"""What is followed of the API server, on a stand-in."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from mms_operator.activator import kube
from mms_operator.activator.__main__ import application
from mms_operator.activator.doors import Doors
from mms_operator.activator.feeds import feeds
from mms_operator.activator.kube import Server
from mms_operator.activator.table import Table

if TYPE_CHECKING:
    from pathlib import Path


class Follower:
    path, selector = "/api/v1/things", ""

    def __init__(self) -> None:
        self.lists = 0
        self.news = asyncio.Event()

    def needed(self, obj: dict[str, Any]) -> dict[str, Any]:
        return obj

    async def listed(self, objects: list[dict[str, Any]]) -> None:
        assert objects == []
        self.lists += 1
        self.news.set()

    def refused(self) -> None:
        raise AssertionError

    async def seen(self, obj: dict[str, Any], *, gone: bool) -> None:
        raise AssertionError((obj, gone))


async def test_a_watch_that_has_fallen_silent_is_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that a firewall has forgotten says nothing, not even that it has ended."""
    monkeypatch.setattr(kube, "QUIET_SECONDS", 0.05)
    monkeypatch.setattr(kube, "RETRY_SECONDS", 0.0)
    token = tmp_path / "token"
    token.write_text("t")
    watches: list[dict[str, str]] = []
    over = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            return web.json_response({"metadata": {"resourceVersion": "1"}, "items": []})
        watches.append(dict(request.query))
        response = web.StreamResponse()
        await response.prepare(request)
        bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "2"}}}
        await response.write(json.dumps(bookmark).encode() + b"\n")
        await over.wait()
        return response

    app = web.Application()
    app.add_routes([web.get("/{any:.*}", answer)])
    follower = Follower()
    async with TestServer(app) as server:
        base = str(server.make_url("")).rstrip("/")
        async with aiohttp.ClientSession(base) as session:
            following = asyncio.create_task(kube.follow(Server(base, token, token), session, follower))
            async with asyncio.timeout(20):
                while follower.lists < 2:
                    follower.news.clear()
                    await follower.news.wait()
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        over.set()
    assert watches[0]["allowWatchBookmarks"] == "true"


@pytest.mark.parametrize(
    ("namespaces", "status"),
    [
        pytest.param(("a", "b"), 200, id="one of two may be read"),
        pytest.param(("b", "c"), 503, id="none of two"),
        pytest.param((), 503, id="not all"),
    ],
)
async def test_a_namespace_that_may_not_be_read_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, namespaces: tuple[str, ...], status: int
) -> None:
    """As one whose Role went with it: an activator that starts then is ready, or no rollout of it would end."""
    monkeypatch.setattr(kube, "REFUSED_SECONDS", 60.0)
    asked, over = set[str](), asyncio.Event()
    all_asked = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        watched = "watch" in request.query
        asked.add(f"{request.path} {watched}")
        if len(asked) == sum(4 if one == "a" else 2 for one in namespaces or ["all"]):
            all_asked.set()
        if "/namespaces/a/" not in request.path:
            return web.Response(status=403, text="no")
        if not watched:
            return web.json_response({"metadata": {"resourceVersion": "1"}, "items": []})
        await over.wait()
        return web.Response()

    app = web.Application()
    app.add_routes([web.get("/{any:.*}", answer)])
    doors = Doors(Table())
    sources = feeds(doors, namespaces)
    async with TestServer(app) as server, TestClient(TestServer(application(doors, sources))) as client:
        address = Server(str(server.make_url("")).rstrip("/"), tmp_path / "token", tmp_path / "ca")
        async with address.session() as session:
            tasks = [asyncio.create_task(kube.follow(address, session, one)) for one in sources]
            async with asyncio.timeout(20):
                await all_asked.wait()
                while not all(one.read or one.barred or not one.namespace for one in sources):  # noqa: ASYNC110
                    await asyncio.sleep(0)
            assert (await client.get("/readyz")).status == status
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        over.set()


async def test_more_namespaces_are_watched_than_a_client_has_connections_by_itself(tmp_path: Path) -> None:
    most = 120
    watched, over = set[str](), asyncio.Event()
    all_watched = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            return web.json_response({"metadata": {"resourceVersion": "1"}, "items": []})
        watched.add(request.path)
        if len(watched) == most:
            all_watched.set()
        await over.wait()
        return web.Response()

    app = web.Application()
    app.add_routes([web.get("/{any:.*}", answer)])
    async with TestServer(app) as server:
        address = Server(str(server.make_url("")).rstrip("/"), tmp_path / "token", tmp_path / "ca")
        async with address.session() as session:
            sources = feeds(Doors(Table()), [f"team-{n}" for n in range(most // 2)])
            tasks = [asyncio.create_task(kube.follow(address, session, one)) for one in sources]
            async with asyncio.timeout(20):
                await all_watched.wait()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        over.set()
