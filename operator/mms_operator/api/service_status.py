"""What the operator says of a service: what answers, how far a rollout is, what was served before."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from mms_operator.api.autoscaling import AutoscalingStatus  # noqa: TC001 - pydantic reads it
from mms_operator.api.rollout import Strategy
from mms_operator.api.types import Conditions, Model, ModelFormat, PipelineFields, SecretReference
from mms_workloads.contract import LIVE

HISTORY = 10
MOST_WORDS = 1024  # characters of an explanation


class PretrainedFiles(Model):
    """A model that was not trained here, as its pods are told."""

    format: ModelFormat = Field(default=ModelFormat.AUTO, description="As in the spec.")
    trusted: bool = Field(default=False, description="As in the spec.")
    pipeline: PipelineFields | None = None
    files: str | None = Field(
        default=None, max_length=71, description="sha256 of its files. Absent: its first pod has not said it yet."
    )


class PrecisionStatus(Model):
    """What a version's first pod has measured."""

    chosen: str = Field(max_length=8, description="In which its network runs.")
    speedUp: str = Field(max_length=16, description="Of the other one, in requests per second of a core.")
    loss: str = Field(max_length=16, description="Part of the artifact's questions that the other answers otherwise.")
    questions: int = Field(ge=0, description="How many were asked.")
    message: str = Field(default="", max_length=512, description="Why it is FP32.")


class ServedVersion(Model):
    """An artifact as it is pinned: with all that fetching it again takes, whatever becomes of the training."""

    version: int | None = Field(
        default=None, ge=1, description="The run of the training that made it. Absent for an artifact by address."
    )
    digest: str = Field(
        max_length=80,
        description="sha256 of the artifact's manifest.json; of a model that was not trained here, of its address and "
        "settings; of a run whose parameters are served while it trains, "
        "live:<uid of the training>:<run>.",
    )
    uri: str = Field(max_length=1024, description="The artifact's folder.")
    training: str | None = Field(default=None, max_length=253, description="The training that made it.")
    installationStore: bool = Field(default=False, description="Whether it is fetched with the installation's keys.")
    endpoint: str | None = Field(default=None, max_length=512, description="URL of the S3-compatible service.")
    region: str | None = Field(default=None, max_length=64, description="Region of the bucket.")
    secretRef: SecretReference | None = Field(default=None, description="Secret with the keys.")
    pretrained: PretrainedFiles | None = Field(default=None, description="Of a model that was not trained here.")
    precision: PrecisionStatus | None = Field(
        default=None, description="With server.precision: what was measured, and taken."
    )
    base: str | None = Field(
        default=None,
        max_length=80,
        description="Digest of the version whose pods took this one while they ran. Absent: they began with it.",
    )
    replicas: int = Field(default=0, ge=0, description="Pods whose golden inference was right.")

    @property
    def lineage(self) -> str:
        """The digest that its pods began with: it names their Deployment."""
        return self.base or self.digest

    @property
    def live(self) -> bool:
        """Whether it stands for a run whose parameters are served while it trains."""
        return self.digest.startswith(LIVE)


class Versions(Model):
    """The artifacts that are served, pinned by digest."""

    stable: ServedVersion | None = Field(default=None, description="What clients are answered from.")
    next: ServedVersion | None = Field(default=None, description="What is being rolled out.")
    previous: ServedVersion | None = Field(
        default=None, description="What was served before, while its pods are kept for a rollback at once."
    )


class Outcome(StrEnum):
    SERVED = "Served"
    ABORTED = "Aborted"
    ROLLED_BACK = "RolledBack"


class PastVersion(ServedVersion):
    """A version that was rolled out, or was not."""

    time: str = Field(json_schema_extra={"format": "date-time"}, description="When.")
    outcome: Outcome = Field(
        description="Served; Aborted before it was; RolledBack: another was put in its place. The last two are not "
        "rolled out again until a retry is asked for."
    )
    message: str | None = Field(default=None, max_length=1024, description="Why, where nobody had asked for it.")


class RolloutPhase(StrEnum):
    PROGRESSING = "Progressing"
    WAITING = "Waiting"  # for the time of a step
    ANALYSING = "Analysing"
    AWAITING_PROMOTION = "AwaitingPromotion"
    PAUSED = "Paused"
    COMPLETE = "Complete"
    ABORTED = "Aborted"


class Finding(Model):
    """What is known of one metric."""

    metric: str = Field(max_length=32, description="errors, latency or disagreement.")
    verdict: str = Field(max_length=16, description="Promote: its bound is kept. Rollback: it is broken. Continue.")
    canary: str | None = Field(
        default=None, max_length=32, description="Part of requests that failed, or seconds of one."
    )
    stable: str | None = Field(default=None, max_length=32, description="The same of the version before.")
    estimate: str | None = Field(
        default=None, max_length=32, description="Their difference, ratio, or the part that differs."
    )
    bound: str = Field(max_length=32, description="The largest estimate that is allowed.")
    message: str = Field(max_length=512, description="The same for people.")


class LiveInputsStatus(Model):
    """What has come of inputs of clients. None of them is kept."""

    compared: int = Field(default=0, ge=0, description="Those that both versions have answered.")
    differing: int = Field(default=0, ge=0, description="Of these, those that they have answered otherwise.")
    message: str = Field(default="", max_length=512, description="Why some or all are left out.")


class AnalysisStatus(Model):
    """How the next version compares with the one before."""

    verdict: str = Field(max_length=16, description="Promote, Rollback, Continue, or Pause where the time was over.")
    message: str = Field(max_length=2048, description="Why.")
    findings: list[Finding] = Field(default_factory=list, max_length=8, description="By metric.")
    sampledTime: str | None = Field(
        default=None, max_length=40, description="The end of the last interval that was counted."
    )
    startTime: str | None = Field(
        default=None,
        json_schema_extra={"format": "date-time"},
        description="Since when the next version has been measured.",
    )
    forecast: str | None = Field(
        default=None, max_length=1024, description="About what it takes, by the requests of the first interval."
    )
    compared: bool = Field(default=False, description="Whether the comparisons have been counted.")
    liveInputs: LiveInputsStatus | None = Field(default=None, description="With rollout.analysis.liveInputs.")
    memory: str = Field(default="", max_length=8192, description="What was learnt so far; for the operator only.")


class RolloutStatus(Model):
    """How far a rollout is, or how the last one ended."""

    strategy: Strategy = Field(default=Strategy.ROLLING_UPDATE, description="What it goes by.")
    phase: RolloutPhase = Field(description="What it does.")
    step: int = Field(default=1, ge=1, description="The step that it is at; one beyond `steps`: all pods are replaced.")
    steps: int = Field(default=0, ge=0, description="Steps that the strategy has before all pods are replaced.")
    percent: int = Field(
        default=0,
        ge=0,
        le=100,
        description="Part of the pods that answer clients with the next version; behind a Gateway, of requests.",
    )
    startTime: str = Field(json_schema_extra={"format": "date-time"}, description="When it began.")
    reachedTime: str | None = Field(
        default=None,
        json_schema_extra={"format": "date-time"},
        description="Since when the step's pods answer rightly.",
    )
    progressTime: str | None = Field(
        default=None,
        json_schema_extra={"format": "date-time"},
        description="With HotSwap: since when nothing has moved.",
    )
    rollback: bool = Field(default=False, description="Whether it goes back to a version that was served before.")
    paused: bool = Field(default=False, description="Whether a pause was asked for by the annotation.")
    newPods: str | None = Field(
        default=None,
        max_length=MOST_WORDS,
        description="With HotSwap, where running pods cannot take the version and new ones are made: why they cannot.",
    )
    analysis: AnalysisStatus | None = Field(default=None, description="With spec.rollout.analysis.")


class LiveStatus(Model):
    """How a running training is followed. Ages are of the pod whose parameters are the oldest."""

    phase: str = Field(
        max_length=32,
        description="Starting; Following; Paused; Withheld: what comes is worse than what answers; Stale: what answers "
        "is older than rollout.liveSync allows; Ended: the training does not run.",
    )
    message: str = Field(default="", max_length=1024, description="Why.")
    run: int = Field(ge=1, description="The run that is followed.")
    step: int = Field(default=0, ge=0, description="Rounds of it that are part of what answers.")
    pods: int = Field(default=0, ge=0, description="Pods that follow within the bound.")
    ageMilliseconds: int = Field(
        default=0, ge=0, description="Since what answers was what the training went on from, when last asked."
    )
    ageP50Milliseconds: int = Field(default=0, ge=0, description="The median over a minute.")
    ageP99Milliseconds: int = Field(default=0, ge=0, description="The 99th percentile over a minute.")
    ageMaxMilliseconds: int = Field(default=0, ge=0, description="The longest of a minute.")
    quality: str | None = Field(
        default=None,
        max_length=16,
        description="How often neighbours of held-out text are told from chance, by the pod that does worst.",
    )
    paused: bool = Field(default=False, description="Whether a pause was asked for by the annotation.")


class ServiceStatus(Model):
    """What there is. The operator writes it."""

    observedGeneration: int | None = Field(default=None, ge=0, description="The generation that the status is about.")
    conditions: Conditions = Field(default_factory=list)
    url: str | None = Field(default=None, max_length=512, description="Triton's HTTP endpoint inside the cluster.")
    grpcUrl: str | None = Field(default=None, max_length=512, description="Triton's gRPC endpoint inside the cluster.")
    replicas: int | None = Field(default=None, ge=0, description="Pods there are.")
    readyReplicas: int | None = Field(default=None, ge=0, description="Pods that answer rightly.")
    selector: str | None = Field(default=None, max_length=512, description="Label selector of the pods.")
    versions: Versions = Field(default_factory=Versions)
    live: LiveStatus | None = Field(default=None, description="With strategy LiveSync, while a training is followed.")
    rollout: RolloutStatus | None = Field(default=None, description="The rollout that is under way, or the last one.")
    history: list[PastVersion] = Field(
        default_factory=list,
        max_length=HISTORY,
        description="Versions that were rolled out or given up, the last one first.",
    )
    keptUntil: str | None = Field(
        default=None,
        json_schema_extra={"format": "date-time"},
        description="How long the pods of versions.previous stay.",
    )
    autoscaling: AutoscalingStatus | None = Field(
        default=None, description="With spec.objective or spec.autoscaling: what comes, and what it takes."
    )
    command: str | None = Field(
        default=None,
        max_length=256,
        description="What the annotation mms.dev/rollout said when it was last carried out.",
    )
