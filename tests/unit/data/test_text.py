"""The native tokenizer, against the one in Python."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mms_workloads.data import text, vocabulary
from mms_workloads.data.text import Words
from tests.unit.data import reference
from tests.unit.data.test_reader import PIECES

if TYPE_CHECKING:
    from mms_workloads.data.text import Tokenizer

every_tokenizer = pytest.mark.parametrize("tokenizer", ["Words", "Whitespace", "Characters"])

# Letters whose lower case depends on what is around them, is of another length or of several letters; what words have
# inside but not at their ends; white space that ends no line; characters of no width and of four bytes.
ODD = "Σ\u03c3ςİ\u0131IßẞȺ\u212a''\u2019\u2019__\r\n\n\0\x1c\u0307\u0345\u00ad\u200b\u2028\u0085\ufeff٣½ⅷ𐐀\U0001d538🦀"
CONTENT = st.lists(st.sampled_from([*PIECES, *ODD]) | st.text(max_size=6), max_size=50).map("".join)
COUNTS = st.dictionaries(st.text(min_size=1, max_size=4), st.integers(1, 50), max_size=60)


def counts(content: str, tokenizer: Tokenizer) -> dict[str, int]:
    words = Words()
    words.count(content.encode(), tokenizer)
    return words.above(0)


def encoded(content: str, tokenizer: Tokenizer, known: list[str]) -> list[int]:
    found = Words.numbered(known).encode(content.encode(), tokenizer)
    assert found.dtype == np.int32
    return found.tolist()


def lengths(content: str, tokenizer: Tokenizer, known: list[str]) -> list[int]:
    """Of the sentences, without the words that are not known."""
    ends = np.flatnonzero(np.array(encoded(content, tokenizer, known)) < 0)
    return (np.diff(ends, prepend=-1) - 1).tolist()


def check(content: str, tokenizer: Tokenizer) -> None:
    expected = Counter(reference.tokens(content, tokenizer))
    assert counts(content, tokenizer) == expected
    known = sorted(expected)
    for some in (known, known[::2], []):
        assert encoded(content, tokenizer, some) == reference.encoded(content, tokenizer, some)


@every_tokenizer
@given(CONTENT)
@example("ΔΣ ΣΔ Σ ΔΣ' ΔΣ\u2019Δ ΔΣ\nΔ ΔΣ\u00adΔ ΣΣΣ")
@example("İstanbul Iİ İ' İ\u2019x")
@example("it's o\u2019clock 'quoted' \u2019tis rock''n'\u2019roll x'_'x a'\nb a'\r\nb")
@example("don'")
@example("don\u2019")
@example("'")
@example("\u2019")
@example("a'İ")
@example("a\0b\u2028c\x85d\x1ce\x0bf\r\ng\n\n")
@example("हिन्दी a\u0301\u0301' \u0301b' \u0301 x'\u0301y \ufe0f")
@example("𐐀'𐐀\u2019\U0001d538🦀")
def test_it_is_the_reference(tokenizer: Tokenizer, content: str) -> None:
    check(content, tokenizer)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Don't STOP, o\u2019clock!", ["don't", "stop", "o'clock"]),
        ("x_y 3.14", ["x", "y", "3", "14"]),
        ("'quoted' words'", ["quoted", "words"]),
        ("Größe ΟΔΟΣ", ["größe", "οδος"]),
        ("हिन्दी में กิน नहीं", ["हिन्दी", "में", "กิน", "नहीं"]),
        ("nai\u0308ve cafe\u0301's", ["nai\u0308ve", "cafe\u0301's"]),
        ("\u2764\ufe0f \u0301 a\u0301", ["a\u0301"]),
        ("...", []),
    ],
    ids=[
        "apostrophes",
        "underscore and point",
        "quotes",
        "other scripts",
        "vowel signs",
        "decomposed",
        "marks alone",
        "nothing",
    ],
)
def test_words(line: str, expected: list[str]) -> None:
    assert counts(line, "Words") == Counter(expected)
    assert encoded(line, "Words", expected) == [*range(len(expected)), -1][: len(expected) + bool(expected)]
    assert reference.words(line) == expected


def test_words_outside_the_vocabulary_are_left_out() -> None:
    """A sentence has its end even where none of its words is known; a line without words has none."""
    content = "known other\nother other\n\n...\nother known"
    assert encoded(content, "Words", ["known"]) == [0, -1, -1, 0, -1]


@pytest.mark.parametrize("tokenizer", ["Words", "Whitespace"])
@pytest.mark.parametrize(
    ("long", "kept"),
    [
        ("x" * 1024, True),
        ("x" * 1025, False),
        ("漢" * 341 + "x", True),
        ("漢" * 341 + "é", False),
        ("𐐨" * 256, True),
        ("𐐨" * 256 + "x", False),
        ("x" * (3 << 20), False),
        ("漢" * (1 << 20), False),
    ],
    ids=["1024", "1025", "1024 of three", "1025 of three", "1024 of four", "1025 of four", "3 MiB", "3 MiB of three"],
)
def test_the_longest_word(tokenizer: Tokenizer, long: str, kept: bool) -> None:
    content = f"a {long} b\n{long}\nc {long[:200]}"
    assert counts(content, tokenizer) == {"a": 1, "b": 1, "c": 1, long[:200]: 1} | ({long: 2} if kept else {})
    assert encoded(content, tokenizer, ["a", "b", "c"]) == [0, 1, -1, *([-1] if kept else []), 2, -1]
    check(content, tokenizer)


@pytest.mark.parametrize(
    ("word", "kept"),
    [
        ("Ⱥ" * 341, True),
        ("Ⱥ" * 342, False),
        ("\u212a" * 1024, True),
        ("x" + "'x" * 512, False),
        ("x\u2019" * 512, True),
    ],
    ids=["grows", "grows beyond", "shrinks", "apostrophes", "an apostrophe at the end"],
)
def test_a_word_is_measured_as_it_is_kept(word: str, kept: bool) -> None:
    assert len(counts(word, "Words")) == kept
    check(word, "Words")


@every_tokenizer
def test_a_long_line_is_several_sentences(tokenizer: Tokenizer) -> None:
    assert lengths("a b\n\n" + "c " * 2500, tokenizer, ["a", "b", "c"]) == [2, 1000, 1000, 500]


@every_tokenizer
@pytest.mark.parametrize("size", [999, 1000, 1001, 2000, 2001])
def test_no_sentence_is_empty(tokenizer: Tokenizer, size: int) -> None:
    """Words that are left out count, too."""
    content = "a b " * (size // 2) + "a " * (size % 2)
    whole, rest = divmod(size, text.SENTENCE_TOKENS)
    assert lengths(content, tokenizer, ["a", "b"]) == [1000] * whole + [rest] * (rest > 0)
    for known in (["a"], ["b"], []):
        assert encoded(content, tokenizer, known) == reference.encoded(content, tokenizer, known)


def test_pruning_forgets_the_rare_ones_first() -> None:
    """So many words that the table grows, and grows again after they were forgotten."""
    expected = {f"w{i}": 1 + i % 4 for i in range(300_000)}
    content = " ".join(word for word, count in expected.items() for _ in range(count)).encode()
    words = Words()
    words.count(content, "Words")
    assert len(words) == 300_000
    assert not words.above(0).items() ^ expected.items()
    words.bound(300_000)
    assert len(words) == 300_000, "no more than may be"
    words.bound(200_000)
    left = {word: count for word, count in expected.items() if count == 4}
    assert not words.above(0).items() ^ left.items()
    assert len(words) == len(left) == 75_000
    words.count(content, "Words")
    again = {word: count + (4 if count == 4 else 0) for word, count in expected.items()}
    assert not words.above(0).items() ^ again.items()
    assert words.above(3) == dict.fromkeys(left, 8)
    assert words.encode(b"w3 w0 w2 other", "Words").tolist() == [8, 1, 3, -1]
    words.bound(1)
    assert (len(words), words.above(0)) == (0, {})
    words.count(b"w1 w2 w1", "Words")
    assert words.above(0) == {"w1": 2, "w2": 1}


@given(COUNTS, st.integers(1, 30))
def test_a_bound_is_the_same_as_for_a_counter(found: dict[str, int], limit: int) -> None:
    words, pruned = Words(), Counter(found)
    words.add(list(found), np.array(list(found.values()), np.int64))
    assert (len(words), words.above(0)) == (len(found), found)
    words.bound(limit)
    vocabulary.prune(pruned, limit)
    assert words.above(0) == pruned
    assert len(words) == len(pruned)
    pairs = sum(" " in word for word in pruned)
    assert max(pairs, len(pruned) - pairs) <= limit


@given(COUNTS, COUNTS, st.integers(0, 50))
def test_merged_counts(first: dict[str, int], second: dict[str, int], floor: int) -> None:
    both = []
    for found in (first, second):
        words = Words()
        words.add(list(found), np.array(list(found.values()), np.int64))
        both.append(words)
    both[0].merge(both[1])
    expected = Counter(first) + Counter(second)
    assert both[0].above(0) == expected
    assert both[0].above(floor) == {word: count for word, count in expected.items() if count > floor}
    assert both[1].above(0) == second


def test_many_words_are_merged() -> None:
    first, second = Words(), Words()
    first.count(" ".join(f"w{i}" for i in range(200_000)).encode(), "Words")
    second.count(" ".join(f"w{i}" for i in range(150_000, 400_000)).encode(), "Words")
    first.merge(second)
    expected = {f"w{i}": 1 + (150_000 <= i < 200_000) for i in range(400_000)}
    assert not first.above(0).items() ^ expected.items()


def test_as_many_numbers_as_words() -> None:
    with pytest.raises(ValueError, match="1 numbers for 2 words"):
        Words().add(["a", "b"], np.ones(1, np.int64))


def test_there_is_an_entry_for_all_that_four_bytes_may_say() -> None:
    pages, entries = text._table()._held
    assert len(pages) * text.PAGE == 1 << 21
    assert (int(pages.max()) + 1) * text.PAGE <= len(entries)


@every_tokenizer
@pytest.mark.parametrize("size", [0, 1, 2, 3, 5, 8, 100, 3000])
def test_bytes_that_are_no_text(tokenizer: Tokenizer, size: int) -> None:
    """They mean nothing, and do no harm."""
    chance = random.Random(size)
    for _ in range(20):
        leading = bytes(chance.choices(b"\xff\xf5\xf0\xe2\xc3\x80 a\n'\0", k=size))
        for data in (chance.randbytes(size), leading):
            if text._lib.mms_text_special(data, size):
                continue  # that is Python's to read
            words = Words()
            words.count(data, tokenizer, pairs=True)
            assert len(words) <= 2 * size
            assert len(words.encode(data, tokenizer, pairs=True)) <= size + size // text.SENTENCE_TOKENS + 2


def test_threads_encode_with_the_same_words() -> None:
    known = [f"w{i}" for i in range(50_000)]
    words, begin = Words.numbered(known), threading.Barrier(2)
    contents = [" ".join(f"w{i * step % 60_000}" for i in range(100_000)) for step in (7, 11)]

    def encode(content: str) -> list[list[int]]:
        begin.wait(10)
        return [words.encode(content.encode(), "Words").tolist() for _ in range(3)]

    with ThreadPoolExecutor(2) as pool:
        for content, found in zip(contents, pool.map(encode, contents), strict=True):
            assert found == [reference.encoded(content, "Words", known)] * 3


FIRST = """
from mms_workloads.data import text
text._table = text._table.__wrapped__
words = text.Words()
words.count(" ".join(f"w{i % 1_000}" for i in range(10_000)).encode(), "Words")
assert words.above(0) == dict.fromkeys((f"w{i}" for i in range(1_000)), 10)
assert text.Words.numbered(["w1", "w0"]).encode(b"w0 w1 w2", "Words").tolist() == [1, 0, -1]
"""


def test_threads_that_are_the_first_to_read_text() -> None:
    """Each of them makes the table of characters, one is kept: the others are there as long as they are read."""
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "MALLOC_PERTURB_": "165"}  # overwrites what is freed
    subprocess.run([sys.executable, "-c", FIRST], check=True, env=os.environ | environment)


SCALARS = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]


@pytest.mark.parametrize("tokenizer", ["Words", "Characters"])
def test_every_character(tokenizer: Tokenizer) -> None:
    """Those whose lower case only Python knows stand apart: of a text that has one, it tells all lower cases."""
    apart = text.SIGMA + text.DOTTED
    for content in (" ".join(c for c in SCALARS if c not in apart), " ".join(apart)):
        expected = Counter(reference.tokens(content, tokenizer))
        assert not counts(content, tokenizer).items() ^ expected.items()
        known = sorted(expected)
        found = Words.numbered(known).encode(content.encode(), tokenizer)
        assert np.array_equal(found, reference.encoded(content, tokenizer, known))


def test_every_white_space() -> None:
    check(" ".join("".join(SCALARS[i : i + 200]) for i in range(0, len(SCALARS), 200)), "Whitespace")


@every_tokenizer
@given(CONTENT, st.integers(1, 4))
@example("a b a b b a\na\nb", 1)
@example("a a a a", 1)
def test_pairs(tokenizer: Tokenizer, content: str, every: int) -> None:
    words, pairs = Counter(reference.tokens(content, tokenizer)), Counter(reference.pairs(content, tokenizer))
    found = Words()
    found.count(content.encode(), tokenizer, pairs=True)
    assert found.above(0) == words + pairs
    known = [*sorted(words)[::every], *sorted(pairs)[::every]]
    answer = Words.numbered(known).encode(content.encode(), tokenizer, pairs=True)
    assert answer.tolist() == reference.joined(content, tokenizer, known)


def test_pairs_of_the_longest_words() -> None:
    longest = "x" * reference.LONGEST_WORD_BYTES
    content = f"{longest} {longest} {longest}y {longest}"
    found = Words()
    found.count(content.encode(), "Words", pairs=True)
    assert found.above(0) == {longest: 3, f"{longest} {longest}": 2}, "what is no word parts nothing"
    assert Words.numbered([f"{longest} {longest}"]).encode(content.encode(), "Words", pairs=True).tolist() == [0, -1]


def test_pairs_in_a_long_line() -> None:
    """Sentences end after so many words, and a pair with them."""
    content = "a b c " * 1000
    known = ["a b", "b c", "c a", "a"]
    found = Words.numbered(known).encode(content.encode(), "Words", pairs=True)
    assert found.tolist() == reference.joined(content, "Words", known)
