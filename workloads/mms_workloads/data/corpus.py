"""A worker's view of the data set: counts words of tasks, and gives blocks as numbers."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mms_workloads.contract import Reason, Store, WordEmbedding
from mms_workloads.data import text, vocabulary
from mms_workloads.data.blocks import COUNTING_BYTES, Segment
from mms_workloads.data.reader import Reader
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from pathlib import Path

    from mms_workloads.sync.plan import Plan

# Encoded blocks are kept on the scratch volume, since tokenising costs as much as training on it: later data epochs
# read four bytes a word. Beyond this the rest is tokenised each time.
CACHE_BYTES = 2 << 30


def count(
    store: Store, uris: dict[int, str], segments: list[Segment], task: WordEmbedding, scratch: Path
) -> tuple[Counter[str], dict[int, int]]:
    """A counting task: words with counts, and the decompressed sizes of files that it read whole. Raises JobError."""
    names = [uris.get(i, "") for i in range(max(uris) + 1)]
    reader = Reader(store, names, scratch)
    split = text.tokenizer(task.tokenizer)
    counts: Counter[str] = Counter()
    for piece in reader.pieces(tuple(segments), COUNTING_BYTES):
        for sentence in text.sentences(reader.text(piece), split):
            counts.update(sentence)
        vocabulary.prune(counts, vocabulary.counter_limit(task))
    sizes = {s.file: reader.size(s.file) for s in segments if s.end is None}
    return counts, sizes


class Corpus:
    """Blocks as tensors of word numbers, int64, -1 after each sentence; words outside the vocabulary are left out.

    cache: a folder for this plan alone; files that were decompressed for the counting pass are beside it.
    """

    def __init__(self, store: Store, plan: Plan, task: WordEmbedding, cache: Path) -> None:
        self.blocks = plan.blocks()
        self._reader = Reader(store, [f.uri for f in plan.files], cache.parent)
        self._reader.expect(plan.files)
        self._numbers = plan.vocabulary.numbers()
        self._split = text.tokenizer(task.tokenizer)
        self._cache = cache
        cache.mkdir(parents=True, exist_ok=True)
        self._cached_bytes = sum(f.stat().st_size for f in self._cache.iterdir())

    def tokens(self, block: int) -> Tensor:
        """Raises JobError."""
        path = self._cache / f"{block}.i32"
        if path.exists():
            return torch.from_numpy(np.fromfile(path, dtype=np.int32).astype(np.int64))
        ids = self._encode(block)
        if self._cached_bytes + ids.nbytes <= CACHE_BYTES:
            partial = path.with_suffix(".partial")
            try:
                ids.tofile(partial)
            except OSError as error:
                raise JobError(
                    Reason.INTERNAL, f"the scratch volume cannot be written ({error}): make it larger", retryable=True
                ) from error
            partial.replace(path)
            self._cached_bytes += ids.nbytes
        return torch.from_numpy(ids.astype(np.int64))

    def _encode(self, block: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        number = self._numbers.get
        ids: list[int] = []
        for part in self._reader.texts(self.blocks[block]):
            for sentence in text.sentences(part, self._split):
                ids += [i for word in sentence if (i := number(word)) is not None]
                ids.append(-1)
        return np.array(ids, dtype=np.int32)
