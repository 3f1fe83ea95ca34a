"""Skip-gram and CBOW with negative sampling in batches, for devices that want much to do at once: GPUs.

What chance decides is drawn by the processor, so that the same rows are touched wherever the rest is computed. The
gradients of a batch are all taken at the parameters before it. For a row that many of them are of, their sum would
overshoot: it is scaled as steps one after the other would have gone (train/merge.py has the reason).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from mms_workloads.embedding.parameters import BlockStats, Parameters, Touches
from mms_workloads.train.merge import MOST_CURVATURE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from mms_workloads.contract import WordEmbedding
    from mms_workloads.embedding.distribution import Distribution

LEAST, MOST = 64, 4096  # centres of a batch
WORDS_OF_CENTRE = 8  # for each centre of a batch the vocabulary has as many words, so that few rows are in it often


@dataclass(frozen=True, slots=True)
class Batch:
    """Centres with the words around them, and each with negatives."""

    begin: float  # how much of the block was before, 0 to 1
    centres: NDArray[np.int64]  # [n]
    around: NDArray[np.int64]  # [n, 2 window]
    there: NDArray[np.bool_]  # [n, 2 window], whether it is in the window
    negatives: NDArray[np.int64]  # [n, negatives]


def does(task: WordEmbedding) -> bool:
    """Whether it can train the task. Trees and n-grams are rows of different numbers for each word."""
    return task.objective == "NegativeSampling" and task.subwords is None


def rows(
    tokens: NDArray[np.int32], words: Distribution, task: WordEmbedding, *, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows of vectors and of contexts that training on the block with this seed touches, ascending."""
    vectors, contexts = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for batch in batches(tokens, words, task, seed):
        some = batch.there.any(axis=1)
        vectors.append(np.unique(batch.around[batch.there]))
        negatives = batch.negatives[some]
        contexts.append(np.unique(batch.centres[some]))
        contexts.append(np.unique(negatives[negatives != batch.centres[some, None]]))
    return np.unique(np.concatenate(vectors)), np.unique(np.concatenate(contexts))


def batches(tokens: NDArray[np.int32], words: Distribution, task: WordEmbedding, seed: int) -> Iterator[Batch]:
    assert words.noise is not None  # noqa: S101 - `does`
    rng = np.random.default_rng(seed)
    used = tokens >= 0
    used[used] = rng.random(int(used.sum()), np.float32) < words.keep[tokens[used]]
    ids, sentences = tokens[used].astype(np.int64), np.cumsum(tokens < 0)[used]
    reach = np.full(len(ids), task.window)
    if task.windowing == "Dynamic":
        reach = rng.integers(1, task.window + 1, len(ids))
    offsets = np.array([*range(-task.window, 0), *range(1, task.window + 1)])
    size = min(MOST, max(LEAST, len(words.keep) // WORDS_OF_CENTRE))
    for first in range(0, len(ids), size):
        centres = np.arange(first, min(first + size, len(ids)))
        at = centres[:, None] + offsets
        there = (at >= 0) & (at < len(ids)) & (np.abs(offsets) <= reach[centres, None])
        at = np.where(there, at, 0)
        there &= sentences[at] == sentences[centres, None]
        columns = rng.integers(0, len(words.keep), (len(centres), task.negatives))
        drawn = words.noise[columns]
        own = rng.integers(0, 1 << 32, columns.shape, np.uint32) < drawn["share"]
        yield Batch(first / len(ids), ids[centres], ids[at], there, np.where(own, columns, drawn["other"]))


class OnDevice:
    """Parameters [rows, d] and touches copied to a device, until `back`."""

    def __init__(
        self, device: torch.device, parameters: Parameters, touches: Touches, words: Distribution, task: WordEmbedding
    ) -> None:
        self._task, self._words, self._device = task, words, device
        self._arrays = ((parameters.vectors, touches.vectors), (parameters.contexts, touches.contexts))
        places = parameters.places
        self._places = (None, None) if places is None else tuple(map(self._sent, (places.vectors, places.contexts)))
        self._tensors = [tuple(torch.tensor(one, device=device) for one in both) for both in self._arrays]

    def back(self) -> None:
        """What was trained and touched goes into the arrays that it was copied from."""
        for arrays, tensors in zip(self._arrays, self._tensors, strict=True):
            for array, tensor in zip(arrays, tensors, strict=True):
                array[:] = tensor.cpu().numpy()

    def block(self, tokens: NDArray[np.int32], *, rates: tuple[float, float], seed: int) -> BlockStats:
        """tokens: [n], below 0 ends a sentence; rates: learning rate at start and end."""
        loss, pairs = torch.zeros((), device=self._device), 0
        for batch in batches(tokens, self._words, self._task, seed):
            rate = rates[0] + (rates[1] - rates[0]) * batch.begin
            loss += self._step(batch, rate)
            some = batch.there.any(axis=1)
            pairs += int(some.sum() if self._task.model == "CBOW" else batch.there.sum())
        return BlockStats(int((tokens >= 0).sum()), float(pairs), float(loss) / pairs if pairs else None)

    def _step(self, batch: Batch, rate: float) -> Tensor:
        """Its summed loss."""
        around, there = self._sent(batch.around), self._sent(batch.there)
        outputs = self._sent(np.concatenate((batch.centres[:, None], batch.negatives), axis=1))
        vectors, contexts = self._rows(0, around), self._rows(1, outputs)
        count = there.sum(1)
        if self._task.model == "CBOW":
            inputs = (vectors * there[..., None]).sum(1, keepdim=True) / count.clamp(min=1)[:, None, None]
            seen = (count > 0)[:, None]
        else:
            inputs, seen = vectors, there
        used = torch.ones_like(outputs, dtype=torch.bool)
        used[:, 1:] = outputs[:, 1:] != outputs[:, :1]
        scores = inputs @ contexts.mT
        sign = torch.full((outputs.shape[1],), -1.0, device=self._device)
        sign[0] = 1
        counted = seen[:, :, None] & used[:, None, :]
        loss = -(functional.logsigmoid(scores * sign) * counted).sum()
        gradient = torch.sigmoid(-scores * sign) * sign * counted
        of_inputs, of_outputs = gradient @ contexts, gradient.mT @ inputs
        if self._task.model == "CBOW":  # each word of the bag gets the whole of the mean's gradient, as in word2vec.c
            of_inputs = of_inputs.expand_as(vectors)
        touches = torch.full(there.shape, float(outputs.shape[1]), device=self._device)
        self._add(0, around[there], of_inputs[there], touches[there], rate)
        touched = used * seen.sum(1, keepdim=True)
        moved = touched > 0
        self._add(1, outputs[moved], of_outputs[moved], touched[moved].float(), rate)
        return loss

    def _add(self, which: int, numbers: Tensor, gradients: Tensor, touches: Tensor, rate: float) -> None:
        """Adds rate times the gradients [n, d] to the rows with these numbers [n], of which one may be there often."""
        matrix, told = self._tensors[which]
        numbers, owners = torch.unique(numbers, return_inverse=True)
        sums = torch.zeros(len(numbers), gradients.shape[1], device=self._device).index_add_(0, owners, gradients)
        often = torch.zeros(len(numbers), device=self._device).index_add_(0, owners, touches)
        told.index_add_(0, numbers, often)
        x = often * (rate * MOST_CURVATURE)
        matrix.index_add_(0, self._at(which, numbers), sums * (rate * -torch.expm1(-x) / x)[:, None])

    def _rows(self, which: int, numbers: Tensor) -> Tensor:
        return self._tensors[which][0][self._at(which, numbers)]

    def _at(self, which: int, numbers: Tensor) -> Tensor:
        places = self._places[which]
        return numbers if places is None else places[numbers].long()

    def _sent(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(self._device)
