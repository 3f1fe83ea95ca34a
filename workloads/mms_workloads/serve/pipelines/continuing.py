"""A language model over the tokens of a tokenizer, asked for bytes and answering in bytes as one over bytes does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from mms_workloads.serve.pipelines.completing import bits_of, drawing, drawn

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from mms_workloads.serve.pipelines.networks import Network
    from mms_workloads.serve.pipelines.tensors import Arrays

UNFINISHED = "\ufffd"  # what a tokenizer says of tokens that are a part of a character


@dataclass(slots=True)
class _Row:
    """A text that is continued. told: tokens; bytes: what they are of text, as many as are wanted."""

    given: list[int]
    wanted: int
    seed: int
    draws: np.random.Generator
    told: list[int]
    bytes: bytes = b""

    @property
    def going(self) -> bool:
        """A token may be a part of a character: as many as there should be bytes are drawn at most."""
        return bool(self.given) and len(self.bytes) < self.wanted and len(self.told) < self.wanted


@dataclass(frozen=True, slots=True)
class TokenModel:
    """As completing.ByteModel, whose feeds it takes: texts as bytes. context: how many tokens the network looks at.

    A token of the tokenizer that stands for no text, such as the end, ends what is told.
    """

    network: Network
    context: int
    tokenizer: Tokenizer
    special: frozenset[int]

    @classmethod
    def of(cls, network: Network, context: int, path: Path) -> TokenModel:
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        added = tokenizer.get_added_tokens_decoder()
        return cls(network, context, tokenizer, frozenset(number for number, one in added.items() if one.special))

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        rows = [
            bytes(row[:length].astype(np.uint8)).decode()
            for row, length in zip(feeds["tokens"], feeds["lengths"], strict=True)
        ]
        going = [
            _Row(self._cut(text)[0], wanted, seed, drawing(seed), [])
            for text, wanted, seed in zip(rows, feeds["wanted"].tolist(), feeds["seeds"].tolist(), strict=True)
        ]
        while current := [row for row in going if row.going]:
            self._one_more(current)
        told = np.empty(len(rows), np.object_)
        told[:] = [row.bytes for row in going]
        return {"bits": np.array([self._bits(text) for text in rows], np.float32), "told": told}

    def _cut(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Numbers, and where in the text each token is."""
        found = self.tokenizer.encode(text, add_special_tokens=False)
        return found.ids, found.offsets

    def _bits(self, text: str) -> float:
        """Window by window, as it was trained, by the bytes after the first token."""
        numbers, places = self._cut(text)
        if len(numbers) < 2:  # noqa: PLR2004 - the first is given
            return 0.0
        told = len(text[places[0][1] : places[-1][1]].encode())
        total = 0.0
        for start in range(0, len(numbers) - 1, self.context):
            window = np.array(numbers[start : start + self.context + 1], np.int64)
            total += bits_of(self._logits(window[None, :-1])[0], window[1:])
        return total / max(1, told)

    def _one_more(self, rows: list[_Row]) -> None:
        windows = [(row.given + row.told)[-self.context :] for row in rows]
        tokens = np.zeros((len(rows), max(map(len, windows))), np.int64)
        for place, window in enumerate(windows):
            tokens[place, : len(window)] = window
        logits = self._logits(tokens)
        for place, row in enumerate(rows):
            last = drawn(logits[place, len(windows[place]) - 1], row.seed, row.draws)
            if last in self.special:
                row.wanted = len(row.bytes)
                continue
            row.told.append(last)
            row.bytes = self._text(row).encode()[: row.wanted]

    def _text(self, row: _Row) -> str:
        """What was told: some tokenizers write a token otherwise at the beginning than after others."""
        whole, before = (self.tokenizer.decode(n, skip_special_tokens=False) for n in (row.given + row.told, row.given))
        told = whole[len(before) :] if whole.startswith(before) else self.tokenizer.decode(row.told)
        return told.rstrip(UNFINISHED)

    def _logits(self, tokens: NDArray[np.int64]) -> NDArray[Any]:
        return self.network.run({"tokens": tokens})["logits"]
