"""Which tensors a network of any kind has: what its file says, and what is said of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from mms_workloads.contract import TensorSpec
from mms_workloads.serve.pipelines import NetworkError
from mms_workloads.serve.pipelines.networks import open_session

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from onnxruntime import NodeArg

_SPECS = TypeAdapter(list[TensorSpec])
_DATATYPES = {
    **dict.fromkeys(("float16", "float", "double"), "FP32"),
    **dict.fromkeys(("bool", "int8", "uint8", "int16", "uint16", "int32"), "INT32"),
    **dict.fromkeys(("uint32", "int64", "uint64"), "INT64"),
    "string": "BYTES",
}


def of_onnx(path: Path, said: Mapping[str, Any]) -> dict[str, Any]:
    """inputs, outputs and rows of a pipeline: as the file has them, but for what `said` says otherwise.

    Outputs that `said` does not name where it names some are not computed. Raises NetworkError, pydantic's
    ValidationError, and what the runtime raises for a file that it cannot read.
    """
    session = open_session(path, 1)
    asked = {field: {one.name: one for one in _SPECS.validate_python(said.get(field) or [])} for field in _FIELDS}
    there = {"inputs": session.get_inputs(), "outputs": session.get_outputs()}
    for field, specs in asked.items():
        known = [one.name for one in there[field]]
        if strange := [name for name in specs if name not in known]:
            raise NetworkError(f"{field}: {path.name} has no {strange[0]}: there are {', '.join(known)}")
    outputs = [one for one in there["outputs"] if not asked["outputs"] or one.name in asked["outputs"]]
    found = {
        "inputs": [_spec(one, asked["inputs"].get(one.name), path.name) for one in there["inputs"]],
        "outputs": [_spec(one, asked["outputs"].get(one.name), path.name) for one in outputs],
    }
    return {**found, "rows": said.get("rows") or _rows(there["inputs"], path.name)}


_FIELDS = ("inputs", "outputs")


def _spec(one: NodeArg, asked: TensorSpec | None, file: str) -> dict[str, Any]:
    kind = str(one.type)
    datatype = _DATATYPES.get(kind.removeprefix("tensor(").removesuffix(")")) if kind.startswith("tensor(") else None
    if datatype is None:
        raise NetworkError(
            f"{file}: {one.name} is {kind}, which no client can send or get: export the network without it (with "
            "skl2onnx: options={'zipmap': False}), or name the outputs that are wanted in pipeline.json's outputs"
        )
    if not one.shape and not (asked and asked.shape is not None):
        raise NetworkError(f"{file}: {one.name} has no rows: its first dimension must be that of the rows")
    shape = [side if isinstance(side, int) and side > 0 else -1 for side in one.shape[1:]]
    found = {"name": one.name, "datatype": datatype, "shape": shape}
    return {**found, **(asked.model_dump(exclude_none=True) if asked else {})}


def _rows(inputs: Sequence[NodeArg], file: str) -> int | None:
    """None: any number. Raises NetworkError."""
    fixed = {one.shape[0] for one in inputs if one.shape and isinstance(one.shape[0], int)}
    if fixed - {1}:
        raise NetworkError(
            f"{file}: it takes {max(fixed)} rows and no other number: export it with a first dimension that varies"
        )
    return 1 if fixed else None
