"""gRPC of the conforming server."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc  # type: ignore[import-untyped]

from tests.oip import model as tensors
from tests.oip import reference
from tests.oip.model import DTYPES, BadTensorError, Tensor
from tests.oip.reference import RefusedError, bad
from tests.oip.rpc import CONTENTS, OPTIONS, messages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SERVICE = "inference.GRPCInferenceService"
METHODS = ("ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelInfer")


def answer_to(
    method: str, message: Any, compute: Callable[[dict[str, Tensor]], tuple[Tensor, ...]] = reference.infer
) -> Any:
    """The answer's message. Raises RefusedError."""
    if method == "ServerLive":
        return messages.ServerLiveResponse(live=True)
    if method == "ServerReady":
        return messages.ServerReadyResponse(ready=True)
    if method == "ServerMetadata":
        return messages.ServerMetadataResponse(**reference.SERVER)
    if method == "ModelReady":
        there = (message.name, message.version) in {(reference.NAME, ""), (reference.NAME, reference.VERSION)}
        return messages.ModelReadyResponse(ready=there)
    if method == "ModelMetadata":
        reference.find(message.name, message.version)
        made = messages.ModelMetadataResponse(
            name=reference.NAME, versions=[reference.VERSION], platform=reference.PLATFORM
        )
        for key, specs in (("inputs", reference.INPUTS), ("outputs", reference.OUTPUTS)):
            for one in specs:
                getattr(made, key).add(name=one.name, datatype=one.datatype, shape=one.shape)
        return made
    return _infer(message, compute)


def _infer(message: Any, compute: Callable[[dict[str, Tensor]], tuple[Tensor, ...]]) -> Any:
    reference.find(message.model_name, message.model_version)
    raw = list(message.raw_input_contents)
    if raw and len(raw) != len(message.inputs):
        raise bad(f"raw contents of {len(raw)} inputs, and {len(message.inputs)} inputs")
    inputs = [_input(one, raw[place] if raw else None) for place, one in enumerate(message.inputs)]
    found = reference.answer(inputs, [one.name for one in message.outputs], compute)
    made = messages.ModelInferResponse(
        model_name=reference.NAME, model_version=reference.VERSION, id=message.id
    )  # fmt: skip
    for one in found:
        added = made.outputs.add(name=one.name, datatype=one.datatype, shape=one.shape)
        if raw:
            made.raw_output_contents.append(tensors.raw(one))
        else:
            getattr(added.contents, CONTENTS[one.datatype]).extend(one.data)
    return made


def _input(one: Any, raw: bytes | None) -> Tensor:
    if one.datatype != "BYTES" and one.datatype not in DTYPES:
        raise bad(f"{one.name}: {one.datatype} is no datatype")
    count = reference.elements(one.shape)
    filled = [field.name for field, _ in one.contents.ListFields()]
    if raw is not None:
        if one.HasField("contents"):
            raise bad(f"{one.name} has contents beside raw ones")
        try:
            return tensors.from_raw(one.name, one.datatype, one.shape, raw)
        except BadTensorError as error:
            raise bad(str(error)) from None
    if filled not in ([CONTENTS[one.datatype]], []):
        raise bad(f"{one.name}: {filled} are no {one.datatype}")
    data = tuple(getattr(one.contents, CONTENTS[one.datatype]))
    if len(data) != count:
        raise bad(f"{one.name}: {len(data)} elements for shape {list(one.shape)}")
    return Tensor(one.name, one.datatype, tuple(one.shape), data)


class _Anything(grpc.GenericRpcHandler):  # type: ignore[misc]
    def service(self, _: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(lambda *_: b"")


@contextmanager
def serving(
    answer: Callable[[str, Any], Any],
    parse: Callable[[type[Any], bytes], Any] = lambda kind, data: kind.FromString(data),
    *,
    any_method: bool = False,
) -> Iterator[str]:
    """Its host:port. `answer` has a method and its message, and raises RefusedError."""

    def handler(method: str) -> Any:
        def handle(message: Any, context: Any) -> Any:
            try:
                return answer(method, message)
            except RefusedError as error:
                context.abort(grpc.StatusCode[error.code], error.message)

        kind = getattr(messages, f"{method}Request")
        return grpc.unary_unary_rpc_method_handler(
            handle,
            request_deserializer=lambda data: parse(kind, data),
            response_serializer=lambda message: message.SerializeToString(),
        )

    server = grpc.server(ThreadPoolExecutor(4), options=OPTIONS)
    handlers = {method: handler(method) for method in METHODS}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
    if any_method:
        server.add_generic_rpc_handlers([_Anything()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
