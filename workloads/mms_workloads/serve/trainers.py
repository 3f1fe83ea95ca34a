"""Parameters from the workers or shards of a running training: who has them, by its master's word, and the parameters.

HTTPS with a certificate that the training's own authority has made for readers. What a pod of an earlier attempt or
membership epoch says does not count, nor what is of another run.
"""

from __future__ import annotations

import http.client
import itertools
import ssl
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mms_workloads.contract import MASTER_PORT, OU_MASTER, OU_SHARD, OU_WORKER, Trainers
from mms_workloads.sync import hosts, tls

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from mms_workloads.contract import LiveSource, Trainer

CONNECT_SECONDS = 2.0
READ_SECONDS = 10.0
MASTER_SECONDS = 2.0  # how long the master's word is believed
WORD_BYTES = 1 << 20
PIECE_BYTES = 1 << 20
MASTER = "master"  # in the place of an address
OK, NOT_MODIFIED = 200, 304


class UnreachableError(Exception):
    """Nobody gives parameters now; the message says why."""


@dataclass(frozen=True, slots=True)
class Got:
    """An answer. body: None where it is what was had before."""

    body: memoryview | None
    plan: str
    step: int = 0
    first: int = 0  # row
    rows: int = 0
    columns: int = 0
    copied: float = 0.0  # monotonic seconds of this machine when they were copied, but for the network's latency
    tag: str = ""


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
    _connections: dict[str, http.client.HTTPConnection] = field(default_factory=dict)  # by address
    _asked_last: str = ""  # address of the worker
    _failed: set[str] = field(default_factory=set)  # addresses, since the master was asked

    def get(self, what: str, *, after: str = "") -> Got:
        """vocabulary, task, sample, or the parameters unless they have the tag `after`. Raises UnreachableError."""
        errors: list[str] = []
        for _ in range(2):
            known = self._who()
            if what == "parameters" and known.shards is not None:
                try:
                    return self._of_shards(known.shards, after)
                except UnreachableError as error:
                    errors.append(str(error))
            else:
                for trainer in self._in_turn(known.trainers):
                    try:
                        found = self._ask(trainer, what, after, OU_WORKER)
                    except UnreachableError as error:
                        errors.append(str(error))
                    else:
                        self._asked_last = trainer.address
                        return found
            self._asked = 0.0  # the master may know others by now
        raise UnreachableError("; ".join(dict.fromkeys(errors)) or "the training has no worker that trains now")

    def close(self) -> None:
        while self._connections:
            self._connections.popitem()[1].close()

    def _who(self) -> Trainers:
        """Whom the master has named, at most MASTER_SECONDS ago unless it does not answer. Raises UnreachableError."""
        now = time.monotonic()
        if self._known is None or now - self._asked > MASTER_SECONDS:
            try:
                self._known = self._ask_master()
                self._failed.clear()
            except (OSError, http.client.HTTPException, ValueError, UnreachableError) as error:
                # Workers train on while a master is replaced.
                if self._known is None:
                    raise UnreachableError(f"the training's master: {error or type(error).__name__}") from error
            self._asked = now
        return self._known

    def _in_turn(self, trainers: list[Trainer]) -> list[Trainer]:
        """The one that was asked before, then from this pod's own place on; those that have failed last."""
        found = sorted(trainers, key=lambda one: one.rank)
        start = self.number % len(found) if found else 0
        found = [*found[start:], *found[:start]]
        return sorted(found, key=lambda one: (one.address in self._failed, one.address != self._asked_last))

    def _of_shards(self, shards: list[Trainer], after: str) -> Got:
        """All rows, of which each shard has some: as old as the oldest. Raises UnreachableError."""
        tags = after.split() if after else []
        tags = tags if len(tags) == len(shards) else [""] * len(shards)
        parts = [self._ask(one, "parameters", tag, OU_SHARD) for one, tag in zip(shards, tags, strict=True)]
        if any(part.body is not None for part in parts):
            parts = [
                part if part.body is not None else self._ask(one, "parameters", "", OU_SHARD)
                for one, part in zip(shards, parts, strict=True)
            ]
        rows = sum(part.rows for part in parts)
        ends = itertools.accumulate((part.rows for part in parts), initial=0)
        laid_out = all(part.first == begin for part, begin in zip(parts, ends, strict=False))
        if not rows or not laid_out or len({(part.plan, part.columns) for part in parts}) > 1:
            raise UnreachableError("the training's shards are laid out anew")
        whole = None if parts[0].body is None else memoryview(b"".join(part.body or b"" for part in parts))
        return Got(
            whole,
            parts[0].plan,
            step=min(part.step for part in parts),
            rows=rows,
            columns=parts[0].columns,
            copied=min(part.copied for part in parts),
            tag=" ".join(part.tag for part in parts),
        )

    def _ask_master(self) -> Trainers:
        try:
            text = self._master_says()
        except BaseException:
            self._drop(MASTER)  # another process may have its name by now
            raise
        found = Trainers.model_validate_json(text)
        if (found.uid, found.run) != (self.live.uid, self.live.run):
            self._drop(MASTER)
            raise ValueError(f"it is of run {found.run} of job {found.uid}")
        return found

    def _master_says(self) -> bytes:
        connection = self._connections.get(MASTER)
        if connection is None:
            connection = self._connect(self.live.masterHost, self.port, OU_MASTER, CONNECT_SECONDS)
            self._connections[MASTER] = connection
        connection.request("GET", "/v1/trainers")
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != OK:
            raise ValueError(f"{answer.status} {text[:200].decode(errors='replace').strip()}")
        return text

    def _drop(self, place: str) -> None:
        if connection := self._connections.pop(place, None):
            connection.close()

    def _ask(self, trainer: Trainer, what: str, after: str, unit: str) -> Got:
        """Raises UnreachableError."""
        try:
            return self._answer(trainer, what, after, unit)
        except (OSError, http.client.HTTPException, UnreachableError, ValueError, TypeError) as error:
            self._failed.add(trainer.address)
            self._drop(trainer.address)
            raise UnreachableError(f"{unit} {trainer.rank}: {error or type(error).__name__}") from error

    def _answer(self, trainer: Trainer, what: str, after: str, unit: str) -> Got:
        connection = self._connections.get(trainer.address)
        if connection is None:
            host, _, port = trainer.address.rpartition(":")
            connection = self._connections[trainer.address] = self._connect(host, int(port), unit, READ_SECONDS)
        headers = {"MMS-Job": f"{self.live.uid}/{self.live.run}"}
        if after:
            headers["If-None-Match"] = after
        connection.request("GET", f"/v1/{what}", headers=headers)
        answer = connection.getresponse()
        told = time.monotonic()
        if answer.status not in {OK, NOT_MODIFIED}:
            raise UnreachableError(answer.read(WORD_BYTES)[:200].decode(errors="replace").strip())
        fenced = (int(answer.headers["MMS-Attempt"]), int(answer.headers["MMS-Epoch"]))
        known = self._known
        if known is not None and fenced < (known.attempt, known.epoch):
            raise UnreachableError(f"it is in membership epoch {fenced[1]} and {known.epoch} has begun")
        body = memoryview(_read(answer)) if answer.status == OK else None
        if body is None:
            answer.read()
        step, first, rows, columns = (
            int(answer.headers.get(f"MMS-{name}", 0)) for name in ("Step", "First", "Rows", "Columns")
        )
        copied = told - float(answer.headers.get("MMS-Age", 0))
        tag = answer.headers.get("ETag", "")
        return Got(body, answer.headers["MMS-Plan"], step, first, rows, columns, copied, tag)

    def _connect(self, host: str, port: int, unit: str, timeout: float) -> http.client.HTTPConnection:
        """Raises OSError, UnreachableError for a peer that is something else."""
        if self.tls_dir is None:
            connection = http.client.HTTPConnection(host, port, timeout=CONNECT_SECONDS)
            connection.connect()
            _prepare(connection.sock, timeout)
            return connection
        context = tls.client_context(self.tls_dir)
        context.check_hostname = False  # of the job's authority; the unit says what it is
        connection = http.client.HTTPSConnection(host, port, timeout=CONNECT_SECONDS, context=context)
        connection.connect()
        assert isinstance(connection.sock, ssl.SSLSocket)  # noqa: S101 - HTTPSConnection makes one
        _prepare(connection.sock, timeout)
        if unit not in tls.organisational_units(connection.sock.getpeercert()):
            connection.close()
            raise UnreachableError(f"{host}:{port} shows a certificate that is for no {unit}")
        return connection


def _prepare(connection: socket.socket, timeout: float) -> None:
    """timeout: of a read, seconds, which a worker that is asked much needs; a host that is gone is noticed before."""
    connection.settimeout(timeout)
    hosts.watch(connection)


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
