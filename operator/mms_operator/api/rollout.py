"""How one version takes the place of another."""

from __future__ import annotations

from enum import StrEnum

from pydantic import ConfigDict, Field

from mms_operator.api.types import FRACTION_PATTERN, Model, decimal, rules

MAX_STEPS = 10


class Strategy(StrEnum):
    ROLLING_UPDATE = "RollingUpdate"
    CANARY = "Canary"
    BLUE_GREEN = "BlueGreen"
    HOT_SWAP = "HotSwap"
    LIVE_SYNC = "LiveSync"


class CanaryStep(Model):
    """A part of the pods is of the next version for a while."""

    percent: int = Field(
        ge=1, le=99, description="How many of spec.replicas are of the next version, rounded up; at least one pod."
    )
    seconds: int = Field(
        default=60, ge=0, le=604_800, description="How long it lasts, from when all of these pods answer rightly."
    )
    approval: bool = Field(default=False, description="Whether it lasts until it is promoted.")


class Canary(Model):
    """Clients are answered by both versions, by the next one more from step to step."""

    steps: list[CanaryStep] = Field(
        default_factory=lambda: [CanaryStep(percent=10), CanaryStep(percent=50)],
        min_length=1,
        max_length=MAX_STEPS,
        description="In this order; after the last one all pods are replaced.",
    )


class BlueGreen(Model):
    """As many pods of the next version as of the one before, then all clients at once."""

    seconds: int = Field(
        default=0, ge=0, le=604_800, description="How long the next version is ready before clients are sent to it."
    )
    approval: bool = Field(default=False, description="Whether it waits until it is promoted.")
    keepSeconds: int = Field(
        default=300,
        ge=0,
        le=604_800,
        description="How long the pods of the version before stay after the switch: while they do, a rollback takes "
        "one write.",
    )


class HotSwap(Model):
    """Running pods take the next version one by one: no pod is started, and the models answer all the while."""

    seconds: int = Field(
        default=0, ge=0, le=604_800, description="How long the first pod is alone with the next version."
    )
    approval: bool = Field(default=False, description="Whether the first pod is alone until it is promoted.")


class LiveSync(Model):
    """The parameters of a training are served while it runs; then its artifact is, as with HotSwap."""

    maxStalenessMilliseconds: int = Field(
        default=1000,
        ge=100,
        le=3_600_000,
        description="How old the parameters that answer may be: since they were those that the training went on from. "
        "Longer costs the training and the pods less.",
    )
    replaceArtifacts: bool = Field(
        default=False,
        description="Whether a run is followed from its beginning while an artifact answers. It begins with nothing "
        "learnt, so that answers are worse for a while; otherwise its artifact takes the other one's place.",
    )
    qualityMargin: str = decimal(
        "How much worse than the best so far parameters may be at telling neighbours of held-out text from chance, as "
        "contextAUC measures it. Those that are worse do not answer.",
        FRACTION_PATTERN,
        default="0.05",
    )


class AtEnd(StrEnum):
    PAUSE = "Pause"
    PROMOTE = "Promote"
    ROLLBACK = "Rollback"


class LiveInputs(Model):
    """Some of the inputs that clients send are answered by both versions. They are kept in memory, and nowhere else."""

    perSecond: int = Field(
        default=2, ge=1, le=20, description="Inputs that are compared, at most, of all pods together."
    )


class Analysis(Model):
    """What the next version is compared with the one before by, while it is rolled out.

    It is given up as soon as a bound is broken, and all pods are replaced only when all bounds are known to be kept.
    """

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "has(self.errorMargin) || has(self.latencyMargin) || has(self.disagreementLimit)",
                "analysis needs at least one of errorMargin, latencyMargin and disagreementLimit",
            ),
            (
                "!has(self.liveInputs) || has(self.disagreementLimit)",
                "liveInputs is judged by disagreementLimit: set it, or leave liveInputs out",
            ),
        )
    )

    errorMargin: str | None = decimal(
        "By how much the part of requests that fail may be above the version before's: 0.01 is one in a hundred.",
        FRACTION_PATTERN,
        default=None,
    )
    latencyMargin: str | None = decimal(
        "By how much longer a request may take in the queue and computing: 0.2 is 1.2 times as long. Not with strategy "
        "BlueGreen.",
        default=None,
    )
    disagreementLimit: str | None = decimal(
        "What part of the artifact's comparisons may be answered otherwise than by the version before. Not judged "
        "where there are fewer than 20.",
        FRACTION_PATTERN,
        default=None,
    )
    liveInputs: LiveInputs | None = Field(
        default=None,
        description="Inputs of clients that the next version answers, too. disagreementLimit is for them as well, and "
        "nothing is promoted without them. Absent: none. Setting or removing it replaces the pods.",
    )
    falseRollback: str = decimal(
        "The probability that a version is given up although it keeps all bounds.", FRACTION_PATTERN, default="0.05"
    )
    falsePromote: str = decimal(
        "The probability that a version is promoted although it breaks one.", FRACTION_PATTERN, default="0.05"
    )
    dependence: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="How many requests fail together, as those of a client that retries, or live inputs are alike: "
        "they count as one.",
    )
    probesPerSecond: int = Field(
        default=5,
        ge=0,
        le=100,
        description="Golden questions that each pod is asked meanwhile, so that there is something to measure.",
    )
    limitSeconds: int = Field(default=1800, ge=10, le=604_800, description="After which it ends one way or another.")
    atEnd: AtEnd = Field(
        default=AtEnd.PAUSE,
        description="What then, if nothing is known for sure: Pause waits for your word, Promote, Rollback.",
    )


class Rollout(Model):
    """How one version takes the place of another."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.canary) || self.strategy == 'Canary'",
                "canary is for strategy Canary: set strategy, or leave it out",
            ),
            (
                "!has(self.hotSwap) || self.strategy == 'HotSwap'",
                "hotSwap is for strategy HotSwap: set strategy, or leave it out",
            ),
            (
                "!has(self.liveSync) || self.strategy == 'LiveSync'",
                "liveSync is for strategy LiveSync: set strategy, or leave it out",
            ),
            (
                "!has(self.analysis) || (self.strategy != 'RollingUpdate' && self.strategy != 'LiveSync')",
                "analysis needs a step to decide in: set strategy to Canary, BlueGreen or HotSwap",
            ),
            (
                (
                    "!has(self.analysis) || !has(self.analysis.liveInputs) || !has(self.analysis.latencyMargin) || "
                    "self.strategy != 'HotSwap'"
                ),
                (
                    "with HotSwap both versions answer live inputs in the same pod, whose times cannot be told apart: "
                    "leave out analysis.latencyMargin or analysis.liveInputs"
                ),
            ),
            (
                "!has(self.analysis) || !has(self.analysis.latencyMargin) || self.strategy != 'BlueGreen'",
                (
                    "with BlueGreen the next version's pods have no clients until the analysis is over, and idle pods "
                    "are faster than busy ones: leave out analysis.latencyMargin, or take strategy Canary"
                ),
            ),
            (
                "!has(self.blueGreen) || self.strategy == 'BlueGreen'",
                "blueGreen is for strategy BlueGreen: set strategy, or leave it out",
            ),
        )
    )

    strategy: Strategy = Field(
        default=Strategy.ROLLING_UPDATE,
        description="RollingUpdate: pod by pod. Canary: in steps, each for a while. BlueGreen: beside the version "
        "before, then all clients at once. HotSwap: into the running pods, one by one; new pods are made only where "
        "the next version has other tensors, is a Triton repository, or needs other keys for its store. LiveSync: "
        "running pods follow the parameters of a running training of word vectors, and take its artifact when it is "
        "complete.",
    )
    canary: Canary | None = Field(
        default=None, description="With strategy Canary. Absent: 10 % and 50 % for a minute each."
    )
    blueGreen: BlueGreen | None = Field(default=None, description="With strategy BlueGreen.")
    hotSwap: HotSwap | None = Field(default=None, description="With strategy HotSwap.")
    liveSync: LiveSync | None = Field(default=None, description="With strategy LiveSync.")
    analysis: Analysis | None = Field(
        default=None, description="What decides by itself. Absent: the steps' times and your word do."
    )
    paused: bool = Field(default=False, description="Whether a rollout stays where it is.")
    progressDeadlineSeconds: int = Field(
        default=600, ge=10, le=86_400, description="A rollout that has not advanced for so long is reported as stalled."
    )
