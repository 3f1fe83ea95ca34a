"""What is followed of the API server, on a stand-in."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer

from mms_operator.activator import kube
from mms_operator.activator.kube import Server

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


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
