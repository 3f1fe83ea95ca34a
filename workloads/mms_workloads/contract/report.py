"""What the pods of a training say: the status report, and how their work ended."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from mms_workloads.contract.artifact import ArtifactRef
from mms_workloads.contract.base import CONTRACT_VERSION, Contract, NonNegativeInt, PositiveInt


class CheckpointRef(Contract):
    """A checkpoint that is durable: its manifest was written last and verified."""

    uri: str
    step: NonNegativeInt
    digest: str  # sha256:<hex> of its manifest.json
    time: str  # RFC 3339


class Incident(Contract):
    time: str
    kind: str  # WorkerLost, WorkerJoined, MasterRestarted, ...
    rank: int | None = None
    step: NonNegativeInt = 0
    action: str = ""


class Activity(StrEnum):
    """What the job is doing, as its master sees it."""

    WAITING = "Waiting"  # for its workers
    COUNTING = "Counting"  # reading the data set once: sizes, vocabulary
    TRAINING = "Training"
    EXPORTING = "Exporting"  # evaluation, artifact
    SUSPENDING = "Suspending"  # writing the last checkpoint
    DONE = "Done"  # the outcome says how


class Gone(Contract):
    """A worker or shard whose connection to the master is lost and that has not come back.

    Or that a master has never heard of since it began: then its incarnation is 0, for the master cannot know it. What
    is said holds for a process that is older than the master.
    """

    role: Literal["worker", "shard"]
    rank: NonNegativeInt
    incarnation: NonNegativeInt
    seconds: Annotated[float, Field(ge=0)]  # since it was heard of last


class Reason(StrEnum):
    """Reasons of outcomes. The operator shows them as the reason of a condition."""

    COMPLETE = "TrainingComplete"
    SUSPENDED = "Suspended"
    DATA_NOT_FOUND = "DataNotFound"
    DATA_UNREADABLE = "DataUnreadable"  # permission, decompression, not UTF-8
    DATA_EMPTY = "DataEmpty"
    PRETRAINED_UNFIT = "PretrainedUnfit"  # not of the task's kind, or of no kind that is known
    DATA_INVALID = "DataInvalid"  # more bad records than data.quality allows, no such columns, no pair of words
    VOCABULARY_TOO_SMALL = "VocabularyTooSmall"
    GATE_MISSED = "GateMissed"
    STORAGE_UNREACHABLE = "StorageUnreachable"
    STORAGE_DENIED = "StorageDenied"
    STORAGE_IN_USE = "StorageInUse"  # another job's run is in the folder
    CREDENTIALS_INVALID = "CredentialsInvalid"
    JOB_FILE_INVALID = "JobFileInvalid"
    STALE_PEER = "StalePeer"
    OUT_OF_MEMORY = "OutOfMemory"
    WORKER_CRASHED = "WorkerCrashed"
    PEERS_UNREACHABLE = "PeersUnreachable"  # it reaches the master and not its peers: its pod is replaced
    PEERS_STILL_UNREACHABLE = "PeersStillUnreachable"  # the same, after another one was replaced for it in vain
    WORKER_UNSOUND = "WorkerUnsound"  # the guard has evicted it: its pod is replaced
    TRAINING_DIVERGED = "TrainingDiverged"
    INTERNAL = "InternalError"
    ARTIFACT_CORRUPT = "ArtifactCorrupt"
    ARTIFACT_NOT_FOUND = "ArtifactNotFound"
    GOLDEN_MISMATCH = "GoldenMismatch"
    MODEL_LOAD_FAILED = "ModelLoadFailed"
    NEW_PODS_NEEDED = "NewPodsNeeded"  # a running pod cannot take the artifact: one that begins with it can
    EDGE_INVALID = "EdgeInvalid"  # nginx refuses the certificate or the configuration
    PARAMETERS_UNREACHABLE = "ParametersUnreachable"  # a serving pod gets none from the training that it is to follow


class Outcome(Contract):
    """How a pod's work ended; written to the termination log as JSON of at most 4,096 bytes."""

    contractVersion: Literal[1] = CONTRACT_VERSION
    result: Literal["Complete", "Suspended", "Failed"]
    reason: str  # CamelCase, one of Reason for ours
    message: str = ""  # what to do about it
    retryable: bool = False
    heard: bool = False  # from the master, of the run; the process itself did well
    artifact: ArtifactRef | None = None
    checkpoint: CheckpointRef | None = None
    step: NonNegativeInt = 0


class BadRecord(Contract):
    """A record that is left out. offset: of its first byte in the decompressed file; of Parquet its row."""

    uri: str
    offset: NonNegativeInt
    reason: str


class BadKind(Contract):
    """How many records are left out for a reason, its particulars left out."""

    reason: str
    count: NonNegativeInt


class DataReport(Contract):
    """The data set as the counting pass found it, and how much of the work on it is done."""

    format: str = "Text"
    files: NonNegativeInt = 0
    bytes: NonNegativeInt = 0  # decompressed
    records: NonNegativeInt | None = None  # good ones; None where the task reads running text
    badRecords: NonNegativeInt = 0
    bad: list[BadRecord] = []  # the first
    badKinds: list[BadKind] = []  # the most frequent first
    classes: NonNegativeInt = 0  # different labels
    storeBytes: NonNegativeInt = 0  # that workers have read from the store, as stored, by what this master heard
    peerBytes: NonNegativeInt = 0  # from each other instead
    volumeBytes: NonNegativeInt = 0  # from their scratch volumes instead
    keysGiven: NonNegativeInt = 0  # of encrypted blocks, to workers, by this master
    doneBytes: NonNegativeInt = 0  # counted, then trained on, over all data epochs
    doneRecords: NonNegativeInt | None = None  # by the share of the bytes


class PrivacyReport(Contract):
    """What a run of differential privacy has spent so far."""

    epsilonSpent: Annotated[float, Field(ge=0)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    noiseMultiplier: Annotated[float, Field(gt=0)]


class StatusReport(Contract):
    """GET /v1/status of the master."""

    contractVersion: Literal[1] = CONTRACT_VERSION
    uid: str
    run: PositiveInt
    attempt: PositiveInt
    activity: Activity
    epoch: NonNegativeInt = 0  # membership epoch
    workersReady: NonNegativeInt = 0
    workersStandby: NonNegativeInt = 0  # connected beyond those that are wanted
    shardsReady: NonNegativeInt = 0  # shards that serve in the layout of the present epoch
    gone: list[Gone] = []
    step: NonNegativeInt = 0  # synchronisation rounds that are part of the parameters
    percent: Annotated[int, Field(ge=0, le=100)] = 0
    loss: float | None = None
    samplesPerSecond: int | None = None
    etaSeconds: int | None = None
    checkpoint: CheckpointRef | None = None
    knowsCheckpoint: bool = False  # whether there is no other one where `checkpoint` is None
    incidents: list[Incident] = []
    data: DataReport | None = None
    privacy: PrivacyReport | None = None
    precision: Literal["FP32", "BF16"] | None = None  # of the network's products; None: no step, or no network
    quarantined: NonNegativeInt = 0  # blocks of the data set that are not trained on
    outcome: Outcome | None = None


class Trainer(Contract):
    """A pod that parameters can be had from."""

    rank: NonNegativeInt
    address: str  # host:port


class Trainers(Contract):
    """GET /v1/trainers of the master: who holds the parameters of the present membership epoch.

    trainers: workers; in Ring mode each has all parameters. shards: None in that mode; in the order of their rows.
    """

    contractVersion: Literal[1] = CONTRACT_VERSION
    uid: str
    run: PositiveInt
    attempt: PositiveInt
    epoch: NonNegativeInt
    trainers: list[Trainer] = []
    shards: list[Trainer] | None = None
