"""ModelService: which model to serve, on how many pods."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from mms_operator.api.types import (
    URI_PATTERN,
    Conditions,
    Model,
    Name,
    PodTemplate,
    Resources,
    SecretReference,
    StoreAccess,
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


class ModelSource(Model):
    """What to serve: exactly one."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "has(self.trainingRef) != has(self.artifact)",
                "exactly one of trainingRef and artifact must be set",
            )
        )
    )
    trainingRef: TrainingReference | None = Field(default=None, description="Serve what a training makes.")
    artifact: Artifact | None = Field(default=None, description="Serve an artifact by its address.")


class Server(Model):
    """The pods that serve: Triton with the agent beside it."""

    resources: Resources = Field(default_factory=Resources, description="Of Triton's container.")
    image: str | None = Field(
        default=None, description="Image with Triton and the agent. Absent: the installation's.", max_length=512
    )
    podTemplate: PodTemplate | None = None


class Rollout(Model):
    """How one version takes the place of another."""

    progressDeadlineSeconds: int = Field(
        default=600, ge=10, le=86_400, description="A rollout that has not advanced for so long is reported as stalled."
    )


class ServiceSpec(Model):
    """What is wanted."""

    replicas: int = Field(default=1, ge=0, le=1000, description="How many pods serve; 0 stops them all.")
    model: ModelSource
    server: Server = Field(default_factory=Server)
    rollout: Rollout = Field(default_factory=Rollout)


class ServedVersion(Model):
    """An artifact as it is pinned: with all that fetching it again takes, whatever becomes of the training."""

    version: int | None = Field(
        default=None, ge=1, description="The run of the training that made it. Absent for an artifact by address."
    )
    digest: str = Field(max_length=80, description="sha256 of the artifact's manifest.json.")
    uri: str = Field(max_length=1024, description="The artifact's folder.")
    training: str | None = Field(default=None, max_length=253, description="The training that made it.")
    installationStore: bool = Field(default=False, description="Whether it is fetched with the installation's keys.")
    endpoint: str | None = Field(default=None, max_length=512, description="URL of the S3-compatible service.")
    region: str | None = Field(default=None, max_length=64, description="Region of the bucket.")
    secretRef: SecretReference | None = Field(default=None, description="Secret with the keys.")
    replicas: int = Field(default=0, ge=0, description="Pods whose golden inference was right.")


class Versions(Model):
    """The artifacts that are served, pinned by digest."""

    stable: ServedVersion | None = Field(default=None, description="What clients are answered from.")
    next: ServedVersion | None = Field(default=None, description="What is being rolled out.")


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
