"""wordEmbedding: a sample is a block, which a worker trains on in its working copy; the changes are then merged."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mms_workloads import memory
from mms_workloads.data import blocks
from mms_workloads.data.corpus import Corpus, monotonous
from mms_workloads.embedding import batched, evaluation, files, graph, report, training
from mms_workloads.embedding.distribution import Distribution, distribution
from mms_workloads.embedding.golden import golden
from mms_workloads.embedding.native import LINE
from mms_workloads.embedding.parameters import LOWER, initial_parameters, initial_rows, need
from mms_workloads.embedding.pulled import PulledState
from mms_workloads.embedding.state import EmbeddingState
from mms_workloads.sync.layout import Table
from mms_workloads.train import device
from mms_workloads.train.communicator import NOTHING, Stats
from mms_workloads.train.learner import Evaluation, Place, decayed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from mms_workloads.contract import Golden, JobFile, WordEmbedding
    from mms_workloads.data.vocabulary import Vocabulary
    from mms_workloads.sync.leases import Slice
    from mms_workloads.sync.plan import Plan
    from mms_workloads.train.state import State

KIND = "wordEmbedding"
LONGEST_ROUND = 48  # blocks of a member, where there are no more than two, of the least work: a second or so
GRAMS = 4  # as many times longer a word takes with its n-grams
LEAST_ROUNDS = 4  # of a data epoch, where there are no more than two members
HELD = 4  # rows in memory for each that a round needs: as pulled, as trained, what that changes, and some to spare
REMEMBERED = 16  # rounds
SHARED = f"{LOWER}, or let shards hold the rows (sync.mode: ParameterServer)"
COPIES = 4  # of the parameters: as agreed, as in a round, what that changes, and what a checkpoint writes


def work(task: WordEmbedding, words: int) -> float:
    """What training on a word takes, in that of the default task. Roughly: products of rows, times their length."""
    outputs = {
        "NegativeSampling": 1 + task.negatives,
        "HierarchicalSoftmax": math.log2(max(2, words)),
        "Softmax": words,
    }
    inputs = GRAMS if task.subwords else 1
    return task.dimensions * task.window * outputs[task.objective] * inputs / (100 * 5 * 6)


def graphed(vectors: NDArray[np.float32], path: Path) -> Any | None:
    """The graph of neighbours of a large vocabulary, made at `path`. vectors: [V, d]."""
    if len(vectors) < graph.LEAST_WORDS:
        return None
    graph.build(vectors, path, torch.get_num_threads())
    return graph.load(path)


@dataclass(slots=True)
class EmbeddingLearner:
    job: JobFile
    task: WordEmbedding
    vocabulary: Vocabulary
    corpus: Corpus
    words: Distribution
    trained_on: Sequence[int]
    held_out: Sequence[int]
    total: int  # words of the corpus
    kind: str = KIND
    # Why there is nothing to learn from a block, of those that were read.
    verdicts: dict[int, str | None] = field(default_factory=dict)
    losses: list[tuple[int, float]] = field(default_factory=list)  # of this worker's rounds, after so many words of all
    # Blocks and rows of the last rounds that pulled their rows.
    needed: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    @classmethod
    def of(cls, job: JobFile, task: WordEmbedding, plan: Plan, cache: Path) -> EmbeddingLearner:
        corpus = Corpus(job.data.store, plan, task, cache)
        words = distribution(np.array(plan.vocabulary.counts, np.int64), task, plan.vocabulary.words)
        trained_on, held_out = blocks.split(len(corpus.blocks), job.evaluation.split)
        total = sum(plan.vocabulary.counts)
        return cls(job, task, plan.vocabulary, corpus, words, trained_on, held_out, total)

    def start(self) -> EmbeddingState | PulledState:
        size, dimensions, seed = len(self.vocabulary), self.task.dimensions, self.job.optimizer.seed
        if self.job.parameterServer is not None:
            return PulledState.of(*self.tables())
        need(size, dimensions, self._buckets(), copies=COPIES, remedy=SHARED)
        return EmbeddingState.start(initial_parameters(size, dimensions, seed, self._buckets()))

    def initial(self, table: str, start: int, stop: int) -> Mapping[str, Tensor]:
        rows = np.zeros((stop - start, self.task.dimensions), np.float32)
        if table == "vectors":
            initial_rows(rows, start, self.job.optimizer.seed)
        return {"parameters": torch.from_numpy(rows)}

    def size(self, block: int) -> int:
        del block
        return 1

    def dead(self, block: int) -> str | None:
        tokens = self.corpus.tokens(block)
        if block not in self.verdicts:
            self.verdicts[block] = monotonous(tokens, "words")
        return self.verdicts[block]

    def ready(self, block: int, data_epoch: int) -> None:
        """It is, when its size is known."""

    def mixed(self, place: Place) -> int:
        """A sample is a block."""
        del place
        return 1

    def precision(self, state: object) -> None:
        del state

    def batch(self, place: Place) -> int:
        """Blocks. Merging costs nearly the same for a round of many, in which ranks drift apart: the more of them there
        are, the shorter rounds must be for the same quality. Who wants in, and a suspension, wait for a round's end.
        """
        members = max(2, place.members)
        crowd = (members / 2) ** 2
        longest = LONGEST_ROUND / (crowd * max(1.0, work(self.task, len(self.vocabulary))))
        wanted = max(1, int(min(longest, len(self.trained_on) / (LEAST_ROUNDS * crowd * members))))
        return wanted if self.job.parameterServer is None else min(wanted, self.fitting(memory.available()))

    def fitting(self, available: int | None) -> int:
        """Blocks of a round whose rows, pulled from shards, take half of the memory at most. available: bytes."""
        row = HELD * -(-self.task.dimensions // LINE) * LINE * 4
        held = max((rows for _, rows in self.needed), default=0) * row
        room = math.inf if available is None else (available + held) / 2
        if room >= row * sum(table.rows for table in self.tables()):
            return LONGEST_ROUND
        # Of more blocks each needs fewer rows that the others do not.
        of_a_block = max((rows / blocks for blocks, rows in self.needed), default=math.inf)
        return max(1, int(room / (row * of_a_block)))

    def rate(self, state: State, members: int) -> float:
        del members
        return decayed(self._initial(state), self._done(state))

    def compute(self, state: State, slices: Sequence[Slice], place: Place) -> Stats:
        assert isinstance(state, EmbeddingState | PulledState)  # noqa: S101 - made by `start`
        optimizer = self.job.optimizer
        total = NOTHING
        begin = self._done(state)
        parameters, touches = state.training(), state.touches.touches()
        gpu = None
        if self._on_gpu():
            gpu = batched.OnDevice(device.chosen(), parameters, touches, self.words, self.task)
        for s in slices:
            end = begin + place.members / (len(self.trained_on) * optimizer.epochs)
            initial = self._initial(state)
            rates = (decayed(initial, begin), decayed(initial, end))
            tokens = self.corpus.tokens(s.block)
            if gpu:
                done = gpu.block(tokens, rates=rates, seed=self._seed(s))
            else:
                how: Any = {"rates": rates, "touches": touches, **self._chance(s)}
                done = training.train_block(parameters, tokens, self.words, self.task, **how)
            pairs, loss = total.weight, total.loss
            if done.loss is not None:  # what was trained, but not measured, is no term of the loss
                pairs += done.pairs
                loss += (done.loss - loss) * done.pairs / pairs
            total = Stats(total.samples + done.words, pairs, loss)
            begin = end
            words = int(end * optimizer.epochs * self.total)
            if done.loss is not None:
                self.losses.append((words, done.loss))
        if gpu:
            gpu.back()
        return total

    def evaluate(self, state: State) -> Evaluation:
        assert isinstance(state, EmbeddingState | PulledState)  # noqa: S101 - made by `start`
        parameters = state.parameters()
        # They begin as zeros, and each pair changes some: this holds whoever trained.
        if not any(part.any() for part in files.parts(parameters.contexts)):
            raise training.without_pairs()
        vectors = files.words_of(parameters, self.words, state.matrix)
        chosen = list(self.held_out or self.trained_on)[: evaluation.MAX_BLOCKS]
        tokens = (self.corpus.tokens(block) for block in chosen)
        metrics = evaluation.measured(
            vectors,
            self.vocabulary.words,
            tokens,
            self.words,
            self.task.window,
            seed=self.job.optimizer.seed,
            held_out=bool(self.held_out),
        )
        report = {
            "vocabulary": len(self.vocabulary),
            "words": self.total,
            "blocks": len(self.corpus.blocks),
            "heldOutBlocks": chosen if self.held_out else [],
            "method": evaluation.__doc__ or "",
        }
        return Evaluation(metrics, report)

    def write(self, state: State, evaluation: Evaluation, folder: Path) -> Golden:
        assert isinstance(state, EmbeddingState | PulledState)  # noqa: S101 - made by `start`
        parameters = state.parameters()
        vectors = files.words_of(parameters, self.words, state.matrix)
        files.write(folder, parameters, vectors, self.vocabulary, self.task)
        found = graphed(vectors, folder / graph.FILE)
        page = report.page(self.vocabulary, vectors, evaluation.metrics, self.losses, self.task)
        (folder / files.REPORT).write_text(page, encoding="utf-8")
        return golden(vectors, self.vocabulary.words, found)

    def tables(self) -> tuple[Table, Table]:
        words, columns = len(self.vocabulary), self.task.dimensions
        rows = {"vectors": words + self._buckets(), "contexts": words}
        vectors, contexts = (Table(name, count, columns, sparse=True) for name, count in rows.items())
        return vectors, contexts

    def rows(self, slices: Sequence[Slice]) -> Mapping[str, Tensor]:
        if not slices:
            return {}
        touched = [self._rows(s) for s in slices]
        found = [np.unique(np.concatenate(of_table)) for of_table in zip(*touched, strict=True)]
        self.needed.append((len(slices), sum(map(len, found))))
        return dict(zip(("vectors", "contexts"), map(torch.from_numpy, found), strict=True))

    def _buckets(self) -> int:
        return self.task.subwords.buckets if self.task.subwords else 0

    def _rows(self, s: Slice) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        tokens = self.corpus.tokens(s.block)
        if self._on_gpu():
            return batched.rows(tokens, self.words, self.task, seed=self._seed(s))
        return training.rows(tokens, self.words, self.task, **self._chance(s))

    def _on_gpu(self) -> bool:
        return device.chosen() != device.CPU and batched.does(self.task)

    def _chance(self, s: Slice) -> dict[str, int]:
        """What chance decides depends on the seed and the number of threads only."""
        return {"seed": self._seed(s), "threads": torch.get_num_threads()}

    def _seed(self, s: Slice) -> int:
        return (self.job.optimizer.seed * 1_000_003 + s.data_epoch) * 1_000_003 + s.block

    def _initial(self, state: State) -> float:
        return self.job.optimizer.learningRate * state.agreement.progress.rate_factor

    def _done(self, state: State) -> float:
        return state.agreement.fraction(self.trained_on, self.job.optimizer.epochs)
