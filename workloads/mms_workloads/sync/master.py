"""The parameter-sync service's master: python -m mms_workloads.sync.master

HTTPS with client certificates on MASTER_PORT: /v1/control (workers), /v1/status and /v1/desired (the operator),
/v1/trainers (serving pods).
Plain HTTP on MASTER_HEALTH_PORT: /healthz and /metrics, which carry nothing secret and change nothing.
"""

from __future__ import annotations

import signal
import sys

if __name__ == "__main__":
    # The kernel keeps signals from a PID 1 that has no handler for them, and what follows takes a second to import.
    # Till there are workers to wait for. Without an outcome a new master takes the run up.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))

import argparse
import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

import structlog
import tenacity
from aiohttp import WSMsgType, web
from pydantic import ValidationError

from mms_workloads import logs
from mms_workloads.contract import (
    EXIT_DONE,
    EXIT_PERMANENT,
    EXIT_RETRY,
    OU_OPERATOR,
    OU_READER,
    OU_SHARD,
    OU_WORKER,
    Desired,
    Outcome,
    Reason,
    StatusReport,
)
from mms_workloads.pod import Pod, Stopped, failed, read_pod, termination_log, write_outcome
from mms_workloads.store import JobError
from mms_workloads.sync import claims, hosts, keys, metrics, reports, startup, tls, wire
from mms_workloads.sync.coordinator import Coordinator
from mms_workloads.sync.keys import Keys

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mms_workloads.sync.links import Link
    from mms_workloads.sync.wire import Message

TICK_SECONDS = 0.25  # how late a missed heartbeat may be noticed
# After the outcome: workers need this long at most to hear of it and go, and the operator, which asks every few
# seconds, to read it. The termination log says the same to an operator that comes later.
LINGER_SECONDS = 10.0
# A master that is told to end stays so long at least: of workers that are told at the same time it hears meanwhile. For
# those, and for a checkpoint under way, it stays longer; a pod has 30 s.
LEAST_STOP_SECONDS, MOST_STOP_SECONDS = 2.0, 20.0
STORE_TRIES_SECONDS = 60.0  # a store that restarts beside us is given a minute before the pod gives up


class Master:
    """The HTTP side. Until the storage has answered there is no coordinator and workers are told to come again."""

    def __init__(self, pod: Pod, *, plain: bool) -> None:
        self.pod, self.plain = pod, plain
        self.coordinator: Coordinator | None = None
        self.outcome: Outcome | None = None
        self.outcome_read = asyncio.Event()

    def apps(self) -> tuple[web.Application, web.Application]:
        api = web.Application()
        api.router.add_get("/v1/status", self._for({OU_OPERATOR}, self.get_status))
        api.router.add_put("/v1/desired", self._for({OU_OPERATOR}, self.put_desired))
        api.router.add_get("/v1/control", self._for({OU_WORKER, OU_SHARD}, self.control))
        api.router.add_get("/v1/trainers", self._for({OU_READER}, self.get_trainers))
        health = web.Application()
        health.router.add_get("/healthz", self.healthz)
        health.router.add_get("/metrics", self.metrics)
        return api, health

    def status(self) -> StatusReport:
        if self.coordinator:
            return self.coordinator.status()
        job = self.pod.job.job
        activity = "Done" if self.outcome else "Waiting"
        return StatusReport.model_validate(
            {"uid": job.uid, "run": job.run, "attempt": self.pod.attempt, "activity": activity, "outcome": self.outcome}
        )

    async def get_status(self, _: web.Request) -> web.StreamResponse:
        report = self.status()
        response = web.Response(body=report.model_dump_json(exclude_none=True), content_type="application/json")
        if report.outcome:
            self.outcome_read.set()
        return response

    async def get_trainers(self, _: web.Request) -> web.StreamResponse:
        if self.coordinator is None:
            raise web.HTTPServiceUnavailable(text="the storage has not answered yet")
        return web.Response(body=self.coordinator.trainers().model_dump_json(), content_type="application/json")

    async def put_desired(self, request: web.Request) -> web.StreamResponse:
        try:
            desired = Desired.model_validate_json(await request.read())
        except ValidationError as error:
            raise web.HTTPBadRequest(text=str(error)) from error
        if self.coordinator is None:
            raise web.HTTPServiceUnavailable(text="the storage has not answered yet")
        self.coordinator.desire(desired)
        return web.Response(body=self.status().model_dump_json(exclude_none=True), content_type="application/json")

    async def control(self, request: web.Request) -> web.StreamResponse:
        coordinator = self.coordinator
        if coordinator is None:
            raise web.HTTPServiceUnavailable(text="the storage has not answered yet")
        socket = web.WebSocketResponse(max_msg_size=wire.MAX_FRAME_BYTES, compress=False)
        await socket.prepare(request)
        hosts.watch(request.get_extra_info("socket"))
        outbox: asyncio.Queue[Message | None] = asyncio.Queue()
        writer = asyncio.create_task(_write(socket, outbox))
        link: Link | None = None
        try:
            async for frame in socket:
                if frame.type is not WSMsgType.BINARY:
                    break
                try:
                    message = wire.unpack(frame.data)
                except ValueError as error:
                    logs.logger().warning("connection dropped", error=str(error))
                    break
                if link is None:
                    role = message.fields.get("role")
                    if not self.plain and role not in _units(request):
                        logs.logger().warning("connection dropped", error=f"its certificate is for no {role}")
                        break
                    link = coordinator.hello(message, outbox.put_nowait, lambda: outbox.put_nowait(None))
                    if link is None:
                        break
                else:
                    coordinator.received(link, message)
        finally:
            if link:
                coordinator.lost(link, "its connection closed")
            outbox.put_nowait(None)
            with contextlib.suppress(ConnectionError):
                await writer
        return socket

    async def healthz(self, _: web.Request) -> web.StreamResponse:
        return web.Response(text="ok\n")

    async def metrics(self, _: web.Request) -> web.StreamResponse:
        given = reports.keys_given(self.coordinator) if self.coordinator else {}
        return web.Response(text=metrics.text(self.pod.job.job, self.status(), given))

    def _for(
        self, units: set[str], handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """Lets in only peers whose certificate has one of these OUs."""

        async def checked(request: web.Request) -> web.StreamResponse:
            if not self.plain and not units & _units(request):
                raise web.HTTPForbidden(text=f"this needs a certificate with OU={' or '.join(sorted(units))}\n")
            return await handler(request)

        return checked


def _units(request: web.Request) -> set[str]:
    """The OUs of the peer's certificate."""
    transport = request.transport
    return tls.organisational_units(transport.get_extra_info("peercert") if transport else None)


async def _write(socket: web.WebSocketResponse, outbox: asyncio.Queue[Message | None]) -> None:
    """Sends what is queued until None comes, then closes the connection."""
    with contextlib.suppress(ConnectionError):
        while message := await outbox.get():
            await socket.send_bytes(wire.pack(message))
    await socket.close()


async def run(pod: Pod, *, plain: bool = False) -> Outcome:
    """The master's life: serves from the start, so that early failures are heard of; returns how the run ended.

    Raises Stopped: the pod was told to end, or is not the newest, and another master takes the run up.
    """
    master, stop = Master(pod, plain=plain), asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        api, health = master.apps()
        context = None if plain else tls.server_context(pod.tls_dir)
        await _serve(stack, api, pod.master_port, context)
        await _serve(stack, health, pod.health_port, None)
        try:
            coordinator = await asyncio.to_thread(_prepare, pod)
            master.coordinator = coordinator()
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
            outcome = await _tick_until_ended(master.coordinator, stop)
        except JobError as error:
            outcome = failed(error)
        master.outcome = outcome
        write_outcome(pod.termination_log, outcome)  # first: whatever kills us while we linger, the result stays
        await _linger(master)
    return outcome


@tenacity.retry(
    retry=tenacity.retry_if_exception(lambda e: isinstance(e, JobError) and e.retryable),
    wait=tenacity.wait_exponential(multiplier=0.5, max=5) + tenacity.wait_random(0, 0.5),
    stop=tenacity.stop_after_delay(STORE_TRIES_SECONDS),
    reraise=True,
)
def _prepare(pod: Pod) -> Callable[[], Coordinator]:
    """Everything that the storage must say before workers can be answered. Raises JobError."""
    startup.own_storage(pod.job)
    claim = claims.claim(pod.job, pod.attempt, pod.incarnation)
    checkpoint = startup.last_checkpoint(claim)
    secret = keys.data_key(pod.job.data)
    held = None if secret is None else Keys(secret, None if checkpoint else keys.read_manifest(pod.job.data, secret))
    files = None if checkpoint or held else startup.data_files(pod.job)
    return lambda: Coordinator(pod, claim, files, checkpoint, held)


async def _tick_until_ended(coordinator: Coordinator, stop: asyncio.Event) -> Outcome:
    """Raises Stopped."""
    told: float | None = None
    while coordinator.outcome is None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(coordinator.ended.wait(), TICK_SECONDS)
        coordinator.tick()
        if coordinator.replaced and coordinator.outcome is None:
            raise Stopped
        if stop.is_set() and coordinator.outcome is None:
            told = time.monotonic() if told is None else told
            if may_stop(time.monotonic() - told, needed=coordinator.needed()):
                raise Stopped
    return coordinator.outcome


def may_stop(waited: float, *, needed: bool) -> bool:
    """Whether the master may leave so many seconds after it was told to."""
    return waited >= (MOST_STOP_SECONDS if needed else LEAST_STOP_SECONDS)


async def _linger(master: Master) -> None:
    """Stays until the workers are gone and the operator has read the outcome, at most LINGER_SECONDS."""

    async def gone() -> None:
        await master.outcome_read.wait()
        while master.coordinator and master.coordinator.workers.links:  # noqa: ASYNC110 - a second, once: not worth an event
            await asyncio.sleep(TICK_SECONDS / 5)

    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(gone(), LINGER_SECONDS)


async def _serve(stack: contextlib.AsyncExitStack, app: web.Application, port: int, context: object) -> None:
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, port=port, ssl_context=context).start()  # type: ignore[arg-type]


def main() -> int:
    parser = argparse.ArgumentParser(prog="mms_workloads.sync.master", description=__doc__)
    parser.add_argument("--plain-http", action="store_true", help="no TLS and no client certificates: for tests only")
    arguments = parser.parse_args()
    logs.configure()
    try:
        pod = read_pod()
        structlog.contextvars.bind_contextvars(job=f"{pod.job.job.namespace}/{pod.job.job.name}", role="master")
        outcome = asyncio.run(run(pod, plain=arguments.plain_http))
    except Stopped:
        return 128 + signal.SIGTERM
    except JobError as error:
        outcome = failed(error)
        write_outcome(termination_log(), outcome)
        logs.logger().error("run ended", reason=error.reason, message=error.message)
    except Exception as error:  # noqa: BLE001 - the process ends here, whatever it was
        message = f"{type(error).__name__}: {error}: see the master's log"
        outcome = Outcome(result="Failed", reason=Reason.INTERNAL, message=message, retryable=True)
        write_outcome(termination_log(), outcome)
        logs.logger().exception("master crashed")
    if outcome.result != "Failed":
        return EXIT_DONE
    return EXIT_RETRY if outcome.retryable else EXIT_PERMANENT


if __name__ == "__main__":
    sys.exit(main())
