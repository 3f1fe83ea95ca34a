"""ModelTraining: what to train, on which data, with how many workers, and where the results go."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from mms_operator.api import names
from mms_operator.api.custom_task import left_to_the_program
from mms_operator.api.data import Data, transforms_fit
from mms_operator.api.model_tasks import Pretrained, pretrained_fits
from mms_operator.api.privacy import Privacy, privacy_fits
from mms_operator.api.training_status import TrainingStatus  # noqa: TC001 - pydantic evaluates annotations
from mms_operator.api.training_task import BATCH_SIZE, Evaluation, Optimizer, Task, gates_fit
from mms_operator.api.types import (
    CONTROLLER_PATTERN,
    WRITABLE_URI_PATTERN,
    Model,
    Name,
    PodTemplate,
    Resources,
    StoreAccess,
    rules,
)

MOST_OF_A_RING = 64  # members that the workers' transport takes

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


class ParameterServer(Model):
    """Shards hold the parameters and run the optimizer; workers push gradients to them and pull parameters."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.replicas == 1 || self.shards >= 2",
                "replicas 2 needs shards of at least 2, since a shard's copy is on the next shard: raise shards",
            ),
            (
                "!has(self.staleness) || self.consistency == 'BoundedStaleness'",
                "staleness is of consistency BoundedStaleness only: set that, or leave staleness out",
            ),
        )
    )
    shards: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Over how many pods the parameters are split. It can change while the training runs: shards "
        "come and go, and the parameters are split anew.",
    )
    replicas: int = Field(
        default=1,
        ge=1,
        le=2,
        description="Copies of each shard's parameters. 2: when a shard is lost, the next one has its copy. 1: the "
        "training goes on from its last checkpoint.",
    )
    consistency: Literal["Synchronous", "BoundedStaleness", "Asynchronous"] = Field(
        default="Synchronous",
        description="Synchronous: a step waits for all workers. BoundedStaleness: a worker may be some steps ahead of "
        "the slowest (Ho et al., 2013). Asynchronous: none waits for another (Dean et al., 2012).",
    )
    staleness: int | None = Field(
        default=None,
        ge=0,
        le=1000,
        description="BoundedStaleness: how many steps a worker may be ahead of the slowest. Absent: 4.",
    )


class Sync(Model):
    """How the workers' parameters are kept together."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.mode == 'ParameterServer' || !has(self.parameterServer)",
                "sync.parameterServer is of mode ParameterServer only: set sync.mode to it, or leave the block out",
            )
        )
    )
    mode: Literal["Ring", "ParameterServer"] = Field(
        default="Ring",
        description="Ring: ring all-reduce among the workers. ParameterServer: shards hold the parameters.",
    )
    compression: Literal["None", "BF16", "Int8"] = Field(
        default="None",
        description="How gradients, and changes of word vectors, are written on the wire: BF16 takes half of the "
        "bytes, Int8 about a quarter; Int8 is not for word vectors. The parameters stay in FP32.",
    )
    transport: Literal["MutualTLS", "Plain"] = Field(
        default="MutualTLS",
        description="Gradients and parameters between the pods. MutualTLS: encrypted, with certificates of this job's "
        "own. Plain: neither encrypted nor authenticated, for networks that do that themselves. "
        "The connections to the master are always MutualTLS.",
    )
    parameterServer: ParameterServer | None = Field(
        default=None, description="With mode ParameterServer. Absent: one shard, Synchronous."
    )


class Workers(Model):
    """The pods that train."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.minReplicas <= self.replicas && (!has(self.maxReplicas) || self.replicas <= self.maxReplicas)",
                "workers.replicas must be from minReplicas to maxReplicas: change the one that is out of order",
            )
        )
    )
    replicas: int = Field(
        default=2,
        ge=1,
        le=256,
        description="How many workers train at the same time. It can change while the training runs, by kubectl scale "
        f"as well. In mode Ring {MOST_OF_A_RING} at most.",
    )
    minReplicas: int = Field(
        default=1,
        ge=1,
        le=256,
        description="With fewer workers nobody trains. With as many the training goes on while the others have no "
        "node, and takes them in when they have.",
    )
    maxReplicas: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description=f"What replicas may be raised to. Absent: {MOST_OF_A_RING} in mode Ring, else 256.",
    )
    standby: int = Field(
        default=0,
        ge=0,
        le=16,
        description="Pods beyond replicas that have started and wait: one takes the place of a worker that is lost, in "
        "the membership epoch that the loss begins. Each asks for the resources of a worker.",
    )
    resources: Resources = Field(
        default_factory=Resources,
        description="Of each worker's container, and of each shard's; of task.custom also of servers and evaluator.",
    )
    image: str | None = Field(
        default=None, description="Image of master, workers and shards. Absent: the installation's.", max_length=512
    )
    podTemplate: PodTemplate | None = None


class Checkpoint(Model):
    """Copies of the parameters to go on from when all pods are lost."""

    intervalSeconds: int = Field(default=60, ge=1, le=86_400, description="Time between two checkpoints.")
    keep: int = Field(default=2, ge=1, le=100, description="How many checkpoints are kept.")


class Guard(Model):
    """What is done about anomalies that are found while training. A worker that hangs is always replaced."""

    nonFinite: Literal["Skip", "Rollback", "Fail"] = Field(
        default="Skip",
        description="NaN or infinity in a worker's gradient. Skip: the step is made without it, and after patience "
        "such steps all go back to the last checkpoint, at half the learning rate. Rollback: at once. Fail: the run "
        "fails.",
    )
    lossSpike: Literal["Rollback", "Report", "Off"] = Field(
        default="Rollback",
        description="The loss stays far above what it was. Rollback: to the last checkpoint before, without the "
        "samples that did it; where it comes again at the same place, as high, at half the learning rate too, the data "
        "is of another kind from there on: an incident, and training goes on. Report: an incident.",
    )
    gradientOutlier: Literal["Drop", "Report", "Off"] = Field(
        default="Drop",
        description="One worker's gradient is far beyond the others'; of two workers, beyond its own before, while the "
        "other's is not. Drop: the step is made without it, and after patience steps the worker is replaced. Without "
        "synchrony (BoundedStaleness, Asynchronous) nothing is compared.",
    )
    corruption: Literal["Repair", "Off"] = Field(
        default="Repair",
        description="Workers of a ring that should hold the same parameters do not, or a shard and its copy. Repair: "
        "those that are outvoted are replaced; where there is no majority all go back to the last checkpoint.",
    )
    straggler: Literal["Report", "Replace", "Off"] = Field(
        default="Report", description="A worker takes more than 2.5 times as long as the others for a sample."
    )
    deadData: Literal["Quarantine", "Off"] = Field(
        default="Quarantine",
        description="A block of the data is nearly all the same, or its records are but for their labels. "
        "Quarantine: it is not trained on, and the condition Degraded says so.",
    )
    patience: int = Field(
        default=5, ge=1, le=1000, description="Anomalous steps in a row before the stronger measure is taken."
    )


class Storage(StoreAccess):
    """Where checkpoints and artifacts go: in <uri>/runs/<run>/."""

    uri: str = Field(
        description="A folder that this training has for itself, such as s3://models/words.",
        max_length=900,  # the addresses of what is in it have 1024 at most
        pattern=WRITABLE_URI_PATTERN,
    )


class RunPolicy(Model):
    """When the training runs, and how much it puts up with."""

    model_config = ConfigDict(
        json_schema_extra=rules(("self.run >= oldSelf.run", "run can only be raised: each run has its own results"))
    )
    run: int = Field(
        default=1,
        ge=1,
        le=1_000_000,
        description="Which run. A finished training starts again only when this is raised; its artifact has this "
        "version.",
    )
    suspend: bool = Field(
        default=False,
        description="Checkpoint (task.custom: SIGTERM), then release all pods until this is false again.",
    )
    backoffLimit: int = Field(
        default=3,
        ge=0,
        le=100,
        description="How many lost pods are replaced in a run before the training has failed; of task.custom how often "
        "all its pods are started anew.",
    )
    activeDeadlineSeconds: int | None = Field(
        default=None,
        ge=1,
        le=31_536_000,
        description="How long an attempt may take, from its start; a resume begins anew. "
        "Then the training has failed. Absent: as long as it takes.",
    )
    ttlSecondsAfterFinished: int | None = Field(
        default=None,
        ge=0,
        le=31_536_000,
        description="How long after its end the ModelTraining is deleted; its results stay in the store. "
        "Absent: never. Under GitOps leave it absent: what is deleted is made again, and would train again.",
    )
    retainRuns: int = Field(
        default=5,
        ge=0,
        le=1000,
        description="How many runs before this one keep their folders in the store when this one is complete. Runs "
        "that a ModelService of the namespace serves stay besides.",
    )
    priorityClassName: Name | None = Field(
        default=None, description="PriorityClass of the pods; one in workers.podTemplate goes before. Absent: none."
    )


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
