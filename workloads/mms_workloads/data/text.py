"""Bytes to words. A word never spans ASCII white space, which is what makes cutting bytes anywhere possible."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

# Runs of letters and digits of any script, with apostrophes inside: don't, o'clock.
_WORDS = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
ASCII_SPACE = re.compile(rb"[ \t\n\r\x0b\x0c]")
SENTENCE_TOKENS = 1000  # as word2vec: text without newlines is cut into sentences of this length

Tokenizer = Callable[[str], list[str]]


def tokenizer(name: str) -> Tokenizer:
    return words if name == "Words" else str.split


def words(line: str) -> list[str]:
    return _WORDS.findall(line.lower().replace("\u2019", "'"))


def sentences(text: str, split: Tokenizer) -> Iterator[list[str]]:
    """Sentences end at newlines or after SENTENCE_TOKENS tokens; empty ones are left out."""
    for line in text.split("\n"):
        tokens = split(line)
        for start in range(0, len(tokens), SENTENCE_TOKENS):
            yield tokens[start : start + SENTENCE_TOKENS]
