"""Golden cases: the requests that an artifact brings, and whether Triton's answers are the right ones. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from mms_workloads.contract import GoldenCase

_DATATYPES = {"WORDS": "BYTES", "IDS": "INT64", "K": "INT32"}
_DTYPES = {"BYTES": np.object_, "INT64": np.int64, "INT32": np.int32}
_SHOWN = 80  # characters of a value that a difference names


class GoldenError(ValueError):
    """A case that cannot be asked."""


def inputs(case: GoldenCase) -> dict[str, tuple[str, NDArray[Any]]]:
    """The inputs of a case as (Triton's datatype, array [n, 1]). An input of one value counts for all n rows.

    Raises GoldenError.
    """
    rows = max((len(values) for values in case.inputs.values()), default=0)
    arrays: dict[str, tuple[str, NDArray[Any]]] = {}
    for name, values in case.inputs.items():
        datatype = _DATATYPES.get(name)
        if datatype is None or not values or len(values) not in {1, rows}:
            raise GoldenError(f"input {name}: {len(values)} values for {rows} rows, or no input of model {case.model}")
        items = [str(value).encode() for value in values] if datatype == "BYTES" else list(values)
        column: NDArray[Any] = np.empty((rows, 1), dtype=_DTYPES[datatype])
        column[:, 0] = items * rows if len(items) == 1 else items
        arrays[name] = (datatype, column)
    return arrays


def difference(case: GoldenCase, outputs: Mapping[str, NDArray[Any] | None], tolerance: float) -> str | None:
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
        if found.size != len(expected):
            return f"{name}: expected {len(expected)} values, got {found.size} (shape {list(found.shape)})"
        for position, (want, have) in enumerate(zip(expected, found.ravel().tolist(), strict=True)):
            if not _equal(want, have, tolerance):
                return f"{name}[{position}]: expected {_shown(want)}, got {_shown(have)}"
    return None


def _equal(want: object, have: object, tolerance: float) -> bool:
    if isinstance(want, str):
        return have == want or (isinstance(have, bytes) and have == want.encode())
    if isinstance(have, float) and isinstance(want, int | float):
        return abs(have - want) <= tolerance  # false for NaN
    return have == want


def _shown(value: object) -> str:
    return repr(value.decode(errors="replace") if isinstance(value, bytes) else value)[:_SHOWN]
