"""/healthz, /readyz and /metrics. Red means that a restart would help, and the answer says why."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from mms_operator.engine.resources import WATCHED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mms_operator.engine.kubeapi import Call
    from mms_operator.engine.lease import Lease
    from mms_operator.engine.metrics import Metrics
    from mms_operator.engine.queue import WorkQueue
    from mms_operator.engine.resources import Key, Resource

QUEUE_SECONDS = 60.0  # keys that are ready while none is taken for so long say that no worker works
WATCH_SERVER_SECONDS = 300  # the API server ends a watch then
WATCH_CLIENT_SECONDS = 330  # and if it does not, the client does
WATCH_SILENCE = WATCH_CLIENT_SECONDS + 60.0  # so that a watch without a reconnection for so long is dead
STANDBY_SILENCE = 30.0  # a standby asks for the Lease every few seconds


@dataclass
class Health:
    """What the probes look at. `synced` is set when a leader has read the state of the cluster."""

    metrics: Metrics
    clock: Callable[[], float] = time.monotonic
    lease: Lease | None = None
    queue: WorkQueue[Key] | None = None
    synced: bool = False
    _watches: dict[tuple[str, str], float] = field(default_factory=dict)

    def watch(self, resources: Iterable[Resource] = WATCHED) -> None:
        """From now on the watches must live."""
        now = self.clock()
        self._watches = {(resource.group, resource.plural): now for resource in resources}

    def observe_call(self, call: Call, status: int) -> None:
        """A watch that is connected again, as it must be every few minutes, lives."""
        if call.verb == "watch" and status == web.HTTPOk.status_code:
            self.observe_event(call.group, call.resource)

    def observe_event(self, group: str, plural: str) -> None:
        if (group, plural) in self._watches:
            self._watches[group, plural] = self.clock()

    def troubles(self) -> list[str]:
        """Why the process should be restarted."""
        now = self.clock()
        found = [
            f"the watch of {plural} is silent for {now - last:.0f} s"
            for (_, plural), last in self._watches.items()
            if now - last > WATCH_SILENCE
        ]
        if self.queue and self.queue.stalled > QUEUE_SECONDS:
            found.append(f"no key was taken from the queue for {self.queue.stalled:.0f} s, and one is ready")
        if self._watches and self.lease and not self.lease.leads:
            found.append("the Lease is lost")
        return found

    def unready(self) -> list[str]:
        """Why a rollout should wait for this replica."""
        found = self.troubles()
        if self.lease is None or self.clock() - self.lease.seen > STANDBY_SILENCE:
            found.append("the API server does not answer")
        elif self.lease.leads and not self.synced:
            found.append("the state of the cluster is being read")
        return found


async def serve(health: Health, port: int) -> web.AppRunner:
    """Starts the server; `cleanup()` of the result stops it. Raises OSError if the port is taken."""

    async def healthz(_: web.Request) -> web.Response:
        return _answer(health.troubles())

    async def readyz(_: web.Request) -> web.Response:
        return _answer(health.unready())

    async def metrics(_: web.Request) -> web.Response:
        body = generate_latest(health.metrics.registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, port=port).start()
    return runner


def _answer(troubles: list[str]) -> web.Response:
    if troubles:
        return web.Response(status=503, text="\n".join(troubles) + "\n")
    return web.Response(text="ok\n")
