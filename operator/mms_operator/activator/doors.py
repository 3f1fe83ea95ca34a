"""The ports that the activator listens on, and who waits behind them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from mms_operator.activator.holding import Client, connect
from mms_operator.activator.report import WAIT_SECONDS, Demand, Report
from mms_operator.activator.table import PORTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from mms_operator.activator.table import Table

HOLD_SECONDS = 300.0  # after which a connection for which no pod came is ended
MOST_HELD = 10_000  # connections of all services; more are refused
CLOSE_SECONDS = 60.0  # for which a port is kept when it is not wanted any more: some node may still lead here

log = structlog.get_logger()


@dataclass
class Door:
    """Of one service."""

    port: int
    servers: list[asyncio.Server] = field(default_factory=list)
    connections: int = 0
    waiting: int = 0
    passing: int = 0
    unwanted_since: float | None = None


@dataclass
class Doors:
    table: Table
    host: str | None = None  # None: all addresses
    draining: bool = False
    refused: int = 0
    expired: int = 0
    _doors: dict[str, Door] = field(default_factory=dict)
    _number: int = 0
    _news: asyncio.Event = field(default_factory=asyncio.Event)  # for those who ask for demand
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)  # pods may be ready that were not
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def update(self) -> None:
        """Listens as the table says, and looks for pods for those who wait."""
        now = asyncio.get_running_loop().time()
        for key, port in self.table.ports.items():
            door = self._doors.get(key)
            if door is not None and door.port == port:
                door.unwanted_since = None
                continue
            if door is not None:
                self._close(key)
            await self._open(key, port)
        for key, door in list(self._doors.items()):
            if key not in self.table.ports:
                door.unwanted_since = now if door.unwanted_since is None else door.unwanted_since
                if now - door.unwanted_since > CLOSE_SECONDS:
                    self._close(key)
        async with self._changed:
            self._changed.notify_all()

    async def report(self, after: int) -> Report:
        """When something has changed since the report with that number, or after a while."""
        if after == self._number:
            self._news.clear()
            try:
                async with asyncio.timeout(WAIT_SECONDS):
                    await self._news.wait()
            except TimeoutError:
                pass
        services = {
            key: Demand(port=door.port, connections=door.connections, waiting=door.waiting)
            for key, door in self._doors.items()
            if door.servers and key in self.table.ports
        }
        return Report(number=self._number, draining=self.draining, services=services)

    async def drain(self, seconds: float) -> None:
        """Says that it leaves; what it has goes on, and what still comes is taken, for so long at most."""
        self.draining = True
        self._tell()
        deadline = asyncio.get_running_loop().time() + seconds
        quiet = asyncio.get_running_loop().time() + min(seconds, 10.0)  # nodes learn of it one after the other
        while (now := asyncio.get_running_loop().time()) < deadline:
            busy = any(door.waiting or door.passing for door in self._doors.values())
            if not busy and now > quiet:
                return
            await asyncio.sleep(0.2)

    def metrics(self) -> str:
        """The text of /metrics."""
        values = {
            "mms_activator_waiting": ("gauge", sum(door.waiting for door in self._doors.values())),
            "mms_activator_passing": ("gauge", sum(door.passing for door in self._doors.values())),
            "mms_activator_connections_total": ("counter", sum(door.connections for door in self._doors.values())),
            "mms_activator_refused_total": ("counter", self.refused),
            "mms_activator_expired_total": ("counter", self.expired),
            "mms_activator_services": ("gauge", len(self._doors)),
        }
        return "".join(f"# TYPE {name} {kind}\n{name} {value}\n" for name, (kind, value) in values.items())

    async def close(self) -> None:
        for key in list(self._doors):
            self._close(key)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _open(self, key: str, port: int) -> None:
        door = self._doors.setdefault(key, Door(port))
        loop = asyncio.get_running_loop()
        try:
            for number, name in enumerate(PORTS):
                server = await loop.create_server(self._client(key, name), self.host, port + number, backlog=1024)
                door.servers.append(server)
        except OSError as error:
            log.error("cannot listen", service=key, port=port, error=str(error))  # noqa: TRY400 - tried again
            self._close(key)
            return
        log.info("listening", service=key, port=port)
        self._tell()

    def _close(self, key: str) -> None:
        door = self._doors.pop(key, None)
        if door is not None:
            for server in door.servers:
                server.close()
            log.info("no longer listening", service=key, port=door.port)
            self._tell()

    def _client(self, key: str, port: str) -> Callable[[], Client]:
        return lambda: Client(lambda client: self._arrived(key, port, client))

    def _arrived(self, key: str, port: str, client: Client) -> None:
        door = self._doors.get(key)
        if door is None or sum(one.waiting for one in self._doors.values()) >= MOST_HELD:
            self.refused += 1
            client.transport.abort()
            return
        task = asyncio.create_task(self._serve(key, port, door, client))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, key: str, port: str, door: Door, client: Client) -> None:
        """The life of a connection."""
        door.connections += 1
        door.waiting += 1
        self._tell()
        connecting = asyncio.create_task(connect(client, lambda: self.table.backends(key, port), self._changed))
        gone = asyncio.create_task(client.gone.wait())
        try:
            done, _ = await asyncio.wait({connecting, gone}, timeout=HOLD_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            door.waiting -= 1
            self._tell()
            if not done:
                self.expired += 1
                log.warning("no pod came", service=key, seconds=HOLD_SECONDS)
            elif client.other is not None:
                door.passing += 1
                await gone
                door.passing -= 1
        finally:
            for task in (connecting, gone):
                task.cancel()
            await asyncio.gather(connecting, gone, return_exceptions=True)
            client.transport.close()
            await client.gone.wait()

    def _tell(self) -> None:
        self._number += 1
        self._news.set()
