"""The vocabulary: words with their counts, most frequent first; a word's number is its place."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mms_workloads.contract import Phrases, Reason, WordEmbedding
from mms_workloads.data.text import PAIR, Words
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Mapping

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
        return "".join(f"{w}\t{c}\n" for w, c in zip(self.words, self.counts, strict=True))


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


def cut(counts: Mapping[str, int], task: WordEmbedding) -> Vocabulary:
    """Sorted by count descending, then by word. Raises JobError: DataEmpty, VocabularyTooSmall.

    counts: with phrases also of pairs, written with a space between them.
    """
    phrases: list[str] = []
    if task.phrases:
        counts, phrases = joined(counts, task.minCount, task.phrases)
    if not counts:
        raise JobError(Reason.DATA_EMPTY, "the data set has no word: check that the files of the URI hold text")
    kept = sorted(((w, c) for w, c in counts.items() if c >= task.minCount), key=lambda wc: (-wc[1], wc[0]))
    kept = kept[: task.maxVocabulary]
    if len(kept) < 2:  # noqa: PLR2004 - a word needs another one to be told apart from
        total, most = sum(counts.values()), max(counts.values())
        raise JobError(
            Reason.VOCABULARY_TOO_SMALL,
            f"{len(kept)} of {len(counts)} different words occur minCount={task.minCount} times or more, 2 must "
            f"({total} words in all, the most frequent one {most} times): lower minCount or give more text",
        )
    words = tuple(w for w, _ in kept)
    there = set(words) if phrases else set()
    return Vocabulary(words, tuple(c for _, c in kept), tuple(sorted(p for p in phrases if _one(p) in there)))


def joined(counts: Mapping[str, int], least: int, settings: Phrases) -> tuple[dict[str, int], list[str]]:
    """Makes one word of pairs, as word2phrase does: the counts of words then, and the pairs.

    A pair's score is (its count - minCount) / (count of one * count of the other) * occurrences of all words that are
    as frequent as `least`. Where pairs overlap, text is read from left to right, which the counts do not know.
    """
    words = {word: count for word, count in counts.items() if PAIR not in word}
    total = sum(count for count in words.values() if count >= least)
    scored = []
    for pair, count in counts.items():
        first, space, second = pair.partition(PAIR)
        if space and count >= max(settings.minCount, least) and first in words and second in words:
            score = (count - settings.minCount) / words[first] / words[second] * total
            if score > settings.threshold:
                scored.append((score, pair, count))
    found = []
    for _, pair, count in sorted(scored, key=lambda one: (-one[0], one[1])):
        first, _, second = pair.partition(PAIR)
        for word in (first, second):
            words[word] = max(0, words[word] - count)
        words[_one(pair)] = words.get(_one(pair), 0) + count
        found.append(pair)
    return {word: count for word, count in words.items() if count}, found


def _one(pair: str) -> str:
    return pair.replace(PAIR, "_")


def pack_counts(counts: Mapping[str, int]) -> bytes:
    return zlib.compress(json.dumps(counts, ensure_ascii=False).encode(), 1)


def unpack_counts(data: bytes) -> dict[str, int]:
    counts: dict[str, int] = json.loads(zlib.decompress(data))
    return counts
