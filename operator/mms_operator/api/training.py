"""ModelTraining: what to train, on which data, with how many workers, and where the results go."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from mms_operator.api import names
from mms_operator.api.custom_task import left_to_the_program
from mms_operator.api.data import Data, transforms_fit
from mms_operator.api.model_tasks import Pretrained, pretrained_fits
from mms_operator.api.privacy import Privacy, privacy_fits
from mms_operator.api.training_run import MOST_OF_A_RING, Checkpoint, Guard, RunPolicy, Storage, Sync, Workers
from mms_operator.api.training_status import TrainingStatus  # noqa: TC001 - pydantic evaluates annotations
from mms_operator.api.training_task import BATCH_SIZE, Evaluation, Optimizer, Task, gates_fit
from mms_operator.api.types import CONTROLLER_PATTERN, Model, rules

# Until the first start, after the end together with a raised run, or never.
_BEFORE_START = "!has(oldSelf.status) || !has(oldSelf.status.startTime)"
_NEXT_RUN = "self.spec.runPolicy.run > oldSelf.spec.runPolicy.run"
_FINISHED = "has(oldSelf.status) && has(oldSelf.status.phase) && oldSelf.status.phase in ['Complete', 'Failed']"
_SUSPENDED = "has(oldSelf.status) && has(oldSelf.status.phase) && oldSelf.status.phase == 'Suspended'"
_WAITING = "has(oldSelf.status) && has(oldSelf.status.phase) && oldSelf.status.phase in ['Pending', 'Suspended']"


def _fixed_within_run(field: str, same: str = "") -> tuple[str, str]:
    same = same or f"self.spec.{field} == oldSelf.spec.{field}"
    return (
        f"{_BEFORE_START} || ({_NEXT_RUN}) || {same}",
        f"spec.{field} is fixed once a run has started: raise spec.runPolicy.run in the same change to start another",
    )


def _fixed_unless_suspended(field: str, same: str = "") -> tuple[str, str]:
    same = same or f"self.spec.{field} == oldSelf.spec.{field}"
    return (
        f"{_BEFORE_START} || ({_NEXT_RUN}) || ({_SUSPENDED}) || ({same})",
        (
            f"spec.{field} can change only while the training is suspended: set spec.runPolicy.suspend and wait for "
            "phase Suspended"
        ),
    )


def _fixed_while_training(field: str, same: str) -> tuple[str, str]:
    """Pods that wait for a node or an image are made anew; those that train are not."""
    return (
        f"{_BEFORE_START} || ({_NEXT_RUN}) || ({_WAITING}) || ({same})",
        (
            f"spec.{field} can change only while the training is pending or suspended: set spec.runPolicy.suspend and "
            "wait for phase Suspended"
        ),
    )


def _same(field: str, absent: str = "") -> str:
    """Whether an optional field of the spec is as before; `absent` is what it means when it is not there."""
    parts = field.split(".")
    there = [
        " && ".join(f"has({root}.spec.{'.'.join(parts[: n + 1])})" for n in range(len(parts)))
        for root in ("self", "oldSelf")
    ]
    if absent:
        new, old = (
            f"({has} ? {root}.spec.{field} : {absent})" for has, root in zip(there, ("self", "oldSelf"), strict=True)
        )
        return f"{new} == {old}"
    new, old = there
    return f"({new}) == ({old}) && (!({new}) || self.spec.{field} == oldSelf.spec.{field})"


class TrainingSpec(Model):
    """What is wanted."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.task.wordEmbedding) || !has(self.optimizer.name) || self.optimizer.name == 'SGD'",
                "optimizer.name must be SGD with task.wordEmbedding, which knows no other: leave it out",
            ),
            (
                (
                    "!has(self.task.wordEmbedding) || (!has(self.optimizer.momentum) && "
                    "!has(self.optimizer.weightDecay) && !has(self.optimizer.globalBatchSize) && "
                    "!has(self.optimizer.whenWorkersChange) && !has(self.optimizer.precision))"
                ),
                (
                    "optimizer.momentum, weightDecay, globalBatchSize, whenWorkersChange and precision do not apply to "
                    "task.wordEmbedding, whose workers take a block of the text each: leave them out"
                ),
            ),
            *pretrained_fits(),
            (
                "!has(self.task.wordEmbedding) || self.sync.compression != 'Int8'",
                (
                    "sync.compression must be None or BF16 with task.wordEmbedding, the changes of whose rows differ "
                    "too much in size for Int8: use BF16"
                ),
            ),
            (
                (
                    "!has(self.optimizer.whenWorkersChange) || self.sync.mode != 'ParameterServer' || "
                    "!has(self.sync.parameterServer) || self.sync.parameterServer.consistency == 'Synchronous'"
                ),
                (
                    "optimizer.whenWorkersChange must be absent without sync.parameterServer.consistency Synchronous: "
                    "each push of a worker is a step of its own, however many workers there are"
                ),
            ),
            *transforms_fit(),
            *privacy_fits(),
            *gates_fit(),
            (
                "!has(self.data) || !has(self.data.fields.pair) || has(self.task.textMatching)",
                "data.fields.pair is of task.textMatching, which learns from two texts: leave it out",
            ),
            (
                (
                    "!has(self.task.textMatching) || !has(self.data) || !has(self.data.encryption) || "
                    "self.task.textMatching.search == 0"
                ),
                "task.textMatching.search must be 0 with data.encryption: the artifact would hold texts of the data",
            ),
            *left_to_the_program(
                {
                    "data": Data,
                    "optimizer": Optimizer,
                    "evaluation": Evaluation,
                    "sync": Sync,
                    "guard": Guard,
                    "checkpoint": Checkpoint,
                }
            ),
            (
                "!has(self.data) || !has(self.data.encryption) || self.data.blockSizes == 'Equal'",
                "data.blockSizes must be Equal with data.encryption, whose blocks are made by mms data encrypt",
            ),
            (
                (
                    "!(has(self.task.wordEmbedding) || has(self.task.languageModel)) || !has(self.data) || "
                    "(self.data.format in ['Auto', "
                    "'Text'] && !has(self.data.fields.input) && !has(self.data.fields.label))"
                ),
                (
                    "data.format must be Auto or Text, without data.fields, with task.wordEmbedding and "
                    "task.languageModel, which read running text: leave them out"
                ),
            ),
            (
                (
                    "has(self.task.wordEmbedding) || has(self.task.custom) || self.workers.replicas <= "
                    f"(has(self.optimizer.globalBatchSize) ? self.optimizer.globalBatchSize : {BATCH_SIZE})"
                ),
                (
                    "workers.replicas must be at most optimizer.globalBatchSize, since each worker takes at least one "
                    "sample of a step: raise globalBatchSize, or lower replicas"
                ),
            ),
            (
                (
                    "has(self.task.custom) || self.sync.mode != 'Ring' || "
                    f"(self.workers.replicas <= {MOST_OF_A_RING} && "
                    f"(!has(self.workers.maxReplicas) || self.workers.maxReplicas <= {MOST_OF_A_RING}))"
                ),
                (
                    f"workers.replicas and maxReplicas must be at most {MOST_OF_A_RING} with sync.mode Ring: lower "
                    "them, or set sync.mode to ParameterServer"
                ),
            ),
        )
    )
    task: Task
    data: Data | None = Field(
        default=None,
        description="The data set. The last parts of the URI may hold *; .gz, .xz, .bz2 and .zst are decompressed "
        "while read. Only task.custom, whose program reads it, does without.",
    )
    pretrained: Pretrained | None = Field(default=None, description="Absent: the run starts from nothing.")
    optimizer: Optimizer = Field(default_factory=Optimizer)
    evaluation: Evaluation = Field(default_factory=Evaluation)
    privacy: Privacy | None = Field(
        default=None, description="Absent: the model may tell what it has seen. A run pays for itself alone."
    )
    sync: Sync = Field(default_factory=Sync)
    workers: Workers = Field(default_factory=Workers)
    guard: Guard = Field(default_factory=Guard)
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)
    storage: Storage | None = Field(
        default=None,
        description="Where checkpoints and artifacts go: in <uri>/runs/<run>/. "
        "Absent: the installation's store, in <namespace>/<name>-<the first 8 digits of its uid>; of task.custom none.",
    )
    runPolicy: RunPolicy = Field(default_factory=RunPolicy)
    managedBy: str | None = Field(
        default=None,
        description="The controller that carries this out, such as kueue.x-k8s.io/multikueue: this operator then "
        f"leaves the object alone. Absent, or {names.CONTROLLER}: this operator does.",
        max_length=63,
        pattern=CONTROLLER_PATTERN,
    )


_SAME_SYNC = " && ".join(
    (
        *(f"self.spec.sync.{field} == oldSelf.spec.sync.{field}" for field in ("mode", "compression", "transport")),
        _same("sync.parameterServer.replicas", absent="1"),
        _same("sync.parameterServer.consistency", absent="'Synchronous'"),
        _same("sync.parameterServer.staleness"),
    )
)


# A custom image or command that does not start is put right without another run: all its pods are made anew.
_SAME_TASK = (
    "self.spec.task == oldSelf.spec.task || "
    f"(({_WAITING}) && has(self.spec.task.custom) && has(oldSelf.spec.task.custom))"
)


class ModelTraining(Model):
    """Trains a model on many workers and keeps the result as a versioned artifact."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "size(self.metadata.name) <= 45 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
                (
                    "metadata.name must be at most 45 lower-case letters, digits and dashes and begin with a letter: "
                    "the names of its pods are made from it"
                ),
            ),
            _fixed_within_run("task", _SAME_TASK),
            _fixed_within_run("data", f"({_same('data')})"),
            _fixed_within_run("pretrained", f"({_same('pretrained')})"),
            (
                (
                    f"{_BEFORE_START} || ({_NEXT_RUN}) || (has(self.spec.storage) == has(oldSelf.spec.storage) && "
                    "(!has(self.spec.storage) || self.spec.storage.uri == oldSelf.spec.storage.uri))"
                ),
                (
                    "spec.storage.uri is fixed once a run has started: raise spec.runPolicy.run in the same change to "
                    "start another"
                ),
            ),
            _fixed_within_run("optimizer"),
            _fixed_within_run("evaluation"),
            _fixed_within_run("privacy", f"({_same('privacy')})"),
            # The number of shards may change at any time.
            _fixed_unless_suspended("sync", _SAME_SYNC),
            _fixed_unless_suspended("checkpoint"),
            _fixed_unless_suspended("guard"),
            _fixed_while_training("workers.resources", "self.spec.workers.resources == oldSelf.spec.workers.resources"),
            _fixed_while_training(
                "workers.image",
                _same("workers.image"),
            ),
            (
                _same("managedBy"),
                "spec.managedBy is fixed, so that two controllers never act: make another ModelTraining",
            ),
            (
                f"{_BEFORE_START} || self.spec.runPolicy.run == oldSelf.spec.runPolicy.run || ({_FINISHED})",
                "spec.runPolicy.run can be raised only when the current run has ended (phase Complete or Failed)",
            ),
        )
    )
    spec: TrainingSpec
    status: TrainingStatus | None = None
