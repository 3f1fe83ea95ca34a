"""wordEmbedding: a sample is a block, which a worker trains on in its working copy; the changes are then merged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from mms_workloads.contract import Golden, JobFile, Reason, WordEmbedding
from mms_workloads.data import blocks
from mms_workloads.data.corpus import Corpus, monotonous
from mms_workloads.embedding import evaluation, word2vec
from mms_workloads.embedding.golden import golden
from mms_workloads.embedding.state import EmbeddingState
from mms_workloads.store import JobError
from mms_workloads.sync.layout import Table
from mms_workloads.train.checkpoint import write_tensors
from mms_workloads.train.communicator import NOTHING, Stats
from mms_workloads.train.learner import Evaluation, Place, decayed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from mms_workloads.data.vocabulary import Vocabulary
    from mms_workloads.sync.leases import Slice
    from mms_workloads.sync.plan import Plan
    from mms_workloads.train.state import State

KIND = "wordEmbedding"


@dataclass(slots=True)
class EmbeddingLearner:
    job: JobFile
    task: WordEmbedding
    vocabulary: Vocabulary
    corpus: Corpus
    words: word2vec.Distribution
    trained_on: Sequence[int]
    held_out: Sequence[int]
    kind: str = KIND

    @classmethod
    def of(cls, job: JobFile, task: WordEmbedding, plan: Plan, cache: Path) -> EmbeddingLearner:
        corpus = Corpus(job.data.store, plan, task, cache)
        words = word2vec.distribution(torch.tensor(plan.vocabulary.counts), task)
        trained_on, held_out = blocks.split(len(corpus.blocks), job.evaluation.split)
        return cls(job, task, plan.vocabulary, corpus, words, trained_on, held_out)

    def start(self) -> EmbeddingState:
        size, dimensions, seed = len(self.vocabulary), self.task.dimensions, self.job.optimizer.seed
        return EmbeddingState.start(word2vec.initial_parameters(size, dimensions, seed))

    def size(self, block: int) -> int:
        del block
        return 1

    def dead(self, block: int) -> str | None:
        return monotonous(self.corpus.tokens(block), "words")

    def batch(self, place: Place) -> int:
        del place
        return 1

    def rate(self, state: State, members: int) -> float:
        del members
        return decayed(self._initial(state), self._done(state))

    def compute(self, state: State, slices: Sequence[Slice], place: Place) -> Stats:
        assert isinstance(state, EmbeddingState)  # noqa: S101 - made by `start`
        optimizer = self.job.optimizer
        total = NOTHING
        for s in slices:
            begin = self._done(state)
            end = begin + place.members / (len(self.trained_on) * optimizer.epochs)
            initial = self._initial(state)
            rates = (decayed(initial, begin), decayed(initial, end))
            tokens = self.corpus.tokens(s.block)
            done = word2vec.train_block(
                state.working, state.touches, tokens, self.words, self.task, rates=rates, **self._chance(s)
            )
            total = Stats(total.samples + done.words, total.weight + done.pairs, done.loss)
        return total

    def evaluate(self, state: State) -> Evaluation:
        vectors, seed = state.tables()["vectors"]["parameters"], self.job.optimizer.seed
        chosen = list(self.held_out or self.trained_on)[: evaluation.MAX_BLOCKS]
        tokens = (self.corpus.tokens(block) for block in chosen)
        name = "contextAUC" if self.held_out else "trainingContextAUC"
        metrics = {name: evaluation.context_auc(vectors, tokens, self.words, self.task.window, seed)}
        related = evaluation.related_auc(vectors, self.vocabulary.words, seed)
        if related is not None:
            metrics["relatedAUC"] = related
        report = {
            "vocabulary": len(self.vocabulary),
            "words": sum(self.vocabulary.counts),
            "blocks": len(self.corpus.blocks),
            "heldOutBlocks": chosen if self.held_out else [],
            "method": evaluation.__doc__ or "",
        }
        return Evaluation(metrics, report)

    def write(self, state: State, folder: Path) -> Golden:
        tensors = {name: slots["parameters"].contiguous() for name, slots in state.tables().items()}
        if not all(bool(torch.isfinite(t).all()) for t in tensors.values()):
            raise JobError(
                Reason.INTERNAL, "the parameters are not finite: lower optimizer.learningRate and start another run"
            )
        write_tensors(tensors, folder / "model.safetensors")
        (folder / "vocabulary.txt").write_text(self.vocabulary.text(), encoding="utf-8")
        return golden(tensors["vectors"], self.vocabulary.words)

    def tables(self) -> Sequence[Table]:
        rows, columns = len(self.vocabulary), self.task.dimensions
        return [Table(name, rows, columns, sparse=True) for name in ("vectors", "contexts")]

    def rows(self, slices: Sequence[Slice]) -> Mapping[str, Tensor]:
        if not slices:
            return {}
        touched = [
            word2vec.rows(len(self.vocabulary), self.corpus.tokens(s.block), self.words, self.task, **self._chance(s))
            for s in slices
        ]
        vectors, contexts = zip(*touched, strict=True)
        return {"vectors": torch.unique(torch.cat(vectors)), "contexts": torch.unique(torch.cat(contexts))}

    def _chance(self, s: Slice) -> dict[str, int]:
        """What chance decides depends on the seed, the data epoch, the block and the number of threads only."""
        seed = (self.job.optimizer.seed * 1_000_003 + s.data_epoch) * 1_000_003 + s.block
        return {"seed": seed, "threads": torch.get_num_threads()}

    def _initial(self, state: State) -> float:
        return self.job.optimizer.learningRate * state.agreement.progress.rate_factor

    def _done(self, state: State) -> float:
        return state.agreement.fraction(self.trained_on, self.job.optimizer.epochs)
