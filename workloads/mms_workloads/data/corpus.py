"""A worker's view of a text data set: counts words of tasks, and gives blocks as numbers of words or as bytes."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mms_workloads.contract import Reason, Store, WordEmbedding
from mms_workloads.data import text, vocabulary
from mms_workloads.data.blocks import COUNTING_BYTES, Segment
from mms_workloads.data.reader import Reader
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mms_workloads.sync.plan import Plan

# Encoded blocks are kept on the scratch volume, since tokenising costs as much as training on it: later data epochs
# read four bytes a word. Beyond this the rest is tokenised each time.
CACHE_BYTES = 2 << 30


def count(
    store: Store, uris: dict[int, str], segments: list[Segment], task: WordEmbedding | None, scratch: Path
) -> tuple[Counter[str], dict[int, int]]:
    """A counting task: words with counts, and the decompressed sizes of files that it read whole. Raises JobError.

    task None: sizes alone; nothing is read but what must be decompressed.
    """
    names = [uris.get(i, "") for i in range(max(uris) + 1)]
    reader = Reader(store, names, scratch)
    counts: Counter[str] = Counter()
    if task is not None:
        split = text.tokenizer(task.tokenizer)
        for piece in reader.pieces(tuple(segments), COUNTING_BYTES):
            for sentence in text.sentences(reader.text(piece), split):
                counts.update(sentence)
            vocabulary.prune(counts, vocabulary.counter_limit(task))
    sizes = {s.file: reader.size(s.file) for s in segments if s.end is None}
    return counts, sizes


class Cache:
    """Encoded blocks on the scratch volume, up to CACHE_BYTES. folder: for one plan alone. For any thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._encoding = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        self._bytes = sum(f.stat().st_size for f in folder.iterdir())

    def get(self, block: int, encode: Callable[[int], np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        """`encode(block)`, from the cache where it is there. Raises JobError."""
        path = self._folder / f"{block}.npy"
        if not path.exists():
            with self._encoding:
                if not path.exists():  # another thread may have encoded it meanwhile
                    return self._keep(path, encode(block))
        kept: np.ndarray[Any, Any] = np.load(path)
        return kept

    def _keep(self, path: Path, encoded: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if self._bytes + encoded.nbytes <= CACHE_BYTES:
            partial = path.with_suffix(".partial")
            try:
                with partial.open("wb") as file:
                    np.save(file, encoded)
            except OSError as error:
                raise JobError(
                    Reason.INTERNAL, f"the scratch volume cannot be written ({error}): make it larger", retryable=True
                ) from error
            partial.replace(path)
            self._bytes += encoded.nbytes
        return encoded


class Corpus:
    """Blocks as tensors of word numbers, int32, -1 after each sentence; words outside the vocabulary are left out.

    cache: a folder for this plan alone; files that were decompressed for the counting pass are beside it.
    """

    def __init__(self, store: Store, plan: Plan, task: WordEmbedding, cache: Path) -> None:
        self.blocks = plan.blocks()
        self._reader = Reader(store, [f.uri for f in plan.files], cache.parent)
        self._reader.expect(plan.files)
        self._numbers = plan.vocabulary.numbers()
        self._split = text.tokenizer(task.tokenizer)
        self._cache = Cache(cache)

    def tokens(self, block: int) -> Tensor:
        """Raises JobError."""
        return torch.from_numpy(self._cache.get(block, self._encode))

    def _encode(self, block: int) -> np.ndarray[Any, Any]:
        number = self._numbers.get
        ids: list[int] = []
        for part in self._reader.texts(self.blocks[block]):
            for sentence in text.sentences(part, self._split):
                ids += [i for word in sentence if (i := number(word)) is not None]
                ids.append(-1)
        return np.array(ids, dtype=np.int32)


class ByteCorpus:
    """Blocks as the bytes of their UTF-8 text, uint8."""

    def __init__(self, store: Store, plan: Plan, cache: Path) -> None:
        self.blocks = plan.blocks()
        self._reader = Reader(store, [f.uri for f in plan.files], cache.parent)
        self._reader.expect(plan.files)
        self._cache = Cache(cache)

    def bytes(self, block: int) -> Tensor:
        """Raises JobError."""
        return torch.from_numpy(self._cache.get(block, self._encode))

    def _encode(self, block: int) -> np.ndarray[Any, Any]:
        content = "".join(self._reader.texts(self.blocks[block])).encode()
        return np.frombuffer(content, dtype=np.uint8).copy()


MONOTONOUS = 0.9  # of a text the most frequent word is a twentieth, the most frequent byte a fifth
FEW = 64


def monotonous(values: Tensor, name: str) -> str | None:
    """Why a block teaches nothing: nearly all of it is the same. values: whole numbers [n], below 0 a separator."""
    values = values[values >= 0] if values.dtype != torch.uint8 else values
    if values.numel() < FEW:
        return None
    share = float(torch.bincount(values).max()) / values.numel()
    return f"{share:.0%} of its {values.numel()} {name} are the same" if share > MONOTONOUS else None
