"""Wrong servers in REST: their errors, how they carry bodies, and binary data."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tests.oip import faults as f
from tests.oip.faults import Fault, asks, fails, headers, refuse, where, with_
from tests.oip.faults_rest import BINARY_DATA, TRITON
from tests.oip.reference_rest import LENGTH, Got, Reply, reply_to

if TYPE_CHECKING:
    from tests.oip.faults import When

# Of errors: what is wrong with all of them is found by all of these.
BAD = ("rest.error.*", "rest.binary.error.*", "rest.infer.refused")
NOT_THERE = ("rest.model-ready.unknown-*", "rest.model-metadata.unknown-*", "rest.path.unknown")
NOT_400 = tuple(f"!rest.error.{name}" for name in ("unknown-model", "unknown-version", "version-in-words"))
COERCED = ("!rest.error.fraction.*", "!rest.error.number-for-text.*")  # a server may take them
ENCODED = tuple(f"rest.encoding.{name}" for name in ("not-encoded", "truncated", "checksum"))
REFUSED = ("tritonclient.errors", "tritonclient.refused")
PLAIN = ("application/json", "application/octet-stream")
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


def has(name: str, *values: str) -> When:
    return lambda got, _: name in got.headers and (not values or got.headers[name] in values)


def of(method: str, status: int) -> When:
    return lambda got, reply: got.method == method and reply.status == status


def in_words(_: Got, reply: Reply) -> Reply:
    return replace(reply, document=reply.document["error"])


def closed(_: Got, reply: Reply) -> Reply:
    return replace(reply, close=True)


def without_header(got: Got, name: str, value: str) -> Got:
    return replace(got, headers={key: v for key, v in got.headers.items() if (key, v) != (name, value)})


FAULTS = (
    Fault("errors without words", (*BAD, *NOT_THERE, *ENCODED, *REFUSED, "rest.encoding.unknown", "rest.method.infer",
          "rest.method.metadata"), where(f.error, lambda _, reply: replace(reply, document={}))),
    Fault("errors are no objects", (*BAD, *NOT_THERE, *ENCODED, "rest.encoding.unknown", "rest.method.infer",
          "rest.method.metadata"), where(f.error, in_words)),
    Fault("errors are called text", ("rest.content-type.errors",), where(f.error, headers(Content_Type="text/plain"))),
    Fault("errors are called otherwise than they are", ("rest.infer.refused", "tritonclient.refused",
          "tritonclient.errors"), where(f.error, with_(error="no"))),
    Fault("bad requests are answered", (*BAD, *NOT_400, *COERCED, *ENCODED, *REFUSED), where(fails(400), f.good)),
    Fault("bad requests are the server's fault", (*BAD, *NOT_400, *ENCODED, *REFUSED),
          where(fails(400), lambda _, reply: replace(reply, status=500))),
    Fault("all errors are 400", ("rest.infer.refused", "rest.model-metadata.unknown-*", "rest.path.unknown", *REFUSED,
          "rest.error.unknown-model", "rest.error.unknown-version", "rest.error.version-in-words", "rest.method.infer",
          "rest.method.metadata", "rest.encoding.unknown", "rest.connection.kept"),
          where(f.error, lambda _, reply: replace(reply, status=400))),
    Fault("answers are called text", ("rest.content-type", "rest.binary.json", "rest.binary.all*", "rest.binary.o*"),
          where(lambda _, reply: reply.status == 200, headers(Content_Type="text/plain"))),
    Fault("JSON must be called so", ("rest.content-type.of-a-request",),
          where(lambda got, _: f.infers(got) and got.headers.get("content-type", PLAIN[0]) not in PLAIN, refuse(415))),
    Fault("GET infers", ("rest.method.infer", "rest.method.allow", "rest.connection.kept"),
          where(lambda got, _: got.path.endswith("/infer") and got.method == "GET", f.good)),
    Fault("POST reads", ("rest.method.metadata", "rest.method.allow"),
          where(of("POST", 405), lambda got, _: reply_to(replace(got, method="GET")))),
    Fault("405 without Allow", ("rest.method.allow",),
          where(lambda _, reply: reply.status == 405, lambda _, reply: replace(reply, headers={}))),
    Fault("no HEAD", ("rest.method.head",), where(of("HEAD", 200), refuse(405))),
    Fault("HEAD has content", ("rest.method.head.empty",), where(of("HEAD", 200), lambda *_: Reply(200, raw=HEAD))),
    Fault("no compressed requests", ("rest.encoding.request", "tritonclient.infer.compression"),
          where(has("content-encoding"), refuse(415))),
    Fault("no compressed answers", ("rest.encoding.answer",), lambda _, reply: replace(reply, encoding="")),
    Fault("always compressed", ("rest.encoding.answer", "rest.encoding.not-wanted", "rest.connection.*"),
          where(f.answers, lambda _, reply: replace(reply, encoding="gzip"))),
    Fault("encodings are not looked at", ("rest.encoding.unknown",),
          asked=lambda got: without_header(got, "content-encoding", "x-mms")),
    Fault("checksums are not looked at", ("rest.encoding.checksum",),
          where(lambda got, _: "content-encoding" in got.headers and got.body.endswith(bytes(4)), f.good)),
    Fault("broken bodies are answered", ENCODED,
          where(lambda got, reply: "content-encoding" in got.headers and reply.status == 400, f.good)),
    Fault("a connection ends with an error", ("rest.connection.kept",), where(f.error, closed)),
    Fault("a connection does not end", ("rest.connection.*", "rest.method.head*", "!rest.connection.kept",
          "!rest.connection.chunked"), lambda _, reply: replace(reply, close=False), waits=True),
    Fault("no HTTP/1.0", ("rest.connection.http-1.0",), where(lambda got, _: got.http == "1.0", refuse(505))),
    Fault("no chunks", ("rest.connection.chunked",), where(has("transfer-encoding"), refuse(411))),
    Fault("no 100 Continue", ("rest.connection.continue",), continues=False, waits=True),
    Fault("a header comes in one piece", ("rest.connection.*in-pieces",), protocol=f.Impatient),
    Fault("no binary inputs", (*BINARY_DATA, "rest.binary.all-named-outputs", "rest.binary.json", TRITON, *REFUSED,
          "!tritonclient.infer.json"), where(has(LENGTH.lower()), refuse())),
    Fault("all inputs binary, or none", ("rest.binary.some-inputs",),
          where(asks(lambda asked: len({"data" in one for one in asked["inputs"]}) > 1), refuse())),
    Fault("no binary outputs", ("rest.binary.outputs", "rest.binary.all*"), where(f.answers, f.never_binary)),
    Fault("binary outputs without their length", ("rest.binary.outputs", "rest.binary.all*", TRITON,
          "!tritonclient.infer.json"),
          where(lambda _, reply: bool(reply.after), lambda _, reply: replace(reply, headers={LENGTH: ""}))),
    Fault("binary outputs are called JSON", ("rest.binary.outputs", "rest.binary.all*"),
          where(lambda _, reply: bool(reply.after), headers(Content_Type="application/json"))),
    Fault("binary_data_output where none is named", ("rest.binary.all-named-outputs",),
          where(asks(lambda asked: "outputs" in asked and "binary_data_output" in asked.get("parameters", ())),
                f.never_binary)),
    Fault("binary_data_output above all", ("rest.binary.override",),
          asked=lambda got: replace(got, body=got.body.replace(b'"binary_data": false', b'"binary_data": true '))
          if b"binary_data_output" in got.body else got),
    Fault("sizes are not looked at", ("rest.binary.error.*", *REFUSED, "!rest.binary.error.no-header"),
          where(lambda got, reply: LENGTH in got.headers and reply.status == 400, f.good)),
)  # fmt: skip
