"""That the kernel is asked to find dead hosts; that it does is seen where a node is lost (tests/e2e)."""

from __future__ import annotations

import asyncio
import socket

from mms_workloads.sync import hosts


async def test_a_connection_is_probed() -> None:
    seen: list[tuple[int, ...]] = []

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        hosts.watch(connection)
        options = (
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
            (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
        )
        seen.append(tuple(connection.getsockopt(*option) for option in options))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        assert await reader.read() == b""
        writer.close()
    assert seen == [(1, 1, 1, 2000)]


def test_what_is_no_tcp_is_left_alone() -> None:
    first, second = socket.socketpair()
    with first, second:
        hosts.watch(first)
    hosts.watch(None)
