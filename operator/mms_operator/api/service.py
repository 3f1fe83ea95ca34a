"""ModelService: which model to serve, on how many pods."""

from __future__ import annotations

from enum import StrEnum

from pydantic import ConfigDict, Field

from mms_operator.api.autoscaling import Autoscaling, Objective
from mms_operator.api.rollout import Rollout
from mms_operator.api.service_status import ServiceStatus  # noqa: TC001 - pydantic reads it
from mms_operator.api.traffic import Traffic
from mms_operator.api.types import (
    FRACTION_PATTERN,
    URI_PATTERN,
    Model,
    ModelFormat,
    Name,
    PipelineFields,
    PodTemplate,
    Resources,
    StoreAccess,
    decimal,
    rules,
)


class TrainingReference(Model):
    name: Name = Field(
        description="A ModelTraining in the same namespace. Each artifact that it completes is rolled out."
    )


class Artifact(StoreAccess):
    """An artifact by its address, whoever made it."""

    uri: str = Field(
        description="The artifact's folder: the one with manifest.json.", max_length=1024, pattern=URI_PATTERN
    )
    digest: str = Field(
        description="sha256 of its manifest.json, as in status.artifact.digest of the training.",
        max_length=71,
        pattern=r"^sha256:[0-9a-f]{64}$",
    )


class PretrainedModel(StoreAccess):
    """A model that was not trained here."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.trusted || !(self.format in ['TorchScript', 'TorchExport', 'TritonRepository', 'Python'])",
                "this format runs code of the files in the pod: set trusted if you trust them",
            )
        )
    )
    uri: str = Field(
        description="The model's folder, or its only file. A folder may have pipeline.json, which says what the model "
        "is for.",
        max_length=1024,
        pattern=URI_PATTERN,
    )
    digest: str | None = Field(
        default=None,
        description="sha256 of its files: in the folder, `find * -type f | LC_ALL=C sort | xargs sha256sum | "
        "sha256sum`. Absent: all pods of a version serve what its first one has found, and status.versions says it.",
        max_length=71,
        pattern=r"^sha256:[0-9a-f]{64}$",
    )
    format: ModelFormat = Field(default=ModelFormat.AUTO, description="Auto: as the names of the files say.")
    trusted: bool = Field(
        default=False,
        description="Whether code that the files bring may run in the pod. TorchScript, TorchExport, Python and "
        "TritonRepository are code.",
    )
    pipeline: PipelineFields | None = None


class ModelSource(Model):
    """What to serve: exactly one."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "[has(self.trainingRef), has(self.artifact), has(self.pretrained)].exists_one(one, one)",
                "exactly one of trainingRef, artifact and pretrained must be set",
            )
        )
    )
    trainingRef: TrainingReference | None = Field(default=None, description="Serve what a training makes.")
    artifact: Artifact | None = Field(default=None, description="Serve an artifact by its address.")
    pretrained: PretrainedModel | None = Field(default=None, description="Serve a model that was not trained here.")


class ServerBatching(Model):
    """How requests are put together."""

    preferredBatchSize: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="Rows that a batch has where so many wait: fewer, so that others wait less. Absent: all that wait.",
    )
    maxQueueDelayMicroseconds: int = Field(
        default=0, ge=0, le=1_000_000, description="How long a batch that is not full waits for more requests."
    )
    autotune: bool = Field(
        default=False,
        description="The first pod of a version tries other sizes, delays and instances, and all run as it does the "
        "most within the objective. What is given here is where it begins.",
    )


class Anomalies(StrEnum):
    REFUSE = "Refuse"
    COUNT = "Count"
    OFF = "Off"


class Precision(StrEnum):
    AUTO = "Auto"
    FP32 = "FP32"
    BF16 = "BF16"
    INT8 = "INT8"


class Server(Model):
    """The pods that serve: Triton with the agent beside it."""

    resources: Resources = Field(default_factory=Resources, description="Of Triton's container.")
    image: str | None = Field(
        default=None, description="Image with Triton, the agent and nginx. Absent: the installation's.", max_length=512
    )
    batching: ServerBatching = Field(default_factory=ServerBatching)
    instances: int = Field(
        default=1, ge=1, le=16, description="Processes of each model in a pod, which share the artifact's memory."
    )
    precision: Precision = Field(
        default=Precision.FP32,
        description="In which the network runs. INT8 is for ONNX, BF16 for Transformers. Auto: the other one is made "
        "in the pod, asked the artifact's questions, and taken if it is faster there and loses no more than allowed. "
        "Word vectors and a TritonRepository run as they are: INT8 and BF16 are refused.",
    )
    maxAccuracyLoss: str = decimal(
        "Part of the artifact's questions that may be answered otherwise than at FP32.",
        FRACTION_PATTERN,
        default="0.01",
    )
    anomalies: Anomalies = Field(
        default=Anomalies.REFUSE,
        description="Requests that are no valid input: NaN, values out of range, images and videos far from those that "
        "the model was trained on. Refuse: the error says why. Count: they are answered, and mms_anomalous_rows of "
        "Triton's metrics counts them. Off: nobody looks. Word vectors have no such.",
    )
    podTemplate: PodTemplate | None = None


_OURS = "!has(self.model.pretrained) || self.model.pretrained.format != 'TritonRepository' || "


class ServiceSpec(Model):
    """What is wanted."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.autoscaling.mode != 'Objective' || has(self.objective)",
                "autoscaling mode Objective needs objective.latencyP99Milliseconds",
            ),
            (
                "self.autoscaling.mode == 'Objective' || !self.server.batching.autotune",
                "server.batching.autotune needs autoscaling mode Objective: the pods measure themselves then",
            ),
            (
                "!has(self.rollout) || self.rollout.strategy != 'LiveSync' || has(self.model.trainingRef)",
                "strategy LiveSync follows a training: set model.trainingRef, or another strategy",
            ),
            (
                f"{_OURS}self.autoscaling.mode != 'Objective'",
                (
                    "autoscaling mode Objective measures pods by golden questions, and a TritonRepository has none: "
                    "set autoscaling.mode to External or Off"
                ),
            ),
            (
                (
                    f"{_OURS}(self.server.instances == 1 && !has(self.server.batching.preferredBatchSize) && "
                    "self.server.batching.maxQueueDelayMicroseconds == 0)"
                ),
                (
                    "server.batching and server.instances are not for a TritonRepository: leave them out, and write "
                    "dynamic_batching and instance_group into its config.pbtxt"
                ),
            ),
            (
                f"{_OURS}self.server.anomalies != 'Count'",
                "server.anomalies Count is not for a TritonRepository, whose requests nobody looks at: leave it out",
            ),
            (
                f"{_OURS}!(self.server.precision in ['BF16', 'INT8'])",
                "server.precision is not for a TritonRepository, which is served as it is: leave it out",
            ),
        )
    )

    replicas: int = Field(
        default=1,
        ge=0,
        le=1000,
        description="How many pods serve; 0 stops them all, but with autoscaling mode Objective, which sets it itself. "
        "With autoscaling leave it out of manifests that are applied again and again.",
    )
    model: ModelSource
    server: Server = Field(default_factory=Server)
    objective: Objective | None = None
    autoscaling: Autoscaling = Field(default_factory=Autoscaling)
    rollout: Rollout = Field(default_factory=Rollout)
    traffic: Traffic = Field(default_factory=Traffic)


class ModelService(Model):
    """Serves a model on Triton: fetched by digest, checked by golden inferences, replaced without a gap."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "size(self.metadata.name) <= 45 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
                (
                    "metadata.name must be at most 45 lower-case letters, digits and dashes and begin with a letter: "
                    "it is the name of the Service"
                ),
            )
        )
    )
    spec: ServiceSpec
    status: ServiceStatus | None = None
