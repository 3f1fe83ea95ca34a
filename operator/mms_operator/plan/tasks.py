"""What a training learns, from the spec to the job file: what is left open is put in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mms_operator.api.training_task import BATCH_SIZE
from mms_workloads import contract

if TYPE_CHECKING:
    from mms_operator.api.training_task import Evaluation, Optimizer, Task, WordEmbedding


@dataclass(frozen=True)
class Usual:
    """The optimizer of a task whose spec does not say."""

    name: Literal["SGD", "AdamW"]
    learning_rate: float


NEGATIVES = 5
_LANGUAGE = Usual("AdamW", 0.001)


def task(given: Task) -> contract.Task:
    if given.languageModel is not None:
        return contract.Task(languageModel=contract.LanguageModel(**given.languageModel.model_dump()))
    if given.wordEmbedding is None:
        raise ValueError("spec.task: exactly one task must be set")
    return contract.Task(wordEmbedding=word_embedding(given.wordEmbedding))


def word_embedding(given: WordEmbedding) -> contract.WordEmbedding:
    fields = {**given.model_dump(), "subsample": float(given.subsample), "negatives": given.negatives or NEGATIVES}
    if given.phrases:
        fields["phrases"] = {"minCount": given.phrases.minCount, "threshold": float(given.phrases.threshold)}
    return contract.WordEmbedding(**fields)


def usual_embedding(task: WordEmbedding) -> Usual:
    """word2vec's own, and fastText's for subwords."""
    return Usual("SGD", 0.05 if task.model == "CBOW" or task.subwords else 0.025)


def optimizer(given: Optimizer, of: Task) -> contract.Optimizer:
    """What is left open is as the task has it."""
    embedding = of.wordEmbedding
    usual = usual_embedding(embedding) if embedding else _LANGUAGE
    return contract.Optimizer(
        name=given.name or usual.name,
        learningRate=float(given.learningRate) if given.learningRate else usual.learning_rate,
        momentum=float(given.momentum or 0),
        weightDecay=float(given.weightDecay or 0),
        globalBatchSize=given.globalBatchSize or BATCH_SIZE,
        epochs=given.epochs,
        whenWorkersChange=given.whenWorkersChange or "KeepGlobalBatch",
        seed=given.seed,
    )


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
