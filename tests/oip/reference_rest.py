"""REST of the conforming server: a pure function from a request to its answer, carried by aiohttp."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import threading
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import unquote

import numpy as np
from aiohttp import web

from tests.oip import model as tensors
from tests.oip import reference
from tests.oip.model import DTYPES, BadTensorError, Tensor
from tests.oip.reference import RefusedError, bad

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PACK: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}
UNPACK: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.decompress, "deflate": zlib.decompress}
LENGTH = "inference-header-content-length"
MODEL = "/v2/models/"


@dataclass(frozen=True)
class Got:
    """A request. `path` is decoded, `written` is not; names of headers are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    http: str = "1.1"
    written: str = ""


@dataclass(frozen=True)
class Reply:
    status: int
    document: Any = None  # becomes JSON
    after: bytes = b""  # binary tensors
    headers: dict[str, str] = field(default_factory=dict)
    close: bool | None = None  # the connection; None: as the request says
    encoding: str = ""
    raw: bytes = b""  # instead of all that


def reply_to(got: Got, compute: Callable[[dict[str, Tensor]], tuple[Tensor, ...]] = reference.infer) -> Reply:
    try:
        return _reply(got, compute)
    except RefusedError as error:
        return Reply(error.status, {"error": error.message})


def _reply(got: Got, compute: Callable[[dict[str, Tensor]], tuple[Tensor, ...]]) -> Reply:
    name, version, verb = _parts(got.path)
    allowed = "POST" if verb == "infer" else "GET, HEAD"
    if got.method not in allowed.split(", "):
        return Reply(405, {"error": f"{got.method} is not allowed"}, headers={"Allow": allowed})
    if got.path in {"/v2", "/v2/"}:
        return Reply(200, reference.SERVER)
    if not name:
        return Reply(200, {"live": True} if got.path.endswith("live") else {"ready": True})
    reference.find(name, version)
    if verb == "ready":
        return Reply(200, {"name": name, "ready": True})
    if verb == "":
        specs = {"inputs": reference.INPUTS, "outputs": reference.OUTPUTS}
        shown = {key: [_spec(one) for one in found] for key, found in specs.items()}
        return Reply(200, {"name": name, "versions": [reference.VERSION], "platform": reference.PLATFORM, **shown})
    return _infer(got, compute)


def _parts(path: str) -> tuple[str, str, str]:
    """Name, version and verb; no name where the path is the server's."""
    if path in {"/v2", "/v2/", "/v2/health/live", "/v2/health/ready"}:
        return "", "", ""
    parts = path.removeprefix(MODEL).split("/") if path.startswith(MODEL) else []
    version = ""
    if parts[1:2] == ["versions"] and len(parts) > 2:
        version = parts[2]
        del parts[1:3]
    if len(parts) == 1 or (len(parts) == 2 and parts[1] in {"ready", "infer"}):
        return parts[0], version, "".join(parts[1:])
    raise RefusedError(404, "NOT_FOUND", f"there is no {path}")


def _infer(got: Got, compute: Callable[[dict[str, Tensor]], tuple[Tensor, ...]]) -> Reply:
    document, after = _read(got)
    inputs = []
    for entry in document["inputs"]:
        tensor, after = _input(entry, after)
        inputs.append(tensor)
    if after:
        raise bad("there are bytes after the last tensor")
    wanted = document.get("outputs") or []
    found = reference.answer(inputs, [_text(one, "name") for one in wanted], compute)
    binary = {one.name: bool(document.get("parameters", {}).get("binary_data_output")) for one in found}
    for one in wanted:
        binary[one["name"]] = one.get("parameters", {}).get("binary_data", binary[one["name"]])
    entries, following = [], b""
    for tensor in found:
        entry = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if binary[tensor.name]:
            raw = tensors.raw(tensor)
            entry["parameters"] = {"binary_data_size": len(raw)}
            following += raw
        else:
            entry["data"] = tensors.json_data(tensor)
        entries.append(entry)
    said = {"id": document["id"]} if "id" in document else {}
    answer = {"model_name": reference.NAME, "model_version": reference.VERSION, **said, "outputs": entries}
    accepted = [part.strip() for part in got.headers.get("accept-encoding", "").split(",")]
    return Reply(200, answer, following, encoding=next((one for one in accepted if one in PACK), ""))


def _read(got: Got) -> tuple[dict[str, Any], bytes]:
    """The JSON object, and the bytes after it."""
    body = got.body
    encoding = got.headers.get("content-encoding", "identity")
    if encoding != "identity":
        if encoding not in UNPACK:
            raise RefusedError(415, "", f"Content-Encoding {encoding} is not known")
        try:
            body = UNPACK[encoding](body)
        except (OSError, EOFError, zlib.error) as error:
            raise bad(f"the body is not in {encoding}: {error}") from None
    length = got.headers.get(LENGTH, str(len(body)))
    if not length.isdigit() or int(length) > len(body):
        raise bad(f"{LENGTH}: {length}")
    try:
        document = json.loads(body[: int(length)].decode(), parse_constant=_no_constant)
    except ValueError as error:
        raise bad(f"no JSON: {error}") from None
    if not isinstance(document, dict) or not isinstance(document.get("inputs"), list):
        raise bad("no object with a list of inputs")
    if not isinstance(document.get("id", ""), str):
        raise bad("id is no string")
    parameters = document.get("parameters", {})
    if not isinstance(parameters, dict) or any(isinstance(one, dict | list) for one in parameters.values()):
        raise bad("a parameter is no string, number or boolean")
    return document, body[int(length) :]


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _input(entry: Any, after: bytes) -> tuple[Tensor, bytes]:
    name, datatype, shape = _text(entry, "name"), _text(entry, "datatype"), entry.get("shape")
    if not isinstance(shape, list) or not all(isinstance(size, int) for size in shape):
        raise bad(f"{name}: no shape")
    if datatype != "BYTES" and datatype not in DTYPES:
        raise bad(f"{name}: {datatype} is no datatype")
    count = reference.elements(shape)
    size = entry.get("parameters", {}).get("binary_data_size")
    if (size is None) == ("data" not in entry):
        raise bad(f"{name}: give data or binary data")
    if size is not None:
        if not 0 <= size <= len(after):
            raise bad(f"{name}: {size} bytes are not there")
        try:
            return tensors.from_raw(name, datatype, shape, after[:size]), after[size:]
        except BadTensorError as error:
            raise bad(str(error)) from None
    data = entry["data"]
    if not isinstance(data, list):
        raise bad(f"{name}: data are no list")
    if data and isinstance(data[0], list):
        data = _flat(data, shape, name)
    if len(data) != count:
        raise bad(f"{name}: {len(data)} elements for shape {shape}")
    return Tensor(name, datatype, tuple(shape), tuple(_element(one, datatype, name) for one in data)), after


def _flat(data: Any, shape: list[int], name: str) -> list[Any]:
    if not shape:
        return [data]
    if not isinstance(data, list) or len(data) != shape[0]:
        raise bad(f"{name}: data are not in the shape")
    return [item for one in data for item in _flat(one, shape[1:], name)]


def _element(item: Any, datatype: str, name: str) -> Any:
    try:
        if datatype == "BYTES" and isinstance(item, str):
            return item.encode()
        if datatype.startswith("INT") and isinstance(item, int) and not isinstance(item, bool):
            info = np.iinfo(DTYPES[datatype])
            if info.min <= item <= info.max:
                return item
        if datatype.startswith("FP") and isinstance(item, int | float):
            return float(item)
    except UnicodeEncodeError:
        pass
    raise bad(f"{name}: {item!r} is no {datatype}")


def _text(entry: Any, key: str) -> str:
    if not isinstance(entry, dict) or not isinstance(entry.get(key), str):
        raise bad(f"no {key}")
    text: str = entry[key]
    return text


def _spec(spec: tensors.Spec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


_SILENT = logging.getLogger(f"{__name__}.silent")
_SILENT.disabled = True


class _Server(web.Server):
    def __init__(self, handler: Any, protocol: type[web.RequestHandler]) -> None:
        super().__init__(handler, auto_decompress=False)
        self.protocol = protocol

    def __call__(self) -> web.RequestHandler:
        return self.protocol(self, loop=asyncio.get_running_loop(), access_log=_SILENT, auto_decompress=False)


@contextmanager
def serving(
    answer: Callable[[Got], Reply],
    protocol: type[web.RequestHandler] = web.RequestHandler,
    *,
    continues: bool = True,
) -> Iterator[str]:
    """Its URL. It runs in a thread of its own."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        path, version = request.raw_path.partition("?")[0], f"{request.version.major}.{request.version.minor}"
        if continues and "expect" in headers:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        got = Got(request.method, unquote(path), headers, await request.content.read(), version, path)
        reply = answer(got)
        if reply.raw and request.transport is not None:
            request.transport.write(reply.raw)
            request.transport.close()
        return _carried(reply, got)

    async def run() -> None:
        server = _Server(handle, protocol)
        listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
        ports.append(listening.sockets[0].getsockname()[1])
        loops.append(asyncio.get_running_loop())
        ended = asyncio.Event()
        ends.append(ended)
        started.set()
        await ended.wait()
        listening.close()
        await server.shutdown(1)

    ports: list[int] = []
    loops: list[asyncio.AbstractEventLoop] = []
    ends: list[asyncio.Event] = []
    started = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert started.wait(10)
    try:
        yield f"http://127.0.0.1:{ports[0]}"
    finally:
        loops[0].call_soon_threadsafe(ends[0].set)
        thread.join()


def _carried(reply: Reply, got: Got) -> web.Response:
    head = b"" if reply.document is None else json.dumps(reply.document, ensure_ascii=False).encode()
    kind = "application/octet-stream" if reply.after else "application/json"
    headers = {"Content-Type": kind, **({LENGTH: str(len(head))} if reply.after else {}), **reply.headers}
    body = head + reply.after
    if reply.encoding:
        body, headers["Content-Encoding"] = PACK[reply.encoding](body), reply.encoding
    response = web.Response(status=reply.status, body=b"" if got.method == "HEAD" else body, headers=headers)
    if reply.close is True:
        response.force_close()
    elif reply.close is False:
        response._keep_alive = True
    return response
