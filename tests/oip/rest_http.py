"""REST: methods, types and encodings of bodies, connections."""

from __future__ import annotations

import gzip
import http.client
import io
import socket
import time
import zlib
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tests.oip import model as tensors
from tests.oip import rest
from tests.oip.checks import HTTP, REST_MD, ProblemError, check
from tests.oip.rest_metadata import NO_MODEL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tests.oip.checks import Subject

RAW = ("socket",)
PIECES_CUT, PIECES_PAUSES = len("POST /v2/mod"), (*(0.02,) * 5, *(0.1,) * 5, *(0.5,) * 2)
PACK: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}


def infer_path(subject: Subject) -> str:
    return f"{rest.model_path(subject.model)}/infer"


def bad_replies(subject: Subject) -> Iterator[rest.Reply]:
    """Errors of several kinds: a request that is no JSON, one that no model answers, metadata, a path, a method."""
    yield rest.infer(subject, b"{")
    yield rest.infer(subject, {"inputs": []})
    yield rest.infer(subject, rest.request(subject.model.example), f"v2/models/{NO_MODEL}/infer")
    yield rest.ask(subject, "GET", f"v2/models/{NO_MODEL}")
    yield rest.ask(subject, "GET", f"v2/models/{NO_MODEL}/ready")
    yield rest.ask(subject, "GET", "v2/no-such-path")
    yield rest.ask(subject, "GET", infer_path(subject))


@check("rest.content-type", REST_MD, "answers are application/json", clients=rest.NAMES, once=True)
def content_type(subject: Subject) -> Iterator[str]:
    for reply in (
        rest.ask(subject, "GET", "v2"),
        rest.ask(subject, "GET", rest.model_path(subject.model)),
        rest.infer(subject, rest.request(subject.model.example)),
    ):
        kind = reply.headers.get("content-type", "")
        if kind.partition(";")[0] != "application/json":
            yield f"Content-Type {kind!r}"


@check(
    "rest.content-type.errors", HTTP, "an error object is said to be application/json", clients=rest.NAMES, once=True
)
def content_type_of_errors(subject: Subject) -> Iterator[str]:
    kinds = {reply.headers.get("content-type", "").partition(";")[0] for reply in bad_replies(subject)}
    if kinds != {"application/json"}:
        yield f"Content-Type {', '.join(sorted(kinds))}"


@check(
    "rest.content-type.of-a-request", "docs/serving-protocol.md", "a request's type may have parameters, or be the one "
    "that curl -d sends", clients=rest.NAMES, once=True,
)  # fmt: skip
def content_type_of_requests(subject: Subject) -> Iterator[str]:
    for kind in ("application/json; charset=utf-8", "application/x-www-form-urlencoded"):
        example = subject.model.example
        reply = rest.infer(subject, rest.request(example), headers={"Content-Type": kind})
        yield from rest.right(reply, subject, example.outputs)


def method(name: str, says: str, paths: tuple[str, ...], methods: tuple[str, ...]) -> None:
    @check(f"rest.method.{name}", REST_MD, says, clients=rest.NAMES, once=True)
    def ask(subject: Subject) -> Iterator[str]:
        for path in paths:
            for verb in methods:
                reply = rest.ask(subject, verb, path.format(model=rest.model_path(subject.model)))
                yield from rest.refused(reply, (405,))


METADATA = ("v2", "v2/health/live", "v2/health/ready", "{model}", "{model}/ready")
method("infer", "inference is a POST", ("{model}/infer",), ("GET", "PUT", "DELETE", "PATCH"))
method("metadata", "health and metadata are a GET", METADATA, ("POST", "PUT", "DELETE", "PATCH"))


@check("rest.method.allow", HTTP, "405 says in Allow what is allowed", clients=rest.NAMES, once=True)
def allow(subject: Subject) -> Iterator[str]:
    replies = [rest.ask(subject, "GET", infer_path(subject)), rest.ask(subject, "POST", "v2", b"{}", rest.JSON)]
    if not all(reply.headers.get("allow") for reply in replies):
        yield "no Allow"


@check("rest.method.head", HTTP, "where GET is answered HEAD is, too", clients=RAW, once=True)
def head(subject: Subject) -> Iterator[str]:
    statuses = {_head(subject, path)[0] for path in ("v2", "v2/health/live", "v2/health/ready")}
    if statuses != {b"200"}:
        yield f"HTTP {b', '.join(sorted(statuses)).decode()}, not 200"


@check("rest.method.head.empty", HTTP, "an answer to HEAD has no content, whatever its status", clients=RAW, once=True)
def head_is_empty(subject: Subject) -> Iterator[str]:
    """Content would be taken for the next answer of the connection."""
    content = _head(subject, "v2")[1]
    if content:
        yield f"content after the header\n{content!r}"


@check("rest.encoding.request", HTTP, "a body in an encoding that the server offers", clients=rest.NAMES)
def packed(subject: Subject) -> Iterator[str]:
    """Of any size: the answer's rows would be wrong if a part of it were lost."""
    for encoding in subject.target.encodings:
        for count in (1, subject.model.max_batch):
            asked = tensors.batch(subject.model.example, count)
            content = PACK[encoding](rest.to_bytes(rest.request(asked)))
            reply = rest.infer(subject, content, headers={"Content-Encoding": encoding})
            yield from rest.right(reply, subject, asked.outputs)


@check("rest.encoding.answer", HTTP, "an answer in an encoding that the server offers", clients=rest.NAMES)
def unpacked(subject: Subject) -> Iterator[str]:
    for encoding in subject.target.encodings:
        for count in (1, subject.model.max_batch):
            asked = tensors.batch(subject.model.example, count)
            reply = rest.infer(subject, rest.request(asked), headers={"Accept-Encoding": encoding})
            if reply.headers.get("content-encoding") != encoding:
                yield f"{encoding} is not offered"
            yield from rest.right(reply, subject, asked.outputs)


@check("rest.encoding.not-wanted", HTTP, "no encoding that the client does not take", clients=rest.NAMES)
def not_wanted(subject: Subject) -> Iterator[str]:
    example = subject.model.example
    for accepted in ("identity", "gzip;q=0, deflate;q=0", "x-mms"):
        reply = rest.infer(subject, rest.request(example), headers={"Accept-Encoding": accepted})
        if reply.headers.get("content-encoding", "identity") != "identity":
            yield f"{reply.headers['content-encoding']}, though not accepted"
        yield from rest.right(reply, subject, example.outputs)


@check("rest.encoding.unknown", HTTP, "a request's encoding that is not known is 415", clients=rest.NAMES, once=True)
def unknown(subject: Subject) -> Iterator[str]:
    reply = rest.infer(subject, rest.request(subject.model.example), headers={"Content-Encoding": "x-mms"})
    yield from rest.refused(reply, (415,))


def damaged(name: str, says: str, damage: Callable[[bytes, bytes], bytes]) -> None:
    """`damage` makes a bad body of a good one and the same in its encoding."""

    @check(f"rest.encoding.{name}", HTTP, says, clients=rest.NAMES, once=True)
    def ask(subject: Subject) -> Iterator[str]:
        body = rest.to_bytes(rest.request(subject.model.example))
        for encoding in subject.target.encodings:
            bad = damage(body, PACK[encoding](body))
            reply = rest.infer(subject, bad, headers={"Content-Encoding": encoding})
            if found := [*rest.refused(reply)]:
                yield found[0]
                return


damaged("not-encoded", "a body that is not in its encoding is an error", lambda body, _: body)
damaged(
    "truncated", "a body whose encoding ends in its middle is an error", lambda _, packed: packed[: len(packed) // 2]
)
damaged("checksum", "a body whose checksum is wrong is an error", lambda _, packed: packed[:-4] + b"\0\0\0\0")


@check(
    "rest.connection.kept", HTTP, "one connection takes requests of all kinds one after another, errors among them",
    clients=RAW,
)  # fmt: skip
def kept(subject: Subject) -> Iterator[str]:
    """http.client would open another connection for a request after the server closed the first: here it may not."""
    example = subject.model.example
    good = rest.to_bytes(rest.request(example))
    path = infer_path(subject)
    asked: list[tuple[str, str, bytes | None, int | None]] = [
        ("POST", path, good, 200), ("GET", "v2", None, 200), ("POST", path, b"{", None), ("POST", path, good, 200),
        ("GET", "v2/no-such-path", None, 404), ("GET", path, None, 405), ("GET", "v2/health/live", None, 200),
        ("POST", f"v2/models/{NO_MODEL}/infer", good, 404), ("POST", path, good, 200),
    ]  # fmt: skip
    connection = _connect(subject)
    try:
        for verb, where, body, status in asked:
            try:
                connection.request(verb, f"/{where}", body, rest.JSON)
                reply = _read(connection.getresponse())
            except (OSError, http.client.HTTPException) as error:
                yield f"the connection ended\nbefore {verb} {where} was answered: {error!r}"
                return
            if status is not None and reply.status != status:
                yield f"{verb} {where}: HTTP {reply.status}, not {status}"
            if body is good and status == 200:
                yield from rest.right(reply, subject, example.outputs)
    finally:
        connection.close()


@check("rest.connection.close", HTTP, "Connection: close ends it after the answer", clients=RAW, once=True)
def closed(subject: Subject) -> Iterator[str]:
    body = rest.to_bytes(rest.request(subject.model.example))
    head = (
        f"POST /{infer_path(subject)} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    yield from _last(subject, [head.encode() + body])


@check("rest.connection.http-1.0", HTTP, "HTTP/1.0 is answered, and its connection ended", clients=RAW, once=True)
def old(subject: Subject) -> Iterator[str]:
    body = rest.to_bytes(rest.request(subject.model.example))
    head = f"POST /{infer_path(subject)} HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n"
    yield from _last(subject, [head.encode() + body])


@check(
    "rest.connection.in-pieces", HTTP, "a request's header and body may arrive in any pieces", clients=RAW, once=True
)
def pieces(subject: Subject) -> Iterator[str]:
    line, end, rest_of_it = _request(subject).partition(b"\r\n")
    yield from _last(subject, [line + end, *(rest_of_it[i : i + 7] for i in range(0, len(rest_of_it), 7))])


@check("rest.connection.path-in-pieces", HTTP, "a request's path may arrive in two pieces", clients=RAW, once=True)
def path_in_pieces(subject: Subject) -> Iterator[str]:
    """A pause makes the server read the first piece alone, unless it is slow: so it is asked more than once."""
    whole = _request(subject)
    for pause in PIECES_PAUSES:
        try:
            found = [*_last(subject, [whole[:PIECES_CUT], whole[PIECES_CUT:]], pause)]
        except ProblemError as error:
            found = [str(error)]
        if found:
            yield f"another path than was sent\n{found[0]}"
            return


@check("rest.connection.chunked", HTTP, "a body of unknown length comes in chunks", clients=RAW)
def chunked(subject: Subject) -> Iterator[str]:
    example = subject.model.example
    body = rest.to_bytes(rest.request(example))
    connection = _connect(subject)
    try:
        parts = iter([body[:20], body[20:]])
        connection.request("POST", f"/{infer_path(subject)}", parts, rest.JSON, encode_chunked=True)
        yield from rest.right(_read(connection.getresponse()), subject, example.outputs)
    finally:
        connection.close()


@check(
    "rest.connection.continue", HTTP, "Expect: 100-continue is answered before the body is sent", clients=RAW, once=True
)
def continues(subject: Subject) -> Iterator[str]:
    body = rest.to_bytes(rest.request(subject.model.example))
    head = f"POST /{infer_path(subject)} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\n"
    with _socket(subject) as opened, opened.makefile("rb") as answers:
        opened.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
        try:
            first = answers.readline()
        except TimeoutError:
            first = b""
        if b" 100 " not in first:
            yield f"no 100 Continue\n{first!r}"
            return
        while answers.readline().strip():
            pass
        opened.sendall(body)
        yield from _right(answers.read(), subject)


def _request(subject: Subject) -> bytes:
    body = rest.to_bytes(rest.request(subject.model.example))
    head = (
        f"POST /{infer_path(subject)} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _head(subject: Subject, path: str) -> tuple[bytes, bytes]:
    """Status and content of the answer."""
    content = _exchanged(subject, [f"HEAD /{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()])
    head, _, body = content.partition(b"\r\n\r\n")
    return head.partition(b"\r\n")[0].split()[1], body


def _last(subject: Subject, sent: Iterable[bytes], pause: float = 0) -> Iterator[str]:
    """What is wrong with the answer to a request after which the server must end the connection."""
    yield from _right(_exchanged(subject, sent, pause), subject)


def _exchanged(subject: Subject, sent: Iterable[bytes], pause: float = 0) -> bytes:
    """All that the server sends until it ends the connection. Raises ProblemError."""
    with _socket(subject) as opened:
        for place, piece in enumerate(sent):
            time.sleep(pause if place else 0)
            opened.sendall(piece)
        try:
            with opened.makefile("rb") as answers:
                return answers.read()
        except TimeoutError:
            raise ProblemError("the server does not end the connection") from None


def _right(content: bytes, subject: Subject) -> Iterator[str]:
    answer = http.client.HTTPResponse(_Received(content))  # type: ignore[arg-type]
    try:
        answer.begin()
        reply = _read(answer)
    except http.client.HTTPException as error:
        yield f"no answer in HTTP\n{error!r}: {content[:300]!r}"
        return
    yield from rest.right(reply, subject, subject.model.example.outputs)


class _Received:
    """Bytes in the place of a socket."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def makefile(self, _: str) -> io.BytesIO:
        return io.BytesIO(self.content)


def _connect(subject: Subject) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection(urlsplit(subject.target.rest).netloc, timeout=rest.TIMEOUT_SECONDS)
    connection.connect()
    connection.auto_open = 0
    return connection


def _socket(subject: Subject) -> socket.socket:
    where = urlsplit(subject.target.rest)
    opened = socket.create_connection((where.hostname, where.port), timeout=rest.TIMEOUT_SECONDS)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return opened


def _read(answer: http.client.HTTPResponse) -> rest.Reply:
    return rest.Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
