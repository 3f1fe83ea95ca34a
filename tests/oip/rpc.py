"""gRPC as the checks use it, by the messages of tritonclient, whose fields are those of the protocol and some more."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.oip import model as tensors
from tests.oip.checks import ProblemError
from tests.oip.model import BadTensorError, Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.oip.checks import Subject
    from tests.oip.model import Example, Target

TIMEOUT_SECONDS = 30
CLIENT = ("grpcio",)
OPTIONS = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))
messages: Any = service_pb2
CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip


@contextmanager
def channel(target: Target) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(target.grpc, options=OPTIONS) as opened:
        yield opened


def stub(opened: grpc.Channel) -> Any:
    return service_pb2_grpc.GRPCInferenceServiceStub(opened)


def call(subject: Subject, method: str, message: Any, **options: Any) -> Any:
    """The answer. Raises grpc.RpcError."""
    with channel(subject.target) as opened:
        return getattr(stub(opened), method)(message, timeout=TIMEOUT_SECONDS, **options)


def answer(subject: Subject, method: str, message: Any, **options: Any) -> Any:
    """The answer. Raises ProblemError."""
    try:
        return call(subject, method, message, **options)
    except grpc.RpcError as error:
        raise ProblemError(f"{code(error)}, not OK\n{error.details()}") from None


def code(error: Any) -> str:
    return str(error.code().name)


def refused(subject: Subject, method: str, message: Any, codes: Sequence[str]) -> Iterator[str]:
    """What is wrong with the answer to a bad request."""
    try:
        call(subject, method, message)
    except grpc.RpcError as error:
        if code(error) not in codes:
            yield f"{code(error)}, not {' or '.join(codes)}\n{error.details()}"
        if not error.details():
            yield "an error without a message"
        return
    yield f"OK, not {' or '.join(codes)}"


def request(subject: Subject, example: Example, *, raw: bool, **more: Any) -> Any:
    message = messages.ModelInferRequest(model_name=subject.model.name, **more)
    for one in example.inputs:
        added = message.inputs.add(name=one.name, datatype=one.datatype, shape=one.shape)
        if raw:
            message.raw_input_contents.append(tensors.raw(one))
        else:
            getattr(added.contents, CONTENTS[one.datatype]).extend(one.data)
    return message


def outputs(message: Any) -> tuple[Tensor, ...]:
    """Of an answer with raw or with typed contents. Raises ProblemError."""
    raw = list(message.raw_output_contents)
    if raw and len(raw) != len(message.outputs):
        raise ProblemError(f"raw contents of {len(raw)} outputs, and {len(message.outputs)} outputs")
    found = []
    for place, one in enumerate(message.outputs):
        if raw and one.HasField("contents"):
            raise ProblemError("an output with both raw and typed contents")
        try:
            found.append(_typed(one) if not raw else _raw(one, raw[place]))
        except (BadTensorError, KeyError) as error:
            raise ProblemError(f"an output is not what it says\n{error}") from None
    return tuple(found)


def right(message: Any, subject: Subject, wanted: Sequence[Tensor]) -> Iterator[str]:
    """What is wrong with the answer to a good request of this model."""
    model = subject.model
    for key, expected in (("model_name", model.name), ("model_version", model.version)):
        if getattr(message, key) != expected:
            yield f"{key} {getattr(message, key)!r}, not {expected!r}"
    yield from tensors.differences(wanted, outputs(message), model.tolerance)


def infer(subject: Subject, example: Example, change: Callable[[Any], None] | None = None, *, raw: bool) -> Any:
    """The answer to an example's request. Raises ProblemError."""
    message = request(subject, example, raw=raw)
    if change:
        change(message)
    return answer(subject, "ModelInfer", message)


def _raw(output: Any, content: bytes) -> Tensor:
    return tensors.from_raw(output.name, output.datatype, output.shape, content)


def _typed(output: Any) -> Tensor:
    data = tuple(getattr(output.contents, CONTENTS[output.datatype]))
    if len(data) != tensors.elements(output.shape):
        raise BadTensorError(f"{output.name}: {len(data)} elements for shape {list(output.shape)}")
    return Tensor(output.name, output.datatype, tuple(output.shape), data)
