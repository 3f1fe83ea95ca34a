"""Where Triton does not do what the protocol, HTTP or its own extension says. A conforming case fails the kit as well.

python -m tests.oip.deviations      the table of docs/serving-protocol.md
"""

from __future__ import annotations

from tests.oip.checks import CHECKS, Deviation
from tests.oip.kit import cases

NOT_OPTIONAL = ("vectors", "neighbours", "analogies")  # whose inputs are not all required
NO_CLIENT_ERROR = "HTTP 500, not 4xx"
SHOWN = 3  # checks that a row names
WITH_INT32 = ("neighbours", "analogies")
WITH_INT64 = ("vectors", "neighbours", "analogies")


def _errors(*names: str) -> tuple[str, ...]:
    return tuple(f"rest.error.{name}" for name in names)


PARSED = (
    *_errors(
        "malformed-json", "truncated-json", "trailing-text", "json-list", "json-null", "not-utf8",
        "lone-surrogate.BYTES", "without-inputs", "inputs-no-list", "input-without-name", "input-without-datatype",
        "input-without-shape", "output-without-name", "id-no-string", "shape-negative", "data-no-list", "null.BYTES",
        "object.BYTES", "number-for-text.BYTES",
    ),
    "rest.binary.error.negative-size", "rest.binary.error.header-too-short", "rest.binary.error.no-header",
    "rest.encoding.truncated",
)  # fmt: skip
NUMBERS = ("too-few", "too-many", "null", "object", "text-for-number", "fraction")
PARSER = 'a failed request is an HTTP error status, "typically 400": of 4xx, where the client is at fault'
PARSER_DOES = "500, with the error object, for what its parser of JSON refuses"

TRITON = (
    Deviation(
        ("rest.live.body", "rest.ready.body", "rest.model-ready.body"),
        "health and readiness have JSON bodies (open_inference_rest.yaml has none)",
        "the status alone, no body",
        "the body is empty, not JSON",
    ),
    Deviation(
        ("kserve.rest.live", "kserve.rest.ready"),
        "`InferenceRESTClient.is_server_live`, `is_server_ready` read them",
        "they raise JSONDecodeError; `is_model_ready`, and all over gRPC, work",
        "JSONDecodeError",
    ),
    Deviation(
        ("rest.server-metadata.slash",),
        "server metadata are at `v2/`; the other document has `v2`",
        "404; `v2` is it",
        "HTTP 404, not 200",
    ),
    Deviation(
        ("rest.model-metadata.platform",),
        "a platform is `<project>_<format>`",
        "`python` for the models of its python backend",
        "platform 'python'",
    ),
    Deviation(
        ("rest.model-metadata.required",),
        "the metadata's inputs are required",
        "optional ones are listed, too, and nothing tells them apart: of WORDS and IDS give one, K may be left out",
        "inputs are listed that a request can leave out",
        NOT_OPTIONAL,
    ),
    Deviation(("rest.infer.id.empty",), "an id comes back", "an empty one does not", "the answer has no id"),
    Deviation(PARSED, PARSER, PARSER_DOES, NO_CLIENT_ERROR),
    Deviation(_errors(*(f"{name}.INT32" for name in NUMBERS)), PARSER, PARSER_DOES, NO_CLIENT_ERROR, WITH_INT32),
    Deviation(
        _errors(*(f"{name}.INT64" for name in (*NUMBERS, "past-the-end"))),
        PARSER,
        PARSER_DOES,
        NO_CLIENT_ERROR,
        WITH_INT64,
    ),
    Deviation(
        _errors("past-the-end.INT32"),
        "a number that an INT32 cannot hold is an error, or coerced",
        "taken modulo 2^32: 4294967298 asks for K = 2. INT64, and gRPC, have no such case",
        "HTTP 200, not 4xx",
        WITH_INT32,
    ),
    Deviation(
        _errors("data-otherwise-nested"),
        "data are flat or in the tensor's shape",
        "in any nesting, as long as the number of elements is right",
        "HTTP 200, not 4xx",
    ),
    Deviation(
        ("rest.content-type.errors",),
        "an error object is `application/json`",
        "`text/plain` for unknown models, paths, methods and what a model refuses, `application/json` for other errors",
        "Content-Type application/json, text/plain",
    ),
    Deviation(
        ("kserve.rest.error-messages",),
        "`InferenceRESTClient` raises an error with the message",
        "with the status, without the message of what is `text/plain`",
        "the message is lost",
    ),
    Deviation(("rest.method.allow",), "405 comes with Allow", "without", "no Allow"),
    Deviation(("rest.method.head",), "HEAD is answered as GET", "405", "HTTP 405, not 200"),
    Deviation(
        ("rest.method.head.empty",),
        "an answer to HEAD has no content",
        "the error object follows, and would be taken for the next answer: never send HEAD on a kept connection",
        "content after the header",
    ),
    Deviation(
        ("rest.path.percent-encoded",), "`%65` in a path is `e`", "404: paths are not decoded", "HTTP 404, not 200"
    ),
    Deviation(
        ("rest.connection.path-in-pieces",),
        "a request may arrive in any pieces",
        "404, or an ended connection, when the path itself comes in two TCP segments",
        "another path than was sent",
    ),
    Deviation(("rest.encoding.unknown",), "an unknown Content-Encoding is 415", "501", "HTTP 501, not 415"),
    Deviation(
        ("rest.encoding.checksum",),
        "a compressed body has a checksum",
        "it is not looked at",
        "HTTP 200, not 4xx",
    ),
    Deviation(
        ("rest.binary.all-named-outputs",),
        "`binary_data_output` is for all outputs",
        "only where the request names none: else give each `binary_data`",
        "binary data of other outputs than asked for",
    ),
    Deviation(
        ("grpc.error.raw-of-one-too-many",),
        "raw contents are one for each input",
        "more are not looked at",
        "OK, not INVALID_ARGUMENT",
    ),
)

_MENDED = {"rest.method.head.empty", "rest.connection.path-in-pieces"}
BEHIND_EDGE = tuple(one for one in TRITON if not _MENDED & {*one.checks})  # nginx reads and answers as HTTP is


def table() -> str:
    """In Markdown; what several deviations have in common is one row."""
    rows: dict[tuple[str, str], list[str]] = {}
    for one in TRITON:
        rows.setdefault((one.says, one.does), []).extend(one.checks)
    lines = ["| asked for | by | what Triton does | checks |", "|---|---|---|---|"]
    for (says, does), names in rows.items():
        sources = ", ".join(dict.fromkeys(CHECKS[name].source for name in names))
        shown = ", ".join(f"`{name}`" for name in names[:SHOWN])
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        lines.append(f"| {says} | {sources} | {does} | {shown}{more} |")
    return "\n".join(lines) + "\n"


def counted() -> str:
    names = {name for one in TRITON for name in one.checks}
    return f"{len(CHECKS)} requirements make {len(cases())} cases by the clients in turn; {len(names)} deviate"


if __name__ == "__main__":
    print(table())  # noqa: T201
    print(counted())  # noqa: T201
