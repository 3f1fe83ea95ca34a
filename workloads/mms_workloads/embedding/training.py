"""Training on a block, by the objective that the task has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mms_workloads.contract import Reason
from mms_workloads.embedding import softmax, word2vec
from mms_workloads.store import JobError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mms_workloads.contract import WordEmbedding
    from mms_workloads.embedding.distribution import Distribution
    from mms_workloads.embedding.parameters import BlockStats, Parameters


def train_block(
    parameters: Parameters, tokens: NDArray[np.int32], words: Distribution, task: WordEmbedding, **how: Any
) -> BlockStats:
    """As word2vec.train_block and softmax.train_block, whose arguments are the same."""
    train = softmax.train_block if task.objective == "Softmax" else word2vec.train_block
    return train(parameters, tokens, words, task, **how)


def rows(
    tokens: NDArray[np.int32], words: Distribution, task: WordEmbedding, *, seed: int, threads: int = 1
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows of vectors and of contexts that training on the block with this seed may touch, ascending."""
    if task.objective == "Softmax":
        return softmax.rows(len(words.keep), tokens)
    return word2vec.rows(tokens, words, task, seed=seed, threads=threads)


def without_pairs() -> JobError:
    """Of a text in which no word has another beside it: what would be written is what chance began with."""
    return JobError(
        Reason.DATA_INVALID,
        "no two words stand in one line, so that there is nothing to learn from: join lines, lower minCount if most "
        "words are rarer, or raise subsample (or set it to 0) if nearly all are skipped; where blocks were "
        "quarantined, status.incidents says why",
    )
