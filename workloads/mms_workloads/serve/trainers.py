"""Parameters from the workers of a running training: who has them, by its master's word, and the parameters.

HTTPS with a certificate that the training's own authority has made for readers. What a worker of an earlier attempt or
membership epoch says does not count, nor what is of another run.
"""

from __future__ import annotations

import http.client
import ssl
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import ValidationError

from mms_workloads.contract import MASTER_PORT, OU_MASTER, OU_WORKER, Trainers
from mms_workloads.sync import tls

if TYPE_CHECKING:
    from pathlib import Path

    from mms_workloads.contract import LiveSource, Trainer

CONNECT_SECONDS = 2.0
READ_SECONDS = 10.0
MASTER_SECONDS = 2.0  # how long the master's word is believed
WORD_BYTES = 1 << 20
PIECE_BYTES = 1 << 20
OK, NOT_MODIFIED = 200, 304


class UnreachableError(Exception):
    """Nobody gives parameters now; the message says why."""


@dataclass(frozen=True, slots=True)
class Got:
    """An answer of a worker. body: None where it is what was had before."""

    body: memoryview | None
    rank: int
    plan: str
    step: int
    rows: int
    columns: int
    copied: float  # monotonic seconds of this machine when the parameters were copied, but for the network's latency
    tag: str


@dataclass(slots=True)
class Source:
    """One run's workers. `number` spreads pods over them: each asks its own first. Of one thread.

    tls_dir: tls.crt, tls.key, ca.crt of a reader; None: without TLS, in tests.
    """

    live: LiveSource
    tls_dir: Path | None
    number: int = 0
    port: int = MASTER_PORT
    _known: Trainers | None = None
    _asked: float = 0.0
    _connection: http.client.HTTPConnection | None = None
    _trainer: Trainer | None = None
    _failed: set[str] = field(default_factory=set)  # addresses, since the master was asked

    def get(self, what: str, *, after: str = "") -> Got:
        """vocabulary, task, sample, or the parameters unless they have the tag `after`. Raises UnreachableError."""
        errors: list[str] = []
        for _ in range(2):
            for trainer in self._trainers():
                try:
                    return self._ask(trainer, what, after)
                except (OSError, http.client.HTTPException, UnreachableError, ValueError) as error:
                    errors.append(f"worker {trainer.rank}: {error or type(error).__name__}")
                    self._failed.add(trainer.address)
                    self.close()
            self._asked = 0.0  # the master may know others by now
        raise UnreachableError("; ".join(dict.fromkeys(errors)) or "the training has no worker that trains now")

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection, self._trainer = None, None

    def _trainers(self) -> list[Trainer]:
        """Whom to ask, in this order: the one that was asked before, then from this pod's own place on."""
        now = time.monotonic()
        if self._known is None or now - self._asked > MASTER_SECONDS:
            try:
                self._known = self._ask_master()
                self._failed.clear()
            except (OSError, http.client.HTTPException, ValueError) as error:
                # Workers train on while a master is replaced.
                if self._known is None:
                    raise UnreachableError(f"the training's master: {error or type(error).__name__}") from error
            self._asked = now
        found = sorted(self._known.trainers, key=lambda one: one.rank)
        start = self.number % len(found) if found else 0
        found = [*found[start:], *found[:start]]
        return sorted(found, key=lambda one: (one.address in self._failed, one != self._trainer))

    def _ask_master(self) -> Trainers:
        connection = self._connect(self.live.masterHost, self.port, OU_MASTER, timeout=CONNECT_SECONDS)
        try:
            connection.request("GET", "/v1/trainers")
            answer = connection.getresponse()
            text = answer.read(WORD_BYTES)
        finally:
            connection.close()
        if answer.status != OK:
            raise ValueError(f"{answer.status} {text[:200].decode(errors='replace').strip()}")
        try:
            found = Trainers.model_validate_json(text)
        except ValidationError as error:
            raise ValueError(f"no answer of a master: {error.errors()[0]['msg']}") from error
        if (found.uid, found.run) != (self.live.uid, self.live.run):
            raise ValueError(f"it is of run {found.run} of job {found.uid}")
        return found

    def _ask(self, trainer: Trainer, what: str, after: str) -> Got:
        if self._connection is None or self._trainer != trainer:
            self.close()
            host, _, port = trainer.address.rpartition(":")
            self._connection = self._connect(host, int(port), OU_WORKER, timeout=READ_SECONDS)
            self._trainer = trainer
        headers = {"MMS-Job": f"{self.live.uid}/{self.live.run}"}
        if after:
            headers["If-None-Match"] = after
        self._connection.request("GET", f"/v1/{what}", headers=headers)
        answer = self._connection.getresponse()
        told = time.monotonic()
        if answer.status not in (OK, NOT_MODIFIED):
            raise UnreachableError(answer.read(WORD_BYTES)[:200].decode(errors="replace").strip())
        fenced = (int(answer.headers["MMS-Attempt"]), int(answer.headers["MMS-Epoch"]))
        known = self._known
        if known is not None and fenced < (known.attempt, known.epoch):
            raise UnreachableError(f"it is in membership epoch {fenced[1]} and {known.epoch} has begun")
        body = memoryview(_read(answer)) if answer.status == OK else None
        if body is None:
            answer.read()
        return Got(
            body,
            trainer.rank,
            plan=answer.headers["MMS-Plan"],
            step=int(answer.headers["MMS-Step"]),
            rows=int(answer.headers["MMS-Rows"]),
            columns=int(answer.headers["MMS-Columns"]),
            copied=told - float(answer.headers["MMS-Age"]),
            tag=answer.headers.get("ETag", ""),
        )

    def _connect(self, host: str, port: int, unit: str, timeout: float) -> http.client.HTTPConnection:
        """Raises OSError, UnreachableError for a peer that is something else."""
        if self.tls_dir is None:
            return http.client.HTTPConnection(host, port, timeout=timeout)
        context = tls.client_context(self.tls_dir)
        context.check_hostname = False  # of the job's authority; the unit says what it is
        connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=context)
        connection.connect()
        assert isinstance(connection.sock, ssl.SSLSocket)  # noqa: S101 - HTTPSConnection makes one
        if unit not in tls.organisational_units(connection.sock.getpeercert()):
            connection.close()
            raise UnreachableError(f"{host}:{port} shows a certificate that is for no {unit}")
        return connection


def _read(answer: http.client.HTTPResponse) -> bytearray:
    """Raises ValueError for a body that ends too early."""
    size = int(answer.headers["Content-Length"])
    body = bytearray(size)
    view = memoryview(body)
    while view:
        count = answer.readinto(view[:PIECE_BYTES])
        if not count:
            raise ValueError(f"{len(view)} bytes are missing at the end of the answer")
        view = view[count:]
    return body
