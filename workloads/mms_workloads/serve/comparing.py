"""Whether another version's answer is the same, for the analysis of a rollout. Pure.

Two versions of a model need not answer to the last digit. So numbers with a fraction are not compared: scores and
vectors may turn and stretch from one training to the next. Strings and whole numbers are: of several half must be the
same, each in its place, as tags are; a single one must be the same. What has no place is counted, whatever the order:
words and texts that were found, and the labels of things that were. Of other labels the first is the answer.
"""

from __future__ import annotations

from collections import Counter
from itertools import zip_longest
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mms_workloads.contract import GoldenCase
    from mms_workloads.serve.golden import Tensor

SAME_PART = 0.5
LABELS = "LABELS"
_UNORDERED = {"WORDS", "TEXTS"}
OUTSIDE = "O"  # the tag of a word that is of no entity: most are, so that agreeing on it says nothing
# Datatypes as the protocol names them, and as configurations do.
_WHOLE = {"BYTES", "INT64", "INT32", "TYPE_STRING", "TYPE_INT64", "TYPE_INT32"}
# The first three are files, of which the tensors beside them say the same; a text that is made up is another one
# after one other letter; the others are not what was found.
_NO_ANSWER = {"IMAGE", "VIDEO", "AUDIO", "COMPLETION", "SEED", "DIGEST", "VERSION"}


def comparable(outputs: Mapping[str, str]) -> list[str]:
    """Those of a model that can be compared. outputs: their datatypes by name."""
    return [name for name, datatype in outputs.items() if datatype in _WHOLE and name not in _NO_ANSWER]


def differs(case: GoldenCase, outputs: Mapping[str, Tensor]) -> bool | None:
    """Whether the answer is another one than the case's. None: there is nothing in it to compare."""
    things = "COUNT" in case.outputs
    found = [
        _differs(name, expected, outputs[name]["data"] if name in outputs else [], things=things)
        for name, expected in case.outputs.items()
        if expected and not any(isinstance(value, float) for value in expected)
    ]
    return any(found) if found else None


def _differs(name: str, expected: Sequence[object], found: Sequence[object], *, things: bool) -> bool:
    """things: whether labels are of the things that were found, and not of the whole, the likeliest first."""
    if name in _UNORDERED or (name == LABELS and things):
        same, several = (Counter(expected) & Counter(found)).total(), max(len(expected), len(found))
        return same < SAME_PART * several
    if name == LABELS:
        return expected[:1] != found[:1]
    pairs = [one for one in zip_longest(expected, found) if name != "TAGS" or one != (OUTSIDE, OUTSIDE)]
    return sum(one == other for one, other in pairs) < SAME_PART * len(pairs)
