"""The vocabulary: words with their counts, most frequent first; a word's number is its place."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np

from mms_workloads.contract import Phrases, Reason, WordEmbedding
from mms_workloads.data.text import PAIR, Words
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterable, Iterator, Mapping

    from mms_workloads.data.counts import Counts

# Counters never hold more words, nor pairs, than this many times maxVocabulary, and at least COUNTER_FLOOR.
COUNTER_FACTOR = 4
COUNTER_FLOOR = 4_000_000


@dataclass(frozen=True, slots=True)
class Vocabulary:
    words: tuple[str, ...]
    counts: tuple[int, ...]
    phrases: tuple[str, ...] = ()  # those of the words that are two, with a space between these

    def __len__(self) -> int:
        return len(self.words)

    def numbered(self) -> Words:
        """For encoding text. Raises MemoryError."""
        words = Words.numbered(self.words)
        if self.phrases:
            numbers = {word: number for number, word in enumerate(self.words)}
            words.add(self.phrases, np.array([numbers[_one(phrase)] for phrase in self.phrases]))
        return words

    def text(self) -> str:
        """vocabulary.txt of an artifact: `word<TAB>count` a line."""
        return "".join(self.lines())

    def lines(self) -> Iterator[str]:
        return (f"{w}\t{c}\n" for w, c in zip(self.words, self.counts, strict=True))


def counter_limit(task: WordEmbedding) -> int:
    return max(COUNTER_FLOOR, COUNTER_FACTOR * task.maxVocabulary)


def prune(counts: Counter[str], limit: int) -> int:
    """Bounds a counter in place, as word2vec does: drops words seen once, then twice, ... until half the limit is free.

    Pairs have a limit of their own, which is the same. Returns the highest count that was dropped: a word's final count
    may be too low by at most that for each pruning.
    """
    if len(counts) <= limit:
        return 0
    highest = 0
    for pairs in (False, True):
        left, floor = [w for w in counts if (PAIR in w) is pairs], 0
        while len(left) > (limit if not floor else limit // 2):
            floor += 1
            for word in left:
                if counts[word] <= floor:
                    del counts[word]
            left = [w for w in left if w in counts]
        highest = max(highest, floor)
    return highest


def cut(counts: Counts, task: WordEmbedding) -> Vocabulary:
    """Sorted by count descending, then by word. Raises JobError: DataEmpty, VocabularyTooSmall."""
    phrases: list[tuple[str, int]] = []
    if task.phrases:
        words = counts.words(min(task.minCount, task.phrases.minCount))
        pairs = counts.pairs(max(task.minCount, task.phrases.minCount))
        phrases = found(words, pairs, task.minCount, task.phrases)
    else:
        words = counts.most(task.minCount, task.maxVocabulary)
    while True:
        counted = joined(words, phrases) if phrases else words
        kept = frequent((wc for wc in counted.items() if wc[1] >= task.minCount), task.maxVocabulary)
        there = {word for word, _ in kept} if phrases else set()
        left = [one for one in phrases if _one(one[0]) in there]
        if len(left) == len(phrases):
            break
        phrases = left  # text that has one of the others is read as its words, which count again
    if len(kept) < 2:  # noqa: PLR2004 - a word needs another one to be told apart from
        raise _too_small(counts, task, len(kept))
    return Vocabulary(tuple(w for w, _ in kept), tuple(c for _, c in kept), tuple(sorted(pair for pair, _ in phrases)))


def frequent(counts: Iterable[tuple[str, int]], size: int) -> list[tuple[str, int]]:
    """The most frequent ones, of equally frequent ones the first by letters. Two sorts take less memory than a key."""
    return sorted(sorted(counts), key=itemgetter(1), reverse=True)[:size]


def _too_small(counts: Counts, task: WordEmbedding, kept: int) -> JobError:
    different = total = most = 0
    for part in counts.parts():
        each = [count for word, count in part.above(0).items() if PAIR not in word]
        different, total, most = different + len(each), total + sum(each), max(most, *each, 0)
    if not different:
        return JobError(Reason.DATA_EMPTY, "the data set has no word: check that the files of the URI hold text")
    return JobError(
        Reason.VOCABULARY_TOO_SMALL,
        f"{kept} of {different} different words occur minCount={task.minCount} times or more, 2 must "
        f"({total} words in all, the most frequent one {most} times): lower minCount or give more text",
    )


def found(
    words: Mapping[str, int], pairs: Iterable[tuple[str, int]], least: int, settings: Phrases
) -> list[tuple[str, int]]:
    """Pairs that become one word, as by word2phrase, the highest score first.

    A pair's score is (its count - minCount) / (count of one * count of the other) * occurrences of all words that are
    as frequent as `least`.
    """
    total = sum(count for count in words.values() if count >= least)
    scored = []
    for pair, count in pairs:
        first, _, second = pair.partition(PAIR)
        if first in words and second in words:
            score = (count - settings.minCount) / words[first] / words[second] * total
            if score > settings.threshold:
                scored.append((score, pair, count))
    return [(pair, count) for _, pair, count in sorted(scored, key=lambda one: (-one[0], one[1]))]


def joined(words: Mapping[str, int], phrases: Iterable[tuple[str, int]]) -> dict[str, int]:
    """The counts of words where some pairs are one. Where these overlap, text is read from left to right, which the
    counts do not know.
    """
    counts = dict(words)
    for pair, count in phrases:
        for word in pair.split(PAIR):
            counts[word] = max(0, counts[word] - count)
        counts[_one(pair)] = counts.get(_one(pair), 0) + count
    return {word: count for word, count in counts.items() if count}


def _one(pair: str) -> str:
    return pair.replace(PAIR, "_")


def pack_counts(counts: Counts) -> bytes:
    packer, packed = zlib.compressobj(1), bytearray()
    for part in counts.parts():
        packed += packer.compress("".join(f"{w}\t{c}\n" for w, c in part.above(0).items()).encode())
    return bytes(packed + packer.flush())


def unpack_counts(data: bytes) -> Words:
    """Raises ValueError, MemoryError."""
    lines = [line.partition("\t") for line in zlib.decompress(data).decode().split("\n")[:-1]]
    words = Words()
    words.add([word for word, _, _ in lines], np.array([int(count) for _, _, count in lines], np.int64))
    return words
