"""Skip-gram and CBOW with negative sampling or hierarchical softmax (Mikolov et al., 2013), by the native kernels.

Rows of matrices that are trained begin on cache lines: such a matrix is a view [V, d] of one whose rows are longer.
Several threads train the same matrices without locks, each on a part of the block; with one thread the result follows
from the seed to the last bit.
"""

from __future__ import annotations

import itertools
import mmap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mms_workloads.embedding import native

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mms_workloads.contract import WordEmbedding

LINE = 16  # floats of a cache line
LARGE_PAGE = 2 << 20  # bytes
LEAST_TOKENS = 20_000  # of a thread: for fewer, starting it costs more than it saves
# Curvature of the loss along one pair's gradient: sigma(1 - sigma)|v|^2 for the vectors that training reaches.
CURVATURE = 0.25


def matrix(rows: int, columns: int) -> Tensor:
    """Zeros, float32 [rows, columns], each row on cache lines of its own; in large pages where the system has them."""
    stride = -(-columns // LINE) * LINE
    # Private: shared memory is not given large pages.
    memory = mmap.mmap(-1, rows * stride * 4 + LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.float32)
    start = -whole.data_ptr() % LARGE_PAGE // 4
    return whole[start : start + rows * stride].view(rows, stride)[:, :columns]


@dataclass(frozen=True, slots=True)
class Parameters:
    """The two matrices of the model, float32 [V, d]."""

    vectors: Tensor  # of words as inputs: what is published
    contexts: Tensor  # of words as outputs

    def clone(self) -> Parameters:
        """Copies that can be trained."""
        copies = [matrix(*one.shape) for one in (self.vectors, self.contexts)]
        for copy, one in zip(copies, (self.vectors, self.contexts), strict=True):
            copy.copy_(one)
        return Parameters(*copies)


@dataclass(frozen=True, slots=True)
class Tree:
    """Huffman's, for the hierarchical softmax (Morin and Bengio, 2005).

    The way from the root to word w has the inner nodes nodes[starts[w]:starts[w + 1]]; the code says which way each is
    left. starts: int64 [V+1]; nodes: int32; codes: uint8.
    """

    starts: Tensor
    nodes: Tensor
    codes: Tensor

    def path(self, word: int) -> tuple[list[int], list[int]]:
        window = slice(int(self.starts[word]), int(self.starts[word + 1]))
        return self.nodes[window].tolist(), self.codes[window].tolist()


@dataclass(frozen=True, slots=True)
class Distribution:
    """What follows from the words' counts.

    keep [V]: the probability that an occurrence is used. share, other [V]: of which words the noise is, by the alias
    method: word i with probability share[i] / 2^32, else other[i].
    """

    keep: Tensor
    share: Tensor  # uint32
    other: Tensor  # int32
    tree: Tree | None = None  # of the hierarchical softmax, which needs no noise


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


def distribution(counts: Tensor, task: WordEmbedding) -> Distribution:
    """counts: int64 [V]. The formulas are word2vec.c's."""
    total = counts.sum().double()
    keep = torch.ones(counts.numel(), dtype=torch.float64)
    if task.subsample > 0:
        ratio = task.subsample * total / counts.double()
        keep = (ratio.sqrt() + ratio).clamp(max=1.0)
    tree = huffman(counts) if task.objective == "HierarchicalSoftmax" else None
    return Distribution(keep.float(), *alias(counts.double().pow(0.75)), tree)


def no_touches(vocabulary: int) -> Touches:
    return Touches(torch.zeros(vocabulary), torch.zeros(vocabulary))


def train_block(
    parameters: Parameters,
    touches: Touches,
    tokens: Tensor,
    words: Distribution,
    task: WordEmbedding,
    *,
    rates: tuple[float, float],
    seed: int,
    threads: int = 1,
) -> BlockStats:
    """Trains on a block in place. tokens: int32 [n], below 0 ends a sentence; rates: learning rate at start and end.

    Raises ValueError for matrices whose rows are not on cache lines, MemoryError.
    """
    model = _model(words, task, touches)
    model.stride = _stride(parameters)
    model.vectors, model.contexts = parameters.vectors.data_ptr(), parameters.contexts.data_ptr()
    done = _run(model, _passes(tokens, rates, seed, threads))
    measured = sum(one.measured for one in done)
    loss = sum(one.loss for one in done) / measured if measured else 0.0
    return BlockStats(sum(one.words for one in done), float(sum(one.pairs for one in done)), loss)


def rows(
    vocabulary: int, tokens: Tensor, words: Distribution, task: WordEmbedding, *, seed: int, threads: int = 1
) -> tuple[Tensor, Tensor]:
    """The rows of vectors and of contexts that training on the block with this seed touches; int64, ascending."""
    touches = no_touches(vocabulary)
    passes = _passes(tokens, (0.0, 0.0), seed, threads)
    for one in passes:
        one.replay = True
    _run(_model(words, task, touches), passes)
    return touches.vectors.nonzero().squeeze(1), touches.contexts.nonzero().squeeze(1)


def _model(words: Distribution, task: WordEmbedding, touches: Touches) -> native.Words:
    """As the kernels take it, without matrices."""
    model = native.Words(
        vector_touches=touches.vectors.data_ptr(),
        context_touches=touches.contexts.data_ptr(),
        keep=words.keep.data_ptr(),
        noise_share=words.share.data_ptr(),
        noise_other=words.other.data_ptr(),
        words=words.keep.numel(),
        stride=LINE,
        window=task.window,
        negatives=task.negatives,
        bag=task.model == "CBOW",
    )
    if words.tree is not None:
        tree = words.tree
        model.tree_starts, model.tree_nodes = tree.starts.data_ptr(), tree.nodes.data_ptr()
        model.tree_codes = tree.codes.data_ptr()
    return model


def _passes(tokens: Tensor, rates: tuple[float, float], seed: int, threads: int) -> list[native.Pass]:
    """The block in parts, one for each thread that has enough to do."""
    size = tokens.numel()
    parts = max(1, min(threads, size // LEAST_TOKENS))
    bounds = [size * i // parts for i in range(parts + 1)]
    fall = (rates[1] - rates[0]) / max(1, size)
    return [
        native.Pass(
            tokens=tokens.data_ptr() + tokens.element_size() * start,
            count=stop - start,
            seed=(seed * 0x9E3779B97F4A7C15 + part) % 2**64,
            first_rate=rates[0] + fall * start,
            last_rate=rates[0] + fall * stop,
        )
        for part, (start, stop) in enumerate(itertools.pairwise(bounds))
    ]


def _run(model: native.Words, passes: Sequence[native.Pass]) -> Sequence[native.Pass]:
    if len(passes) == 1:
        native.train(model, passes[0])
    else:
        with ThreadPoolExecutor(len(passes)) as pool:
            list(pool.map(partial(native.train, model), passes))
    return passes


def _stride(parameters: Parameters) -> int:
    strides = set()
    for one in (parameters.vectors, parameters.contexts):
        strides.add(one.stride(0))
        if one.stride(0) % LINE or one.data_ptr() % (4 * LINE):
            raise ValueError("rows are not on cache lines: train a clone of the parameters")
    (stride,) = strides
    return int(stride)


def alias(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Vose's tables for drawing words with these weights, float64 [V]."""
    size = weights.numel()
    scaled = (weights * (size / weights.sum())).tolist()
    share, other = [1.0] * size, list(range(size))
    small = [i for i, weight in enumerate(scaled) if weight < 1]
    large = [i for i, weight in enumerate(scaled) if weight >= 1]
    while small and large:
        low, high = small.pop(), large[-1]
        share[low], other[low] = scaled[low], high
        scaled[high] -= 1 - scaled[low]
        if scaled[high] < 1:
            small.append(large.pop())
    shares = (torch.tensor(share, dtype=torch.float64) * 2**32).clamp(max=2**32 - 1)
    return shares.long().to(torch.uint32), torch.tensor(other, dtype=torch.int32)


def huffman(counts: Tensor) -> Tree:
    """counts: int64 [V]. By two queues (van Leeuwen, 1976): words, and nodes in the order of their making."""
    size = counts.numel()
    weights, order = counts.tolist(), torch.argsort(counts, descending=True, stable=True).tolist()
    word, node = size - 1, 0  # heads of the queues; words by their place in `order`
    made: list[int] = []
    parents, bits = [0] * (2 * size - 1), [0] * (2 * size - 1)
    for parent in range(size - 1):
        total = 0
        for bit in (0, 1):
            if word >= 0 and (node >= len(made) or weights[order[word]] <= made[node]):
                child, weight = order[word], weights[order[word]]
                word -= 1
            else:
                child, weight = size + node, made[node]
                node += 1
            parents[child], bits[child] = parent, bit
            total += weight
        made.append(total)
    starts, nodes, codes = [0], list[int](), list[int]()
    for leaf in range(size):
        path, code, at = list[int](), list[int](), leaf
        while at != 2 * size - 2:  # the root
            path.append(parents[at])
            code.append(bits[at])
            at = size + parents[at]
        nodes += reversed(path)
        codes += reversed(code)
        starts.append(len(nodes))
    return Tree(
        torch.tensor(starts, dtype=torch.int64),
        torch.tensor(nodes, dtype=torch.int32),
        torch.tensor(codes, dtype=torch.uint8),
    )
