"""A served model's answer for people: a line for each output, or JSON, or a file."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import numpy as np

from mms_operator.cli.asking import AskError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Outputs = Mapping[str, NDArray[Any]]

SHOWN = 8  # numbers of a tensor; the rest is an ellipsis


def named(pairs: Sequence[str], form: str) -> dict[str, str]:
    """NAME=VALUE each. Raises AskError."""
    found = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not name:
            raise AskError(f"{pair}: give {form}")
        found[name] = value
    return found


def line(values: NDArray[Any]) -> str:
    """Of an output."""
    row = _row(values)
    if values.dtype.kind in "OSU":
        return "  ".join(_text(one) for one in row.ravel())
    shape = f"  [{', '.join(map(str, row.shape))}]" if row.size > SHOWN else ""
    return np.array2string(row, precision=4, threshold=SHOWN, edgeitems=3, separator=" ").replace("\n", " ") + shape


def as_json(values: NDArray[Any]) -> Any:
    """Of an output. Bytes that are no text are base64."""
    if values.dtype.kind in "OSU":
        values = np.vectorize(_told, otypes=[object])(values)
    return _row(values).tolist()


def save(outputs: Outputs, name: str, path: Path) -> None:
    """The bytes of an output, or an .npy of its row. Raises AskError."""
    if name not in outputs:
        raise AskError(f"{name}: no output of the model: it has {', '.join(outputs)}")
    row = _row(outputs[name])
    try:
        if row.dtype.kind == "O":
            path.write_bytes(row.ravel()[0] if row.size else b"")
        else:
            with path.open("wb") as file:
                np.save(file, row, allow_pickle=False)
    except OSError as error:
        raise AskError(f"{path}: {error}") from error


def _row(values: NDArray[Any]) -> NDArray[Any]:
    """Of an output [1, ...] what is of the one row; one of a model without rows is all of it."""
    found: NDArray[Any] = values[0] if values.ndim > 1 and len(values) == 1 else values
    return found


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return f"({len(value):,} bytes)"


def _told(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return base64.b64encode(value).decode()
