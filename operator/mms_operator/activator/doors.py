"""The ports that the activator listens on, and who waits behind them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from mms_operator.activator.asking import Agents
from mms_operator.activator.holding import Client, connect
from mms_operator.activator.report import WAIT_SECONDS, Demand, Report
from mms_operator.activator.table import PORTS

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from mms_operator.activator.table import Table

HOLD_SECONDS = 300.0  # after which a connection for which no pod came is ended
MOST_HELD = 10_000  # connections of all services; more are refused, but for the first of each: it wakes the service
MOST_FULL = (
    2_000  # of them, that have sent more than is read: of each the kernel keeps up to 128 KiB in this pod's memory
)
CLOSE_SECONDS = 60.0  # for which a port is kept when it is not wanted any more: some node may still lead here
TELL_SECONDS = 0.05  # between two answers to the same asker
QUIET_SECONDS = 10.0  # of a drain in which nobody is there: nodes learn of it one after the other
LOOK_SECONDS = 0.2
CONNECTS = 128  # to a service's pods at a time: thousands would all take longer than each may, again and again
HUNG_UP_SECONDS = 1.0  # between two looks for those who have hung up and are not read

log = structlog.get_logger()


@dataclass
class Door:
    """A service's ports."""

    service: str
    port: int
    servers: list[asyncio.Server] = field(default_factory=list)
    connections: int = 0
    waiting: int = 0
    passing: int = 0
    unwanted_since: float | None = None
    pods: asyncio.Event = field(default_factory=asyncio.Event)  # set while there may be some
    answering: frozenset[str] = frozenset()  # addresses of pods that say they are ready, before the API server does
    asking: asyncio.Task[None] | None = None  # while somebody waits
    connects: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CONNECTS))


@dataclass
class Doors:
    table: Table
    host: str | None = None  # None: all addresses
    draining: bool = False
    refused: int = 0
    expired: int = 0
    _doors: dict[tuple[str, int], Door] = field(default_factory=dict)
    _agents: Agents = field(default_factory=Agents)
    _clients: dict[Client, Door] = field(default_factory=dict)  # those who wait, also behind ports that are closed
    _full: set[Client] = field(default_factory=set)  # those of them who have sent more than is read
    _looking: asyncio.Task[None] | None = None  # while somebody waits
    _number: int = 0
    _told: float = 0.0  # when, by the loop's clock
    _news: asyncio.Event = field(default_factory=asyncio.Event)  # for those who ask for demand
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def update(self) -> None:
        """Listens as the table says."""
        async with self._lock:
            now = asyncio.get_running_loop().time()
            wanted = set(self.table.ports.items())
            for key in wanted:
                if key in self._doors:
                    self._doors[key].unwanted_since = None
                else:
                    await self._open(*key)
            for key, door in list(self._doors.items()):
                if key not in wanted:
                    door.unwanted_since = now if door.unwanted_since is None else door.unwanted_since
                    if now - door.unwanted_since > CLOSE_SECONDS:
                        self._close(key)

    def pods_changed(self, services: Iterable[str]) -> None:
        """Those who wait look again."""
        changed = set(services)
        for door in self._clients.values():
            if door.service in changed:
                door.pods.set()

    async def report(self, after: int) -> Report:
        """When something has changed since the report with that number, or after a while."""
        if after == self._number:
            self._news.clear()
            try:
                async with asyncio.timeout(WAIT_SECONDS):
                    await self._news.wait()
            except TimeoutError:
                pass
            else:
                # The first news are told at once, what follows goes along.
                await asyncio.sleep(max(0.0, self._told + TELL_SECONDS - asyncio.get_running_loop().time()))
        self._told = asyncio.get_running_loop().time()
        services = {
            service: Demand(port=port, connections=door.connections, waiting=door.waiting)
            for (service, port), door in self._doors.items()
            if door.servers and self.table.ports.get(service) == port
        }
        return Report(number=self._number, draining=self.draining, services=services)

    async def drain(self, seconds: float) -> None:
        """Says that it leaves; what it has goes on, and what still comes is taken, for so long at most."""
        self.draining = True
        self._tell()
        loop = asyncio.get_running_loop()
        deadline, quiet = loop.time() + seconds, loop.time() + min(seconds, QUIET_SECONDS)
        while (now := loop.time()) < deadline:
            if not self._tasks and now > quiet:
                return
            await asyncio.sleep(LOOK_SECONDS)

    def metrics(self) -> str:
        """The text of /metrics."""
        lines = []
        for name, kind in (("waiting", "gauge"), ("passing", "gauge"), ("connections", "counter")):
            metric = f"mms_activator_{name}{'_total' if kind == 'counter' else ''}"
            lines.append(f"# TYPE {metric} {kind}")
            lines += [f"{metric}{_labels(door)} {getattr(door, name)}" for door in self._doors.values()]
        for name, total in (("refused_total", self.refused), ("expired_total", self.expired)):
            lines += [f"# TYPE mms_activator_{name} counter", f"mms_activator_{name} {total}"]
        return "\n".join([*lines, ""])

    async def close(self) -> None:
        for key in list(self._doors):
            self._close(key)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._agents.close()

    async def _open(self, service: str, port: int) -> None:
        door = Door(service, port)
        loop = asyncio.get_running_loop()
        try:
            for number, name in enumerate(PORTS):
                server = await loop.create_server(self._client(door, name), self.host, port + number, backlog=1024)
                door.servers.append(server)
        except OSError as error:
            log.error("cannot listen", service=service, port=port, error=str(error))  # noqa: TRY400 - tried again
            for server in door.servers:
                server.close()
            return
        self._doors[service, port] = door
        log.info("listening", service=service, port=port)
        self._tell()

    def _close(self, key: tuple[str, int]) -> None:
        door = self._doors.pop(key, None)
        if door is not None:
            for server in door.servers:
                server.close()
            log.info("no longer listening", service=door.service, port=door.port)
            self._tell()

    def _client(self, door: Door, port: str) -> Callable[[], Client]:
        return lambda: Client(
            lambda client: self._arrived(door, port, client), lambda client: self._filled(door, client)
        )

    def _arrived(self, door: Door, port: str, client: Client) -> None:
        if len(self._clients) >= MOST_HELD and door.waiting:
            self._refuse(client)
            return
        self._start(self._serve(door, port, client))

    def _filled(self, door: Door, client: Client) -> None:
        if len(self._full) >= MOST_FULL and door.waiting > 1:
            self._refuse(client)
            return
        self._full.add(client)

    def _refuse(self, client: Client) -> None:
        self.refused += 1
        client.transport.abort()

    async def _serve(self, door: Door, port: str, client: Client) -> None:
        """The life of a connection."""

        async def backends() -> list[tuple[str, int]]:
            while not (there := self.table.backends(door.service, port, door.answering)):
                door.pods.clear()
                await door.pods.wait()
            return there

        door.connections += 1
        connecting = asyncio.create_task(connect(client, backends, door.connects))
        gone = asyncio.create_task(client.gone.wait())
        try:
            done = await self._hold(door, client, connecting, gone)
            if not done:
                self.expired += 1
                log.warning("no pod came", service=door.service, seconds=HOLD_SECONDS)
            elif client.other is not None:
                door.passing += 1
                try:
                    await gone
                finally:
                    door.passing -= 1
        finally:
            for task in (connecting, gone):
                task.cancel()
            for failure in await asyncio.gather(connecting, gone, return_exceptions=True):
                if isinstance(failure, Exception):
                    log.error("connection failed", service=door.service, error=repr(failure))
            client.transport.close()
            await client.gone.wait()

    async def _hold(self, door: Door, client: Client, *tasks: asyncio.Task[object]) -> bool:
        """Until there is a pod or the client has gone; False when it took too long."""
        door.waiting += 1
        self._clients[client] = door
        self._tell()
        if self._looking is None:
            self._looking = self._start(self._look())
        if door.asking is None:
            door.asking = self._start(self._ask(door))
        try:
            done, _ = await asyncio.wait(tasks, timeout=HOLD_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            door.waiting -= 1
            del self._clients[client]
            self._full.discard(client)
            self._tell()
        return bool(done)

    async def _look(self) -> None:
        """While somebody waits: those who have hung up free their places."""
        try:
            while self._clients:
                await asyncio.sleep(HUNG_UP_SECONDS)
                for client in [one for one in self._clients if one.hung_up()]:
                    client.transport.abort()
        finally:
            self._looking = None

    async def _ask(self, door: Door) -> None:
        """While somebody waits: who is ready need not be known to the API server."""
        try:
            while door.waiting:
                door.answering = await self._agents.answering(self.table.agents(door.service))
                if door.answering:
                    door.pods.set()
        finally:
            door.answering, door.asking = frozenset(), None

    def _start(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _tell(self) -> None:
        self._number += 1
        self._news.set()


def _labels(door: Door) -> str:
    namespace, name = door.service.split("/")
    return f'{{namespace="{namespace}",name="{name}",port="{door.port}"}}'
