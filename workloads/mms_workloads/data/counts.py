"""Counts of words, of which there may be more than memory holds.

What memory does not hold goes to files, by the words' hashes: each word to one of them, which is counted by itself when
all text is read. So counts are exact. Where nothing may be written (of encrypted data, and in the master, which has no
volume) the rare ones are forgotten instead, as in word2vec.c.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import weakref
from typing import IO, TYPE_CHECKING

import numpy as np

from mms_workloads.contract import Reason
from mms_workloads.data.text import LONGEST_ENTRY, PAIR, Words
from mms_workloads.data.vocabulary import counter_limit, frequent
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from mms_workloads.contract import WordEmbedding

# Bytes of words in memory. More are held as the vocabulary grows: of what is left out of it, as much as its matrices
# will take, which are not there yet.
HELD_BYTES = 24 << 20
ENTRY_BYTES = 200  # a word's, and its part of a table that is made anew, twice as large
FILES = 64
BYTES_AT_ONCE = 64 << 10  # of words that are sorted by their files
# Of a word's hash: a random factor for each of its bytes.
FACTORS = np.random.default_rng(1).integers(1 << 64, size=LONGEST_ENTRY, dtype=np.uint64) | np.uint64(1)


def memory(words: Words) -> int:
    """Bytes that they take."""
    return len(words) * ENTRY_BYTES + words.size()


class Counts:
    """For any thread. folder: for what memory does not hold, None for nowhere."""

    def __init__(self, folder: Path | None = None) -> None:
        """Raises MemoryError, OSError where the folder cannot be made."""
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self.held = HELD_BYTES
        self._words, self._folder = Words(), folder
        self._files: list[IO[bytes]] = []
        self._adding, self._open = threading.Lock(), contextlib.ExitStack()
        weakref.finalize(self, self._open.close)

    def add(self, counted: Words, task: WordEmbedding) -> None:
        """Raises MemoryError, JobError where the files cannot be written."""
        with self._adding:
            if self._folder is not None:
                self._make_room(memory(counted), task)
            self._words.merge(counted)
            if self._folder is None:  # of all that was counted: only what is rare in it may be forgotten
                self._words.bound(counter_limit(task))

    def parts(self) -> Iterator[Words]:
        """Each word is in one of them. When all are added. Raises JobError, MemoryError."""
        if not self._files:
            yield self._words
            return
        self._write()
        for file in self._files:
            yield _read(file)

    def words(self, least: int) -> dict[str, int]:
        """Those that occur so often or more."""
        return {word: count for part in self.parts() for word, count in _of(part, least, pairs=False)}

    def most(self, least: int, size: int) -> dict[str, int]:
        """As `words`, and of these the `size` most frequent at least; of equally frequent ones the first by letters."""
        found: dict[str, int] = {}
        for part in self.parts():
            found.update(_of(part, least, pairs=False))
            if len(found) > size + size // 4:
                found = dict(frequent(found.items(), size))
                least = min(found.values())
        return found

    def pairs(self, least: int) -> Iterator[tuple[str, int]]:
        """Those that occur so often or more, written with PAIR between their words."""
        return (one for part in self.parts() for one in _of(part, least, pairs=True))

    def _make_room(self, wanted: int, task: WordEmbedding) -> None:
        if memory(self._words) + wanted <= self.held:
            return
        vocabulary = min(task.maxVocabulary, _so_far(self._words, task.minCount))
        self.held = max(self.held, HELD_BYTES + 8 * task.dimensions * vocabulary)
        if len(self._words) and memory(self._words) + wanted > self.held:
            self._write()

    def _write(self) -> None:
        """All that is in memory goes to the files."""
        content, ends, numbers = self._words.entries()
        self._words = Words()
        first = 0
        try:
            while len(self._files) < FILES:
                made = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - closed with this
                self._files.append(self._open.enter_context(made))
            while first < len(ends):
                start = ends[first - 1] if first else 0
                last = max(first + 1, int(np.searchsorted(ends, start + BYTES_AT_ONCE)))
                part = content[start : ends[last - 1]]
                _deal(self._files, part, np.diff(ends[first:last], prepend=start), numbers[first:last])
                first = last
            for file in self._files:
                file.flush()
        except OSError as error:
            with contextlib.suppress(OSError):  # what was not written yet
                self._open.close()
            raise JobError(
                Reason.INTERNAL, f"the scratch volume cannot be written ({error}): make it larger", retryable=True
            ) from error


def _of(part: Words, least: int, *, pairs: bool) -> Iterator[tuple[str, int]]:
    return ((word, count) for word, count in part.above(least - 1).items() if (PAIR in word) is pairs)


def _so_far(words: Words, least: int) -> int:
    content, ends, _ = words.entries(least - 1)
    return len(ends) - int(np.count_nonzero(content == ord(PAIR)))


def _deal(
    files: list[IO[bytes]], content: NDArray[np.uint8], sizes: NDArray[np.int64], numbers: NDArray[np.int64]
) -> None:
    """Writes each word (its bytes, how many these are, its number) to its file."""
    starts = np.cumsum(sizes) - sizes
    place = np.arange(len(content))
    factors = FACTORS[place - np.repeat(starts, sizes)]
    hashes = np.add.reduceat((content.astype(np.uint64) + 1) * factors, starts)
    file = hashes >> np.uint64(64 - (FILES - 1).bit_length())
    order = np.argsort(file, kind="stable")
    sizes, numbers = sizes[order], numbers[order]
    ends = np.cumsum(sizes)
    content = content[np.repeat(starts[order] - (ends - sizes), sizes) + place]
    bounds = np.searchsorted(file[order], np.arange(FILES + 1))
    for one, first, last in zip(files, bounds[:-1], bounds[1:], strict=True):
        if first < last:
            part = content[ends[first] - sizes[first] : ends[last - 1]]
            head = np.array([last - first, len(part)], np.int64)
            one.write(b"".join(a.tobytes() for a in (head, sizes[first:last], numbers[first:last], part)))


def _read(file: IO[bytes]) -> Words:
    words = Words()
    file.seek(0)
    while head := file.read(16):
        count, size = np.frombuffer(head, np.int64).tolist()
        sizes, numbers = np.frombuffer(file.read(16 * count), np.int64).reshape(2, count)
        words.put(file.read(size), np.cumsum(sizes), numbers)
    return words
