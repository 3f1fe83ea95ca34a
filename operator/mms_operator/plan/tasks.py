"""What a training learns, from the spec to the job file: what is left open is put in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mms_operator.api.training_task import BATCH_SIZE
from mms_workloads import contract

if TYPE_CHECKING:
    from mms_operator.api.model_tasks import Pretrained
    from mms_operator.api.privacy import Privacy
    from mms_operator.api.training_task import Evaluation, Optimizer, Task, WordEmbedding


@dataclass(frozen=True)
class Usual:
    """The optimizer of a task whose spec does not say."""

    name: Literal["SGD", "AdamW"]
    learning_rate: float


NEGATIVES = 5
_NETWORK = Usual("AdamW", 0.001)
_FINE_TUNING = Usual("AdamW", 0.0001)


def task(given: Task) -> contract.Task:
    """Raises ValueError where no task is set."""
    if given.wordEmbedding is not None:
        return contract.Task(wordEmbedding=word_embedding(given.wordEmbedding))
    for name in contract.Task.model_fields:
        arm = getattr(given, name, None)
        if arm is not None:
            # Decimals are strings in the API: the contract reads them as numbers.
            return contract.Task.model_validate({name: arm.model_dump(exclude_none=True)})
    raise ValueError("spec.task: exactly one task must be set")


def word_embedding(given: WordEmbedding) -> contract.WordEmbedding:
    fields = {**given.model_dump(), "subsample": float(given.subsample), "negatives": given.negatives or NEGATIVES}
    if given.phrases:
        fields["phrases"] = {"minCount": given.phrases.minCount, "threshold": float(given.phrases.threshold)}
    return contract.WordEmbedding(**fields)


def usual_embedding(task: WordEmbedding) -> Usual:
    """word2vec's own, and fastText's for subwords."""
    return Usual("SGD", 0.05 if task.model == "CBOW" or task.subwords else 0.025)


def optimizer(given: Optimizer, of: Task, pretrained: Pretrained | None = None) -> contract.Optimizer:
    """What is left open is as the task has it."""
    embedding = of.wordEmbedding
    whole = pretrained is not None and pretrained.method == "Full" and not pretrained.trainingRef
    usual = usual_embedding(embedding) if embedding else _FINE_TUNING if whole else _NETWORK
    return contract.Optimizer(
        name=given.name or usual.name,
        learningRate=float(given.learningRate) if given.learningRate else usual.learning_rate,
        momentum=float(given.momentum or 0),
        weightDecay=float(given.weightDecay or 0),
        globalBatchSize=given.globalBatchSize or BATCH_SIZE,
        epochs=given.epochs,
        whenWorkersChange=given.whenWorkersChange or "KeepGlobalBatch",
        precision=given.precision or "Auto",
        seed=given.seed,
    )


def privacy(given: Privacy | None) -> contract.Differential | None:
    # Decimals are strings in the API: the contract reads them as numbers.
    return contract.Differential.model_validate(given.differential.model_dump()) if given else None


def evaluation(given: Evaluation) -> contract.EvaluationSpec:
    gate = given.gate
    if gate is None:
        return contract.EvaluationSpec(split=float(given.split))
    return contract.EvaluationSpec(
        split=float(given.split),
        gate=contract.Gate(
            metric=gate.metric,
            atLeast=None if gate.atLeast is None else float(gate.atLeast),
            atMost=None if gate.atMost is None else float(gate.atMost),
        ),
    )
