"""Texts as tokens, by the library tokenizers, which has the same code wherever a model was trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mms_workloads.serve.pipelines.tensors import Prepared, RequestError, Signature, one_of, texts

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from tokenizers import Encoding, Tokenizer

    from mms_workloads.contract import Pipeline
    from mms_workloads.serve.pipelines.tensors import Arrays

TEXT, TOKENS, MASK = "TEXT", "TOKENS", "MASK"
INPUTS = (
    Signature(TEXT, "BYTES", (1,), optional=True),
    Signature(TOKENS, "INT64", (-1,), optional=True),
    Signature(MASK, "INT64", (-1,), optional=True),
)


def filling(tokenizer: Tokenizer) -> int:
    """The token that shorter texts are filled up with, in training as in serving."""
    ids = (tokenizer.token_to_id(name) for name in ("[PAD]", "<pad>", "<|endoftext|>"))
    return next((one for one in ids if one is not None), 0)


class Tokens:
    """TEXT, or TOKENS and MASK -> tokens, mask int64 [n, L]; about: the encodings, None for TOKENS."""

    def __init__(self, pipeline: Pipeline, folder: Path) -> None:
        from tokenizers import Tokenizer  # noqa: PLC0415 - of the tasks that read

        if pipeline.text is None:
            raise ValueError(f"pipeline.json: task {pipeline.task} needs text: its tokenizer and maxLength")
        self._tokenizer = Tokenizer.from_file(str(folder / pipeline.text.tokenizer))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(pipeline.text.maxLength)
        self._longest = pipeline.text.maxLength
        self._words = self._tokenizer.get_vocab_size()
        self.padded = {"tokens": filling(self._tokenizer), "mask": 0}

    def prepare(self, inputs: Arrays) -> Prepared:
        """Raises RequestError."""
        if one_of(inputs, (TEXT, TOKENS)) == TOKENS:
            return self._given(inputs[TOKENS], inputs.get(MASK))
        if MASK in inputs:
            raise RequestError(f"{MASK}: it goes with {TOKENS}, and {TEXT} is given")
        encodings = self._tokenizer.encode_batch(texts(inputs[TEXT], TEXT))
        return Prepared(self.feeds(encodings), encodings)

    def feeds(self, encodings: list[Encoding]) -> dict[str, NDArray[np.int64]]:
        """tokens, mask [n, L], as long as the longest, and 1 at least."""
        length = max(1, *(len(one.ids) for one in encodings))
        tokens = np.full((len(encodings), length), self.padded["tokens"], np.int64)
        mask = np.zeros((len(encodings), length), np.int64)
        for row, one in enumerate(encodings):
            tokens[row, : len(one.ids)] = one.ids
            mask[row, : len(one.ids)] = 1
        return {"tokens": tokens, "mask": mask}

    def _given(self, tokens: NDArray[np.int64], mask: NDArray[Any] | None) -> Prepared:
        if tokens.shape[1] > self._longest:
            raise RequestError(f"{TOKENS}: {tokens.shape[1]} a row, and the model takes {self._longest} at most")
        if tokens.min() < 0 or tokens.max() >= self._words:
            wrong = int(tokens.min() if tokens.min() < 0 else tokens.max())
            raise RequestError(f"{TOKENS}: {wrong} is none of the tokenizer's: they are 0 to {self._words - 1}")
        mask = np.ones_like(tokens) if mask is None else mask
        if mask.shape != tokens.shape or not np.isin(mask, (0, 1)).all():
            raise RequestError(f"{MASK}: it must be of the shape of {TOKENS}, 1 for a token and 0 for what fills up")
        return Prepared({"tokens": tokens, "mask": mask})
