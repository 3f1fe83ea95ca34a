"""Words as the means of their own vector and those of their n-grams (Bojanowski et al., 2017, as fastText has it).

An n-gram is of the characters of `<word>`; its vector is that of its bucket, which others may have, too. So a word that
was never seen has a vector: the mean of its n-grams'.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mms_workloads.data import text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mms_workloads.contract import Subwords

ROWS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Pieces:
    """Word w is the mean of the vectors rows[starts[w]:starts[w + 1]]: its own, and of V + bucket of each n-gram."""

    starts: NDArray[np.int64]  # [V + 1]
    rows: NDArray[np.int32]


def buckets_of(word: str, settings: Subwords) -> list[int]:
    """The buckets of a word's n-grams, as often as they occur."""
    own: list[int] = (pieces([word], settings).rows[1:] - 1).tolist()
    return own


def pieces(words: Sequence[str], settings: Subwords) -> Pieces:
    return Pieces(*text.ngrams(words, settings.minLength, settings.maxLength, settings.buckets))


def composed(
    vectors: NDArray[np.float32], parts: Pieces, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """vectors: [V + buckets, d]. Of the words [V, d]."""
    size = len(parts.starts) - 1
    out = np.empty((size, vectors.shape[1]), np.float32) if out is None else out
    for first in range(0, size, ROWS_AT_ONCE):
        starts = parts.starts[first : first + ROWS_AT_ONCE + 1]
        rows = vectors[parts.rows[starts[0] : starts[-1]]]
        sums = np.add.reduceat(rows, starts[:-1] - starts[0])
        out[first : first + ROWS_AT_ONCE] = sums / np.diff(starts)[:, None]
    return out
