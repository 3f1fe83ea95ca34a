"""How two peers become a channel: TCP, mutual TLS, a greeting, and an answer.

The side that connects says who it is and for which epoch; the other admits or refuses it, and a refusal says why. All
connections of a listener that have not greeted yet are served together, so that none keeps another waiting.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import socket
import struct
import time
from collections import deque
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import structlog

from mms_workloads.transport.errors import PeerLost, Refused
from mms_workloads.transport.frames import Channel, Greeting
from mms_workloads.transport.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from mms_workloads.transport.security import Context, Security
    from mms_workloads.transport.stream import Abort

GREETING_SECONDS = 10.0  # that a peer has for TLS and its greeting
MAX_GREETING_BYTES = 4096
MAX_WAITING = 256  # peers that have not greeted yet
BACKLOG = 256
DRAINED = 16  # reads of what a peer that is dismissed had sent
_TEXT = struct.Struct("<4sI")  # magic, bytes of the JSON text that follows
_MAGIC = b"MMS1"
_TLS_HANDSHAKE, _TLS_ALERT = b"\x16\x03", b"\x15\x03"  # the type of a record and the first half of its version
_TLS_REFUSAL = b"\x15\x03\x03\x00\x02\x02\x46"  # a fatal alert: protocol_version
ONE_TRANSPORT = "All pods of a job have the same transport, MutualTLS or Plain."

log = structlog.get_logger()


class Meeting:
    """A connection on its way to a channel. `advance` until `done`; then `result` is there or `error` says why not.

    steps: yield the poll events that the next one waits for.
    """

    def __init__(self, descriptor: int, steps: Generator[int, None, Any], deadline: float | None) -> None:
        self.descriptor, self.deadline = descriptor, deadline
        self.events = select.POLLIN | select.POLLOUT
        self.done = False
        self.result: Any = None
        self.error: Exception | None = None
        self._steps = steps

    def advance(self) -> None:
        try:
            if self.deadline is not None and time.monotonic() >= self.deadline:
                self._steps.throw(PeerLost("the peer did not answer in time"))
            self.events = next(self._steps)
        except StopIteration as stop:
            self.done, self.result = True, stop.value
        except (PeerLost, Refused, ValueError) as error:
            self.done, self.error = True, error

    def cancel(self) -> None:
        self._steps.close()
        self.done = True


def serve(meetings: Sequence[Meeting], others: Sequence[int], abort: Abort, deadline: float | None) -> list[int]:
    """Waits until something can go on and advances it. Which of the descriptors `others` are readable.

    Raises PeerLost when aborted.
    """
    poll = select.poll()
    for descriptor in (abort.fileno(), *others):
        poll.register(descriptor, select.POLLIN)
    for meeting in meetings:
        poll.register(meeting.descriptor, meeting.events)
    ends = [m.deadline for m in meetings if m.deadline is not None] + ([] if deadline is None else [deadline])
    left = max(0.0, min(ends) - time.monotonic()) * 1000 + 1 if ends else None
    ready = {descriptor for descriptor, _ in poll.poll(left)}
    if abort.is_set():
        raise PeerLost("aborted")
    for meeting in meetings:
        late = meeting.deadline is not None and time.monotonic() >= meeting.deadline
        if meeting.descriptor in ready or late:
            meeting.advance()
    return [descriptor for descriptor in others if descriptor in ready]


class Pending:
    """A peer that has greeted and waits for the answer."""

    def __init__(self, stream: Stream, greeting: Greeting, listener: Listener) -> None:
        self._stream, self._greeting, self._listener = stream, greeting, listener

    def admit(self) -> Channel:
        """Raises PeerLost."""
        self._stream.send([_packed({"admitted": True})], GREETING_SECONDS)
        return Channel(self._stream, self._greeting.fence, self._greeting)

    def stream(self) -> Stream:
        """Admits it, for other uses than a channel's. Raises PeerLost."""
        self._stream.send([_packed({"admitted": True})], GREETING_SECONDS)
        return self._stream

    def refuse(self, why: str) -> None:
        _dismiss(self._stream, _packed({"refused": why}))

    def defer(self) -> None:
        """A later `accept` gives it again. For the thread that accepts."""
        self._listener.put_back(self, self._greeting)

    def rebind(self, abort: Abort) -> None:
        self._stream.rebind(abort)


class Listener:
    """Accepts peers on a port that the system chooses. `accept` is for one thread at a time."""

    def __init__(self, host: str, security: Security) -> None:
        """host: an address of this pod. Raises OSError, and ValueError when the certificates are not usable."""
        self._security, self._context = security, security.context(server=True)
        self._socket = socket.create_server((host, 0), family=_family(host), backlog=BACKLOG)
        self._socket.setblocking(False)
        self.port: int = self._socket.getsockname()[1]
        self._meetings: list[Meeting] = []
        self._greeted: deque[tuple[Pending, Greeting]] = deque()

    def accept(self, abort: Abort, timeout: float | None) -> tuple[Pending, Greeting]:
        """The next peer that has greeted; one that greets wrongly is refused here, and keeps nobody waiting.

        Raises PeerLost when aborted, or when there was none for so many seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            if abort.is_set():
                raise PeerLost("aborted")
            if found := self.take(abort):
                return found
            if deadline is not None and time.monotonic() >= deadline:
                raise PeerLost(f"no peer connected within {timeout:g} s")
            self.serve(abort, deadline)

    def take(self, abort: Abort) -> tuple[Pending, Greeting] | None:
        """One that has greeted already."""
        if not self._greeted:
            return None
        pending, greeting = self._greeted.popleft()
        pending.rebind(abort)
        return pending, greeting

    def put_back(self, pending: Pending, greeting: Greeting) -> None:
        self._greeted.append((pending, greeting))

    def serve(self, abort: Abort, deadline: float | None, beside: Sequence[Meeting] = ()) -> None:
        """Waits for something to happen, here or with the meetings `beside`. Raises PeerLost when aborted."""
        if serve([*self._meetings, *beside], [self._socket.fileno()], abort, deadline):
            self._arrivals(abort)
        for meeting in [m for m in self._meetings if m.done]:
            self._meetings.remove(meeting)
            if meeting.result:
                stream, greeting = meeting.result
                self._greeted.append((Pending(stream, greeting, self), greeting))

    def close(self) -> None:
        self._socket.close()
        for meeting in self._meetings:
            meeting.cancel()
        while self._greeted:
            self._greeted.popleft()[0].refuse("the peer has ended")

    def _arrivals(self, abort: Abort) -> None:
        while True:
            try:
                connection, address = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:  # the peer has gone again, or descriptors are short: others may do better
                log.warning("no connection accepted", why=os.strerror(error.errno or 0))
                return
            connection.setblocking(False)
            if len(self._meetings) >= MAX_WAITING:
                self._meetings.pop(0).cancel()
            steps = _arrival(connection.detach(), self._context, self._security, abort, address[0])
            meeting = Meeting(*_started(steps), time.monotonic() + GREETING_SECONDS)
            self._meetings.append(meeting)


def connect(  # noqa: PLR0917 - all of them are needed, and none stands for another
    host: str, port: int, security: Security, greeting: Greeting, abort: Abort, timeout: float | None
) -> Channel:
    """A channel to a peer that admits it within so many seconds. Raises PeerLost, Refused."""
    deadline = None if timeout is None else time.monotonic() + timeout
    meeting = dial(host, port, security, greeting, abort, deadline)
    try:
        while not meeting.done:
            serve([meeting], [], abort, None)
    finally:
        meeting.cancel()
    return Channel(result_of(meeting), greeting.fence, None)


def dial(  # noqa: PLR0917 - like connect
    host: str, port: int, security: Security, greeting: Greeting, abort: Abort, deadline: float | None
) -> Meeting:
    """Starts to connect. The meeting's result is a Stream."""
    if abort.is_set():
        raise PeerLost("aborted")
    connection = socket.socket(_family(host), socket.SOCK_STREAM)
    connection.setblocking(False)
    error = connection.connect_ex((host, port))
    if error not in {0, errno.EINPROGRESS}:
        connection.close()
        raise PeerLost(f"{host}:{port}: {os.strerror(error)}")
    steps = _departure(connection.detach(), security, greeting, abort, f"{host}:{port}")
    return Meeting(*_started(steps), deadline)


def result_of(meeting: Meeting) -> Any:
    """Raises the error that it ended with."""
    if meeting.error:
        raise meeting.error
    return meeting.result


# ---- the steps


def _started(steps: Generator[int, None, Any]) -> tuple[int, Generator[int, None, Any]]:
    """(descriptor, steps): a generator's first value is its descriptor, which it owns from then on."""
    return next(steps), steps


def _arrival(
    descriptor: int, context: Context | None, security: Security, abort: Abort, address: str
) -> Generator[int, None, tuple[Stream, Greeting]]:
    stream = Stream(descriptor, context, abort, server=True)
    try:
        yield descriptor
        yield from _secure(stream, security)
        return stream, (yield from _greeted(stream, security))
    except (PeerLost, Refused, ValueError) as error:
        log.warning("connection refused", peer=address, why=str(error))
        words = _TLS_REFUSAL if isinstance(error, _SpeaksTls) else _packed({"refused": str(error)})
        _dismiss(stream, words, clear=isinstance(error, _SpeaksPlain))
        raise
    except GeneratorExit:
        stream.close()
        raise


def _greeted(stream: Stream, security: Security) -> Generator[int, None, Greeting]:
    greeting = Greeting.read((yield from _hear(stream)))
    security.check_role(stream, greeting.role)
    return greeting


def _departure(
    descriptor: int, security: Security, greeting: Greeting, abort: Abort, peer: str
) -> Generator[int, None, Stream]:
    try:
        context = security.context(server=False)
    except (OSError, ValueError):
        os.close(descriptor)
        raise
    stream = Stream(descriptor, context, abort, server=False)
    try:
        yield descriptor
        yield select.POLLOUT
        _check_connected(descriptor)
        yield from _secure(stream, security)
        yield from _say(stream, _packed(asdict(greeting)))
        _check_admitted((yield from _hear(stream)))
    except PeerLost as error:
        stream.close()
        raise PeerLost(f"{peer}: {error}") from error
    except (Refused, ValueError) as error:
        stream.close()
        raise Refused(f"{peer}: {error}") from error
    except GeneratorExit:
        stream.close()
        raise
    return stream


class _SpeaksTls(Refused):
    """To a side without TLS."""


class _SpeaksPlain(Refused):
    """To a side with TLS."""


def _secure(stream: Stream, security: Security) -> Generator[int, None, None]:
    try:
        while events := stream.handshake():
            yield events
    except Refused as error:
        if not stream.met_tls() or "alert protocol version" in str(error):
            raise _SpeaksPlain(
                f"mutual TLS is wanted on one side, and the other speaks none. {ONE_TRANSPORT}"
            ) from error
        raise
    security.check(stream)


def _say(stream: Stream, data: bytes) -> Generator[int, None, None]:
    while data:
        events, count = stream.send_some(data)
        data = data[count:]
        if events:
            yield events


def _hear(stream: Stream) -> Generator[int, None, dict[str, Any]]:
    head = yield from _exactly(stream, _TEXT.size)
    magic, length = _TEXT.unpack(head)
    if magic != _MAGIC or length > MAX_GREETING_BYTES:
        if head[:2] in {_TLS_HANDSHAKE, _TLS_ALERT}:
            raise _SpeaksTls(f"mutual TLS is wanted on one side, and the other speaks none. {ONE_TRANSPORT}")
        raise Refused("the peer speaks another protocol")
    text = yield from _exactly(stream, length)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused("the peer speaks another protocol") from error
    if not isinstance(document, dict):
        raise Refused("the peer speaks another protocol")
    return document


def _exactly(stream: Stream, size: int) -> Generator[int, None, bytes]:
    data = b""
    while len(data) < size:
        events, more = stream.receive_some(size - len(data))
        data += more
        if events:
            yield events
    return data


def _packed(document: dict[str, Any]) -> bytes:
    text = json.dumps(document, separators=(",", ":")).encode()
    return _TEXT.pack(_MAGIC, len(text)) + text


def _dismiss(stream: Stream, words: bytes, *, clear: bool = False) -> None:
    """Says why, as far as the peer listens, and closes. clear: in clear text, whatever the stream is."""
    with contextlib.suppress(PeerLost, Refused):
        if not clear:
            stream.send_some(words)
        # What was not read when a socket is closed makes a reset of it, which may overtake the words.
        with _socket(stream.descriptor) as connection, contextlib.suppress(OSError):
            if clear:
                connection.send(words)
            connection.shutdown(socket.SHUT_WR)
            for _ in range(DRAINED):
                if not connection.recv(1 << 16):
                    break
    stream.close()


@contextlib.contextmanager
def _socket(descriptor: int) -> Iterator[socket.socket]:
    """Of another owner. No copy of it: descriptors may be short."""
    connection = socket.socket(fileno=descriptor)
    try:
        yield connection
    finally:
        connection.detach()


def _check_connected(descriptor: int) -> None:
    with _socket(descriptor) as connection:
        if error := connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise PeerLost(os.strerror(error))


def _check_admitted(answer: dict[str, Any]) -> None:
    if "refused" in answer:
        raise Refused(f"{answer['refused']}")


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
