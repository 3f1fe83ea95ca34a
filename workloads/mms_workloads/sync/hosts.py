"""Control connections whose other end's host has died, or is cut off: nobody there says so.

The kernels answer each other's probes however busy the processes are, so that silence can be believed much sooner than
that of a process.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio.trsock import TransportSocket

SILENT_SECONDS = 2.0  # that are believed; probes begin after one
_PROBE_SECONDS = 1  # the least that TCP knows


def watch(connection: socket.socket | TransportSocket | None) -> None:
    """Lets a TCP connection end when the peer's host has acknowledged nothing for SILENT_SECONDS."""
    if connection is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * SILENT_SECONDS))
