"""A connection from this machine to a Service in the cluster, by `kubectl port-forward`."""

from __future__ import annotations

import re
import subprocess
import tempfile
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from mms_operator.cli import kubectl

if TYPE_CHECKING:
    from collections.abc import Iterator

_FORWARDING = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+) ->")


class ForwardError(Exception):
    """kubectl could not connect; its message says why."""


@contextmanager
def port_forward(namespace: str, target: str, port: int) -> Iterator[str]:
    """Yields host:port on the loopback that leads to `target` (such as svc/words) while the context is open.

    The local port is the kernel's choice. Raises ForwardError when kubectl ends before it listens.
    """
    command = ["kubectl", "port-forward", "--namespace", namespace, target, f":{port}", "--address", "127.0.0.1"]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        try:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True)
        except FileNotFoundError:
            raise ForwardError("kubectl is not on PATH: install it, or give the service's address by --url") from None
        with process:
            try:
                local = _local_port(process)
                if local is None:
                    said.seek(0)
                    raise ForwardError(
                        f"no connection to {target} in namespace {namespace}: {kubectl.words(said.read())}"
                    )
                # kubectl writes a line for each connection, and would stop where nobody reads.
                threading.Thread(target=_read_on, args=(process,), daemon=True).start()
                yield f"127.0.0.1:{local}"
            finally:
                process.terminate()


def _local_port(process: subprocess.Popen[str]) -> int | None:
    """None when kubectl ended before it listened."""
    assert process.stdout is not None  # noqa: S101 - it was asked for
    while line := process.stdout.readline():
        if match := _FORWARDING.search(line):
            return int(match.group(1))
    return None


def _read_on(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None  # noqa: S101 - as above
    with suppress(ValueError):  # it is closed at the end
        while process.stdout.readline():
            pass
