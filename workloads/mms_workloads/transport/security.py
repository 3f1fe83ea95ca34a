"""How connections are protected. Mutual TLS 1.3: a CA for each job; a certificate's OU says what its holder may do."""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mms_workloads.contract import OU_MASTER, OU_SHARD, OU_WORKER
from mms_workloads.transport import native
from mms_workloads.transport.errors import Refused
from mms_workloads.transport.native import lib

if TYPE_CHECKING:
    from mms_workloads.transport.stream import Stream

PEERS = frozenset({OU_WORKER, OU_SHARD, OU_MASTER})


class Context:
    """A side's certificate, key and authority, as OpenSSL holds them."""

    def __init__(self, folder: Path, *, server: bool) -> None:
        """Raises OSError when a file is unreadable, ValueError when it is not what it should be."""
        files = [folder / name for name in ("tls.crt", "tls.key", "ca.crt")]
        for file in files:
            file.open("rb").close()
        handle = lib.mms_tls_new(server, *(os.fsencode(file) for file in files))
        if not handle:
            raise ValueError(f"mutual TLS cannot be set up: {native.words()}")
        self.handle = int(handle)
        weakref.finalize(self, lib.mms_tls_free, handle)


@dataclass(frozen=True, slots=True)
class Security:
    """The same for all pods of a job."""

    folder: Path | None
    peers: frozenset[str] = PEERS

    @staticmethod
    def plain() -> Security:
        return Security(None)

    @staticmethod
    def mutual(folder: Path | str, peers: frozenset[str] = PEERS) -> Security:
        """folder: tls.crt, tls.key, ca.crt. A peer must show a certificate of that CA whose OU is one of `peers`."""
        return Security(Path(folder), peers)

    def context(self, *, server: bool) -> Context | None:
        """None: plain. Reads the files each time, so that renewed certificates are used."""
        return Context(self.folder, server=server) if self.folder else None

    def check(self, stream: Stream) -> None:
        """Raises Refused when the peer's certificate is for something else."""
        if self.folder and not (units := stream.units()) & self.peers:
            held = ", ".join(sorted(units)) or "nothing"
            raise Refused(f"the certificate is for {held}, and {' or '.join(sorted(self.peers))} is wanted")

    def check_role(self, stream: Stream, role: str) -> None:
        """Raises Refused when the peer's certificate is not for the role that it gives itself."""
        # str: the role comes from the peer, and may be anything that JSON has.
        if self.folder and str(role) not in (units := stream.units()):
            raise Refused(f"the certificate is for {', '.join(sorted(units))}, and the peer says that it is a {role}")
