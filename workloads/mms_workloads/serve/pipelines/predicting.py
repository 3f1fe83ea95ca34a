"""Networks of any kind: clients send and get the network's own tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mms_workloads.serve.pipelines.networks import NetworkError
from mms_workloads.serve.pipelines.tensors import Prepared, RequestError, Signature, not_finite

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mms_workloads.contract import Pipeline, TensorSpec
    from mms_workloads.serve.pipelines.tensors import Arrays

ROWS = 64  # at once, where nothing is said
SIDE = 8  # of a made-up input, where any will do
_RESERVED = {"DIGEST", "VERSION"}
_TYPES = {"FP32": np.float32, "INT64": np.int64, "INT32": np.int32}


class Predict:
    """Inputs and outputs by the network's names, [n, ...]; what the network has as [n] is [n, 1]."""

    model = "predict"
    padded: Mapping[str, int] = {}

    def __init__(self, pipeline: Pipeline, folder: Path) -> None:
        """Raises ValueError."""
        del folder
        self._given, self._found = pipeline.inputs, pipeline.outputs
        for field, tensors in (("inputs", self._given), ("outputs", self._found)):
            _check(field, tensors)
        self.inputs = tuple(_signature(one) for one in self._given)
        self.outputs = tuple(_signature(one) for one in self._found)
        self.feeds = tuple(one.name for one in self._given)
        self.results = tuple(one.name for one in self._found)
        self.rows = pipeline.rows or ROWS

    def prepare(self, inputs: Arrays) -> Prepared:
        feeds: dict[str, NDArray[Any]] = {}
        odd: dict[int, str] = {}
        for one in self._given:
            values = inputs[one.name]
            odd |= {row: f"{one.name}: {why}" for row, why in _odd(values, one).items()}
            values = _decoded(values, one.name) if one.datatype == "BYTES" else values
            feeds[one.name] = values if one.shape else values[:, 0]
        return Prepared(feeds, odd=odd)

    def finish(self, results: Arrays, asked: Prepared) -> dict[str, NDArray[Any]]:
        """Raises NetworkError."""
        return {one.name: _output(np.asarray(results[one.name]), one, asked.rows) for one in self._found}

    def samples(self, count: int) -> list[dict[str, NDArray[Any]]]:
        """Requests that the network should answer: of one row and, where it takes as many, of two in turn."""
        generator = np.random.default_rng(1)
        rows = [1 + number % min(2, self.rows) for number in range(count)]
        return [{one.name: _made_up(one, some, generator) for one in self._given} for some in rows]


def _check(field: str, tensors: Sequence[TensorSpec]) -> None:
    if not tensors:
        raise NetworkError(f"pipeline.json: task tensors needs {field}, each with name, datatype and shape")
    for one in tensors:
        if one.name in _RESERVED:
            raise NetworkError(f"pipeline.json: {field}: {one.name} is an output of every model: name it otherwise")
        if one.datatype is None or one.shape is None:
            raise NetworkError(
                f"pipeline.json: {field}: {one.name} has no {'shape' if one.shape is None else 'datatype'}: say it, "
                "such as datatype FP32 and, without the rows, shape [3, -1]"
            )
    if len({one.name for one in tensors}) < len(tensors):
        raise NetworkError(f"pipeline.json: {field}: two have the same name")


def _signature(one: TensorSpec) -> Signature:
    assert one.datatype is not None  # noqa: S101 - checked
    return Signature(one.name, one.datatype, tuple(one.shape or (1,)))


def _odd(values: NDArray[Any], one: TensorSpec) -> dict[int, str]:
    """Rows that are no valid input."""
    if one.datatype == "BYTES":
        return {}
    found = not_finite(values) if values.dtype.kind == "f" else {}
    flat = values.reshape(len(values), -1)
    for bound, outside in ((one.least, flat < (one.least or 0)), (one.most, flat > (one.most or 0))):
        if bound is not None:
            said = f"it has values {'below' if bound is one.least else 'above'} {bound:g}"
            found |= {int(row): said for row in np.flatnonzero(outside.any(axis=1)) if row not in found}
    return found


def _decoded(values: NDArray[Any], name: str) -> NDArray[np.object_]:
    """Strings, as ONNX Runtime and Python have them. Raises RequestError."""
    found = np.empty(values.shape, np.object_)
    for place, value in np.ndenumerate(values):
        try:
            found[place] = value if isinstance(value, str) else bytes(value).decode()
        except (UnicodeDecodeError, TypeError) as error:
            raise RequestError(f"{name}{list(place)}: it is not UTF-8: encode text as UTF-8") from error
    return found


def _output(values: NDArray[Any], one: TensorSpec, rows: int) -> NDArray[Any]:
    sides = len(one.shape or ())
    if values.ndim != sides + 1 or len(values) != rows:
        raise NetworkError(
            f"output {one.name} has the shape {list(values.shape)} for {rows} rows: it must have {sides + 1} "
            "dimensions of which the first is the rows: export the network so, or correct rows and outputs of "
            "pipeline.json"
        )
    values = values if one.shape else values[:, None]
    if one.datatype == "BYTES":
        found = np.empty(values.shape, np.object_)
        for place, value in np.ndenumerate(values):
            found[place] = bytes(value) if isinstance(value, bytes) else str(value).encode()
        return found
    return np.ascontiguousarray(values, _TYPES[str(one.datatype)])


def _made_up(one: TensorSpec, rows: int, generator: np.random.Generator) -> NDArray[Any]:
    shape = (rows, *(SIDE if side < 0 else side for side in one.shape or (1,)))
    least = one.least if one.least is not None else min(0.0, one.most or 0.0)
    most = one.most if one.most is not None else max(1.0, least)
    if one.datatype == "BYTES":
        return generator.choice(np.array([b"one", b"other"], np.object_), shape)
    if one.datatype == "FP32":
        return generator.uniform(least, most, shape).astype(np.float32)
    return generator.integers(int(np.ceil(least)), int(most), shape, endpoint=True).astype(_TYPES[str(one.datatype)])
