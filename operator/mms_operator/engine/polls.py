"""Asks the masters of running trainings how they are, and tells them what is wanted, at a bounded rate.

HTTPS with the job's own certificates: the client certificate's unit is `operator`. A report counts only if it is of the
uid, run and attempt that is wanted now.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from base64 import b64decode
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import aiohttp
import structlog
from pydantic import ValidationError

from mms_operator.api.names import Phase
from mms_operator.engine.certificates import CA_CRT, OPERATOR_CRT, OPERATOR_KEY, authority_name
from mms_operator.engine.kubeapi import ApiError
from mms_operator.engine.resources import SECRET, Key
from mms_operator.plan.training.heartbeats import GONE_SECONDS, HUNG_SECONDS, MASTER_SILENT_SECONDS
from mms_workloads.contract import MASTER_PORT, Desired, StatusReport

if TYPE_CHECKING:
    from collections.abc import Callable

    from mms_operator.engine.kubeapi import KubeApi
    from mms_operator.engine.metrics import Metrics
    from mms_operator.plan.types import MasterCall, Object, Plan

PERIOD = 2.0  # seconds between two calls of a master
RATE = 100.0  # calls a second of all masters together: with more than 200 of them the period grows
PROGRESS_SECONDS = 5.0  # how often mere progress is passed on
TIMEOUT = 5.0
SILENT_SECONDS = 30.0  # a master that does not answer for so long is a matter for the status
PARALLEL = 32
REPORT_LIMIT = 1 << 20  # bytes
MISSED = (GONE_SECONDS, HUNG_SECONDS)  # for so long a pod is not heard of before it may be replaced

_ENDED = (Phase.COMPLETE, Phase.FAILED)

log = structlog.get_logger()


class PollError(Exception):
    """A master did not answer as it should."""


@dataclass
class _Followed:
    call: MasterCall
    identity: tuple[str, int, int]  # uid, run, attempt
    due: float
    told: Desired | None = None  # what the master has confirmed
    report: StatusReport | None = None
    confirmed: Desired | None = None  # what it had confirmed when it gave the report
    shown: StatusReport | None = None  # what the planner was last woken for
    shown_at: float = 0.0
    answered: bool = False  # this master has, once
    failing_since: float | None = None
    failed_at: float = 0.0  # the last time
    told_of_silence: bool = False  # the planner has been woken for one that had answered
    error: str = ""
    told_of_error: bool = False  # the planner has been woken for it
    busy: bool = False  # a call is under way
    context: ssl.SSLContext | None = None


@dataclass
class Polls:
    """`wake` makes a key's reconciliation due."""

    api: KubeApi
    metrics: Metrics
    wake: Callable[[Key], None]
    port: int = MASTER_PORT
    clock: Callable[[], float] = time.monotonic
    _followed: dict[Key, _Followed] = field(default_factory=dict)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def follow(self, key: Key, cr: Object, plan: Plan) -> None:
        """Takes over what a plan says of the master."""
        if plan.status.get("phase") in _ENDED:
            self.drop(key)  # what its report said is in the status
            return
        if plan.master is None:
            # The last report stays: what it said of the attempt is true after the master has gone, too.
            if key in self._followed:
                self._followed[key].due = float("inf")
            return
        identity = (cr["metadata"]["uid"], plan.status["run"], plan.status["attempt"])
        known = self._followed.get(key)
        if known is None or known.identity != identity:
            known = self._followed[key] = _Followed(plan.master, identity, self.clock())
        elif known.call.host != plan.master.host:
            known.told, known.due, known.answered = None, self.clock(), False
            known.failing_since, known.told_of_error, known.told_of_silence = None, False, False
        if known.call.desired != plan.master.desired or known.due == float("inf"):
            known.due = self.clock()
        known.call = plan.master
        self._changed.set()

    def drop(self, key: Key) -> None:
        self._followed.pop(key, None)

    def report(self, key: Key, cr: Object) -> StatusReport | None:
        """The last report of the attempt that the status of `cr` is about."""
        followed = self._followed.get(key)
        return followed.report if followed and followed.identity == _identity(cr) else None

    def confirmed(self, key: Key, cr: Object) -> Desired | None:
        """What the master had confirmed when it gave that report."""
        followed = self._followed.get(key)
        return followed.confirmed if followed and followed.identity == _identity(cr) else None

    def error(self, key: Key, cr: Object) -> str | None:
        """Why the master of the attempt that the status of `cr` is about has not answered for SILENT_SECONDS."""
        followed = self._followed.get(key)
        if followed is None or followed.identity != _identity(cr) or followed.due == float("inf"):
            return None
        return followed.error if followed.told_of_error else None

    def silence(self, key: Key, cr: Object) -> float | None:
        """Seconds for which a master that had answered has not; None while it does, or if it never has."""
        followed = self._followed.get(key)
        if followed is None or followed.identity != _identity(cr) or followed.due == float("inf"):
            return None
        if not followed.answered or followed.failing_since is None:
            return None
        return followed.failed_at - followed.failing_since

    async def run(self) -> None:
        """Calls until it is cancelled."""
        connector = aiohttp.TCPConnector(limit=PARALLEL, keepalive_timeout=4 * PERIOD)
        timeout = aiohttp.ClientTimeout(total=TIMEOUT)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            asyncio.TaskGroup() as group,
        ):
            slots = asyncio.Semaphore(PARALLEL)
            while True:
                await self._wait()
                for key, followed in self._due():
                    followed.due = self.clock() + max(PERIOD, self._called() / RATE)
                    followed.busy = True
                    await slots.acquire()
                    task = group.create_task(self._poll(session, key, followed))
                    task.add_done_callback(lambda _: slots.release())
                    await asyncio.sleep(1 / RATE)

    def _called(self) -> int:
        """Masters that are called at all: of a run that has ended only the last report is kept."""
        return sum(followed.due != float("inf") for followed in self._followed.values())

    def _due(self) -> list[tuple[Key, _Followed]]:
        now = self.clock()
        return [
            (key, followed) for key, followed in self._followed.items() if followed.due <= now and not followed.busy
        ]

    async def _wait(self) -> None:
        idle = (followed.due for followed in self._followed.values() if not followed.busy)
        first = min(idle, default=float("inf"))
        self._changed.clear()
        timeout = None if first == float("inf") else max(first - self.clock(), 0.0)
        try:
            async with asyncio.timeout(timeout):
                await self._changed.wait()
        except TimeoutError:
            pass

    async def _poll(self, session: aiohttp.ClientSession, key: Key, followed: _Followed) -> None:
        call = followed.call
        try:
            report = await self._call(session, key, followed)
        except (PollError, ApiError, OSError, aiohttp.ClientError, TimeoutError, ssl.SSLError) as error:
            self.metrics.polls.labels("error").inc()
            followed.told = None  # whoever answers next may be another process
            followed.context = None  # the certificates may be others by now
            self._failed(key, followed, str(error) or type(error).__name__)
            return
        finally:
            followed.busy = False
            self._changed.set()
        self.metrics.polls.labels("ok").inc()
        if followed.call.host != call.host:
            return  # it was another's answer: the master has been replaced meanwhile
        answers_again = followed.told_of_error
        followed.answered = True
        followed.failing_since, followed.told_of_error, followed.told_of_silence = None, False, False
        news = followed.confirmed != followed.told
        followed.report, followed.confirmed = report, followed.told
        now = self.clock()
        if self._followed.get(key) is followed and (
            answers_again
            or news
            or _turned(followed.shown, report)
            or (report != followed.shown and now - followed.shown_at >= PROGRESS_SECONDS)
        ):
            followed.shown, followed.shown_at = report, now
            self.wake(key)

    def _failed(self, key: Key, followed: _Followed, error: str) -> None:
        """One failure is for the log; a master that stays silent is for the status."""
        now = self.clock()
        if followed.failing_since is None:
            log.warning("master does not answer", key=str(key), error=error)
            followed.failing_since = now
        followed.error, followed.failed_at = error, now
        if followed.answered and not followed.told_of_silence and now - followed.failing_since >= MASTER_SILENT_SECONDS:
            followed.told_of_silence = True
            self.wake(key)
        if not followed.told_of_error and now - followed.failing_since >= SILENT_SECONDS:
            followed.told_of_error = True
            self.wake(key)

    async def _call(self, session: aiohttp.ClientSession, key: Key, followed: _Followed) -> StatusReport:
        if followed.context is None:
            followed.context = await self._context(key)
        call = followed.call
        host = f"[{call.host}]" if ":" in call.host else call.host
        url = f"https://{host}:{self.port}"
        if followed.told != call.desired:
            body = call.desired.model_dump_json().encode()
            await _exchange(session, "PUT", f"{url}/v1/desired", followed, body)
            if followed.call.host == call.host:
                followed.told = call.desired
        answer = await _exchange(session, "GET", f"{url}/v1/status", followed)
        try:
            report = StatusReport.model_validate_json(answer)
        except ValidationError as error:
            raise PollError(f"its report is not valid: {error.errors()[0]['msg']}") from error
        if (report.uid, report.run, report.attempt) != followed.identity:
            raise PollError(f"its report is of {report.uid}, run {report.run}, attempt {report.attempt}")
        return report

    async def _context(self, key: Key) -> ssl.SSLContext:
        """TLS with the job's authority and the operator's certificate of that job."""
        data = (await self.api.get(SECRET, key.namespace, authority_name(key.name))).get("data") or {}
        try:
            ca, crt, private = (b64decode(data[file]) for file in (CA_CRT, OPERATOR_CRT, OPERATOR_KEY))
        except (KeyError, ValueError) as error:
            raise PollError(f"the job's Secret lacks {error}") from error
        try:
            return client_context(ca, crt, private)
        except (ValueError, TypeError) as error:  # whoever may write Secrets of the namespace may write anything there
            raise PollError(f"the job's Secret has what is no certificate: {error}") from error


def client_context(ca: bytes, crt: bytes, private: bytes) -> ssl.SSLContext:
    """From PEM. OpenSSL wants files: it gets one in memory, the key is never on a disk."""
    context = ssl.create_default_context(cadata=ca.decode())
    file = os.memfd_create("mms-client", os.MFD_CLOEXEC)
    try:
        os.write(file, crt + b"\n" + private)
        context.load_cert_chain(f"/proc/self/fd/{file}")
    finally:
        os.close(file)
    return context


async def _exchange(
    session: aiohttp.ClientSession, method: str, url: str, followed: _Followed, body: bytes | None = None
) -> bytes:
    assert followed.context is not None  # noqa: S101 - the caller has made it
    async with session.request(
        method, url, data=body, ssl=followed.context, server_hostname=followed.call.server_name, allow_redirects=False
    ) as response:
        answer = b""
        async for chunk in response.content.iter_any():
            answer += chunk
            if len(answer) > REPORT_LIMIT:
                raise PollError(f"{method} {response.url.path}: more than {REPORT_LIMIT} bytes")
        if response.status >= 300:  # noqa: PLR2004 - a redirect would lead wherever a pod's image likes
            raise PollError(f"{method} {response.url.path}: {response.status} {answer[:200]!r}")
        return answer


def _identity(cr: Object) -> tuple[str, int | None, int | None]:
    status = cr.get("status") or {}
    return cr["metadata"]["uid"], status.get("run"), status.get("attempt")


def _turned(before: StatusReport | None, now: StatusReport) -> bool:
    """Whether something happened that is not mere progress."""
    return before is None or _facts(before) != _facts(now)


def _facts(report: StatusReport) -> tuple[object, ...]:
    """Without what changes all the time. Of those who are gone, who has been for long enough to be replaced."""
    return (
        report.activity,
        report.epoch,
        report.checkpoint,
        report.outcome,
        report.workersReady,
        report.workersStandby,
        report.shardsReady,
        report.incidents,
        [(one.role, one.rank, one.incarnation, *(one.seconds >= most for most in MISSED)) for one in report.gone],
    )
