"""What the kit is told of a server, and tensors in the forms that the protocol has for them."""

from __future__ import annotations

import itertools
import math
import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

DTYPES = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "i1", "INT16": "<i2",
    "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
BINARY = "binary_tensor_data"  # the extension's name in the server's metadata


class BadTensorError(ValueError):
    """Bytes that are not the tensor that they are said to be."""


@dataclass(frozen=True)
class Tensor:
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: tuple[Any, ...]  # flattened, row-major: bytes of BYTES, else int, float or bool


@dataclass(frozen=True)
class Spec:
    """An input or output in a model's metadata; -1 is any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Example:
    """A request and its right answer: all outputs of the model."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class Refusal:
    """A well-formed request that the model itself refuses, with the class of the error and a part of its message."""

    inputs: tuple[Tensor, ...]
    status: int  # HTTP
    code: str  # gRPC
    says: str


@dataclass(frozen=True)
class Model:
    name: str
    version: str
    inputs: tuple[Spec, ...]
    outputs: tuple[Spec, ...]
    max_batch: int  # rows of a request, the first dimension
    examples: tuple[Example, ...]  # the first has several rows, and without its first input it is no request
    refusals: tuple[Refusal, ...] = ()
    tolerance: float = 1e-5  # of floating-point outputs

    @property
    def example(self) -> Example:
        return self.examples[0]


@dataclass(frozen=True)
class Target:
    """A server that serves at least the models, under those names."""

    rest: str  # http://host:port
    grpc: str  # host:port
    models: tuple[Model, ...]
    extensions: frozenset[str] = frozenset()  # that its metadata must name
    encodings: tuple[str, ...] = ()  # of HTTP bodies that it must offer: gzip, deflate
    raw_answers: bool = False  # over gRPC whatever the request has; else in the form of the request


def json_data(tensor: Tensor) -> list[Any]:
    """The flattened `data` of a tensor in JSON."""
    return [item.decode() if isinstance(item, bytes) else item for item in tensor.data]


def nested(data: Sequence[Any], shape: Sequence[int]) -> list[Any]:
    """The flattened data in the tensor's shape."""
    if len(shape) <= 1:
        return list(data)
    step = math.prod(shape[1:])
    return [nested(data[i : i + step], shape[1:]) for i in range(0, len(data), step)]


def raw(tensor: Tensor) -> bytes:
    """Little-endian, row-major; BYTES each with its length as four bytes before it."""
    if tensor.datatype == "BYTES":
        return b"".join(struct.pack("<I", len(item)) + item for item in tensor.data)
    return np.array(tensor.data, DTYPES[tensor.datatype]).tobytes()


def from_raw(name: str, datatype: str, shape: Sequence[int], data: bytes) -> Tensor:
    """Raises BadTensorError when the bytes do not fit the type and the shape."""
    count = math.prod(shape)
    if datatype == "BYTES":
        items = tuple(_items(data))
    elif datatype in DTYPES and len(data) == count * np.dtype(DTYPES[datatype]).itemsize:
        items = tuple(np.frombuffer(data, DTYPES[datatype]).tolist())
    else:
        raise BadTensorError(f"{name}: {len(data)} bytes are no {datatype} {list(shape)}")
    if len(items) != count:
        raise BadTensorError(f"{name}: {len(items)} elements for shape {list(shape)}")
    return Tensor(name, datatype, tuple(shape), items)


def from_json(output: dict[str, Any]) -> Tensor:
    """An output of an answer whose data are JSON, flattened or nested. Raises BadTensorError."""
    try:
        name, datatype, shape, data = (output[key] for key in ("name", "datatype", "shape", "data"))
        items = tuple(_flat(data))
        count = math.prod(shape)
    except (KeyError, TypeError) as error:
        raise BadTensorError(f"no output with name, datatype, shape and data: {error!r}") from None
    if len(items) != count:
        raise BadTensorError(f"{name}: {len(items)} elements for shape {list(shape)}")
    if datatype == "BYTES":
        if not all(isinstance(item, str) for item in items):
            raise BadTensorError(f"{name}: BYTES that are not strings")
        items = tuple(item.encode() for item in items)
    return Tensor(name, datatype, tuple(shape), items)


def from_array(name: str, datatype: str, array: NDArray[Any]) -> Tensor:
    items = [item.encode() if isinstance(item, str) else item for item in array.ravel().tolist()]
    return Tensor(name, datatype, array.shape, tuple(items))


def array(tensor: Tensor) -> NDArray[Any]:
    dtype = np.object_ if tensor.datatype == "BYTES" else DTYPES[tensor.datatype]
    made: NDArray[Any] = np.array(tensor.data, dtype).reshape(tensor.shape)
    return made


def rows(tensor: Tensor, count: int) -> Tensor:
    """The tensor with `count` rows: its own, over and over."""
    width = math.prod(tensor.shape[1:])
    data = tuple(itertools.islice(itertools.cycle(tensor.data), count * width))
    return replace(tensor, shape=(count, *tensor.shape[1:]), data=data)


def elements(shape: Sequence[int]) -> int:
    return math.prod(shape)


def batch(example: Example, count: int) -> Example:
    return Example(
        tuple(rows(one, count) for one in example.inputs), tuple(rows(one, count) for one in example.outputs)
    )


def differences(wanted: Sequence[Tensor], got: Sequence[Tensor], tolerance: float) -> Iterator[str]:
    """What is wrong with the outputs `got`, in any order. Floats may differ by `tolerance`, nothing else."""
    names, expected = sorted(one.name for one in got), sorted(one.name for one in wanted)
    if names != expected:
        yield f"outputs {names}, not {expected}"
        return
    found = {one.name: one for one in got}
    for want in wanted:
        have = found[want.name]
        if (have.datatype, have.shape) != (want.datatype, want.shape):
            yield f"{want.name}: {have.datatype} {list(have.shape)}, not {want.datatype} {list(want.shape)}"
            continue
        for place, (one, other) in enumerate(zip(want.data, have.data, strict=True)):
            if not _equal(one, other, tolerance):
                yield f"{want.name}: not the right values\n[{place}]: {other!r}, not {one!r}"
                break


def _equal(want: Any, have: Any, tolerance: float) -> bool:
    if isinstance(want, float):
        return isinstance(have, int | float) and abs(have - want) <= tolerance  # false for NaN
    return type(have) is type(want) and bool(have == want)


def _items(data: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(data):
        if start + 4 > len(data):
            raise BadTensorError("BYTES end within a length")
        (length,) = struct.unpack_from("<I", data, start)
        start += 4 + length
        if start > len(data):
            raise BadTensorError(f"BYTES end within an element of {length} bytes")
        yield data[start - length : start]


def _flat(data: Any) -> Iterator[Any]:
    for item in data:
        if isinstance(item, list):
            yield from _flat(item)
        else:
            yield item
