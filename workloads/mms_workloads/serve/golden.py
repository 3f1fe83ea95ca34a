"""Golden cases: the requests that an artifact brings, and whether Triton's answers are the right ones. Pure.

Tensors are those of the protocol's JSON: a name, a datatype, a shape and a flat list of values, `data`, or its bytes,
`raw`. Plain Python, so that the agent, which lives beside every model, stays small.
"""

from __future__ import annotations

import base64
from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mms_workloads.contract import GoldenCase

Tensor = dict[str, Any]

_DATATYPES = {"WORDS": "BYTES", "IDS": "INT64", "K": "INT32"}
_SHOWN = 80  # characters of a value that a difference names


class GoldenError(ValueError):
    """A case that cannot be asked."""


def inputs(case: GoldenCase) -> list[Tensor]:
    """The inputs of a case. Those of shape [n, 1]: one of one value counts for all n rows. Raises GoldenError."""
    rows = max((len(values) for values in case.inputs.values()), default=0)
    tensors: list[Tensor] = []
    for name, one in case.tensors.items():
        try:
            raw = base64.b64decode(one.raw, validate=True)
        except ValueError as error:
            raise GoldenError(f"input {name}: its bytes are not base64") from error
        tensors.append({"name": name, "datatype": one.datatype, "shape": one.shape, "raw": raw})
    for name, values in case.inputs.items():
        datatype = _DATATYPES.get(name)
        if datatype is None or not values or len(values) not in {1, rows}:
            raise GoldenError(f"input {name}: {len(values)} values for {rows} rows, or no input of model {case.model}")
        items = [str(value) for value in values] if datatype == "BYTES" else list(values)
        data = items * rows if len(items) == 1 else items
        tensors.append({"name": name, "datatype": datatype, "shape": [rows, 1], "data": data})
    return tensors


def difference(case: GoldenCase, outputs: Mapping[str, Tensor], tolerance: float) -> str | None:
    """The first value that is not the expected one, in words; None when all are right.

    Floats may differ by `tolerance`, strings and integers not at all. An output that the case does not name may be
    anything.
    """
    if not case.outputs:
        return "the case expects no output"
    for name, expected in case.outputs.items():
        found = outputs.get(name)
        if found is None:
            return f"{name}: not in the answer"
        values: Sequence[object] = found["data"]
        if len(values) != len(expected) or prod(found["shape"]) != len(expected):
            return f"{name}: expected {len(expected)} values, got {len(values)} (shape {found['shape']})"
        whole = not found["datatype"].startswith("FP")
        for position, (want, have) in enumerate(zip(expected, values, strict=True)):
            if not _equal(want, have, 0.0 if whole else tolerance):
                return f"{name}[{position}]: expected {_shown(want)}, got {_shown(have)}"
    return None


def _equal(want: object, have: object, tolerance: float) -> bool:
    if isinstance(want, str) or isinstance(have, str):
        return have == want
    if isinstance(have, int | float) and isinstance(want, int | float):
        return abs(have - want) <= tolerance  # false for NaN
    return have == want


def _shown(value: object) -> str:
    return repr(value)[:_SHOWN]
