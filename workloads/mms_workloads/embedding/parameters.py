"""The parameters of word vectors, in memory that the kernels can train.

Rows of such a matrix begin on cache lines: it is a view [rows, d] of one whose rows are longer.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mms_workloads import memory
from mms_workloads.embedding.native import LINE

if TYPE_CHECKING:
    from numpy.typing import NDArray

LARGE_PAGE = 2 << 20  # bytes
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


@dataclass(frozen=True, slots=True)
class Parameters:
    """The two matrices of the model."""

    vectors: NDArray[np.float32]  # [V, d] of words as inputs: what is published; with subwords [V + buckets, d]
    contexts: NDArray[np.float32]  # [V, d] of words as outputs, or of the tree's inner nodes

    def copy(self) -> Parameters:
        """Copies that can be trained."""
        copies = [matrix(*one.shape) for one in (self.vectors, self.contexts)]
        for copy, one in zip(copies, (self.vectors, self.contexts), strict=True):
            copy[:] = one
        return Parameters(*copies)


@dataclass(frozen=True, slots=True)
class Touches:
    """How often each row's gradient was added: pairs for vectors, pairs and negatives for contexts."""

    vectors: NDArray[np.float32]  # [V] or [V + buckets]
    contexts: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class BlockStats:
    words: int  # tokens of the block, before subsampling
    pairs: float
    loss: float  # mean over the pairs that were sampled for it


def initial_parameters(vocabulary: int, dimensions: int, seed: int, buckets: int = 0) -> Parameters:
    """word2vec's start: inputs uniform in +-0.5/d, outputs zero. They can be trained."""
    vectors = matrix(vocabulary + buckets, dimensions)
    rng = np.random.default_rng(seed)
    for first in range(0, len(vectors), ROWS_AT_ONCE):
        part = vectors[first : first + ROWS_AT_ONCE]
        part[:] = (rng.random(part.shape, np.float32) - 0.5) / dimensions
    return Parameters(vectors, matrix(vocabulary, dimensions))


def need(vocabulary: int, dimensions: int, buckets: int = 0, *, copies: int = 1) -> None:
    """Raises JobError OutOfMemory where there is no room for so many copies of the parameters."""
    size = (2 * vocabulary + buckets) * -(-dimensions // LINE) * LINE * 4
    remedy = "lower dimensions, maxVocabulary or subwords.buckets, or raise the memory limit"
    memory.need(copies * size, f"a model of {vocabulary} words", remedy)


def no_touches(vocabulary: int, buckets: int = 0) -> Touches:
    return Touches(np.zeros(vocabulary + buckets, np.float32), np.zeros(vocabulary, np.float32))
