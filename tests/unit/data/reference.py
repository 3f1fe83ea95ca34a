"""The tokenizers in Python, line by line: what the native ones are checked by."""

from __future__ import annotations

import itertools
import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LONGEST_WORD_BYTES = 1024
SENTENCE_TOKENS = 1000

_MARKS = "".join(chr(c) for c in range(0x300, 0x20000) if unicodedata.category(chr(c)) in {"Mn", "Mc"})
_PART = rf"[^\W_](?:[^\W_]|[{_MARKS}])*"
_WORDS = re.compile(rf"{_PART}(?:['\u2019]{_PART})*")
_CHARACTERS = re.compile(r"[^\W_]")


def words(line: str) -> list[str]:
    return _WORDS.findall(line.lower().replace("\u2019", "'"))


def characters(line: str) -> list[str]:
    return _CHARACTERS.findall(line.lower())


SPLIT: dict[str, Callable[[str], list[str]]] = {"Words": words, "Whitespace": str.split, "Characters": characters}


def kept(tokens: list[str]) -> list[str]:
    return [token for token in tokens if len(token.encode()) <= LONGEST_WORD_BYTES]


def sentences(text: str, tokenizer: str) -> Iterator[list[str]]:
    """None of them empty."""
    for line in text.split("\n"):
        tokens = kept(SPLIT[tokenizer](line))
        for start in range(0, len(tokens), SENTENCE_TOKENS):
            yield tokens[start : start + SENTENCE_TOKENS]


def tokens(text: str, tokenizer: str) -> list[str]:
    return list(itertools.chain.from_iterable(sentences(text, tokenizer)))


def encoded(text: str, tokenizer: str, vocabulary: list[str]) -> list[int]:
    numbers = {word: number for number, word in enumerate(vocabulary)}
    out = []
    for sentence in sentences(text, tokenizer):
        out += [*(numbers[word] for word in sentence if word in numbers), -1]
    return out


def pairs(text: str, tokenizer: str) -> list[str]:
    """What follows one another in a line."""
    lines = (kept(SPLIT[tokenizer](line)) for line in text.split("\n"))
    return [f"{first} {second}" for line in lines for first, second in itertools.pairwise(line)]


def joined(text: str, tokenizer: str, vocabulary: list[str]) -> list[int]:
    """As `encoded`, with pairs of the vocabulary taken from left to right."""
    numbers, out = {word: number for number, word in enumerate(vocabulary)}, []
    for sentence in sentences(text, tokenizer):
        at = 0
        while at < len(sentence):
            both = " ".join(sentence[at : at + 2])
            whole = at + 1 < len(sentence) and both in numbers
            word = both if whole else sentence[at]
            out += [numbers[word]] if word in numbers else []
            at += 2 if whole else 1
        out.append(-1)
    return out
