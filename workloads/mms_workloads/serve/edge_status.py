"""What the edge's supervisor answers: whether nginx lives, and counters for Prometheus."""

from __future__ import annotations

import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mms_workloads.serve.edge import Edge


def metrics(edge: Edge) -> str:
    """The text of /metrics."""
    values = [
        ("mms_edge_current", "gauge", "1 while nginx serves what is mounted.", float(edge.current)),
        ("mms_edge_reloads_total", "counter", "Certificates and keys that were taken while it ran.", edge.reloads),
        ("mms_edge_failures_total", "counter", "Certificates and keys that nginx refused.", edge.failures),
    ]
    text = "".join(f"# HELP {n} {about}\n# TYPE {n} {kind}\n{n} {value:g}\n" for n, kind, about, value in values)
    name = "mms_edge_refused_total"
    text += f"# HELP {name} Requests that did not come to Triton or had no answer of it.\n# TYPE {name} counter\n"
    for (code, client), count in sorted(edge.refusals.copy().items()):
        text += f'{name}{{code="{code}",client="{client}"}} {count}\n'
    return text


def serve(edge: Edge, port: int) -> ThreadingHTTPServer:
    """Answers in a thread of its own."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._answer(HTTPStatus.OK, metrics(edge))
            elif self.path == "/healthz":
                self._answer(HTTPStatus.OK if edge.lives else HTTPStatus.SERVICE_UNAVAILABLE, "")
            else:
                self._answer(HTTPStatus.NOT_FOUND, "")

        def _answer(self, status: HTTPStatus, text: str) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing: probes are no news."""

    server = ThreadingHTTPServer(("", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
