"""Skip-gram with negative sampling (Mikolov et al., 2013) in batched torch operations.

The gradient of a word pair is a pair of vector products; one at a time, memory traffic and interpreter time dominate.
Here consecutive words form chunks, and a chunk shares one set of negatives (as in pWord2Vec, Ji et al., 2016):

    X [L, d]      input vectors of the chunk's L centre words
    Y [L+2w, d]   output vectors of the same words and their w neighbours to each side
    N [K, d]      output vectors of K negatives, drawn from unigram^0.75
    S = X [Y;N]^T scores; a band of the left part holds the positive pairs, the right part the negatives

so that scores and both gradients are three small matrix products, and each row is fetched and updated once a chunk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mms_workloads.contract import WordEmbedding

CHUNK = 16  # words that share a set of negatives; wider ones waste more of the band, narrower ones fetch more rows
SHARED_NEGATIVES = 16  # a chunk's set; weighted so that each pair counts `negatives` of them
BATCH = 1024  # words whose gradients are computed from the same parameters: amortises the interpreter
# Curvature of the loss along one pair's gradient: sigma(1 - sigma)|v|^2 for the vectors that training reaches.
CURVATURE = 0.25
LOSS_EVERY = 8  # batches; the loss is for display, an estimate is enough


@dataclass(frozen=True, slots=True)
class Parameters:
    """The two matrices of the model, float32 [V, d], changed in place by training."""

    vectors: Tensor  # of words as inputs: what is published
    contexts: Tensor  # of words as outputs

    def clone(self) -> Parameters:
        return Parameters(self.vectors.clone(), self.contexts.clone())


@dataclass(frozen=True, slots=True)
class Distribution:
    """What follows from the words' counts: keep [V], the probability that an occurrence is used; noise [V], a cdf."""

    keep: Tensor
    noise: Tensor


@dataclass(slots=True)
class Touches:
    """How often each row's gradient was added, float32 [V]: pairs for vectors, pairs and negatives for contexts."""

    vectors: Tensor
    contexts: Tensor


@dataclass(frozen=True, slots=True)
class BlockStats:
    words: int  # tokens of the block, before subsampling
    pairs: float
    loss: float  # mean over the pairs that were sampled for it


def initial_parameters(vocabulary: int, dimensions: int, seed: int) -> Parameters:
    """word2vec's start: inputs uniform in +-0.5/d, outputs zero."""
    rng = torch.Generator().manual_seed(seed)
    vectors = (torch.rand(vocabulary, dimensions, generator=rng) - 0.5) / dimensions
    return Parameters(vectors, torch.zeros(vocabulary, dimensions))


def distribution(counts: Tensor, subsample: float) -> Distribution:
    """counts: int64 [V]. The formulas are word2vec.c's."""
    total = counts.sum().double()
    keep = torch.ones(counts.numel(), dtype=torch.float64)
    if subsample > 0:
        ratio = subsample * total / counts.double()
        keep = (ratio.sqrt() + ratio).clamp(max=1.0)
    weights = counts.double().pow(0.75)
    noise = weights.cumsum(0) / weights.sum()
    noise[-1] = 1.0
    return Distribution(keep.float(), noise)


def no_touches(vocabulary: int) -> Touches:
    return Touches(torch.zeros(vocabulary), torch.zeros(vocabulary))


@dataclass(frozen=True, slots=True)
class Drawn:
    """A block with all that chance decides: which words are used, with what reach, against which negatives.

    Of G chunks: centres [G, L] and contexts [G, L+2w] as word numbers and as sentence numbers (-1: padding), reach
    [G, L, 1], negatives [G, K].
    """

    seen: int  # tokens of the block, before subsampling
    centres: Tensor
    contexts: Tensor
    centre_sentences: Tensor
    context_sentences: Tensor
    reach: Tensor
    negatives: Tensor

    def rows(self) -> tuple[Tensor, Tensor]:
        """The rows of vectors and of contexts that training on it reads; int64, ascending."""
        outputs = torch.cat((self.contexts.reshape(-1), self.negatives.reshape(-1)))
        return torch.unique(self.centres), torch.unique(outputs)


def draw(tokens: Tensor, words: Distribution, task: WordEmbedding, rng: torch.Generator) -> Drawn:
    """tokens: int64 [n], -1 ends a sentence."""
    seen = int((tokens >= 0).sum())
    ids, sentences = _subsample(tokens, words.keep, rng)
    window = task.window
    chunks = max(1, math.ceil(ids.numel() / CHUNK))
    centre_ids, context_ids = _chunks(ids, window, chunks, 0)
    centre_sentences, context_sentences = _chunks(sentences, window, chunks, -1)
    reach = torch.randint(1, window + 1, (chunks, CHUNK, 1), generator=rng)
    draws = torch.rand(chunks, SHARED_NEGATIVES, dtype=torch.float64, generator=rng)
    negative_ids = torch.searchsorted(words.noise, draws).clamp_(max=words.noise.numel() - 1)
    return Drawn(seen, centre_ids, context_ids, centre_sentences, context_sentences, reach, negative_ids)


def train_block(
    parameters: Parameters, touches: Touches, block: Drawn, task: WordEmbedding, *, rates: tuple[float, float]
) -> BlockStats:
    """Trains on a block in place. rates: learning rate at start and end."""
    window, chunks = task.window, block.centres.shape[0]
    distance = (torch.arange(CHUNK + 2 * window)[None, :] - window - torch.arange(CHUNK)[:, None]).abs()
    distance = torch.where(distance == 0, window + 1, distance)  # a word is no context of itself
    # A vocabulary of a few words is all frequent words: smaller batches keep their updates from piling up.
    step = max(1, min(BATCH, 8 * parameters.vectors.shape[0]) // CHUNK)
    pairs = loss = sampled = 0.0
    for number, start in enumerate(range(0, chunks, step)):
        part = slice(start, min(start + step, chunks))
        rate = rates[0] + (rates[1] - rates[0]) * start / chunks
        same = block.centre_sentences[part, :, None] == block.context_sentences[part, None, :]
        inside = block.centre_sentences[part, :, None] >= 0
        positive = ((distance <= block.reach[part]) & same & inside).float()
        outputs = torch.cat((block.contexts[part], block.negatives[part]), 1)
        batch_pairs, batch_loss = _step(
            parameters,
            touches,
            block.centres[part],
            outputs,
            positive,
            negatives=task.negatives,
            rate=rate,
            with_loss=number % LOSS_EVERY == 0,
        )
        pairs += batch_pairs
        if batch_loss is not None:
            loss += batch_loss
            sampled += batch_pairs
    return BlockStats(block.seen, pairs, loss / sampled if sampled else 0.0)


def _step(
    parameters: Parameters,
    touches: Touches,
    centres: Tensor,  # [G, L]
    outputs: Tensor,  # [G, L+2w+K]: contexts, then negatives
    positive: Tensor,  # [G, L, L+2w]: 1 where the centre and the context are a pair
    *,
    negatives: int,
    rate: float,
    with_loss: bool,
) -> tuple[float, float | None]:
    """One update of all rows that the batch names, from the parameters as they were before it."""
    groups, length = centres.shape
    dimensions = parameters.vectors.shape[1]
    flat_centres, flat_outputs = centres.reshape(-1), outputs.reshape(-1)
    inputs = parameters.vectors.index_select(0, flat_centres).view(groups, length, dimensions)
    targets = parameters.contexts.index_select(0, flat_outputs).view(groups, -1, dimensions)
    per_centre = positive.sum(2, keepdim=True)  # [G, L, 1]: pairs of each centre
    share = negatives / SHARED_NEGATIVES
    shared = (per_centre * share).expand(-1, -1, SHARED_NEGATIVES)
    weight = torch.cat((positive, shared), 2)
    scores = torch.bmm(inputs, targets.transpose(1, 2))
    loss = _loss(scores, positive, share * per_centre) if with_loss else None
    gradient = scores.sigmoid_().mul_(weight).neg_()  # d loss / d score, sign turned: label - sigma, weighted
    gradient[:, :, : positive.shape[2]] += positive
    input_touches = (per_centre * (1 + negatives)).reshape(-1)
    output_touches = weight.sum(1).reshape(-1)
    to_inputs, to_outputs = torch.bmm(gradient, targets), torch.bmm(gradient.transpose(1, 2), inputs)
    _add_rows(parameters.vectors, flat_centres, to_inputs, rate, _count(touches.vectors, flat_centres, input_touches))
    _add_rows(
        parameters.contexts, flat_outputs, to_outputs, rate, _count(touches.contexts, flat_outputs, output_touches)
    )
    return float(per_centre.sum()), loss


def _count(total: Tensor, rows: Tensor, touches: Tensor) -> Tensor:
    """Adds a batch's touches to `total`; how often the batch touches the row of each entry of `rows`."""
    batch = torch.zeros_like(total).index_add_(0, rows, touches)
    total += batch
    return batch.index_select(0, rows)


def _add_rows(matrix: Tensor, rows: Tensor, updates: Tensor, rate: float, touches: Tensor) -> None:
    """matrix[rows] += rate * updates, damped for rows that the batch touches often: `touches`, for each entry of rows.

    Each update was computed as if it were the only one. T of them in sequence would not move a row T times as far: each
    closes a part rate * CURVATURE of the gap that is left, together 1 - exp(-x) of it with x = T * rate * CURVATURE.
    So the plain sum, which would close x, is scaled by (1 - exp(-x)) / x: about 1 for rare words, 1/x for common ones.
    """
    x = (touches * (rate * CURVATURE)).clamp_(min=1e-6)
    scale = torch.expm1(-x).div_(x).mul_(-rate)
    matrix.index_add_(0, rows, updates.view(rows.numel(), -1).mul_(scale[:, None]))


def _loss(scores: Tensor, positive: Tensor, negative_weight: Tensor) -> float:
    """Sum over the pairs of -log sigma(score) and of the negatives' -log sigma(-score)."""
    width = positive.shape[2]
    terms = -torch.nn.functional.logsigmoid(scores[:, :, :width]) * positive
    noise = -torch.nn.functional.logsigmoid(-scores[:, :, width:]) * negative_weight
    return float(terms.sum() + noise.sum())


def _subsample(tokens: Tensor, keep: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """The ids that are used, and the number of each one's sentence."""
    sentences = (tokens < 0).cumsum(0)
    is_word = tokens >= 0
    ids, sentences = tokens[is_word], sentences[is_word]
    used = torch.rand(ids.numel(), generator=rng) < keep[ids]
    return ids[used], sentences[used]


def _chunks(values: Tensor, window: int, chunks: int, fill: int) -> tuple[Tensor, Tensor]:
    """Centres [chunks, CHUNK] and, with `window` neighbours to each side, contexts [chunks, CHUNK + 2 window]."""
    padded = values.new_full((chunks * CHUNK + 2 * window,), fill)
    padded[window : window + values.numel()] = values
    centres = padded[window : window + chunks * CHUNK].view(chunks, CHUNK)
    return centres, padded.unfold(0, CHUNK + 2 * window, CHUNK)
