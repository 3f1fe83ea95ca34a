"""A connection from this machine to a Service in the cluster, by `kubectl port-forward`."""

from __future__ import annotations

import re
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

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
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    except FileNotFoundError:
        raise ForwardError("kubectl is not on PATH: install it, or give the service's address by --url") from None
    with process:
        try:
            yield f"127.0.0.1:{_local_port(process, namespace, target)}"
        finally:
            process.terminate()


def _local_port(process: subprocess.Popen[str], namespace: str, target: str) -> int:
    assert process.stdout is not None  # noqa: S101 - it was asked for
    assert process.stderr is not None  # noqa: S101
    for line in process.stdout:
        if match := _FORWARDING.search(line):
            return int(match.group(1))
    raise ForwardError(f"no connection to {target} in namespace {namespace}: {process.stderr.read().strip()}")
