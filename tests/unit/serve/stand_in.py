"""Stands in for Triton: answers HTTP and gRPC with what it was asked, after as long as it was told."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
from aiohttp import web

from mms_cluster.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@dataclass
class StandIn:
    ports: tuple[int, int]
    seconds: float = 0.0  # that an answer takes
    headers: list[dict[str, str]] = field(default_factory=list)  # of each request

    async def over_http(self, request: web.Request) -> web.Response:
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        body = await request.read()
        await asyncio.sleep(self.seconds)
        return web.Response(body=body)

    async def over_grpc(self, body: bytes, context: Any) -> bytes:
        self.headers.append(dict(context.invocation_metadata()))
        await asyncio.sleep(self.seconds)
        return body


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, stand_in: StandIn) -> None:
        self._stand_in = stand_in

    def service(self, _: Any) -> grpc.RpcMethodHandler:
        return grpc.unary_unary_rpc_method_handler(self._stand_in.over_grpc)


@asynccontextmanager
async def standing_in() -> AsyncIterator[StandIn]:
    http, over_grpc = free_ports(2)
    made = StandIn((http, over_grpc))
    app = web.Application(client_max_size=2**26)
    app.router.add_route("*", "/{path:.*}", made.over_http)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", http).start()
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((_Handler(made),))
    server.add_insecure_port(f"127.0.0.1:{over_grpc}")
    await server.start()
    try:
        yield made
    finally:
        await server.stop(0)
        await runner.cleanup()
