"""HTTP as the checks use it: a request by one of several clients, and what its answer says."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import subprocess
import tempfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiohttp
import requests

from tests.oip import model as tensors
from tests.oip.checks import ProblemError
from tests.oip.model import BadTensorError, Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tests.oip.checks import Subject
    from tests.oip.model import Example, Model

TIMEOUT_SECONDS = 30
JSON = {"Content-Type": "application/json"}
HEADER_LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes  # without its Content-Encoding


@dataclass(frozen=True)
class Answer:
    """Of an inference: the JSON object and the outputs' tensors."""

    document: dict[str, Any]
    outputs: tuple[Tensor, ...]
    binary: frozenset[str] = field(default_factory=frozenset)  # outputs that came after the JSON


def ask(
    subject: Subject, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> Reply:
    """Without headers of one's own, those that the client itself sends."""
    return CLIENTS[subject.client](method, f"{subject.target.rest}/{path}", body, dict(headers or {}))


def infer(subject: Subject, document: Any, path: str | None = None, headers: Mapping[str, str] | None = None) -> Reply:
    """`document`: bytes as they are, or what becomes JSON."""
    body = document if isinstance(document, bytes) else to_bytes(document)
    return ask(subject, "POST", path or f"{model_path(subject.model)}/infer", body, JSON | dict(headers or {}))


def model_path(model: Model, version: str | None = None) -> str:
    path = f"v2/models/{quote(model.name)}"
    return path if version is None else f"{path}/versions/{version}"


def request(example: Example, **more: Any) -> dict[str, Any]:
    """The JSON object that asks for an example, flattened; new for each call."""
    inputs = [
        {"name": one.name, "shape": list(one.shape), "datatype": one.datatype, "data": tensors.json_data(one)}
        for one in example.inputs
    ]
    return {"inputs": inputs, **more}


def to_bytes(document: Any) -> bytes:
    return json.dumps(document).encode()


def answered(reply: Reply) -> Answer:
    """What a successful inference says. Raises ProblemError."""
    if reply.status != 200:
        raise ProblemError(f"HTTP {reply.status}, not 200\n{reply.body[:500]!r}")
    length = reply.headers.get(HEADER_LENGTH.lower())
    if length is not None and not (length.isdigit() and int(length) <= len(reply.body)):
        raise ProblemError(f"{HEADER_LENGTH} is not the length of the JSON")
    end = len(reply.body) if length is None else int(length)
    document = json_object(reply.body[:end])
    if not isinstance(document.get("outputs"), list):
        raise ProblemError("the answer has no list of outputs")
    try:
        outputs, binary = _outputs(document["outputs"], reply.body[end:])
    except BadTensorError as error:
        raise ProblemError(f"an output is not what it says\n{error}") from None
    return Answer(document, outputs, binary)


def right(reply: Reply, subject: Subject, outputs: Sequence[Tensor]) -> Iterator[str]:
    """What is wrong with the answer to a good request of this model."""
    answer = answered(reply)
    model = subject.model
    for key, expected in (("model_name", model.name), ("model_version", model.version)):
        if answer.document.get(key) != expected:
            yield f"{key} {answer.document.get(key)!r}, not {expected!r}"
    yield from tensors.differences(outputs, answer.outputs, model.tolerance)


def refused(reply: Reply, statuses: Sequence[int] = range(400, 500)) -> Iterator[str]:
    """What is wrong with the answer to a bad request."""
    if reply.status not in statuses:
        wanted = " or ".join(["4xx"] if len(statuses) == 100 else map(str, statuses))
        yield f"HTTP {reply.status}, not {wanted}\n{reply.body[:300]!r}"
    if reply.status >= 400 and not said(reply):
        yield f"no error object in the body\n{reply.body[:300]!r}"


def said(reply: Reply) -> str:
    """The message of an error object; empty when the body is none."""
    try:
        document = json.loads(reply.body)
    except ValueError:
        return ""
    message = document.get("error") if isinstance(document, dict) else None
    return message if isinstance(message, str) else ""


def json_object(body: bytes) -> dict[str, Any]:
    """Raises ProblemError."""
    if not body:
        raise ProblemError("the body is empty, not JSON")
    try:
        document = json.loads(body)
    except ValueError as error:
        raise ProblemError(f"the body is not JSON\n{error}: {body[:300]!r}") from None
    if not isinstance(document, dict):
        raise ProblemError("the body is no JSON object")
    return document


def decoded(body: bytes, encoding: str) -> bytes:
    """Raises ProblemError for what is not in that Content-Encoding."""
    decodes: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.decompress, "deflate": zlib.decompress, "": bytes}
    decode = decodes.get(encoding)
    if decode is None:
        raise ProblemError(f"Content-Encoding {encoding} was not asked for")
    try:
        return decode(body)
    except (OSError, EOFError, zlib.error) as error:
        raise ProblemError(f"the body is not in Content-Encoding {encoding}\n{error}") from None


def _outputs(entries: list[Any], rest: bytes) -> tuple[tuple[Tensor, ...], frozenset[str]]:
    found, binary = [], set()
    for entry in entries:
        size = entry.get("parameters", {}).get("binary_data_size")
        if size is None:
            found.append(tensors.from_json(entry))
            continue
        found.append(tensors.from_raw(entry["name"], entry["datatype"], entry["shape"], rest[:size]))
        binary.add(entry["name"])
        rest = rest[size:]
    if rest:
        raise BadTensorError(f"{len(rest)} bytes after the last tensor")
    return tuple(found), frozenset(binary)


def _curl(method: str, url: str, body: bytes | None, headers: dict[str, str]) -> Reply:
    """The program."""
    with tempfile.TemporaryDirectory(prefix="mms-oip-") as folder:
        said, got = Path(folder) / "headers", Path(folder) / "body"
        command = ["curl", "--silent", "--show-error", "--max-time", str(TIMEOUT_SECONDS), "--request", method, url]
        command += ["--dump-header", str(said), "--output", str(got)]
        for name, value in headers.items():
            command += ["--header", f"{name}: {value}"]
        if body is not None:
            command += ["--data-binary", "@-"]
        subprocess.run(command, input=body, check=True, timeout=2 * TIMEOUT_SECONDS)
        block = said.read_text("latin-1").replace("\r\n", "\n").rstrip("\n").split("\n\n")[-1]  # after any 100
        content = got.read_bytes() if got.exists() else b""
    first, _, rest = block.partition("\n")
    pairs = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest.splitlines())}
    return Reply(int(first.split()[1]), pairs, decoded(content, pairs.get("content-encoding", "")))


def _requests(method: str, url: str, body: bytes | None, headers: dict[str, str]) -> Reply:
    with requests.request(method, url, data=body, headers=headers, timeout=TIMEOUT_SECONDS) as answer:
        return Reply(answer.status_code, {k.lower(): v for k, v in answer.headers.items()}, answer.content)


def _aiohttp(method: str, url: str, body: bytes | None, headers: dict[str, str]) -> Reply:
    async def send() -> Reply:
        timeout = aiohttp.ClientTimeout(TIMEOUT_SECONDS)
        data = None if body is None else io.BytesIO(body)  # it warns of large bytes
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.request(method, url, data=data, headers=headers) as answer,
        ):
            return Reply(answer.status, {k.lower(): v for k, v in answer.headers.items()}, await answer.read())

    return asyncio.run(send())


CLIENTS: dict[str, Callable[[str, str, bytes | None, dict[str, str]], Reply]] = {
    "curl": _curl,
    "requests": _requests,
    "aiohttp": _aiohttp,
}
NAMES = tuple(CLIENTS)
