"""When two versions answer the same question the same way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mms_workloads.contract import GoldenCase
from mms_workloads.serve import comparing
from tests.unit.serve.artifacts import tensors

WORDS = {"WORDS": ["a", "b", "c", "d"]}


def words(*found: str) -> dict[str, Any]:
    return {"WORDS": np.array([[word.encode() for word in found]], dtype=object)}


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], bool | None]] = {
    "the same": (WORDS, words("a", "b", "c", "d"), False),
    "in another order": (WORDS, words("d", "c", "b", "a"), False),
    "half of them": (WORDS, words("a", "b", "x", "y"), False),
    "fewer than half": (WORDS, words("a", "x", "y", "z"), True),
    "no answer": (WORDS, {}, True),
    "another label": ({"LABEL": ["cat"]}, {"LABEL": np.array([[b"dog"]], dtype=object)}, True),
    "the same label": ({"LABEL": ["cat"]}, {"LABEL": np.array([[b"cat"]], dtype=object)}, False),
    "another class": ({"CLASS": [7]}, {"CLASS": np.array([[8]])}, True),
    "the same class": ({"CLASS": [7]}, {"CLASS": np.array([[7]])}, False),
    "scores only": ({"SCORES": [0.5, 0.25]}, {"SCORES": np.array([0.9, 0.1], np.float32)}, None),
    "words and other scores": (
        {**WORDS, "SCORES": [0.5]},
        {**words("a", "b", "c", "d"), "SCORES": np.array([0.1])},
        False,
    ),
}


OUTPUTS: dict[str, tuple[dict[str, str], list[str]]] = {
    "words": ({"WORDS": "BYTES", "SCORES": "FP32", "DIGEST": "BYTES", "VERSION": "INT64"}, ["WORDS"]),
    "as a configuration says it": ({"LABELS": "TYPE_STRING", "SCORES": "TYPE_FP32"}, ["LABELS"]),
    "boxes": ({"BOXES": "FP32", "LABELS": "BYTES", "COUNT": "INT32"}, ["LABELS", "COUNT"]),
    "a vector": ({"VECTORS": "FP32", "DIGEST": "TYPE_STRING"}, []),
    "an image": ({"IMAGE": "BYTES", "PIXELS": "FP32", "SEED": "INT64"}, []),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_what_can_be_compared(case: str) -> None:
    outputs, wanted = OUTPUTS[case]
    assert comparing.comparable(outputs) == wanted


@pytest.mark.parametrize("case", CASES)
def test_differs(case: str) -> None:
    expected, found, wanted = CASES[case]
    asked = GoldenCase(model="m", inputs={"WORDS": ["x"]}, outputs=expected)
    assert comparing.differs(asked, tensors(found)) is wanted
