"""A small server that conforms, so that the kit's own mistakes show: its one model, and what REST and gRPC share."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tests.oip.model import BINARY, Example, Model, Refusal, Spec, Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

NAME, VERSION = "sums", "7"
SERVER = {"name": "reference", "version": "0.1", "extensions": [BINARY]}
PLATFORM = "mms_python"
MAX_BATCH = 16
INPUTS = (Spec("LABEL", "BYTES", (-1, 1)), Spec("PARTS", "INT64", (-1, 3)), Spec("SCALE", "INT32", (-1, 1)))
OUTPUTS = (Spec("TOTAL", "FP32", (-1, 1)), Spec("LABEL", "BYTES", (-1, 2)), Spec("COUNT", "INT64", (-1, 1)))


@dataclass
class RefusedError(Exception):
    """A request that is not answered, as REST and gRPC say it."""

    status: int
    code: str
    message: str


def infer(inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """TOTAL: the sum of PARTS, times SCALE, by three. LABEL: it and its reverse. COUNT: of PARTS."""
    labels, parts, scales = (inputs[one.name].data for one in INPUTS)
    if b"nobody" in labels:
        raise RefusedError(404, "NOT_FOUND", "LABEL: nobody is not known")
    if any(scale == 0 for scale in scales):
        raise RefusedError(400, "INVALID_ARGUMENT", "SCALE: 0 is no scale")
    rows = len(labels)
    totals = [sum(parts[3 * row : 3 * row + 3]) * scales[row] / 3 for row in range(rows)]
    both = tuple(text for label in labels for text in (label, label.decode()[::-1].encode()))
    return (
        Tensor("TOTAL", "FP32", (rows, 1), tuple(struct.unpack("<f", struct.pack("<f", one))[0] for one in totals)),
        Tensor("LABEL", "BYTES", (rows, 2), both),
        Tensor("COUNT", "INT64", (rows, 1), (2**53 + 1,) * rows),
    )


def model() -> Model:
    asked = (
        Tensor("LABEL", "BYTES", (2, 1), ("größe ☃".encode(), b'a "quoted" \\ one')),
        Tensor("PARTS", "INT64", (2, 3), (1, 2, 2**40, -4, 5, 6)),
        Tensor("SCALE", "INT32", (2, 1), (2, -(2**31))),
    )
    again = tuple(replace(one, shape=(1, *one.shape[1:]), data=one.data[: one.shape[1]]) for one in asked)
    bad = (
        Refusal((replace(again[0], data=(b"nobody",)), *again[1:]), 404, "NOT_FOUND", "nobody is not known"),
        Refusal((*again[:2], replace(again[2], data=(0,))), 400, "INVALID_ARGUMENT", "SCALE: 0"),
    )
    examples = tuple(Example(one, infer({part.name: part for part in one})) for one in (asked, again))
    return Model(NAME, VERSION, INPUTS, OUTPUTS, MAX_BATCH, examples, bad, tolerance=0)


def find(name: str, version: str) -> None:
    if (name, version) not in {(NAME, ""), (NAME, VERSION)}:
        raise RefusedError(404, "NOT_FOUND", f"there is no model {name} {version}")


def answer(
    inputs: Sequence[Tensor], outputs: Sequence[str], compute: Callable[[dict[str, Tensor]], tuple[Tensor, ...]]
) -> list[Tensor]:
    """The outputs of that name, or all, of inputs whose elements fit their shapes."""
    given = {one.name: one for one in inputs}
    if len(given) != len(inputs):
        raise bad("an input is there two times")
    if given.keys() != {one.name for one in INPUTS}:
        raise bad(f"inputs are {[one.name for one in INPUTS]}, not {sorted(given)}")
    rows = {one.shape[0] for one in inputs if one.shape}
    if len(rows) != 1 or not 1 <= min(rows) <= MAX_BATCH:
        raise bad(f"a batch of {sorted(rows)}: give 1 to {MAX_BATCH} rows")
    for spec in INPUTS:
        one = given[spec.name]
        if one.datatype != spec.datatype:
            raise bad(f"{one.name} is {spec.datatype}, not {one.datatype}")
        if len(one.shape) != len(spec.shape) or one.shape[1:] != spec.shape[1:]:
            raise bad(f"{one.name} is {list(spec.shape)}, not {list(one.shape)}")
    if unknown := set(outputs) - {one.name for one in OUTPUTS}:
        raise bad(f"there are no outputs {sorted(unknown)}")
    found = compute(given)
    return [one for one in found if not outputs or one.name in outputs]


def bad(message: str) -> RefusedError:
    return RefusedError(400, "INVALID_ARGUMENT", message)


def elements(shape: Sequence[int]) -> int:
    if any(size < 0 for size in shape):
        raise bad(f"shape {list(shape)} has a negative size")
    return math.prod(shape)
