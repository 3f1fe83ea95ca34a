"""Asks the activators who waits for a service that has no pods; gives each service its ports there.

An answer comes as soon as something has changed, so that a pod is started within milliseconds of the first connection.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import aiohttp
import structlog

from mms_operator.activator.report import WAIT_SECONDS, Report
from mms_operator.plan.types import Held

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mms_operator.engine.metrics import Metrics
    from mms_operator.engine.resources import Key
    from mms_operator.plan.types import Object, Plan

FIRST_PORT, LAST_PORT = 20_000, 30_000  # of the services; two for each
RESOLVE_SECONDS = 2.0  # between two looks for activators
TIMEOUT = aiohttp.ClientTimeout(total=WAIT_SECONDS + 5, sock_connect=2)
RETRY_SECONDS = 1.0
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
    _ports: dict[Key, int] = field(default_factory=dict)
    _reports: dict[str, Report] = field(default_factory=dict)  # by the activator's address
    _asked: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _wanted: asyncio.Event = field(default_factory=asyncio.Event)

    def follow(self, key: Key, plan: Plan) -> None:
        """Takes over whether a service needs them."""
        if plan.activate is None:
            self.drop(key)
        else:
            self._wanted.set()

    def drop(self, key: Key) -> None:
        self._ports.pop(key, None)
        if not self._ports:
            self._wanted.clear()

    def held(self, key: Key, cr: Object) -> Held | None:
        """What they say of a service that needs them. Its port is given once, and stays as its status says."""
        if self.host is None or (cr["spec"].get("autoscaling") or {}).get("mode", "Off") == "Off":
            return None
        known = ((cr.get("status") or {}).get("autoscaling") or {}).get("activatorPort")
        port = self._port(key, known)
        if port is None:
            return None
        name = f"{key.namespace}/{key.name}"
        said = {
            address: found
            for address, report in self._reports.items()
            if (found := report.services.get(name)) and found.port == port
        }
        return Held(
            addresses=tuple(sorted(address for address in said if not self._reports[address].draining)),
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
                    log.debug("no activator", host=self.host, error=str(error))
                    there = []
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
        taken = set(self._ports.values())
        if known in taken or known is None:
            known = next((port for port in range(FIRST_PORT, LAST_PORT, 2) if port not in taken), None)
        if known is None:
            log.error("no port is free for another service at the activators", service=str(key))
            return None
        self._ports[key] = known
        return known

    async def _follow(self, session: aiohttp.ClientSession, address: str) -> None:
        """One activator, until it is none any more."""
        after = -1
        while True:
            try:
                report = await self._ask(session, address, after)
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                self.metrics.polls.labels("activator-error").inc()
                log.debug("activator does not answer", address=address, error=str(error) or type(error).__name__)
                self._lose(address)
                after = -1
                await asyncio.sleep(RETRY_SECONDS)
                continue
            self.metrics.polls.labels("activator-ok").inc()
            before, self._reports[address] = self._reports.get(address), report
            after = report.number
            self._wake(before, report)

    async def _ask(self, session: aiohttp.ClientSession, address: str, after: int) -> Report:
        host = f"[{address}]" if ":" in address else address
        url = f"http://{host}:{self.port}/v1/demand"
        async with session.get(url, params={"after": str(after)}) as response:
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
