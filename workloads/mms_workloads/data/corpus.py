"""A worker's view of a text data set: counts words of tasks, and gives blocks as numbers of words or as bytes."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from mms_workloads.contract import Reason, Store, WordEmbedding
from mms_workloads.data import keyring, pages, readers
from mms_workloads.data.counts import Counts, memory
from mms_workloads.data.text import ASCII_SPACE, Words
from mms_workloads.recent import Recent
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mms_workloads.data.blocks import Segment
    from mms_workloads.data.keyring import Keyring
    from mms_workloads.data.reader import Reader
    from mms_workloads.sync.plan import Plan

# Encoded blocks are kept on the scratch volume: to read four bytes a word takes less than to tokenise. Beyond this the
# rest is tokenised in each data epoch.
CACHE_BYTES = 2 << 30
HELD_BYTES = 64 << 20  # of encoded blocks of encrypted data, of which nothing may be kept but in memory
LOCKS = 16
PIECE_BYTES = 2 << 20  # of a counting task, that a thread holds at a time
SLICE_BYTES = 64 << 10  # of a piece, whose words are counted before a thread looks how many it has
OWN_BYTES = 40 << 20  # of words and pairs that a thread counts for itself, at most, before it tells the others


def count(
    reader: Reader,
    segments: Sequence[Segment],
    task: WordEmbedding | None,
    *,
    threads: int = 1,
    folder: Path | None = None,
) -> tuple[Counts, dict[int, int]]:
    """A counting task: words with counts, and the decompressed sizes of files that it read whole. Raises JobError.

    task None: sizes alone; nothing is read but what must be decompressed. folder: for counts that memory does not hold.
    """
    counts = Counts(folder)
    if task is not None:
        pieces = reader.pieces(tuple(segments), PIECE_BYTES)
        threads = max(1, min(threads, len(pieces)))
        with ThreadPoolExecutor(threads) as pool:
            parts = [pieces[first::threads] for first in range(threads)]
            for _ in pool.map(lambda part: _count(reader, part, task, counts, threads), parts):
                pass
    sizes = {s.file: reader.size(s.file) for s in segments if s.end is None}
    return counts, sizes


def _count(reader: Reader, pieces: Iterable[Segment], task: WordEmbedding, counts: Counts, threads: int) -> None:
    words = Words()
    for text in (part for piece in pieces for part in _slices(reader.text(piece))):
        words.count(text, task.tokenizer, pairs=task.phrases is not None)
        if memory(words) > min(OWN_BYTES, counts.held // (2 * threads)):
            counts.add(words, task)
            words = Words()
    counts.add(words, task)


def _slices(text: bytes) -> Iterator[bytes]:
    """Lines together, or what is between white space of a longer one, where two words are no pair then."""
    start = 0
    while len(text) - start > SLICE_BYTES:
        end = text.rfind(b"\n", start, start + SLICE_BYTES) + 1
        if not end:
            space = ASCII_SPACE.search(text, start + SLICE_BYTES)
            end = space.end() if space else len(text)
        yield text[start:end]
        start = end
    yield text[start:]


class Cache:
    """Encoded blocks on the scratch volume, up to CACHE_BYTES, as they are in memory: a header takes longer to read
    than the rest. folder: for one plan alone; dtype: of blocks. For any thread.
    """

    def __init__(self, folder: Path, dtype: type[np.generic]) -> None:
        self._folder, self._dtype = folder, dtype
        self._encoding = [threading.Lock() for _ in range(LOCKS)]
        self._counting = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        self._kept = sum(f.stat().st_size for f in folder.iterdir())

    def get(self, block: int, encode: Callable[[int], NDArray[Any]]) -> NDArray[Any]:
        """`encode(block)`, from the cache where it is there. Raises JobError."""
        path = self._folder / f"{block}.{np.dtype(self._dtype).name}"
        if not path.exists():
            with self._encoding[block % LOCKS]:
                if not path.exists():  # another thread may have encoded it meanwhile
                    return self._keep(path, encode(block))
        return np.fromfile(path, self._dtype)

    def _keep(self, path: Path, encoded: NDArray[Any]) -> NDArray[Any]:
        with self._counting:
            room = self._kept + encoded.nbytes <= CACHE_BYTES
            self._kept += encoded.nbytes if room else 0
        if room:
            partial = path.with_suffix(".partial")
            try:
                encoded.tofile(partial)
            except OSError as error:
                raise JobError(
                    Reason.INTERNAL, f"the scratch volume cannot be written ({error}): make it larger", retryable=True
                ) from error
            partial.replace(path)
        return encoded


def _held() -> Recent[int, NDArray[Any]]:
    return Recent(HELD_BYTES, lambda encoded: encoded.nbytes)


class Corpus:
    """Blocks as word numbers, int32, -1 after each sentence; words outside the vocabulary are left out.

    cache: a folder for this plan alone; files that were decompressed for the counting pass are beside it.
    """

    def __init__(
        self, store: Store, plan: Plan, task: WordEmbedding, cache: Path, keys: Keyring = keyring.HELD
    ) -> None:
        """Raises MemoryError."""
        self.blocks = plan.blocks()
        self._reader = readers.planned(store, plan, cache.parent, keys)
        self._words = plan.vocabulary.numbered()
        self._pairs = bool(plan.vocabulary.phrases)
        self._tokenizer = task.tokenizer
        self._cache = Cache(cache, np.int32) if plan.sealed is None else _held()

    def tokens(self, block: int) -> NDArray[np.int32]:
        """Raises JobError."""
        return self._cache.get(block, self._encode)

    def _encode(self, block: int) -> NDArray[np.int32]:
        with pages.HELD.of(block):
            texts = self._reader.texts(self.blocks[block])
        return np.concatenate([self._words.encode(part, self._tokenizer, pairs=self._pairs) for part in texts])


class ByteCorpus:
    """Blocks as the bytes of their UTF-8 text, uint8."""

    def __init__(self, store: Store, plan: Plan, cache: Path, keys: Keyring = keyring.HELD) -> None:
        self.blocks = plan.blocks()
        self._reader = readers.planned(store, plan, cache.parent, keys)
        self._cache = Cache(cache, np.uint8) if plan.sealed is None else _held()

    def bytes(self, block: int) -> NDArray[np.uint8]:
        """Raises JobError."""
        return self._cache.get(block, self._encode)

    def _encode(self, block: int) -> NDArray[np.uint8]:
        with pages.HELD.of(block):
            texts = self._reader.texts(self.blocks[block])
        return np.frombuffer(b"".join(texts), np.uint8).copy()


MONOTONOUS = 0.9  # of a text the most frequent word is a twentieth, the most frequent byte a fifth
FEW = 64


def monotonous(values: NDArray[Any], name: str) -> str | None:
    """Why a block teaches nothing: nearly all of it is the same. values: whole numbers [n], below 0 a separator."""
    values = values[values >= 0]
    if values.size < FEW:
        return None
    share = float(np.bincount(values).max()) / values.size
    return f"{share:.0%} of its {values.size} {name} are the same" if share > MONOTONOUS else None
