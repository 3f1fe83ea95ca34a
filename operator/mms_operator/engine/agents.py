"""Asks the agents of serving pods what they serve, where the plan wants to know."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import aiohttp
import structlog

from mms_operator.plan.types import Interval
from mms_workloads.contract import AGENT_PORT, AgentReport, Counters

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mms_operator.engine.metrics import Metrics
    from mms_operator.engine.resources import Key
    from mms_operator.plan.types import AgentCalls, Plan

RATE = 200.0  # questions a second to all agents together: with many pods the period grows
PARALLEL = 32
TIMEOUT = aiohttp.ClientTimeout(total=10.0, sock_connect=1.0, sock_read=3.0)
MISSES = 5  # answers in a row that may be lost
REPORT_LIMIT = 1 << 16  # bytes

log = structlog.get_logger()


@dataclass
class _Service:
    calls: AgentCalls
    due: float
    reports: dict[str, AgentReport] = field(default_factory=dict)  # by the pod's uid
    missed: dict[str, int] = field(default_factory=dict)  # answers in a row
    at: datetime | None = None  # when they said so
    interval: Interval | None = None
    busy: bool = False


@dataclass
class Agents:
    """`wake` makes a key's reconciliation due."""

    metrics: Metrics
    wake: Callable[[Key], None]
    port: int = AGENT_PORT
    clock: Callable[[], float] = time.monotonic
    _services: dict[Key, _Service] = field(default_factory=dict)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def follow(self, key: Key, plan: Plan) -> None:
        """Takes over whom a plan wants to be asked."""
        if plan.agents is None:
            self._services.pop(key, None)
            return
        known = self._services.get(key)
        if known is None:
            self._services[key] = _Service(plan.agents, self.clock())
        elif known.calls != plan.agents:
            known.calls, known.due = plan.agents, self.clock()
            known.reports = {uid: report for uid, report in known.reports.items() if uid in plan.agents.hosts}
        self._changed.set()

    def drop(self, key: Key) -> None:
        self._services.pop(key, None)

    def reports(self, key: Key) -> Mapping[str, AgentReport]:
        """What the agents of a service's pods said last, by the pods' uids. One that did not answer says nothing."""
        known = self._services.get(key)
        return dict(known.reports) if known else {}

    def interval(self, key: Key) -> Interval | None:
        """What they said the last two times."""
        known = self._services.get(key)
        return known.interval if known else None

    async def run(self) -> None:
        """Asks until it is cancelled."""
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=PARALLEL), timeout=TIMEOUT) as session,
            asyncio.TaskGroup() as group,
        ):
            while True:
                await self._wait()
                now = self.clock()
                for key, service in list(self._services.items()):
                    if service.due <= now and not service.busy:
                        service.busy = True
                        group.create_task(self._ask(session, key, service))

    async def _wait(self) -> None:
        first = min((one.due for one in self._services.values() if not one.busy), default=None)
        self._changed.clear()
        try:
            async with asyncio.timeout(None if first is None else max(first - self.clock(), 0.0)):
                await self._changed.wait()
        except TimeoutError:
            pass

    async def _ask(self, session: aiohttp.ClientSession, key: Key, service: _Service) -> None:
        calls, now = service.calls, datetime.now(UTC)
        try:
            said = await asyncio.gather(*(self._one(session, host) for host in calls.hosts.values()))
            reports = {uid: one for uid, one in zip(calls.hosts, said, strict=True) if one is not None}
        finally:
            service.busy = False
            everyone = sum(len(one.calls.hosts) for one in self._services.values())
            service.due = self.clock() + max(service.calls.period, everyone / RATE)
            self._changed.set()
        if self._services.get(key) is not service or service.calls != calls:
            return
        service.missed = {uid: 0 if uid in reports else service.missed.get(uid, 0) + 1 for uid in calls.hosts}
        for uid in calls.hosts:
            # One answer that is lost says nothing; a pod that stays silent is none that is known to serve anything.
            if uid in service.reports and 0 < service.missed[uid] <= MISSES:
                reports[uid] = service.reports[uid]
        told, news = service.reports, {uid: _facts(one) for uid, one in reports.items()}
        changed = news != {uid: _facts(one) for uid, one in told.items()}
        # Where the clock has been set back nobody knows how much time has passed.
        began = service.at
        service.interval = Interval(began, now, told, reports) if began is not None and began < now else None
        service.reports, service.at = reports, now
        if changed or calls.each:
            self.wake(key)

    async def _one(self, session: aiohttp.ClientSession, host: str) -> AgentReport | None:
        url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}/v1/served"
        try:
            async with session.get(url, allow_redirects=False) as response:
                response.raise_for_status()
                answer = b""
                async for chunk in response.content.iter_any():
                    answer += chunk
                    if len(answer) > REPORT_LIMIT:
                        break  # what is cut off is no report
            report = AgentReport.model_validate_json(answer)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            # A pod that starts or ends does not answer; its readiness is what the status tells.
            self.metrics.polls.labels("agent-error").inc()
            log.debug("agent does not answer", host=host, error=str(error) or type(error).__name__)
            return None
        self.metrics.polls.labels("agent-ok").inc()
        return report


def _facts(report: AgentReport) -> AgentReport:
    """Without what changes all the time."""
    return report.model_copy(update={"counters": None, "own": Counters(), "live": None, "load": None, "inputs": None})
