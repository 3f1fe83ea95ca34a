"""The sidecar beside Triton: loads the models, proves by the golden cases that they answer rightly, and says so.

    python -m mms_workloads.serve.agent

    GET /readyz     200 while all models are ready in Triton and all golden cases were right since they were loaded
    GET /healthz    200 while the process lives
    GET /v1/served  what is served, and when it was verified
    GET /metrics    for Prometheus
    POST /v1/inputs an input of a client and another version's answer, sealed: inputs.py

A pod that is told so (`measure` in its file) finds out what it can do before it is ready for the first time.
What it does all the time is in supervising.py; when that ends, the reason is in the termination log, and the kubelet
starts the container again. After SIGTERM it is not ready at once and ends when Triton has, or after 30 s.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from functools import partial
from typing import TYPE_CHECKING

import structlog
from aiohttp import web

from mms_workloads import contract, logs, pod
from mms_workloads.contract import Outcome, Reason
from mms_workloads.serve import failures, generations, versions
from mms_workloads.serve.agent_state import readiness
from mms_workloads.serve.artifact import Artifact, read_artifact
from mms_workloads.serve.control import Triton
from mms_workloads.serve.following import Following
from mms_workloads.serve.inputs import BOX_BYTES, Inputs, read_orders
from mms_workloads.serve.layout import Layout, read_layout, read_models, read_probe, read_serve_file, read_wanted
from mms_workloads.serve.load import Metrics
from mms_workloads.serve.supervising import Agent, Measure
from mms_workloads.serve.surveying import survey
from mms_workloads.serve.swap import swap
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from mms_workloads.contract import Measured
    from mms_workloads.serve.supervising import Proof

log = structlog.get_logger()


async def _readyz(agent: Agent, _: web.Request) -> web.Response:
    ready = await agent.ready() if agent.state.phase == "Verified" else {}
    # The models may have been lost and loaded again while they were asked for: the later state decides.
    status, body = readiness(agent.state, ready)
    return web.json_response(body, status=status)


async def _healthz(agent: Agent, _: web.Request) -> web.Response:
    return web.json_response({"phase": agent.state.phase})


async def _served(agent: Agent, _: web.Request) -> web.Response:
    return web.json_response(text=(await agent.report()).model_dump_json(exclude_none=True))


async def _metrics(agent: Agent, _: web.Request) -> web.Response:
    headers = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
    return web.Response(text=agent.metrics(), headers=headers)


async def run(agent: Agent, port: int) -> JobError | None:
    """Serves until SIGTERM (None) or until the models cannot be served (why)."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    app = web.Application(client_max_size=BOX_BYTES)
    app.add_routes(
        [
            web.get("/readyz", partial(_readyz, agent)),
            web.get("/healthz", partial(_healthz, agent)),
            web.get("/v1/served", partial(_served, agent)),
            web.get("/metrics", partial(_metrics, agent)),
        ]
    )
    if agent.inputs is not None:
        app.add_routes([web.post("/v1/inputs", agent.inputs.take)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, port=port).start()
    supervisor = asyncio.create_task(agent.supervise())
    others = [asyncio.create_task(agent.probe()), asyncio.create_task(agent.sample())]
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({supervisor, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if supervisor.done():
            supervisor.result()  # raises: supervision ends no other way
        supervisor.cancel()
        with contextlib.suppress(asyncio.CancelledError, JobError):
            await supervisor
        await agent.drain()
    except JobError as error:
        agent.fail(error)
        return error
    else:
        return None
    finally:
        stopping.cancel()
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await agent.end()
        await runner.cleanup()
        await agent.triton.close()


async def start(environment: Mapping[str, str]) -> JobError | None:
    try:
        layout = read_layout(environment)
        serving = _serving(layout)
        artifact = read_artifact(layout, contract.live_run(serving) or serving)
        key = layout.control_key.read_text().strip()
        models = read_models(layout.running)
    except JobError as error:
        return error
    except OSError as error:
        return JobError(Reason.MODEL_LOAD_FAILED, f"{error}: the fetch container must run first, on the same volume")
    failed = partial(failures.total, layout.generations)
    triton = Triton(f"http://127.0.0.1:{layout.http_port}", key, models.names, failed)
    metrics = Metrics(f"http://127.0.0.1:{layout.metrics_port}")
    agent = Agent(
        artifact,
        triton,
        lambda: read_wanted(environment),
        lambda serve, tell: swap(serve, layout, triton, environment, tell),
        Measure(
            lambda digest: _reference(digest, environment),
            lambda digest: _fetched(layout, digest),
            lambda: read_probe(environment),
            metrics.load,
            _survey(layout, triton, environment),
        ),
        following=Following(layout, environment),
        inputs=Inputs(layout, triton, models.models, lambda: read_orders(environment)),
        settle=lambda: versions.settle(layout),
    )
    try:
        return await run(agent, layout.agent_port)
    finally:
        await metrics.close()


def _survey(
    layout: Layout, triton: Triton, environment: Mapping[str, str]
) -> Callable[[Proof], Awaitable[Measured]] | None:
    serve = read_serve_file(environment)
    return None if serve.measure is None else lambda proof: survey(serve, layout, triton, proof)


def _reference(digest: str, environment: Mapping[str, str]) -> str | None:
    """The digest of what an artifact is to be compared with, where the file that names it says so."""
    serve = read_wanted(environment)
    try:
        if serve is None or serve.artifact.digest != digest:
            serve = read_serve_file(environment)
    except JobError:
        return None
    return serve.reference.artifact.digest if serve.reference and serve.artifact.digest == digest else None


def _fetched(layout: Layout, digest: str) -> Artifact | None:
    try:
        return read_artifact(layout, digest)
    except JobError:
        return None


def _serving(layout: Layout) -> str:
    """What the models serve: it may be another one than the pod began with. Raises JobError."""
    try:
        return generations.read(layout.generations).serving
    except (OSError, ValueError) as error:
        raise JobError(
            Reason.MODEL_LOAD_FAILED,
            f"{layout.generations}: {error}: the fetch container must run first, on the same volume",
        ) from error


def main(environment: Mapping[str, str] = os.environ) -> int:
    error = asyncio.run(start(environment))
    if error is None:
        return contract.EXIT_DONE
    log.error("not serving", reason=error.reason, message=error.message)
    outcome = Outcome(result="Failed", reason=error.reason, message=error.message, retryable=error.retryable)
    pod.write_outcome(pod.termination_log(environment), outcome)
    return contract.EXIT_RETRY if error.retryable else contract.EXIT_PERMANENT


if __name__ == "__main__":
    logs.configure()
    sys.exit(main())
