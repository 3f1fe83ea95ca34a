"""What a worker serves to other pods of its job: a thread for each connection, HTTPS where the job has certificates."""

from __future__ import annotations

import socket
import sys
import threading
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from mms_workloads.logs import logger

if TYPE_CHECKING:
    import ssl
    from http.server import BaseHTTPRequestHandler

IDLE_SECONDS = 60.0  # after which a connection ends
MOST_CONNECTIONS = 256  # at once; who comes then is turned away, and comes again


class SecuredServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(
        self, place: tuple[str, int], context: ssl.SSLContext | None, handler: type[BaseHTTPRequestHandler]
    ) -> None:
        """context: None for plain HTTP. Raises OSError where the port is taken."""
        self.context = context
        self._places = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self.address_family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
        super().__init__(place, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            logger().warning("client turned away", client=str(client_address), connections=MOST_CONNECTIONS)
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In the connection's own thread: a peer that is slow to greet holds up nobody."""
        request.settimeout(IDLE_SECONDS)
        if self.context is None:
            super().finish_request(request, client_address)
            return
        with self.context.wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)

    def handle_error(self, request: socket.socket | tuple[bytes, socket.socket], client_address: Any) -> None:
        """A connection that broke, or a certificate that is none of the job's."""
        del request
        logger().info("client left", client=str(client_address), error=str(sys.exc_info()[1]))
