"""Stand-ins for pods, and connections to an activator's ports: real sockets on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Self

from aiohttp import web
from aiohttp.test_utils import TestServer

from mms_cluster.ports import free_ports
from mms_operator.api import names

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mms_operator.activator.doors import Doors

HOST = "127.0.0.1"
_GIVEN = set[int]()  # nobody may listen there yet


def free_pair() -> int:
    """A port that is free, and the next one."""
    while True:
        (port,) = free_ports(1)
        if not _GIVEN.isdisjoint(pair := {port, port + 1}):
            continue
        with socket.socket() as other, contextlib.suppress(OSError):
            other.bind((HOST, port + 1))
            _GIVEN.update(pair)
            return port


def pod(port: int, agent: int | None = None, **conditions: bool) -> dict[str, object]:
    """agent: its port; such a pod is not ready."""
    labels = {"kubernetes.io/service-name": "x"} | ({names.LABEL_AGENT: str(agent)} if agent else {})
    return {
        "metadata": {"namespace": "a", "name": "x-1", "labels": labels},
        "endpoints": [{"addresses": [HOST], "conditions": {"ready": agent is None, **conditions}}],
        "ports": [{"name": "http", "port": port}, {"name": "grpc", "port": port}],
    }


def agent_that(answer: Callable[[web.Request], Awaitable[web.Response]]) -> TestServer:
    app = web.Application()
    app.add_routes([web.get("/{any}", answer)])
    return TestServer(app, host=HOST)


class Backend:
    """Answers what it hears, and END when it hears no more."""

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Self:
        self.server = await asyncio.start_server(self.echo, HOST, self.port)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        for writer in self.writers:
            await closed(writer)
        self.server.close()
        await self.server.wait_closed()

    async def echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
            writer.write(b"END")
        await closed(writer)


async def closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


def port_of(doors: Doors) -> int:
    return doors.table.ports["a/x"]


async def waiting(doors: Doors, wanted: int) -> None:
    report = await doors.report(-1)
    while report.services["a/x"].waiting != wanted:
        report = await doors.report(report.number)
