"""The contract between the operator and the pods: the job file, the status report, the outcome and the artifact.

The operator writes the job file into a ConfigMap and reads everything else; the pods do the opposite. Each document
carries a contract version, so that an operator can read what pods of the previous release say.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

CONTRACT_VERSION: Literal[1] = 1

# Where things are inside a pod.
JOB_FILE = "/etc/mms/job.json"
TLS_DIR = "/etc/mms/tls"  # tls.crt, tls.key, ca.crt of the pod's role
READER_TLS_DIR = "/etc/mms/reader-tls"  # the same of a serving pod that follows a training
CREDENTIALS_DIR = "/etc/mms/credentials"  # one folder per store: the keys of its Secret as files
SCRATCH_DIR = "/scratch"  # an emptyDir: all that a pod may write besides /tmp
TERMINATION_LOG = "/dev/termination-log"

# The environment of a training's pods.
ENV_ROLE = "MMS_ROLE"  # master | worker | shard
ENV_RANK = "MMS_RANK"  # the worker's or shard's slot, 0-based; the master's is 0
ENV_INCARNATION = "MMS_INCARNATION"  # rises with each pod made for the same role and rank
ENV_ATTEMPT = "MMS_ATTEMPT"  # rises with each start of the whole job (first start, resume)
ENV_POD_IP = "MMS_POD_IP"

# The Secret of a store.
SECRET_ACCESS_KEY_ID = "AWS_ACCESS_KEY_ID"  # noqa: S105 - the key's name, not its value
SECRET_ACCESS_KEY = "AWS_SECRET_ACCESS_KEY"  # noqa: S105

MASTER_PORT = (
    29400  # HTTPS with client certificates: /v1/control (workers, WebSocket), /v1/status and /v1/desired (operator)
)
MASTER_HEALTH_PORT = 29401  # plain HTTP of the master: /healthz and /metrics, for the kubelet and Prometheus
PARAMETERS_PORT = 29402  # HTTPS of a worker: the parameters that it trains, for serving pods

# Organisational units in the certificates' subjects: what a peer may do.
OU_MASTER = "master"
OU_WORKER = "worker"
OU_SHARD = "shard"
OU_OPERATOR = "operator"
OU_READER = "reader"  # serving pods: where the parameters are, and the parameters

# Served by Triton and by the agent beside it.
TRITON_HTTP_PORT = 8000
TRITON_GRPC_PORT = 8001
TRITON_METRICS_PORT = 8002
AGENT_PORT = 8080  # /readyz (golden inference was right), /healthz, /metrics, /v1/served
# Where there is an edge, clients find it at Triton's ports; Triton has these, on the loopback.
EDGE_PORT = 8081  # its supervisor: /healthz, /metrics
BEHIND_EDGE_HTTP_PORT = 18000
BEHIND_EDGE_GRPC_PORT = 18001
EDGE_DIR = "/etc/mms-edge"  # EDGE_CONFIG, and tls/ where the service has a certificate
EDGE_KEYS_DIR = "/etc/mms-edge-keys"  # a file for each API key, where the service has some
EDGE_RUN_DIR = "/run/mms-edge"
EDGE_CONFIG = "nginx.conf"

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]


class Contract(BaseModel):
    """A document of the contract: immutable; unknown fields are ignored, so that a newer writer can add some."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Store(Contract):
    """A place in object storage or a mounted file system, and how to reach it."""

    uri: str  # s3://bucket/prefix, https://..., file:///...
    endpoint: str | None = None  # an S3-compatible service's URL; absent: the provider's own
    region: str | None = None
    credentials: str | None = None  # a folder under CREDENTIALS_DIR; absent: anonymous, or the pod's own identity


class JobIdentity(Contract):
    """Which job, of which run: peers that disagree on it refuse each other."""

    namespace: str
    name: str
    uid: str
    run: PositiveInt


class Subwords(Contract):
    """N-grams of characters whose vectors are part of a word's (Bojanowski et al., 2017)."""

    minLength: PositiveInt = 3
    maxLength: PositiveInt = 6
    buckets: PositiveInt = 500_000  # vectors that all n-grams share by their hash


class Phrases(Contract):
    """Two words that occur together more often than by chance become one (Mikolov et al., 2013)."""

    minCount: PositiveInt = 5
    # (count - minCount) / (count of the one * count of the other) * all words: higher means fewer phrases
    threshold: Annotated[float, Field(ge=0)] = 100.0


class WordEmbedding(Contract):
    """Word vectors by skip-gram or CBOW (Mikolov et al., 2013)."""

    model: Literal["SkipGram", "CBOW"] = "SkipGram"
    objective: Literal["NegativeSampling", "HierarchicalSoftmax", "Softmax"] = "NegativeSampling"
    dimensions: PositiveInt = 100
    window: PositiveInt = 5
    windowing: Literal["Dynamic", "Fixed"] = (
        "Dynamic"  # Dynamic: each centre's window is 1 to `window` words, at random
    )
    negatives: PositiveInt = 5
    minCount: PositiveInt = 5
    maxVocabulary: PositiveInt = 1_000_000
    subsample: Annotated[float, Field(ge=0)] = 1e-3  # 0 turns it off
    tokenizer: Literal["Words", "Whitespace", "Characters"] = "Words"
    subwords: Subwords | None = None
    phrases: Phrases | None = None


class LanguageModel(Contract):
    """A decoder-only transformer (Vaswani et al., 2017; pre-norm as in GPT-2) that predicts the next byte of a text."""

    dimensions: PositiveInt = 128
    layers: PositiveInt = 4
    heads: PositiveInt = 4
    contextLength: PositiveInt = 128  # bytes that a prediction looks at


class Task(Contract):
    """Exactly one arm is set."""

    wordEmbedding: WordEmbedding | None = None
    languageModel: LanguageModel | None = None


class Data(Contract):
    """The data set; uri may hold * in its last parts. .gz, .xz and .bz2 are decompressed while read."""

    store: Store
    sharding: Literal["Random", "Sequential"] = "Random"
    blockBytes: PositiveInt = 256 * 1024  # decompressed size of the unit that the master leases


class Optimizer(Contract):
    """wordEmbedding: SGD whose rate falls linearly, a block per worker and round; of the rest only seed and epochs."""

    name: Literal["SGD", "Adagrad", "AdamW"] = "SGD"
    learningRate: Annotated[float, Field(gt=0)] = 0.025
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of SGD
    weightDecay: Annotated[float, Field(ge=0)] = 0.0  # decoupled for AdamW (Loshchilov and Hutter, 2019), else added
    globalBatchSize: PositiveInt = 64  # samples of all workers in a step
    epochs: PositiveInt = 5
    whenWorkersChange: Literal["KeepGlobalBatch", "ScaleLearningRate"] = "KeepGlobalBatch"
    seed: int = 1


class Gate(Contract):
    """What an artifact must reach to be published; one of the bounds is set."""

    metric: str
    atLeast: float | None = None
    atMost: float | None = None


class EvaluationSpec(Contract):
    split: Annotated[float, Field(ge=0, le=0.5)] = 0.02  # part of the blocks that is never trained on
    gate: Gate | None = None


class ParameterServer(Contract):
    """Shards 0..n-1 hold the parameters; the optimizer runs on them."""

    shards: PositiveInt = 1
    replicas: Annotated[int, Field(ge=1, le=2)] = 1  # 2: each shard's state is on the next shard too
    consistency: Literal["Synchronous", "BoundedStaleness", "Asynchronous"] = "Synchronous"
    staleness: NonNegativeInt = 4  # BoundedStaleness: steps that a worker may be ahead of the slowest


class Guard(Contract):
    """What is done about anomalies of training."""

    nonFinite: Literal["Skip", "Rollback", "Fail"] = "Skip"  # NaN or Inf in a gradient; Skip: patience, then Rollback
    lossSpike: Literal["Rollback", "Report", "Off"] = "Rollback"
    gradientOutlier: Literal["Drop", "Report", "Off"] = "Drop"  # Drop: patience, then the worker is replaced
    corruption: Literal["Repair", "Off"] = "Repair"  # copies of the parameters that should be equal are not
    straggler: Literal["Report", "Replace", "Off"] = "Report"
    deadData: Literal["Quarantine", "Off"] = "Quarantine"  # blocks that are all the same
    patience: PositiveInt = 5  # anomalous rounds in a row before the stronger measure


class Checkpoint(Contract):
    intervalSeconds: PositiveInt = 60
    keep: PositiveInt = 2


class JobFile(Contract):
    """All that the master and the workers of a run need to know; the same for every pod of the run."""

    contractVersion: Literal[1] = CONTRACT_VERSION
    job: JobIdentity
    task: Task
    data: Data
    optimizer: Optimizer = Optimizer()
    evaluation: EvaluationSpec = EvaluationSpec()
    syncMode: Literal["Ring", "ParameterServer"] = "Ring"
    compression: Literal["None", "BF16", "Int8"] = "None"  # of gradients and changes on the wire
    transport: Literal["MutualTLS", "Plain"] = "MutualTLS"  # of gradients and parameters; control is always mutual TLS
    parameterServer: ParameterServer | None = None  # set in that mode
    workers: PositiveInt  # how many the first membership epoch waits for
    minWorkers: PositiveInt = 1  # with fewer nobody trains
    retainRuns: NonNegativeInt = 5  # runs whose folders stay beside this one's when it is complete
    protectedRuns: list[PositiveInt] = []  # runs that a service serves: they stay whatever their age
    guard: Guard = Guard()
    checkpoint: Checkpoint = Checkpoint()
    storage: Store  # the run's own folder, .../runs/<run>
    masterHost: str  # DNS name of the master's Service; also a SAN of the master's certificate


class CheckpointRef(Contract):
    """A checkpoint that is durable: its manifest was written last and verified."""

    uri: str
    step: NonNegativeInt
    digest: str  # sha256:<hex> of its manifest.json
    time: str  # RFC 3339


class ArtifactPin(Contract):
    """An artifact by its address and content."""

    uri: str
    digest: str  # sha256:<hex> of manifest.json's bytes


class ArtifactRef(ArtifactPin):
    version: PositiveInt  # the run
    metrics: dict[str, float] = {}


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
    incidents: list[Incident] = []
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


class Desired(Contract):
    """PUT /v1/desired of the master: what the operator wants of the running job. Idempotent."""

    suspend: bool = False
    workers: PositiveInt
    minWorkers: PositiveInt = 1
    shards: NonNegativeInt = 0  # 0 in Ring mode


class Outcome(Contract):
    """How a pod's work ended; written to the termination log as JSON of at most 4,096 bytes."""

    contractVersion: Literal[1] = CONTRACT_VERSION
    result: Literal["Complete", "Suspended", "Failed"]
    reason: str  # CamelCase, one of Reason for ours
    message: str = ""  # what to do about it
    retryable: bool = False
    artifact: ArtifactRef | None = None
    checkpoint: CheckpointRef | None = None
    step: NonNegativeInt = 0


class Reason(StrEnum):
    """Reasons of outcomes. The operator shows them as the reason of a condition."""

    COMPLETE = "TrainingComplete"
    SUSPENDED = "Suspended"
    DATA_NOT_FOUND = "DataNotFound"
    DATA_UNREADABLE = "DataUnreadable"  # permission, decompression, not UTF-8
    DATA_EMPTY = "DataEmpty"
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
    WORKER_UNSOUND = "WorkerUnsound"  # the guard has evicted it: its pod is replaced
    TRAINING_DIVERGED = "TrainingDiverged"
    INTERNAL = "InternalError"
    ARTIFACT_CORRUPT = "ArtifactCorrupt"
    ARTIFACT_NOT_FOUND = "ArtifactNotFound"
    GOLDEN_MISMATCH = "GoldenMismatch"
    MODEL_LOAD_FAILED = "ModelLoadFailed"
    EDGE_INVALID = "EdgeInvalid"  # nginx refuses the certificate or the configuration
    PARAMETERS_UNREACHABLE = "ParametersUnreachable"  # a serving pod gets none from the training that it is to follow


# Exit codes of the pods. 1-127 are permanent unless listed; 128+n is a death by signal n and is retried in the budget.
EXIT_DONE = 0
EXIT_PERMANENT = 1
EXIT_RETRY = 75  # EX_TEMPFAIL: the store or a peer was away; the pod is replaced in the budget


class CheckpointFile(Contract):
    """A file of a checkpoint, in its manifest.json."""

    blake3: str  # hex of its 256 bits
    size: NonNegativeInt  # bytes


class FileEntry(Contract):
    sha256: str
    size: NonNegativeInt


class Provenance(Contract):
    job: JobIdentity
    createdAt: str
    mmsVersion: str
    seed: int
    workers: PositiveInt
    data: list[DataFile]
    jobFileDigest: str  # sha256:<hex> of the job file's bytes


class DataFile(Contract):
    uri: str
    size: NonNegativeInt  # decompressed bytes
    etag: str | None = None


class ArtifactManifest(Contract):
    """manifest.json at the root of an artifact. Its own SHA-256 is the artifact's digest.

    Every artifact holds model.safetensors, golden.json (Golden) and evaluation.json (metrics, how they were measured).
    wordEmbedding: vectors [V, d] float32, contexts [V, d] float32; vocabulary.txt (UTF-8, one `word<TAB>count` a line,
    in the order of the rows); with subwords also ngrams [buckets, d]; model.json (WordEmbedding); report.html, to be
    looked at. languageModel: the transformer's parameters, float32; model.json (LanguageModel).
    """

    contractVersion: Literal[1] = CONTRACT_VERSION
    kind: Literal["wordEmbedding", "languageModel"]
    version: PositiveInt
    files: dict[str, FileEntry]
    metrics: dict[str, float]
    provenance: Provenance


class GoldenCase(Contract):
    """One request and its right answer, computed where the model was trained. Strings and numbers as JSON lists."""

    model: str  # the Triton model's name: vectors | neighbours
    inputs: dict[str, list[str] | list[int] | list[float]]
    # Outputs are flattened in row-major order; their shapes follow from the inputs and the model.
    outputs: dict[str, list[str] | list[int] | list[float]]


class Golden(Contract):
    """golden.json of an artifact."""

    contractVersion: Literal[1] = CONTRACT_VERSION
    absoluteTolerance: float = 1e-4  # of floats; strings and integers are compared exactly
    cases: list[GoldenCase]
    # Requests that another version may well answer otherwise: how often it does is what an analysis is told.
    comparisons: list[GoldenCase] = []


class SwapReport(Contract):
    """How far an artifact is on its way into a running pod."""

    digest: str
    attempt: str = ""  # as the file says that told it
    phase: str  # Fetching | Holding | Proving | Switching | Done | Failed
    reason: str | None = None  # of a failure
    message: str = ""
    retryable: bool = False  # whether the agent tries again by itself
    seconds: float | None = None  # that it took


class Counters(Contract):
    """What Triton has counted of the models since its start."""

    requests: NonNegativeInt = 0  # answered, rightly or with an error
    failed: NonNegativeInt = 0  # of these
    timed: NonNegativeInt = 0  # that succeeded
    seconds: float = 0.0  # that these took in all, in the queue and computing


class Comparison(Contract):
    """How the artifact that serves answers the comparisons of another one."""

    reference: str  # the other's digest
    compared: NonNegativeInt
    differing: NonNegativeInt


class ModelLoad(Contract):
    """One model since Triton's start, and its requests of the last minute."""

    requests: NonNegativeInt = 0  # that were answered
    quantiles: dict[str, float] = {}  # seconds in the queue and computing, by the part of requests: "0.99"


class Load(Contract):
    """What a pod's Triton has to do."""

    pending: NonNegativeInt = 0  # requests that wait for their model
    models: dict[str, ModelLoad] = {}


class Batching(Contract):
    """How Triton runs the models.

    preferredBatchSize: rows of a batch where so many wait; 0: as many as there are. instances: processes of each model.
    """

    preferredBatchSize: NonNegativeInt = 0
    maxQueueDelayMicroseconds: NonNegativeInt = 0
    instances: PositiveInt = 1


class MeasuredPoint(Contract):
    """What the pod did with so many requests at a time."""

    concurrency: PositiveInt
    rate: float  # requests per second
    p99: float  # seconds


class Measured(Contract):
    """What the pod can do, measured before it answered clients."""

    curve: list[MeasuredPoint] = []
    seconds: float  # that it took
    batching: Batching | None = None  # the best of those that were tried; None: no other was
    error: str | None = None


class LivePhase(StrEnum):
    """What a serving pod does about the parameters of a running training."""

    FOLLOWING = "Following"
    PAUSED = "Paused"
    WITHHELD = "Withheld"  # what comes is worse than what answers
    UNREACHABLE = "Unreachable"  # nobody gives any


class LiveReport(Contract):
    """The parameters that a pod answers with, and how old they are.

    Age: seconds since they were those that the training went on from, as of `time`.
    """

    phase: LivePhase
    message: str = ""
    digest: str  # of what answers: live:<uid>:<run>:<step>:<milliseconds since 1970 when they were copied>
    step: NonNegativeInt = 0  # rounds of the training that were part of them
    time: float  # seconds since 1970 at which this was said
    age: Annotated[float, Field(ge=0)]
    ageP50: Annotated[float, Field(ge=0)] = 0.0  # over the last minute
    ageP99: Annotated[float, Field(ge=0)] = 0.0
    ageMax: Annotated[float, Field(ge=0)] = 0.0
    taken: NonNegativeInt = 0  # since the follower's start
    withheld: NonNegativeInt = 0
    quality: float | None = None  # of what answers: how often neighbours of held-out text are told from chance
    bestQuality: float | None = None


class AgentReport(Contract):
    """What the agent of a serving pod answers to GET /v1/served."""

    digest: str  # of the artifact that serves
    version: PositiveInt
    models: list[str]
    phase: str
    message: str = ""
    goldenCases: int
    goldenRight: int
    verifiedAt: str | None = None
    swap: SwapReport | None = None  # the last one
    counters: Counters | None = None  # None: Triton did not say
    own: Counters = Counters()  # what the agent itself has asked, which is in `counters`, too; its times are not known
    comparison: Comparison | None = None
    load: Load | None = None  # None: Triton did not say
    measured: Measured | None = None
    live: LiveReport | None = None  # of a pod that follows a training


class Measure(Contract):
    """A pod that starts is to find out what it can do before it answers clients."""

    limitSeconds: float
    processors: PositiveInt | None = None  # that Triton may use; None: all of the node
    objectiveSeconds: float | None = None  # set: it tries other ways of batching, too, for the most within that


class Reference(Contract):
    """An artifact that another one is compared with."""

    artifact: ArtifactPin
    storage: Store


class LiveOrders(Contract):
    """How a pod is to follow. In the service's file, and, newer, in the pod's annotation mms.dev/live."""

    maxStalenessMilliseconds: PositiveInt = 1000
    qualityMargin: Annotated[float, Field(ge=0, lt=1)] = 0.05
    paused: bool = False  # what answers stays


class LiveSource(Contract):
    """A training whose parameters are served while it runs."""

    masterHost: str
    uid: str
    run: PositiveInt
    orders: LiveOrders = LiveOrders()


class ServeFile(Contract):
    """The agent's and the fetcher's job file, in a ConfigMap of the service."""

    contractVersion: Literal[1] = CONTRACT_VERSION
    namespace: str
    name: str
    artifact: ArtifactPin
    storage: Store  # uri: the artifact's folder
    reference: Reference | None = None  # what is served while this one is rolled out
    measure: Measure | None = None
    batching: Batching = Batching()
    attempt: str = ""  # tells one rollout of the artifact from another: what failed in one may be tried in the next
    live: LiveSource | None = None  # set where `artifact` stands for a run that is followed: its digest is live:...


LIVE = "live:"
DIGITS = 12


def live_digest(uid: str, run: int) -> str:
    """What stands for a run whose parameters are served while it trains, as a digest does for an artifact."""
    return f"{LIVE}{uid}:{run}"


def live_run(digest: str) -> str | None:
    """The run that a digest of live parameters is of, as `live_digest` has it; None for an artifact's."""
    return ":".join(digest.split(":")[:3]) if digest.startswith(LIVE) else None


def short(digest: str) -> str:
    """What tells a version's objects and files apart from those of another: letters and digits, DIGITS at most."""
    if digest.startswith(LIVE):
        _, uid, run = digest.split(":")[:3]
        return f"{uid[:7]}r{run}"[:DIGITS]  # an r is in no artifact's digest
    return digest.removeprefix("sha256:")[:DIGITS]


StatusReport.model_rebuild()
Provenance.model_rebuild()
