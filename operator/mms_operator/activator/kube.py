"""Reads the API server as the pod's service account: lists and watches, and nothing else.

The official client takes more memory to import than the whole activator may have.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import aiohttp
import structlog

if TYPE_CHECKING:
    from collections.abc import Mapping

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
WATCH_SECONDS = 300
QUIET_SECONDS = 90.0  # without a line, of a watch: the API server sends a bookmark about once a minute
RETRY_SECONDS = 1.0
REFUSED_SECONDS = 10.0  # between two tries of what may not be read
LINE_BYTES = 1 << 22  # of one event
FORBIDDEN, GONE = 403, 410
OK = 200

Object = dict[str, Any]
log = structlog.get_logger()


@dataclass(frozen=True)
class Server:
    """Where the API server is. token: of a file that the kubelet renews."""

    url: str
    token: Path
    authority: Path

    @classmethod
    def of_pod(cls, environment: Mapping[str, str] = os.environ) -> Server:
        """Raises KeyError where this is no pod."""
        host, port = environment["KUBERNETES_SERVICE_HOST"], environment["KUBERNETES_SERVICE_PORT"]
        return cls(f"https://{f'[{host}]' if ':' in host else host}:{port}", ACCOUNT / "token", ACCOUNT / "ca.crt")

    def session(self) -> aiohttp.ClientSession:
        context = ssl.create_default_context(cafile=str(self.authority)) if self.url.startswith("https") else None
        if context is not None:
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # clusters' authorities are often older than RFC 5280
        # Each list has a watch of its own: two for each namespace.
        connector = aiohttp.TCPConnector(ssl=context or True, limit=0)
        return aiohttp.ClientSession(self.url, connector=connector, read_bufsize=LINE_BYTES)

    def headers(self) -> dict[str, str]:
        token = self.token.read_text().strip() if self.token.exists() else ""
        return {"Authorization": f"Bearer {token}"} if token else {}


class RefusedError(Exception):
    """What may not be read."""


class Follower(Protocol):
    """What is done with the objects of one list. listed: with what is `needed` of all; seen: with one of them.

    refused: it may not be read, for now.
    """

    @property
    def path(self) -> str: ...
    @property
    def selector(self) -> str: ...
    def needed(self, obj: Object) -> Object: ...
    def refused(self) -> None: ...
    async def listed(self, objects: list[Object]) -> None: ...
    async def seen(self, obj: Object, *, gone: bool) -> None: ...


async def follow(server: Server, session: aiohttp.ClientSession, follower: Follower) -> None:
    """Until it is cancelled. Whatever fails is logged and tried again."""
    while True:
        try:
            version: str | None = await _list(server, session, follower)
            while version is not None:
                version = await _watch(server, session, follower, version)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            log.warning("the API server is not followed", path=follower.path, error=str(error) or type(error).__name__)
            await asyncio.sleep(RETRY_SECONDS)
        except RefusedError as error:
            log.warning("it may not be read", path=follower.path, error=str(error))
            follower.refused()
            await asyncio.sleep(REFUSED_SECONDS)


async def _list(server: Server, session: aiohttp.ClientSession, follower: Follower) -> str:
    found: list[Object] = []
    params = {"limit": "200"} | ({"labelSelector": follower.selector} if follower.selector else {})
    while True:
        async with session.get(follower.path, params=params, headers=server.headers()) as response:
            if response.status != OK:
                raise await _refusal(response)
            answer = json.loads(await response.read())
        found += [follower.needed(one) for one in answer.get("items") or ()]
        if not (following := answer["metadata"].get("continue")):
            await follower.listed(found)
            return str(answer["metadata"]["resourceVersion"])
        params["continue"] = following


async def _watch(server: Server, session: aiohttp.ClientSession, follower: Follower, version: str) -> str | None:
    """The version that it came to; None where all must be listed again."""
    params = {"watch": "true", "allowWatchBookmarks": "true", "resourceVersion": version}
    params |= {"timeoutSeconds": str(WATCH_SECONDS)} | (
        {"labelSelector": follower.selector} if follower.selector else {}
    )
    timeout = aiohttp.ClientTimeout(total=WATCH_SECONDS + 30, sock_read=QUIET_SECONDS)
    async with session.get(follower.path, params=params, headers=server.headers(), timeout=timeout) as response:
        if response.status != OK:
            if response.status == GONE:
                return None
            raise await _refusal(response)
        async for line in response.content:
            event = json.loads(line)
            obj = event["object"]
            if event["type"] == "ERROR":
                if obj.get("code") == GONE:
                    return None
                raise ValueError(str(obj.get("message"))[:200])
            version = obj["metadata"]["resourceVersion"]
            if event["type"] != "BOOKMARK":
                await follower.seen(obj, gone=event["type"] == "DELETED")
    return version


async def _refusal(response: aiohttp.ClientResponse) -> Exception:
    said = f"{response.status}: {(await response.text())[:200]}"
    return RefusedError(said) if response.status == FORBIDDEN else ValueError(said)
