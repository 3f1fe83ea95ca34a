"""Whether another version's answer is the same, for the analysis of a rollout. Pure.

Two versions of a model need not answer to the last digit. So numbers with a fraction are not compared: scores and
vectors may turn and stretch from one training to the next. Strings and whole numbers are: of several half must be the
same, in whatever order; a single one must be the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mms_workloads.contract import GoldenCase
    from mms_workloads.serve.golden import Tensor

SAME_PART = 0.5
# Datatypes as the protocol names them, and as configurations do.
_WHOLE = {"BYTES", "INT64", "INT32", "TYPE_STRING", "TYPE_INT64", "TYPE_INT32"}
# The first three are files, of which the tensors beside them say the same; the others are not what was found.
_NO_ANSWER = {"IMAGE", "VIDEO", "AUDIO", "SEED", "DIGEST", "VERSION"}


def comparable(outputs: Mapping[str, str]) -> list[str]:
    """Those of a model that can be compared. outputs: their datatypes by name."""
    return [name for name, datatype in outputs.items() if datatype in _WHOLE and name not in _NO_ANSWER]


def differs(case: GoldenCase, outputs: Mapping[str, Tensor]) -> bool | None:
    """Whether the answer is another one than the case's. None: there is nothing in it to compare."""
    found = [
        _differs(expected, outputs[name]["data"] if name in outputs else [])
        for name, expected in case.outputs.items()
        if expected and not any(isinstance(value, float) for value in expected)
    ]
    return any(found) if found else None


def _differs(expected: list[str] | list[int] | list[float], found: list[Any]) -> bool:
    same = len(set(expected) & set(found))
    return same < max(1, SAME_PART * len(set(expected)))
