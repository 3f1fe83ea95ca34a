"""Asks the activators who waits for a service that has no pods; gives each service its ports there.

An answer comes as soon as something has changed, so that a pod is started within milliseconds of the first connection.
"""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import aiohttp
import structlog

from mms_operator.activator.report import WAIT_SECONDS, Report
from mms_operator.plan.types import Held

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from mms_operator.engine.metrics import Metrics
    from mms_operator.engine.resources import Key
    from mms_operator.plan.types import Object

FIRST_PORT, LAST_PORT = 20_000, 30_000  # of the services; two for each
RESOLVE_SECONDS = 2.0  # between two looks for activators
TIMEOUT = aiohttp.ClientTimeout(total=WAIT_SECONDS + 5, sock_connect=2)
RETRY_SECONDS = 1.0
MISSES = 2  # answers in a row that are lost, after which an activator counts no more
REST_SECONDS = 120.0  # for which a port that was given up is not given again
REPORT_LIMIT = 1 << 22  # bytes

log = structlog.get_logger()


async def resolve(host: str) -> list[str]:
    """Addresses of a name. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return sorted({str(address[4][0]) for address in found})


@dataclass
class Activators:
    """host: the name behind which they are; None: there are none. `wake` makes a key's reconciliation due."""

    host: str | None
    port: int
    metrics: Metrics
    wake: Callable[[Key], None]
    resolve: Callable[[str], Awaitable[list[str]]] = resolve
    clock: Callable[[], float] = time.monotonic
    _resting: dict[int, float] = field(default_factory=dict)  # ports that were given up, until when
    _ports: dict[Key, int] = field(default_factory=dict)
    _reports: dict[str, Report] = field(default_factory=dict)  # by the activator's address
    _asked: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _wanted: asyncio.Event = field(default_factory=asyncio.Event)

    def seed(self, services: Iterable[tuple[Key, Object]]) -> None:
        """The ports that services have, before any is given: those that were there first keep theirs."""
        for key, cr in sorted(services, key=lambda one: one[1]["metadata"].get("creationTimestamp", "")):
            if _needs(cr) and (port := _port_of(cr)) is not None and port not in self._ports.values():
                self._ports[key] = port

    def follow(self, key: Key, cr: Object) -> None:
        """Takes over whether a service needs them, whatever else its spec says."""
        if _needs(cr):
            self._wanted.set()
        else:
            self.drop(key)

    def drop(self, key: Key) -> None:
        """Its port is not given to another one before all nodes have forgotten it."""
        if (port := self._ports.pop(key, None)) is not None:
            self._resting[port] = self.clock() + REST_SECONDS
        if not self._ports:
            self._wanted.clear()

    def held(self, key: Key, cr: Object) -> Held | None:
        """What they say of a service that needs them. Its port is given once, and stays as its status says."""
        if self.host is None or not _needs(cr):
            return None
        port = self._port(key, _port_of(cr))
        if port is None:
            return None
        name = f"{key.namespace}/{key.name}"
        said = {
            address: found
            for address, report in self._reports.items()
            if (found := report.services.get(name)) and found.port == port
        }
        staying = [address for address in said if not self._reports[address].draining]
        return Held(
            addresses=tuple(sorted(staying or said)),  # one that leaves still takes connections for a while
            port=port,
            waiting=sum(one.waiting for one in said.values()),
            connections=sum(one.connections for one in said.values()),
        )

    async def run(self) -> None:
        """Asks until it is cancelled."""
        if self.host is None:
            return
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=TIMEOUT) as session,
            asyncio.TaskGroup() as group,
        ):
            while True:
                await self._wanted.wait()
                try:
                    there = await self.resolve(self.host)
                except OSError as error:
                    # Those that answer are there, whatever the name service says.
                    log.debug("no activator found", host=self.host, error=str(error))
                    there = list(self._asked)
                for address in there:
                    if address not in self._asked:
                        self._asked[address] = group.create_task(self._follow(session, address))
                for address in [one for one in self._asked if one not in there]:
                    self._asked.pop(address).cancel()
                    self._lose(address)
                await asyncio.sleep(RESOLVE_SECONDS)

    def _port(self, key: Key, known: int | None) -> int | None:
        """The one that it has; else the one that its status says, unless another has it; else a free one."""
        if key in self._ports:
            return self._ports[key]
        now = self.clock()
        self._resting = {port: until for port, until in self._resting.items() if until > now}
        taken = {*self._ports.values(), *self._resting}
        if known is None or known in self._ports.values():
            known = next((port for port in range(FIRST_PORT, LAST_PORT, 2) if port not in taken), None)
        if known is None:
            log.error("no port is free for another service at the activators", service=str(key))
            return None
        self._ports[key] = known
        return known

    async def _follow(self, session: aiohttp.ClientSession, address: str) -> None:
        """One activator, until it is none any more."""
        after, missed = -1, 0
        while True:
            try:
                report = await self._ask(session, address, after)
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                self.metrics.polls.labels("activator-error").inc()
                log.debug("activator does not answer", address=address, error=str(error) or type(error).__name__)
                after, missed = -1, missed + 1
                if missed >= MISSES:
                    self._lose(address)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            missed = 0
            self.metrics.polls.labels("activator-ok").inc()
            before, self._reports[address] = self._reports.get(address), report
            after = report.number
            self._wake(before, report)

    async def _ask(self, session: aiohttp.ClientSession, address: str, after: int) -> Report:
        host = f"[{address}]" if ":" in address else address
        url = f"http://{host}:{self.port}/v1/demand"
        async with session.get(url, params={"after": str(after)}, allow_redirects=False) as response:
            response.raise_for_status()
            answer = await response.content.read(REPORT_LIMIT)
            while not response.content.at_eof() and len(answer) < REPORT_LIMIT:
                answer += await response.content.read(REPORT_LIMIT)
        return Report.model_validate_json(answer)

    def _lose(self, address: str) -> None:
        if gone := self._reports.pop(address, None):
            self._wake(gone, None)

    def _wake(self, before: Report | None, after: Report | None) -> None:
        """Those of which something else is said."""
        one, other = (report.services if report else {} for report in (before, after))
        every = before is None or after is None or before.draining != after.draining
        for key in self._ports:
            name = f"{key.namespace}/{key.name}"
            if every or one.get(name) != other.get(name):
                self.wake(key)


def _needs(cr: Object) -> bool:
    return bool(((cr.get("spec") or {}).get("autoscaling") or {}).get("mode", "Off") != "Off")


def _port_of(cr: Object) -> int | None:
    found: int | None = ((cr.get("status") or {}).get("autoscaling") or {}).get("activatorPort")
    return found
