"""Golden cases: how they are asked and when an answer counts as right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mms_workloads.contract import GoldenCase
from mms_workloads.serve import golden
from tests.unit.serve.artifacts import tensors


def case(outputs: dict[str, Any], **inputs: Any) -> GoldenCase:
    return GoldenCase(model="neighbours", inputs=inputs or {"WORDS": ["a"]}, outputs=outputs)


def strings(*values: str) -> np.ndarray:
    return np.array([[value.encode() for value in values]], dtype=np.object_)


@pytest.mark.parametrize(
    ("expected", "found", "says"),
    [
        ({"SCORES": [0.5, 0.25]}, {"SCORES": np.array([[0.5, 0.25]], np.float32)}, None),
        ({"SCORES": [0.5]}, {"SCORES": np.array([[0.50009]], np.float32)}, None),
        ({"SCORES": [0.5, 0.25]}, {"SCORES": np.array([[0.5, 0.2502]], np.float32)}, "[1]: expected 0.25, got 0.2502"),
        ({"SCORES": [0.5]}, {"SCORES": np.array([[np.nan]], np.float32)}, "got nan"),
        ({"SCORES": [1]}, {"SCORES": np.array([[1.00001]], np.float32)}, None),
        ({"WORDS": ["a", "höhe"]}, {"WORDS": strings("a", "höhe")}, None),
        ({"WORDS": ["a", "b"]}, {"WORDS": strings("b", "a")}, "WORDS[0]: expected 'a', got 'b'"),
        ({"WORDS": ["a"]}, {"WORDS": strings("a", "b")}, "expected 1 values, got 2 (shape [1, 2])"),
        ({"WORDS": ["a"]}, {}, "WORDS: not in the answer"),
        ({"IDS": [3]}, {"IDS": np.array([[4]])}, "IDS[0]: expected 3, got 4"),
        ({"WORDS": ["a"]}, {"WORDS": strings("a"), "SCORES": np.array([9.0])}, None),
        ({}, {}, "expects no output"),
    ],
    ids=["same", "within", "beyond", "nan", "whole number", "strings", "order", "size", "absent", "integers",
         "more outputs", "nothing expected"],
)  # fmt: skip
def test_difference(expected: dict[str, Any], found: dict[str, Any], says: str | None) -> None:
    answer = golden.difference(case(expected), tensors(found), 1e-4)
    if says is None:
        assert answer is None
    else:
        assert answer is not None
        assert says in answer


def test_inputs() -> None:
    assert golden.inputs(case({}, WORDS=["a", "höhe"], K=[3])) == [
        {"name": "WORDS", "datatype": "BYTES", "shape": [2, 1], "data": ["a", "höhe"]},
        {"name": "K", "datatype": "INT32", "shape": [2, 1], "data": [3, 3]},
    ]


@pytest.mark.parametrize(
    "inputs",
    [{"SENTENCE": ["a"]}, {"WORDS": []}, {"WORDS": ["a", "b", "c"], "K": [1, 2]}],
    ids=["unknown name", "empty", "lengths"],
)
def test_cases_that_cannot_be_asked(inputs: dict[str, Any]) -> None:
    with pytest.raises(golden.GoldenError):
        golden.inputs(case({}, **inputs))
