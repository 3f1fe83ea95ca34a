"""One connection: kept until there is a pod, then passed through in both directions.

What a client sends while it waits is kept as far as some kilobytes go; the rest stays with it. As long as it is read,
its end is seen; of one that has sent more the kernel knows whether it has hung up.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

HELD_BYTES = 4096  # of a connection that waits
# Of one that passes: whoever is gone without a word is noticed after two minutes, on either side.
KEEP_ALIVE = {
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE): 1,
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): 60,  # seconds
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): 15,  # seconds
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT): 4,
}
CONNECT_SECONDS = 2.0
RETRY_SECONDS, LONGEST_RETRY_SECONDS = 0.05, 1.0
_HUNG_UP = frozenset({7, 8})  # TCP_CLOSE and TCP_CLOSE_WAIT of linux/tcp_states.h
# One buffer for all: what is read is copied before anything else is.
_BUFFER = memoryview(bytearray(1 << 16))


class Side(asyncio.BufferedProtocol):
    """One end of a passage: what it reads goes to the other one, no faster than that takes it."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.other: Side | None = None
        self.kept = bytearray()
        self.ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - of a stream
        self.transport = transport
        for option, value in KEEP_ALIVE.items():
            transport.get_extra_info("socket").setsockopt(*option, value)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - as asyncio calls it
        return _BUFFER if self.other is not None else _BUFFER[: max(1, HELD_BYTES - len(self.kept))]

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(_BUFFER[:nbytes])
        if self.other is None:
            self.kept += data
            if len(self.kept) >= HELD_BYTES:
                self.transport.pause_reading()
                self.filled()
        elif not self.other.transport.is_closing():
            self.other.transport.write(data)

    def filled(self) -> None:
        """No more is read for now."""

    def eof_received(self) -> bool:
        """Half of the connection may go on: an answer is still to come."""
        self.ended = True
        if self.other is None:
            return True
        if self.other.ended:
            return False  # this end closes when all is written, and then the other one
        if self.other.transport.can_write_eof():
            self.other.transport.write_eof()
        return True

    def pause_writing(self) -> None:
        if self.other is not None and not self.other.transport.is_closing():
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and not self.other.transport.is_closing():
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other is not None:
            self.other.transport.close() if exc is None else self.other.transport.abort()

    def join(self, other: Side) -> None:
        """From now on the two are one connection."""
        self.other, other.other = other, self
        for one, its in ((self, other), (other, self)):
            one.transport.resume_reading()  # first: what is written may have it pause again
            if one.kept:
                its.transport.write(bytes(one.kept))
                one.kept.clear()
            if one.ended and its.transport.can_write_eof():
                its.transport.write_eof()


class Client(Side):
    """A client's connection. `arrived` is called with it, `filled` when no more of it is read while it waits; `gone` is
    set when it has ended.
    """

    def __init__(self, arrived: Callable[[Client], None], filled: Callable[[Client], None]) -> None:
        super().__init__()
        self.gone = asyncio.Event()
        self._arrived, self._filled = arrived, filled

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._arrived(self)

    def filled(self) -> None:
        self._filled(self)

    def hung_up(self) -> bool:
        """Whether one that waits, and is not read any more, has hung up."""
        if self.other is not None or len(self.kept) < HELD_BYTES or self.transport.is_closing():
            return False
        try:
            # The state is the first byte of tcp_info (linux/tcp.h).
            found = self.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
        except OSError:
            return True
        return bool(found[0] in _HUNG_UP)

    def eof_received(self) -> bool:
        # Who waits and hangs up wants nothing any more.
        return super().eof_received() and self.other is not None

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.gone.set()


async def connect(
    client: Client, backends: Callable[[], Awaitable[list[tuple[str, int]]]], connects: asyncio.Semaphore
) -> None:
    """Waits for a pod that takes the connection, and joins the two. `backends` waits until there are some.

    connects: as many at a time as are tried.
    """
    turn, pause = id(client) >> 4, RETRY_SECONDS  # the turn spreads those who have waited
    while not client.transport.is_closing():
        there = await backends()
        host, port = there[turn % len(there)]
        turn += 1
        try:
            async with connects, asyncio.timeout(CONNECT_SECONDS):
                _, side = await asyncio.get_running_loop().create_connection(Side, host, port)
        except (OSError, TimeoutError):
            await asyncio.sleep(pause)  # its readiness is old, or not yet true: look again
            pause = min(2 * pause, LONGEST_RETRY_SECONDS)
            continue
        if client.transport.is_closing():
            side.transport.close()
        elif side.transport.is_closing() or side.ended:
            side.transport.abort()  # it has changed its mind: another may take the connection
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_RETRY_SECONDS)
            continue
        else:
            client.join(side)
        return
