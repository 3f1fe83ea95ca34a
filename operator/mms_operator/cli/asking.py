"""Where a service is asked from the command line, and with which key."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from mms_operator.cli import forward
from mms_workloads.contract import TRITON_GRPC_PORT
from mms_workloads.serve.access import Access

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Answer = TypeVar("Answer")


class AskError(Exception):
    """A file that cannot be used; the message says which and why."""


@dataclass(frozen=True)
class How:
    """`url`: None means a port-forward, over TLS where there is a `ca`."""

    service: str
    namespace: str
    url: str | None
    key_file: Path | None
    ca: Path | None


def ask(question: Callable[[str, Access], Answer], how: How) -> Answer:
    """Raises AskError, forward.ForwardError, and what the question does."""
    access = Access(key=_key(how.key_file), ca=str(how.ca) if how.ca else None)
    if how.url:
        return question(how.url, access)
    with forward.port_forward(how.namespace, f"svc/{how.service}", TRITON_GRPC_PORT) as address:
        if how.ca:
            # The loopback is not whom the certificate is for.
            return question(f"grpcs://{address}", replace(access, server_name=f"{how.service}.{how.namespace}.svc"))
        return question(address, access)


def _key(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        key = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise AskError(f"{path}: {error}: give a file with the key and nothing else") from error
    if not key:
        raise AskError(f"{path} is empty: give a file with the key and nothing else")
    return key
