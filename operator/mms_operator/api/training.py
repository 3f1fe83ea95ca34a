"""ModelTraining: what to train, on which data, with how many workers, and where the results go."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from mms_operator.api.types import (
    URI_PATTERN,
    WRITABLE_URI_PATTERN,
    Conditions,
    Model,
    PodTemplate,
    Resources,
    SecretReference,
    StoreAccess,
    decimal,
    rules,
)

# Until the first start, after the end together with a raised run, or never.
_BEFORE_START = "!has(oldSelf.status) || !has(oldSelf.status.startTime)"
_NEXT_RUN = "self.spec.runPolicy.run > oldSelf.spec.runPolicy.run"
_FINISHED = "has(oldSelf.status) && has(oldSelf.status.phase) && oldSelf.status.phase in ['Complete', 'Failed']"
_SUSPENDED = "has(oldSelf.status) && has(oldSelf.status.phase) && oldSelf.status.phase == 'Suspended'"
_WAITING = "has(oldSelf.status) && has(oldSelf.status.phase) && oldSelf.status.phase in ['Pending', 'Suspended']"


def _fixed_within_run(field: str) -> tuple[str, str]:
    return (
        f"{_BEFORE_START} || ({_NEXT_RUN}) || self.spec.{field} == oldSelf.spec.{field}",
        f"spec.{field} is fixed once a run has started: raise spec.runPolicy.run in the same change to start another",
    )


def _fixed_unless_suspended(field: str) -> tuple[str, str]:
    return (
        f"{_BEFORE_START} || ({_NEXT_RUN}) || ({_SUSPENDED}) || self.spec.{field} == oldSelf.spec.{field}",
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


class WordEmbedding(Model):
    """Word vectors by skip-gram with negative sampling (Mikolov et al., 2013)."""

    model: Literal["SkipGram"] = Field(default="SkipGram", description="How words and contexts predict each other.")
    dimensions: int = Field(default=100, ge=2, le=4096, description="Length of a word's vector.")
    window: int = Field(default=5, ge=1, le=100, description="Words to each side of the centre, at most.")
    negatives: int = Field(default=5, ge=1, le=100, description="Random words that each pair is told apart from.")
    minCount: int = Field(default=5, ge=1, le=1_000_000, description="Words that are rarer are left out.")
    maxVocabulary: int = Field(
        default=1_000_000, ge=2, le=50_000_000, description="The most frequent words that are kept."
    )
    subsample: str = decimal(
        "Frequent words are skipped at random: the frequency above which that begins. 0 turns it off.", default="0.001"
    )
    tokenizer: Literal["Words", "Whitespace"] = Field(
        default="Words",
        description="Words: runs of letters and digits, lower-cased. Whitespace: split at white space, kept as is.",
    )


class Task(Model):
    """What to train: exactly one."""

    model_config = ConfigDict(
        json_schema_extra=rules(("has(self.wordEmbedding)", "exactly one task must be set: wordEmbedding"))
    )
    wordEmbedding: WordEmbedding | None = Field(default=None, description="Word vectors from a text corpus.")


class Data(StoreAccess):
    """The data set. The last parts of the URI may hold *; .gz, .xz and .bz2 are decompressed while read."""

    uri: str = Field(
        description="Where the data is, such as s3://corpora/wiki/*.txt.xz.", max_length=1024, pattern=URI_PATTERN
    )
    sharding: Literal["Random", "Sequential"] = Field(
        default="Random", description="The order in which blocks are dealt to the workers: a seeded shuffle, or as is."
    )


class Optimizer(Model):
    """How the parameters follow the gradients."""

    model_config = ConfigDict(
        json_schema_extra=rules(("double(self.learningRate) > 0.0", "learningRate must be above 0"))
    )
    learningRate: str = decimal("Step size at the start; it falls linearly to zero.", default="0.025")
    epochs: int = Field(default=5, ge=1, le=10_000, description="How often each sample is seen.")
    seed: int = Field(default=1, ge=0, le=2**31 - 1, description="Start of every random choice.")


class Sync(Model):
    """How the workers' parameters are kept together."""

    mode: Literal["Ring"] = Field(
        default="Ring", description="Ring: ring all-reduce among the workers. It is not encrypted between the pods."
    )


class Workers(Model):
    """The pods that train."""

    replicas: int = Field(default=2, ge=1, le=256, description="How many workers train at the same time.")
    resources: Resources = Field(default_factory=Resources, description="Of each worker's container.")
    image: str | None = Field(
        default=None, description="Image of master and workers. Absent: the installation's.", max_length=512
    )
    podTemplate: PodTemplate | None = None


class Checkpoint(Model):
    """Copies of the parameters to go on from when all pods are lost."""

    intervalSeconds: int = Field(default=60, ge=1, le=86_400, description="Time between two checkpoints.")
    keep: int = Field(default=2, ge=1, le=100, description="How many checkpoints are kept.")


class Storage(StoreAccess):
    """Where checkpoints and artifacts go: in <uri>/runs/<run>/."""

    uri: str = Field(
        description="A folder that this training has for itself, such as s3://models/words.",
        max_length=1024,
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
    suspend: bool = Field(default=False, description="Checkpoint, then release all pods until this is false again.")
    backoffLimit: int = Field(
        default=3, ge=0, le=100, description="How many lost pods are replaced in a run before the training has failed."
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


class TrainingSpec(Model):
    """What is wanted."""

    task: Task
    data: Data
    optimizer: Optimizer = Field(default_factory=Optimizer)
    sync: Sync = Field(default_factory=Sync)
    workers: Workers = Field(default_factory=Workers)
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)
    storage: Storage | None = Field(
        default=None,
        description="Where checkpoints and artifacts go: in <uri>/runs/<run>/. "
        "Absent: the installation's store, in <namespace>/<name>-<the first 8 digits of its uid>.",
    )
    runPolicy: RunPolicy = Field(default_factory=RunPolicy)


class Attempt(Model):
    number: int = Field(ge=1, description="Counts the starts of the whole job.")
    reason: str = Field(default="", max_length=128, description="Why it ended.")
    startTime: str = Field(json_schema_extra={"format": "date-time"}, description="When it began.")
    endTime: str | None = Field(
        default=None, json_schema_extra={"format": "date-time"}, description="When it ended; absent while it runs."
    )


class WorkersStatus(Model):
    """The workers, as the master sees them."""

    ready: int = Field(default=0, ge=0, description="Workers that are part of the training now.")
    epoch: int = Field(default=0, ge=0, description="Membership epoch: rises whenever a worker comes or goes.")


class Progress(Model):
    """How far the run is, as the master said last."""

    activity: str = Field(default="", max_length=64, description="Waiting, Counting, Training, Exporting, ...")
    percent: int = Field(default=0, ge=0, le=100, description="Of the work of the run.")
    step: int = Field(default=0, ge=0, description="Synchronisation rounds that are part of the parameters.")
    loss: str | None = Field(default=None, max_length=32, description="Mean loss of the last rounds.")
    samplesPerSecond: int | None = Field(default=None, ge=0, description="Of all workers; words for word vectors.")
    etaSeconds: int | None = Field(default=None, ge=0, description="Time to the end at this speed.")
    updateTime: str | None = Field(
        default=None, json_schema_extra={"format": "date-time"}, description="When the master said so."
    )


class CheckpointStatus(Model):
    """The newest checkpoint that is durable."""

    uri: str = Field(max_length=1024, description="Where it is.")
    step: int = Field(ge=0, description="The step that it holds.")
    digest: str = Field(max_length=80, description="sha256 of its manifest.")
    time: str = Field(json_schema_extra={"format": "date-time"}, description="When it was complete.")


class ArtifactStatus(Model):
    """The result of a complete run."""

    uri: str = Field(max_length=1024, description="Where it is.")
    digest: str = Field(max_length=80, description="sha256 of its manifest.json.")
    version: int = Field(ge=1, description="The run that made it.")
    installationStore: bool = Field(default=False, description="Whether it is in the installation's store.")
    endpoint: str | None = Field(default=None, max_length=512, description="URL of the S3-compatible service.")
    region: str | None = Field(default=None, max_length=64, description="Region of the bucket.")
    secretRef: SecretReference | None = Field(default=None, description="Secret with the keys.")
    metrics: dict[str, str] = Field(
        default_factory=dict, description="What its evaluation measured.", json_schema_extra={"maxProperties": 64}
    )


class IncidentStatus(Model):
    time: str = Field(json_schema_extra={"format": "date-time"}, description="When.")
    kind: str = Field(max_length=64, description="What happened, such as WorkerLost.")
    rank: int | None = Field(default=None, ge=0, description="To which worker.")
    step: int = Field(default=0, ge=0, description="At which step.")
    action: str = Field(default="", max_length=256, description="What was done about it.")


class Incarnation(Model):
    """The newest pod of a role and rank. A lost pod's successor has the next number in its name."""

    pod: str = Field(max_length=64, description="Role and rank, such as worker-0.")
    number: int = Field(ge=1, description="Of the newest pod.")
    started: bool = Field(default=False, description="Whether a pod of that number was seen to run.")


class TrainingStatus(Model):
    """What there is. The operator writes it."""

    observedGeneration: int | None = Field(default=None, ge=0, description="The generation that the status is about.")
    phase: str | None = Field(
        default=None,
        description="The state in a word: for printing; programs read the conditions.",
        json_schema_extra={
            "enum": ["Pending", "Running", "Restarting", "Suspending", "Suspended", "Complete", "Failed"]
        },
    )
    conditions: Conditions = Field(default_factory=list)
    run: int | None = Field(default=None, ge=1, description="The run that the status is about.")
    attempt: int | None = Field(default=None, ge=1, description="How often the run was started.")
    startTime: str | None = Field(
        default=None, json_schema_extra={"format": "date-time"}, description="When the run's first pods were made."
    )
    completionTime: str | None = Field(
        default=None, json_schema_extra={"format": "date-time"}, description="When the run ended."
    )
    restarts: int = Field(default=0, ge=0, description="Pods replaced in this run; at most runPolicy.backoffLimit.")
    attempts: list[Attempt] = Field(
        default_factory=list, description="The last starts of the run.", json_schema_extra={"maxItems": 20}
    )
    replicas: int | None = Field(default=None, ge=0, description="Worker pods there are.")
    selector: str | None = Field(default=None, max_length=512, description="Label selector of the worker pods.")
    workers: WorkersStatus | None = None
    progress: Progress | None = None
    checkpoint: CheckpointStatus | None = None
    artifact: ArtifactStatus | None = None
    incidents: list[IncidentStatus] = Field(
        default_factory=list, description="The last anomalies.", json_schema_extra={"maxItems": 50}
    )
    incarnations: list[Incarnation] = Field(
        default_factory=list,
        description="The newest pod of each role and rank.",
        json_schema_extra={
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["pod"],
            "maxItems": 300,
        },
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
            _fixed_within_run("task"),
            _fixed_within_run("data"),
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
            _fixed_unless_suspended("sync"),
            _fixed_unless_suspended("checkpoint"),
            _fixed_while_training("workers.resources", "self.spec.workers.resources == oldSelf.spec.workers.resources"),
            _fixed_while_training(
                "workers.image",
                "has(self.spec.workers.image) == has(oldSelf.spec.workers.image) && "
                "(!has(self.spec.workers.image) || self.spec.workers.image == oldSelf.spec.workers.image)",
            ),
            (
                f"{_BEFORE_START} || self.spec.runPolicy.run == oldSelf.spec.runPolicy.run || ({_FINISHED})",
                "spec.runPolicy.run can be raised only when the current run has ended (phase Complete or Failed)",
            ),
        )
    )
    spec: TrainingSpec
    status: TrainingStatus | None = None
