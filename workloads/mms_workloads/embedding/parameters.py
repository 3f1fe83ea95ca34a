"""The parameters of word vectors, in memory that the kernels can train.

Rows of such a matrix begin on cache lines: it is a view [rows, d] of one whose rows are longer.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mms_workloads import memory
from mms_workloads.embedding.native import LINE

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

LARGE_PAGE = 2 << 20  # bytes
# Beside the matrices: of each row how often it was touched, twice, and where it is; of each word what noise and the
# tree take, and with n-grams which ones it has.
ROW_BYTES, WORD_BYTES, PIECES_BYTES = 12, 100, 150
LOWER = "lower dimensions, maxVocabulary or subwords.buckets, or raise the memory limit"
ROWS_AT_ONCE = 16_384  # of a matrix that is filled: no second one is made


def matrix(rows: int, columns: int) -> NDArray[np.float32]:
    """Zeros [rows, columns], each row on cache lines of its own; in large pages where the system has them."""
    stride = -(-columns // LINE) * LINE
    # Private: shared memory is not given large pages.
    memory = mmap.mmap(-1, rows * stride * 4 + LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(memory, np.float32)
    start = -whole.ctypes.data % LARGE_PAGE // 4
    return whole[start : start + rows * stride].reshape(rows, stride)[:, :columns]


def buffer(size: int) -> NDArray[np.float32]:
    """Zeros [size], as `matrix` has them."""
    (row,) = matrix(1, size)
    found: NDArray[np.float32] = row
    return found


def on_disk(rows: int, columns: int, folder: Path) -> NDArray[np.float32]:
    """Zeros [rows, columns] in a file without a name in `folder`. Raises OSError where there is no room for it."""
    size = rows * columns * 4
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, size)  # or a disk that is full would kill the process that writes
        return np.frombuffer(mmap.mmap(file.fileno(), size), np.float32).reshape(rows, columns)


@dataclass(frozen=True, slots=True)
class Places:
    """Where matrices hold some of the rows only: row r is at [places[r]]. int32, of all rows."""

    vectors: NDArray[np.int32]
    contexts: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Parameters:
    """The two matrices of the model: all rows, or with `places` some."""

    vectors: NDArray[np.float32]  # [V, d] of words as inputs: what is published; with subwords [V + buckets, d]
    contexts: NDArray[np.float32]  # [V, d] of words as outputs, or of the tree's inner nodes
    places: Places | None = None

    def copy(self) -> Parameters:
        """Copies that can be trained."""
        copies = Parameters(matrix(*self.vectors.shape), matrix(*self.contexts.shape))
        copies.vectors[:], copies.contexts[:] = self.vectors, self.contexts
        return copies


@dataclass(frozen=True, slots=True)
class Touches:
    """How often each row's gradient was added: pairs for vectors, pairs and negatives for contexts."""

    vectors: NDArray[np.float32]  # [V] or [V + buckets]
    contexts: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class BlockStats:
    words: int  # tokens of the block, before subsampling
    pairs: float
    loss: float | None  # mean over the pairs that were sampled for it; None: there was none


def initial_parameters(vocabulary: int, dimensions: int, seed: int, buckets: int = 0) -> Parameters:
    """word2vec's start: inputs uniform in +-0.5/d, outputs zero. They can be trained."""
    vectors = matrix(vocabulary + buckets, dimensions)
    initial_rows(vectors, 0, seed)
    return Parameters(vectors, matrix(vocabulary, dimensions))


def initial_rows(out: NDArray[np.float32], first: int, seed: int) -> None:
    """Fills the rows [n, d] of inputs from `first` on, as they are at the start, whoever holds which."""
    stop, dimensions = first + len(out), out.shape[1]
    for chunk in range(first // ROWS_AT_ONCE, -(-stop // ROWS_AT_ONCE)):
        begin = chunk * ROWS_AT_ONCE
        low, high = max(first, begin), min(stop, begin + ROWS_AT_ONCE)
        drawn = np.random.default_rng((seed, chunk)).random((high - begin, dimensions), np.float32)
        out[low - first : high - first] = (drawn[low - begin :] - 0.5) / dimensions


def need(vocabulary: int, dimensions: int, buckets: int = 0, *, copies: int = 1, remedy: str = LOWER) -> None:
    """Raises JobError OutOfMemory where there is no room for so many copies of the parameters and what goes with them.

    Of n-grams words' own vectors are made at the end.
    """
    matrices = copies * _bytes(2 * vocabulary + buckets, dimensions)
    composed = 4 * vocabulary * dimensions if buckets else 0
    what = f"a model of {vocabulary:,} words{f' and {buckets:,} buckets' if buckets else ''} of {dimensions} dimensions"
    memory.need(matrices + composed + beside(vocabulary, buckets), what, remedy)


def beside(vocabulary: int, buckets: int) -> int:
    """Bytes of what goes with the matrices of so many words."""
    of_words = vocabulary * (WORD_BYTES + (PIECES_BYTES if buckets else 0))
    return (2 * vocabulary + buckets) * ROW_BYTES + of_words


def room(rows: int, columns: int, what: str) -> None:
    """Raises JobError OutOfMemory where there is none for a `matrix` [rows, columns]."""
    memory.need(_bytes(rows, columns), what, LOWER)


def _bytes(rows: int, columns: int) -> int:
    return rows * -(-columns // LINE) * LINE * 4


def no_touches(vocabulary: int, buckets: int = 0) -> Touches:
    return Touches(np.zeros(vocabulary + buckets, np.float32), np.zeros(vocabulary, np.float32))
