"""What the loop knows of a task: a learner computes on leased samples; what follows from that is the communicator's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from mms_workloads.contract import Golden, JobFile
    from mms_workloads.pod import Pod
    from mms_workloads.sync.layout import Table
    from mms_workloads.sync.leases import Slice
    from mms_workloads.sync.plan import Plan
    from mms_workloads.train.communicator import Stats
    from mms_workloads.train.state import Agreement, State


@dataclass(frozen=True, slots=True)
class Place:
    """A member's place in its membership epoch."""

    position: int
    members: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """metrics, and evaluation.json: how they were measured."""

    metrics: dict[str, float]
    report: dict[str, Any]


class Learner(Protocol):
    kind: str  # of the artifact
    trained_on: Sequence[int]  # block numbers
    job: JobFile

    def start(self) -> State:
        """The parameters that a run begins with: the same on every worker."""

    def tables(self) -> Sequence[Table]:
        """What parameter shards hold of the state."""

    def initial(self, table: str, start: int, stop: int) -> Mapping[str, Tensor]:
        """By slot, what a run begins with of the rows [start, stop): without the others, where there may be many."""

    def rows(self, slices: Sequence[Slice]) -> Mapping[str, Tensor]:
        """The rows of sparse tables that `compute` will read: by table, int64 [n], ascending. Raises store.JobError."""

    def size(self, block: int) -> int:
        """Samples of a block, at least 1. Raises store.JobError."""

    def dead(self, block: int) -> str | None:
        """Why there is nothing to learn from a block; None where there is. Raises store.JobError."""

    def ready(self, block: int, data_epoch: int) -> None:
        """Makes what `compute` needs of a block, in the thread that reads ahead. Raises store.JobError."""

    def batch(self, place: Place) -> int:
        """Samples that the member takes in a round."""

    def mixed(self, place: Place) -> int:
        """Blocks that a member's samples are dealt from, where ranks step together: at least 1."""

    def rate(self, state: State, members: int) -> float:
        """The learning rate of the next round."""

    def precision(self, state: State) -> str | None:
        """FP32 or BF16, in which `compute` multiplies; None where it has kernels of its own."""

    def compute(self, state: State, slices: Sequence[Slice], place: Place) -> Stats:
        """The round's work, left in `state` unfinished. It depends on the slices and on what is agreed only, whoever
        computes it. Raises store.JobError.
        """

    def evaluate(self, state: State) -> Evaluation:
        """Raises store.JobError."""

    def write(self, state: State, evaluation: Evaluation, folder: Path) -> Golden:
        """Writes the model's files, which may tell its evaluation; returns its golden set. Raises store.JobError."""


def decayed(initial: float, progress: float) -> float:
    """Linear decay over the whole job, with word2vec's floor of 1/10,000. progress in [0, 1]."""
    return initial * max(1e-4, 1.0 - progress)


def rate(job: JobFile, agreement: Agreement, trained_on: Sequence[int], members: int) -> float:
    """The learning rate of a task whose steps have a global batch. trained_on: block numbers."""
    optimizer = job.optimizer
    initial = optimizer.learningRate * agreement.progress.rate_factor
    now = decayed(initial, agreement.fraction(trained_on, optimizer.epochs))
    return now * members / job.workers if optimizer.whenWorkersChange == "ScaleLearningRate" else now


def share(job: JobFile, place: Place) -> int:
    """Samples that a member takes in a round.

    KeepGlobalBatch: globalBatchSize dealt evenly, the first members take the rest. ScaleLearningRate: each member keeps
    the share that it had with the number of workers that the run was begun with.
    """
    total = job.optimizer.globalBatchSize
    members = place.members if job.optimizer.whenWorkersChange == "KeepGlobalBatch" else job.workers
    return max(1, total // members + (place.position % members < total % members))


def begun_with(job: JobFile, plan: Plan) -> JobFile:
    """The job with the number of workers that its rates and shares go by, the size that its blocks have, and precision
    FP32 where some workers would only lose by BF16.

    Pods that start after the number was changed read another one than those that train with them. Encrypted blocks were
    made before.
    """
    if job.optimizer.precision == "Auto" and not plan.bf16:
        job = job.model_copy(update={"optimizer": job.optimizer.model_copy(update={"precision": "FP32"})})
    if plan.workers:
        job = job.model_copy(update={"workers": plan.workers})
    if plan.sealed:
        largest = max(file.size for file in plan.files)
        job = job.model_copy(update={"data": job.data.model_copy(update={"blockBytes": max(1, largest)})})
    return job


def make(pod: Pod, plan: Plan, digest: str) -> Learner:
    """The learner of the job's task. digest: of the plan; what is cached for another one is not used."""
    cache = pod.scratch / f"blocks-{digest[-12:]}"
    job = begun_with(pod.job, plan)
    task = job.task
    if task.languageModel is not None:
        # A worker loads its own task only.
        if task.languageModel.architecture == "Pretrained":
            from mms_workloads.language.pretrained import TokenLearner  # noqa: PLC0415

            return TokenLearner.begin(job, task.languageModel, plan, cache)
        from mms_workloads.language.learner import LanguageLearner  # noqa: PLC0415

        return LanguageLearner.of(job, task.languageModel, plan, cache)
    if task.wordEmbedding is not None:
        from mms_workloads.embedding.learner import EmbeddingLearner  # noqa: PLC0415

        return EmbeddingLearner.of(job, task.wordEmbedding, plan, cache)
    from mms_workloads.tasks import making  # noqa: PLC0415

    return making.make(job, plan, cache)
