"""The operator, with planners that decide next to nothing, against a real API server.

Most tests run it in a thread with an event loop of its own: kopf takes all tasks of its loop for its own when it ends.
What needs a process, signals and sudden death, has one.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from mms_operator import main
from tests.api.operating import Cluster, Replica, install

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mms_cluster.apionly import ApiOnly


@pytest.fixture(scope="module")
def crds(apiserver: ApiOnly) -> None:
    install(apiserver)


@pytest.fixture
def cluster(apiserver: ApiOnly, crds: None, kubeconfig: Path, namespace: str) -> Cluster:
    return Cluster(apiserver, namespace)


@pytest.fixture(autouse=True)
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A replica in a thread that loses its Lease would end the tests' process."""
    statuses: list[int] = []

    def exit_(status: int) -> None:
        statuses.append(status)
        raise SystemExit(status)

    monkeypatch.setattr(main.os, "_exit", exit_)
    return statuses


@pytest.fixture
def operator(cluster: Cluster) -> Iterator[Replica]:
    """A replica that serves the test's namespace, and leads."""
    with Replica(cluster, (cluster.namespace,)) as replica:
        yield replica.leads()


class Proxy:
    """A way to the API server that can be cut."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._open: set[socket.socket] = set()
        self._cut = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._cut = True
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def restore(self) -> None:
        self._cut = False

    def close(self) -> None:
        self.cut()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._cut:
                client.close()
                continue
            server = socket.create_connection(("127.0.0.1", self._target))
            self._open |= {client, server}
            for one, other in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            self._open.discard(end)
        source.close()


@pytest.fixture
def proxy(apiserver: ApiOnly) -> Iterator[Proxy]:
    proxy = Proxy(apiserver.api.port)
    yield proxy
    proxy.close()
