"""The activator's process.

    python -m mms_operator.activator

MMS_NAMESPACES: comma-separated, those whose services it holds; none: all. GET /healthz, /readyz, /metrics, /v1/demand
on port 8082.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from typing import TYPE_CHECKING

import structlog
from aiohttp import web

from mms_operator import logs
from mms_operator.activator.doors import Doors
from mms_operator.activator.feeds import all_read, feeds
from mms_operator.activator.kube import Server, follow
from mms_operator.activator.report import PORT
from mms_operator.activator.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mms_operator.activator.feeds import Services, Slices

DRAIN_SECONDS = 310.0  # as long as a client may wait, or an edge lets a connection live
SWEEP_SECONDS = 5.0  # between two looks for ports that are not wanted any more, or could not be had

log = structlog.get_logger()


def application(doors: Doors, read: Sequence[Services | Slices]) -> web.Application:
    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        if doors.draining or not all_read(read):
            return web.Response(status=503, text="draining\n" if doors.draining else "the services are being read\n")
        return web.Response(text="ok\n")

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(text=doors.metrics())

    async def demand(request: web.Request) -> web.Response:
        try:
            after = int(request.query.get("after", "-1"))
        except ValueError:
            return web.Response(status=400, text="after: a number\n")
        return web.json_response(text=(await doors.report(after)).model_dump_json())

    app = web.Application()
    routes = {"/healthz": healthz, "/readyz": readyz, "/metrics": metrics, "/v1/demand": demand}
    app.add_routes([web.get(path, handler) for path, handler in routes.items()])
    return app


async def run(server: Server, namespaces: Iterable[str], port: int = PORT) -> None:
    """Until SIGTERM; then as long as somebody is held or passed through, 310 s at most."""
    doors = Doors(Table())
    sources = feeds(doors, namespaces)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner = web.AppRunner(application(doors, sources), access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, port=port).start()
    async with server.session() as session, asyncio.TaskGroup() as group:
        tasks = [group.create_task(follow(server, session, one)) for one in sources]
        tasks.append(group.create_task(_sweep(doors)))
        await stop.wait()
        log.info("draining")
        await doors.drain(DRAIN_SECONDS)
        for task in tasks:
            task.cancel()
    await doors.close()
    await runner.cleanup()


async def _sweep(doors: Doors) -> None:
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        await doors.update()


def main(environment: Mapping[str, str] = os.environ) -> int:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # two for each connection, four for each service
    logs.configure(environment.get("MMS_LOG_LEVEL", "INFO"))
    try:
        server = Server.of_pod(environment)
    except KeyError as error:
        log.error("not in a pod", missing=str(error))  # noqa: TRY400 - the message says it all
        return 2
    namespaces = [one.strip() for one in environment.get("MMS_NAMESPACES", "").split(",") if one.strip()]
    asyncio.run(run(server, namespaces))
    return 0


if __name__ == "__main__":
    sys.exit(main())
