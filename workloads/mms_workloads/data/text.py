"""Bytes to words, by the native library (workloads/native/text), whose abi.h is the reference.

A word never spans ASCII white space, which is what makes cutting bytes anywhere possible. What is longer than 1,024
bytes is no word.
"""

from __future__ import annotations

import ctypes
import itertools
import re
import unicodedata
import weakref
from ctypes import POINTER, Structure, c_bool, c_char_p, c_int32, c_int64, c_uint32, c_void_p
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mms_workloads import libraries

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Tokenizer = Literal["Words", "Whitespace", "Characters"]

ABI_VERSION = 3
LIBRARY = Path(__file__).with_name("libmms_text.so")
TOKENIZERS = {"Words": 0, "Whitespace": 1, "Characters": 2}
ASCII_SPACE = re.compile(rb"[ \t\n\r\x0b\x0c]")
SENTENCE_TOKENS = 1000  # as word2vec: text without newlines is cut into sentences of this length

PAIR = " "  # between the words of a pair: no tokenizer leaves it in a word
LONGEST_ENTRY = 2 * 1024 + 1  # bytes of a pair

LEAST = -(1 << 63)  # below any number
MOST_ROWS = (1 << 31) - 1
CODE_POINTS, PAGE, PARTS = 0x110000, 256, 64
LETTER, SPACE, MARK, LOWER = 1 << 31, 1 << 30, 1 << 29, (1 << 21) - 1
# Vowel signs, accents, points: they go on with a word and begin none. Behind these there are selectors of variants.
MARKS = [c for c in range(0x300, 0x20000) if unicodedata.category(chr(c)) in {"Mn", "Mc"}]
SURROGATES = slice(0xD800, 0xE000)
# Letters whose lower case depends on what stands around them, or is more than one letter: Python knows.
SIGMA, DOTTED = "\u03a3", "\u0130"


class _Characters(Structure):
    """Holds what it points to: threads that begin together each have a table of their own, and the cache keeps one."""

    _fields_ = (("page", c_void_p), ("entries", c_void_p))

    def __init__(self, page: NDArray[np.uint16], entries: NDArray[np.uint32]) -> None:
        super().__init__(page=_at(page), entries=_at(entries))
        self._held = page, entries


_lib = libraries.load(
    LIBRARY,
    "the native tokenizer",
    {
        "mms_text_abi_version": (c_int32, ()),
        "mms_text_words": (c_void_p, ()),
        "mms_text_release": (None, (c_void_p,)),
        "mms_text_length": (c_int64, (c_void_p, c_bool)),
        "mms_text_size": (c_int64, (c_void_p, c_int64, POINTER(c_int64))),
        "mms_text_list": (None, (c_void_p, c_int64, c_void_p, c_void_p, c_void_p)),
        "mms_text_special": (c_bool, (c_char_p, c_int64)),
        "mms_text_put": (c_int32, (c_void_p, c_void_p, c_void_p, c_void_p, c_int64)),
        "mms_text_prune": (c_int32, (c_void_p, c_int64, c_bool)),
        "mms_text_count": (c_int32, (c_void_p, POINTER(_Characters), c_int32, c_char_p, c_int64, c_bool)),
        "mms_text_encode": (
            c_int64,
            (c_void_p, POINTER(_Characters), c_int32, c_char_p, c_int64, c_int32, c_bool, c_void_p),
        ),
        "mms_text_ngrams": (None, (c_char_p, c_void_p, c_int64, c_int32, c_int32, c_uint32, c_void_p, c_void_p)),
    },
    version=ABI_VERSION,
)


class Words:
    """Words with a number each: counts, or places in a vocabulary. Memory is bounded by the words' bytes.

    Not to be changed by two threads at once; any number may `encode`.
    """

    def __init__(self) -> None:
        """Raises MemoryError."""
        self._words = _lib.mms_text_words()
        if not self._words:
            raise MemoryError
        weakref.finalize(self, _lib.mms_text_release, self._words)

    @classmethod
    def numbered(cls, words: Sequence[str]) -> Words:
        """Each with its place. Raises MemoryError."""
        made = cls()
        made.add(words, np.arange(len(words)))
        return made

    def __len__(self) -> int:
        return self._length(pairs=False) + self._length(pairs=True)

    def add(self, words: Sequence[str], numbers: NDArray[np.int64]) -> None:
        """numbers: as many as words. Raises MemoryError."""
        if len(numbers) != len(words):
            raise ValueError(f"{len(numbers)} numbers for {len(words)} words")
        self.put(*_joined(words), np.ascontiguousarray(numbers, np.int64))

    def count(self, data: bytes, tokenizer: Tokenizer, *, pairs: bool = False) -> None:
        """Adds one for each word of UTF-8 text. Raises MemoryError.

        pairs: also for each two that follow one another in a line, with a space between them.
        """
        data = _lowered(data, tokenizer)
        table = ctypes.byref(_table())
        self._check(_lib.mms_text_count(self._words, table, TOKENIZERS[tokenizer], data, len(data), pairs))

    def merge(self, other: Words) -> None:
        """Adds the other's numbers. Raises MemoryError."""
        self.put(*other.entries())

    def bound(self, limit: int) -> None:
        """Of words and of pairs: forgets those counted once, then twice, ... until half the limit of each is free.

        Raises MemoryError.
        """
        for pairs in (False, True):
            floor = 0
            while self._length(pairs=pairs) > (limit if not floor else limit // 2):
                floor += 1
                self._check(_lib.mms_text_prune(self._words, floor, pairs))

    def above(self, floor: int) -> dict[str, int]:
        """Words whose number is greater."""
        content, ends, numbers = self.entries(floor)
        data, starts = content.tobytes(), [0, *ends.tolist()]
        return {
            data[start:end].decode(): number
            for (start, end), number in zip(itertools.pairwise(starts), numbers.tolist(), strict=True)
        }

    def encode(self, data: bytes, tokenizer: Tokenizer, *, pairs: bool = False) -> NDArray[np.int32]:
        """The numbers of the text's words, those that are not there left out; -1 ends a sentence.

        A sentence is a line, or SENTENCE_TOKENS words of one; of one without words nothing is left. Raises MemoryError.
        pairs: two words that are there as a pair have its number, from left to right.
        """
        data = _lowered(data, tokenizer)
        out = np.empty(len(data) + len(data) // SENTENCE_TOKENS + 2, np.int32)
        table = ctypes.byref(_table())
        kind = TOKENIZERS[tokenizer]
        count = _lib.mms_text_encode(self._words, table, kind, data, len(data), SENTENCE_TOKENS, pairs, _at(out))
        if count < 0:
            raise MemoryError
        return out[:count].copy()

    def entries(self, floor: int = LEAST) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
        """Words whose number is greater: their bytes one after the other, where each ends, and the numbers."""
        size = c_int64()
        count = _lib.mms_text_size(self._words, floor, ctypes.byref(size))
        content, ends, numbers = np.empty(size.value, np.uint8), np.empty(count, np.int64), np.empty(count, np.int64)
        _lib.mms_text_list(self._words, floor, _at(content), _at(ends), _at(numbers))
        return content, ends, numbers

    def put(self, content: bytes | NDArray[np.uint8], ends: NDArray[np.int64], numbers: NDArray[np.int64]) -> None:
        """Adds the numbers of such entries. Raises MemoryError."""
        at = content if isinstance(content, bytes) else _at(content)
        self._check(_lib.mms_text_put(self._words, at, _at(ends), _at(numbers), len(ends)))

    def size(self) -> int:
        """Bytes of the words."""
        found = c_int64()
        _lib.mms_text_size(self._words, LEAST, ctypes.byref(found))
        return found.value

    def _length(self, *, pairs: bool) -> int:
        return int(_lib.mms_text_length(self._words, pairs))

    @staticmethod
    def _check(status: int) -> None:
        if status:
            raise MemoryError


@cache
def _table() -> _Characters:
    """What each code point is, as this Python knows it. Some at a time: all of them take ten times as much memory.

    Beyond the last one there is nothing, but the library may look there: where bytes are no UTF-8, four of them may say
    any number of so many bits.
    """
    entries = np.zeros(LOWER + 1, np.uint32)
    for code_points in np.array_split(np.delete(np.arange(CODE_POINTS, dtype="<u4"), SURROGATES), PARTS):
        letters = code_points.tobytes().decode("utf-32-le")
        lower = letters.replace(SIGMA, " ").replace(DOTTED, " ").lower()  # these two are never looked up
        entries[code_points] = (np.frombuffer(lower.encode("utf-32-le"), "<u4") - code_points) & LOWER
        for pattern, bit in ((r"[^\W_]+", LETTER), (r"\s+", SPACE)):
            for found in re.finditer(pattern, letters):
                entries[code_points[found.start() : found.end()]] |= np.uint32(bit)
    entries[MARKS] |= np.uint32(MARK)
    seen: dict[bytes, int] = {}
    numbers = [seen.setdefault(page.tobytes(), len(seen)) for page in entries.reshape(-1, PAGE)]
    return _Characters(np.array(numbers, np.uint16), np.frombuffer(b"".join(seen), np.uint32))


def ngrams(
    words: Sequence[str], shortest: int, longest: int, buckets: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """What each word w is made of: rows[starts[w]:starts[w + 1]], its own number and len(words) + b for the bucket b of
    each n-gram of `<word>` with so many characters, as often as they occur. starts: [len(words) + 1].

    Raises ValueError for numbers beyond int32.
    """
    if not 0 < buckets <= MOST_ROWS - len(words):
        raise ValueError(f"{buckets} buckets of n-grams beside {len(words)} words: there may be {MOST_ROWS} together")
    content, ends = _joined(words)
    starts = np.empty(len(ends) + 1, np.int64)
    of = (content, _at(ends), len(ends), shortest, longest, buckets, _at(starts))
    _lib.mms_text_ngrams(*of, None)
    rows = np.empty(starts[-1], np.int32)
    _lib.mms_text_ngrams(*of, _at(rows))
    return starts, rows


def _joined(words: Sequence[str]) -> tuple[bytes, NDArray[np.int64]]:
    """Their UTF-8, and where each ends."""
    encoded = [word.encode() for word in words]
    return b"".join(encoded), np.cumsum([len(word) for word in encoded], dtype=np.int64)


def _lowered(data: bytes, tokenizer: Tokenizer) -> bytes:
    if tokenizer != "Whitespace" and _lib.mms_text_special(data, len(data)):
        return data.decode().lower().encode()
    return data


def _at(array: NDArray[Any]) -> int:
    return int(array.ctypes.data)
