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
    return strings("WORDS", *found)


def strings(name: str, *found: str) -> dict[str, Any]:
    return {name: np.array([[one.encode() for one in found]], dtype=object)}


def boxes(*labels: str) -> dict[str, Any]:
    """What a detector answers."""
    return {**strings("LABELS", *labels), "COUNT": np.array([[len(labels)]], np.int32)}


THREE = {"LABELS": ["3", "7", "8"], "COUNT": [3]}
TAGS = {"TAGS": ["O", "O", "B-PER", "I-PER", "O", "O", "O", "B-LOC"]}


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
    "fewer than half, and more beside them": (WORDS, words("a", "b", "u", "v", "w", "x"), True),
    "another likeliest label": ({"LABELS": ["cat", "dog"]}, strings("LABELS", "dog", "cat"), True),
    "another likeliest label of many": (
        {"LABELS": ["cat", "dog", "hen", "fox"]},
        strings("LABELS", "dog", "cat", "hen", "fox"),
        True,
    ),
    "the same likeliest label": ({"LABELS": ["cat", "dog"]}, strings("LABELS", "cat", "hen"), False),
    "the same things": (THREE, boxes("8", "3", "7"), False),
    "two of three things": (THREE, boxes("7", "3", "1"), False),
    "one thing for all": (THREE, boxes("3", "3", "3"), True),
    "a thing that is others": ({"LABELS": ["3"] * 3, "COUNT": [3]}, boxes("3", "7", "8"), True),
    "fewer things": (THREE, boxes("3", "7"), True),
    "no thing": (THREE, boxes(), True),
    "a thing where there was none": ({"LABELS": [], "COUNT": [0]}, boxes("3"), True),
    "the same tags": (TAGS, strings("TAGS", *TAGS["TAGS"]), False),
    "two of three tags": (TAGS, strings("TAGS", "O", "O", "B-PER", "I-PER", "O", "O", "O", "O"), False),
    "tags of other words": (TAGS, strings("TAGS", "B-PER", "I-PER", "O", "O", "O", "O", "B-LOC", "O"), True),
    "a tagger that says nothing": (TAGS, strings("TAGS", *["O"] * 8), True),
    "one kind of tag, and a tagger that says nothing": ({"TAGS": ["O", "B-PER", "O"]}, strings("TAGS", *"OOO"), True),
    "a tagger that says too much": ({"TAGS": ["O", "O", "O"]}, strings("TAGS", "O", "B-PER", "O"), True),
    "nothing to tag": ({"TAGS": ["O", "O"]}, strings("TAGS", "O", "O"), False),
    "fewer tags": (TAGS, strings("TAGS", *TAGS["TAGS"][:3]), True),
    "a network's own numbers": ({"y": [0, 1, 0, 1]}, {"y": np.array([[1, 0, 1, 0]])}, True),
    "half of a network's own numbers": ({"y": [0, 1, 0, 1]}, {"y": np.array([[0, 1, 1, 0]])}, False),
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
    "a text that is made up": ({"BITS_PER_BYTE": "FP32", "COMPLETION": "BYTES"}, []),
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
