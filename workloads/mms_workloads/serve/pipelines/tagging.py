"""A tag for each word of a text, such as those of named entities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mms_workloads.serve.pipelines import writing
from mms_workloads.serve.pipelines.classifying import label_of, likelihoods
from mms_workloads.serve.pipelines.tensors import Prepared, Signature, strings, texts

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from tokenizers import Encoding

    from mms_workloads.contract import Pipeline
    from mms_workloads.serve.pipelines.tensors import Arrays


class Tag:
    """TEXT, or TOKENS and MASK -> of m words what the outputs say, and COUNT: the rest of a row is empty and zeros.

    STARTS and ENDS are characters of the text, the end behind the last. A word has the tag of its first token. For
    TOKENS there is a tag for each of them, no word, and STARTS and ENDS are the tokens' places.
    """

    model = "tag"
    inputs = writing.INPUTS
    outputs = (
        Signature("WORDS", "BYTES", (-1,)),
        Signature("TAGS", "BYTES", (-1,)),
        Signature("STARTS", "INT32", (-1,)),
        Signature("ENDS", "INT32", (-1,)),
        Signature("SCORES", "FP32", (-1,)),
        Signature("COUNT", "INT32", (1,)),
    )
    feeds = ("tokens", "mask")
    results = ("logits",)
    rows = 32

    def __init__(self, pipeline: Pipeline, folder: Path) -> None:
        self.pipeline = pipeline
        self.text = writing.Tokens(pipeline, folder)
        self.padded = self.text.padded

    def prepare(self, inputs: Arrays) -> Prepared:
        found = self.text.prepare(inputs)
        if found.about is None:
            places = [
                [(place, place, place + 1) for place in np.flatnonzero(row).tolist()] for row in found.feeds["mask"]
            ]
            return Prepared(found.feeds, ([""] * len(places), places))
        said = texts(inputs[writing.TEXT], writing.TEXT)
        return Prepared(found.feeds, (said, [words(*one) for one in zip(said, found.about, strict=True)]))

    def finish(self, results: Arrays, asked: Prepared) -> dict[str, NDArray[Any]]:
        likely = likelihoods(results["logits"], self.pipeline)
        best, sure = likely.argmax(axis=2), likely.max(axis=2)
        said, places = asked.about
        shape = len(places), max(map(len, places))
        starts, ends, scores = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.float32)
        tags = []
        for row, found in enumerate(places):
            tags.append([label_of(self.pipeline, int(best[row, token])) for token, _, _ in found])
            for column, (token, start, end) in enumerate(found):
                starts[row, column], ends[row, column], scores[row, column] = start, end, sure[row, token]
        return {
            "WORDS": strings(
                [[text[start:end] for _, start, end in found] for text, found in zip(said, places, strict=True)]
            ),
            "TAGS": strings(tags),
            "STARTS": starts,
            "ENDS": ends,
            "SCORES": scores,
            "COUNT": np.array([[len(found)] for found in places], np.int32),
        }


def words(text: str, encoding: Encoding) -> list[tuple[int, int, int]]:
    """Of each word its first token, and its first and last character (behind it). A training tags the same ones.

    What is a word says the tokenizer, but none goes on beyond a space: some have all of a text as one. A token of
    nothing but spaces is none of a word.
    """
    found: list[tuple[int, int, int]] = []
    last: int | None = None
    for token, (word, (begin, behind)) in enumerate(zip(encoding.word_ids, encoding.offsets, strict=True)):
        part = text[begin:behind]
        if word is None or not part.strip():
            continue
        start, end = begin + len(part) - len(part.lstrip()), begin + len(part.rstrip())
        if found and word == last and not any(map(str.isspace, text[found[-1][2] : start])):
            found[-1] = (*found[-1][:2], end)
        else:
            found.append((token, start, end))
        last = word
    return found
