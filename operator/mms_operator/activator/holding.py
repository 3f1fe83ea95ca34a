"""One connection: kept unread until there is a pod, then passed through in both directions."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

HELD_BYTES = 1 << 16  # of a connection that waits; what is more stays with the client
CONNECT_SECONDS = 2.0
RETRY_SECONDS = 0.05


class Side(asyncio.Protocol):
    """One end of a passage: what it reads goes to the other one, no faster than that takes it."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.other: Side | None = None
        self.kept = bytearray()
        self.ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - of a stream
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.other is None:
            self.kept += data
            if len(self.kept) >= HELD_BYTES:
                self.transport.pause_reading()
        elif not self.other.transport.is_closing():
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        """Half of the connection may go on: an answer is still to come."""
        self.ended = True
        if self.other is not None and self.other.transport.can_write_eof():
            self.other.transport.write_eof()
        return True

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other is not None:
            self.other.transport.close() if exc is None else self.other.transport.abort()

    def join(self, other: Side) -> None:
        """From now on the two are one connection."""
        self.other, other.other = other, self
        for one, its in ((self, other), (other, self)):
            if one.kept:
                its.transport.write(bytes(one.kept))
                one.kept.clear()
                one.transport.resume_reading()
            if one.ended and its.transport.can_write_eof():
                its.transport.write_eof()


class Client(Side):
    """A client's connection. `arrived` is called with it; `gone` is set when it has ended."""

    def __init__(self, arrived: Callable[[Client], None]) -> None:
        super().__init__()
        self.gone = asyncio.Event()
        self._arrived = arrived

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._arrived(self)

    def eof_received(self) -> bool:
        super().eof_received()
        return self.other is not None  # who waits and hangs up wants nothing any more

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.gone.set()


async def connect(client: Client, backends: Callable[[], list[tuple[str, int]]], changed: asyncio.Condition) -> None:
    """Waits for a pod that takes the connection, and joins the two."""
    turn = id(client) >> 4  # spreads those who have waited
    while not client.transport.is_closing():
        async with changed:
            await changed.wait_for(lambda: bool(backends()))
        there = backends()
        host, port = there[turn % len(there)]
        turn += 1
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, side = await asyncio.get_running_loop().create_connection(Side, host, port)
        except (OSError, TimeoutError):
            await asyncio.sleep(RETRY_SECONDS)  # its readiness is old, or not yet true: look again
            continue
        if client.transport.is_closing():
            side.transport.close()
        else:
            client.join(side)
        return
