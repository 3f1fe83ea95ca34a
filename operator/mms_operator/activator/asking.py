"""Asks the agents of starting pods whether they are ready.

The kubelet looks once a second, and what it finds goes through the API server.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp

if TYPE_CHECKING:
    from collections.abc import Iterable

RATE = 100.0  # questions a second for all services together: with many that start the period grows
PERIOD_SECONDS = 0.05
MOST_ASKED = 16  # pods of a service
PARALLEL = 16
TIMEOUT = aiohttp.ClientTimeout(total=0.5, sock_connect=0.25)  # all of a service wait for the slowest
OK = 200


@dataclass
class Agents:
    _asking: int = 0  # questions of a period
    _session: aiohttp.ClientSession | None = None

    async def answering(self, agents: Iterable[tuple[str, int]]) -> frozenset[str]:
        """The addresses of those that are ready, after the period in which they may be asked."""
        asked = list(agents)[:MOST_ASKED]
        self._asking += len(asked)
        try:
            await asyncio.sleep(max(PERIOD_SECONDS, self._asking / RATE))
            said = await asyncio.gather(*(self._ready(*one) for one in asked))
        finally:
            self._asking -= len(asked)
        return frozenset(host for (host, _), ready in zip(asked, said, strict=True) if ready)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _ready(self, host: str, port: int) -> bool:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=PARALLEL)
            self._session = aiohttp.ClientSession(connector=connector, timeout=TIMEOUT)
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}/readyz"
        try:
            async with self._session.get(url, allow_redirects=False) as response:
                return response.status == OK
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False  # it does not listen yet
