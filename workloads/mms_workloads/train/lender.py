"""Pages of the data set for other workers of the job: HTTPS with the job's certificates, asked before the store is.

GET /v1/pages/<name>   200 with the page as it is stored, 404 where this worker has it not (any more)
"""

from __future__ import annotations

import http.client
import ssl
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING

from mms_workloads.contract import OU_WORKER
from mms_workloads.logs import logger
from mms_workloads.sync import tls
from mms_workloads.train.secured import SecuredServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from mms_workloads.pod import Pod

PATH = "/v1/pages/"
SECONDS = 5.0  # for a peer to answer: then the store is asked


class Lender:
    """`address` is where it can be asked, host:port. kept: a page by its name; called in any thread."""

    def __init__(self, pod: Pod, kept: Callable[[str], bytes | None], *, plain: bool) -> None:
        self._job = f"{pod.job.job.uid}/{pod.job.job.run}"
        self._client = None if plain else tls.client_context(pod.tls_dir)
        if self._client:
            self._client.check_hostname = False  # pods have addresses, certificates roles: the OU counts
        self._server = _Server((pod.ip, 0), None if plain else tls.server_context(pod.tls_dir), self._job, kept)
        self.address = f"{pod.ip}:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, name="lender", daemon=True).start()

    def ask(self, address: str, name: str) -> bytes | None:
        """A page of a peer; None where it has it not, or does not answer."""
        host, _, port = address.rpartition(":")
        connection: http.client.HTTPConnection
        if self._client:
            connection = http.client.HTTPSConnection(host, int(port), timeout=SECONDS, context=self._client)
        else:
            connection = http.client.HTTPConnection(host, int(port), timeout=SECONDS)
        try:
            connection.connect()
            if isinstance(connection.sock, ssl.SSLSocket):
                units = tls.organisational_units(connection.sock.getpeercert())
                if OU_WORKER not in units:
                    return None
            connection.request("GET", PATH + name, headers={"MMS-Job": self._job})
            answer = connection.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException) as error:
            logger().info("a peer did not lend", peer=address, error=str(error))
            return None
        finally:
            connection.close()
        return data if answer.status == HTTPStatus.OK else None

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(SecuredServer):
    def __init__(
        self,
        place: tuple[str, int],
        context: ssl.SSLContext | None,
        job: str,
        kept: Callable[[str], bytes | None],
    ) -> None:
        self.job, self.kept = job, kept
        super().__init__(place, context, _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        server = self.server
        if server.context is not None and OU_WORKER not in tls.organisational_units(self.connection.getpeercert()):
            self._say(HTTPStatus.FORBIDDEN, f"this needs a certificate with OU={OU_WORKER}\n".encode())
        elif self.headers.get("MMS-Job") != server.job:
            self._say(HTTPStatus.CONFLICT, f"this is {server.job}\n".encode())
        else:
            data = server.kept(self.path.removeprefix(PATH)) if self.path.startswith(PATH) else None
            self._say(HTTPStatus.OK if data is not None else HTTPStatus.NOT_FOUND, data or b"")

    def _say(self, status: HTTPStatus, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's
        """Requests are no news."""
