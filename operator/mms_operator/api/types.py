"""Types that both kinds share, and how they look in the CRDs.

Fractions are decimal strings, counts are integers, times carry their unit in the name and sizes are quantities, so that
no value changes on its way through JSON, YAML and Go. Unknown fields are ignored when read: an older operator survives
a newer CRD. The API server refuses them at admission.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema


class Model(BaseModel):
    """A part of a custom resource."""

    model_config = ConfigDict(frozen=True, extra="ignore")


def rules(*pairs: tuple[str, str], **more: Any) -> dict[str, Any]:
    """A model's CEL rules, as `json_schema_extra`: pairs of (rule, message).

    A rule that speaks of `oldSelf` is a transition rule: it is asked on updates only.
    """
    return {"x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in pairs], **more}


DECIMAL_PATTERN = r"^[0-9]{1,9}(\.[0-9]{1,12})?$"
SIGNED_DECIMAL_PATTERN = r"^-?[0-9]{1,9}(\.[0-9]{1,12})?$"
FRACTION_PATTERN = r"^0(\.[0-9]{1,12})?$"  # from 0 to below 1
NAME_PATTERN = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"
CONTROLLER_PATTERN = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?/[A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?$"
ENDPOINT_PATTERN = r"^https?://[^\s/]+/?$"
URI_PATTERN = r"^(s3|https?|file)://[^\s]+$"
WRITABLE_URI_PATTERN = r"^(s3|file)://[^\s]+$"


def decimal(description: str, pattern: str = DECIMAL_PATTERN, **extra: Any) -> Any:
    return Field(description=description, pattern=pattern, max_length=23, **extra)


Quantity = Annotated[
    str,
    BeforeValidator(str),
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
            "minimum": 0,  # of an integer; the pattern is asked of a string only
            "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$",
        }
    ),
]

Name = Annotated[str, Field(min_length=1, max_length=253, pattern=NAME_PATTERN)]


class SecretReference(Model):
    name: Name = Field(description="Name of a Secret in the same namespace.")


class StoreAccess(Model):
    """How to reach a store: the part of a location that is not its URI."""

    endpoint: str | None = Field(
        default=None,
        description="URL of an S3-compatible service, such as http://minio.storage:9000. Absent: the provider's own.",
        max_length=512,
        pattern=ENDPOINT_PATTERN,
    )
    region: str | None = Field(default=None, description="Region of the bucket.", max_length=64)
    secretRef: SecretReference | None = Field(
        default=None,
        description="Secret with the keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. "
        "Absent: anonymous access, or the identity of the pod's service account.",
    )


class Resources(Model):
    requests: dict[str, Quantity] = Field(
        default_factory=dict,
        description="What the scheduler sets aside, such as cpu and memory.",
        json_schema_extra={"maxProperties": 16},
    )
    limits: dict[str, Quantity] = Field(
        default_factory=dict,
        description="What a container may use at most.",
        json_schema_extra={"maxProperties": 16},
    )


def _without_nulls(value: Any) -> Any:
    """A field that is null is one that is not there, as in a pod. One in a list stays: what it means nobody knows."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


PodTemplate = Annotated[
    dict[str, Any],
    AfterValidator(_without_nulls),
    WithJsonSchema(
        {
            "type": "object",
            "x-kubernetes-preserve-unknown-fields": True,
            "description": "Overlay on the pods: metadata.labels and metadata.annotations; spec.nodeSelector, "
            "tolerations, affinity, topologySpreadConstraints, priorityClassName, schedulerName, imagePullSecrets, "
            "volumes of allowed kinds, and for the containers env, volumeMounts and resources; further containers run "
            "as sidecars. What the installation's policy does not allow is refused with condition Accepted=False.",
        }
    ),
]


PipelineFields = Annotated[
    dict[str, Any],
    WithJsonSchema(
        {
            "type": "object",
            "x-kubernetes-preserve-unknown-fields": True,
            "description": "What the model is for and what its tensors are, as in pipeline.json: task, labels, image, "
            "text, audio, tensors, inputs, outputs, scores, boxes and more (docs/serving.md). It goes before what the "
            "files say. {task: tensors} serves a network's own tensors.",
        }
    ),
]


class ModelFormat(StrEnum):
    AUTO = "Auto"
    ONNX = "ONNX"
    TORCH_SCRIPT = "TorchScript"
    TORCH_EXPORT = "TorchExport"
    TRANSFORMERS = "Transformers"
    TRITON_REPOSITORY = "TritonRepository"
    PYTHON = "Python"


class Condition(Model):
    """A metav1.Condition."""

    type: str = Field(max_length=316, description="What the condition is about.")
    status: str = Field(description="True, False or Unknown.", json_schema_extra={"enum": ["True", "False", "Unknown"]})
    reason: str = Field(max_length=1024, description="Why, as one CamelCase word.")
    message: str = Field(default="", max_length=32768, description="Why, for people; says what to do.")
    lastTransitionTime: str = Field(description="When status last changed.", json_schema_extra={"format": "date-time"})
    observedGeneration: int | None = Field(default=None, ge=0, description="The generation that was looked at.")


Conditions = Annotated[
    list[Condition],
    Field(
        description="The state, one entry a type.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"], "maxItems": 32},
    ),
]
