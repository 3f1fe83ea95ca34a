"""What a ModelTraining's status says. The operator writes it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mms_operator.api.types import Conditions, Model, SecretReference


class Attempt(Model):
    number: int = Field(ge=1, description="Counts the starts of the whole job.")
    reason: str = Field(default="", max_length=128, description="Why it ended.")
    startTime: str = Field(json_schema_extra={"format": "date-time"}, description="When it began.")
    endTime: str | None = Field(
        default=None, json_schema_extra={"format": "date-time"}, description="When it ended; absent while it runs."
    )
    steps: int = Field(default=0, ge=0, description="The step that it has come to; 0 where nobody says, as of custom.")
    lostSteps: int = Field(
        default=0,
        ge=0,
        description="Steps that had to be trained again: those after the checkpoint from which the training went on.",
    )


class WorkersStatus(Model):
    """The workers, as the master sees them; of a custom task, whose containers run."""

    ready: int = Field(default=0, ge=0, description="Workers that are part of the training now.")
    standby: int = Field(default=0, ge=0, description="Workers that wait to take the place of one that is lost.")
    epoch: int = Field(
        default=0,
        ge=0,
        description="Membership epoch: rises whenever a worker comes or goes; of a custom task the attempt.",
    )


class ShardsStatus(Model):
    """The parameter shards, as the master sees them."""

    ready: int = Field(default=0, ge=0, description="Shards that hold the parameters now.")


class Progress(Model):
    """How far the run is, as the master said last."""

    activity: str = Field(default="", max_length=64, description="Waiting, Counting, Training, Exporting, ...")
    percent: int = Field(default=0, ge=0, le=100, description="Of the work of the run.")
    step: int = Field(default=0, ge=0, description="Synchronisation rounds that are part of the parameters.")
    loss: str | None = Field(default=None, max_length=32, description="Mean loss of the last rounds.")
    samplesPerSecond: int | None = Field(default=None, ge=0, description="Of all workers; words for word vectors.")
    etaSeconds: int | None = Field(default=None, ge=0, description="Time to the end at this speed.")
    bytes: int | None = Field(
        default=None, ge=0, description="Of the data: read by the counting pass, then trained on, over all epochs."
    )
    records: int | None = Field(default=None, ge=0, description="The same in records, by the share of the bytes.")
    updateTime: str | None = Field(
        default=None, json_schema_extra={"format": "date-time"}, description="When the master said so."
    )


class BadRecordStatus(Model):
    """A record that is left out."""

    uri: str = Field(max_length=1024, description="The file.")
    offset: int = Field(ge=0, description="Of its first byte in the decompressed file; of Parquet its row.")
    reason: str = Field(max_length=256, description="What is wrong with it.")


class BadKindStatus(Model):
    """Records that are left out for the same reason."""

    reason: str = Field(max_length=256, description="What is wrong with them, numbers and quoted words left out.")
    count: int = Field(ge=1, description="How many there are.")


class DataStatus(Model):
    """The data set, as the counting pass found it."""

    format: str = Field(max_length=64, description="What the files hold.")
    files: int = Field(ge=0, description="How many there are.")
    bytes: int = Field(ge=0, description="Their size when decompressed.")
    records: int | None = Field(default=None, ge=0, description="Good ones; absent where running text is read.")
    classes: int = Field(default=0, ge=0, description="Different labels, of tasks that learn classes.")
    badRecords: int = Field(default=0, ge=0, description="Records that are left out.")
    storeBytes: int = Field(default=0, ge=0, description="That workers have read from the store, as stored.")
    peerBytes: int = Field(default=0, ge=0, description="That they had from each other: the store was spared them.")
    volumeBytes: int = Field(default=0, ge=0, description="That they had from their own scratch volumes.")
    keysGiven: int = Field(
        default=0,
        ge=0,
        description="Keys of encrypted blocks that the present master has given to workers; its log has each with the "
        "worker and the block.",
    )
    badKinds: list[BadKindStatus] = Field(
        default_factory=list,
        description="How many for each reason, the most frequent first.",
        json_schema_extra={"maxItems": 10},
    )
    bad: list[BadRecordStatus] = Field(
        default_factory=list, description="The first of them.", json_schema_extra={"maxItems": 10}
    )


class PrivacyStatus(Model):
    """What a run of differential privacy has spent."""

    epsilonSpent: str = Field(max_length=32, description="Of the budget, so far, at delta.")
    delta: str = Field(max_length=32, description="As the spec has it.")
    noiseMultiplier: str = Field(
        max_length=32, description="Standard deviation of the noise in a step's sum, over maxGradientNorm."
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
    rank: int | None = Field(default=None, ge=0, description="To which worker or shard.")
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
    restarts: int = Field(
        default=0,
        ge=0,
        description="Pods replaced in this run, or starts anew of a custom task; at most runPolicy.backoffLimit.",
    )
    attempts: list[Attempt] = Field(
        default_factory=list, description="The last starts of the run.", json_schema_extra={"maxItems": 20}
    )
    replicas: int | None = Field(default=None, ge=0, description="Worker pods there are.")
    selector: str | None = Field(default=None, max_length=512, description="Label selector of the worker pods.")
    workers: WorkersStatus | None = None
    shards: ShardsStatus | None = None
    progress: Progress | None = None
    data: DataStatus | None = None
    privacy: PrivacyStatus | None = None
    precision: Literal["FP32", "BF16"] | None = Field(
        default=None, description="In which numbers the run's network multiplies in training: see optimizer.precision."
    )
    checkpoint: CheckpointStatus | None = None
    pretrained: ArtifactStatus | None = Field(
        default=None, description="The artifact that the run starts from, where spec.pretrained names a training."
    )
    artifact: ArtifactStatus | None = None
    incidents: list[IncidentStatus] = Field(
        default_factory=list, description="The last anomalies.", json_schema_extra={"maxItems": 50}
    )
    incidentCounts: dict[str, int] = Field(
        default_factory=dict,
        description="How many incidents there were in the run, by kind: also those that are no longer listed.",
        json_schema_extra={"maxProperties": 64},
    )
    incarnations: list[Incarnation] = Field(
        default_factory=list,
        description="The newest pod of each role and rank.",
        json_schema_extra={
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["pod"],
            "maxItems": 400,
        },
    )
