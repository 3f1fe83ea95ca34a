"""Serving pods: what they are told, and what they say."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field

from mms_workloads.contract.artifact import ArtifactPin, GoldenCase
from mms_workloads.contract.base import AGENT_PORT, CONTRACT_VERSION, Contract, NonNegativeInt, PositiveInt, Store


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
    starts: NonNegativeInt = 0  # how often Triton was seen to have begun anew: two counts of different ones are no span


class Comparison(Contract):
    """How the artifact that serves answers the comparisons of another one."""

    reference: str  # the other's digest
    compared: NonNegativeInt
    differing: NonNegativeInt


class InputPeer(Contract):
    """A pod of the next version, which compares what it is sent."""

    host: str
    port: PositiveInt = AGENT_PORT
    key: str  # its agent's public key, as InputsReport has it


class InputOrders(Contract):
    """What a pod does with inputs of clients while a rollout is analysed: its annotation mms.dev/inputs.

    One that serves `stable` samples some and sends them to `to`; one that serves `next` compares what `senders` send.
    both: the pods hold both versions, so that each one that serves `next` samples and compares its own.
    """

    stable: str  # digests
    next: str
    perSecond: Annotated[float, Field(gt=0)]  # inputs that this pod samples, or takes, at most
    to: list[InputPeer] = []
    senders: list[str] = []  # public keys
    both: bool = False


class InputsReport(Contract):
    """What a pod has done with inputs of clients since it was told to. None of them is in it."""

    key: str = ""  # X25519, base64: made in the agent's memory, gone with it
    reference: str = ""  # the digest of what answered first
    compared: NonNegativeInt = 0
    differing: NonNegativeInt = 0
    large: NonNegativeInt = 0  # that were too large to be taken
    message: str = ""  # why none are compared


class ClientInput(Contract):
    """An input of a client and its answer, sealed from one pod to another."""

    id: str
    time: float  # seconds since 1970
    stable: str  # digests
    next: str
    case: GoldenCase


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


class PrecisionOrder(Contract):
    """In which precision the network runs. Auto: in the fastest one that loses no more than maxLoss."""

    wanted: Literal["Auto", "FP32", "BF16", "INT8"] = "FP32"
    maxLoss: Annotated[float, Field(ge=0, lt=1)] = 0.01  # part of the artifact's questions answered otherwise


class PrecisionReport(Contract):
    """What runs, and what was measured of the other one, with `questions` of the artifact on one core of the pod."""

    chosen: Literal["FP32", "BF16", "INT8"]
    speedUp: float = 1.0  # of the other, in requests per second
    loss: float = 0.0  # part of the questions that it answers otherwise
    questions: NonNegativeInt = 0
    message: str = ""  # why it is FP32


class AgentReport(Contract):
    """What the agent of a serving pod answers to GET /v1/served."""

    digest: str  # of the artifact that serves
    version: PositiveInt
    files: str | None = None  # of a model that was not trained here: the digest of the files that were fetched
    precision: PrecisionReport | None = None  # None: nobody asked for any but FP32
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
    inputs: InputsReport | None = None  # of a pod that is told to sample or compare inputs of clients
    load: Load | None = None  # None: Triton did not say
    measured: Measured | None = None
    live: LiveReport | None = None  # of a pod that follows a training


class Measure(Contract):
    """A pod that starts is to find out what it can do before it answers clients."""

    limitSeconds: float
    processors: PositiveInt | None = None  # that Triton may use; None: all of the node
    withinSeconds: float | None = None  # that 99 of 100 answers may take
    objectiveSeconds: float | None = None  # as that; set: other ways of batching are tried, too, for the most within it


class Reference(Contract):
    """An artifact that another one is compared with."""

    artifact: ArtifactPin
    storage: Store
    pretrained: bool = False  # it was not trained here, so it has no comparisons


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


class PretrainedModel(Contract):
    """A model that was not trained here: `storage` of the service's file is its folder, or its only file."""

    format: Literal["Auto", "ONNX", "TorchScript", "TorchExport", "Transformers", "TritonRepository", "Python"] = "Auto"
    digest: str | None = None  # sha256:<hex> of the files, as serve/pretrained.py lists them; None: whatever is there
    trusted: bool = False  # whether code of the files may run
    pipeline: dict[str, Any] | None = None  # fields of Pipeline that the files do not say, or say wrongly


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
    anomalies: Literal["Refuse", "Count", "Off"] = "Refuse"  # of requests that are no valid input
    precision: PrecisionOrder = PrecisionOrder()
    pretrained: PretrainedModel | None = None  # set where `artifact` is none of a training's
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
