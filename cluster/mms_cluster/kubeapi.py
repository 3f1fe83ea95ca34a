"""The few requests to a Kubernetes API server that bringing up a cluster takes, with the standard library."""

from __future__ import annotations

import http.client
import json
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True)
class Api:
    """An API server on this machine and an identity of its certificate folder."""

    port: int
    pki: Path
    identity: str = "admin"

    def request(
        self, method: str, path: str, body: Any = None, kind: str = "application/json", timeout: float = 10
    ) -> tuple[int, bytes]:
        """(status, body). Status 0 and the error's text when there is no answer."""
        connection = self._connection(timeout)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": kind, "Accept": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            return 0, str(error).encode()
        finally:
            connection.close()

    def lines(self, path: str, timeout: float) -> Iterator[bytes]:
        """The lines of a watch, until it ends or the connection breaks."""
        connection = self._connection(timeout)
        try:
            connection.request("GET", path, headers={"Accept": "application/json"})
            yield from connection.getresponse()
        except (OSError, http.client.HTTPException):
            return
        finally:
            connection.close()

    def _connection(self, timeout: float) -> http.client.HTTPSConnection:
        context = ssl.create_default_context(cafile=str(self.pki / "ca.crt"))
        context.load_cert_chain(self.pki / f"{self.identity}.crt", self.pki / f"{self.identity}.key")
        return http.client.HTTPSConnection("127.0.0.1", self.port, context=context, timeout=timeout)

    def get(self, path: str) -> dict[str, Any] | None:
        """The object at `path`; None when there is none or no answer."""
        status, body = self.request("GET", path)
        return json.loads(body) if status == 200 else None

    def apply(self, path: str, manifest: dict[str, Any]) -> str:
        """Server-side apply. "" or what the API server said against it."""
        query = f"{path}?fieldManager=mms-cluster&force=true"
        status, body = self.request("PATCH", query, manifest, "application/apply-patch+yaml")
        return "" if status in {200, 201} else f"{status} {body.decode(errors='replace')[:500]}"

    def unready(self) -> str:
        """What the API server says against being ready; "" when it is.

        The body counts: while the bootstrap roles are being written the status can be 200 with another body.
        """
        status, body = self.request("GET", "/readyz", timeout=5)
        return "" if (status, body) == (200, b"ok") else f"/readyz says {status} {body.decode(errors='replace')[:200]}"
