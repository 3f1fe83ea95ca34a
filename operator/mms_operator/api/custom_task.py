"""spec.task.custom: a container image of somebody else's, given what its framework reads to find the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from mms_operator.api.types import Model, rules

if TYPE_CHECKING:
    from collections.abc import Mapping

PORT = 29500  # torch's own
_TENSORFLOW = ("TensorFlow", "Keras")

Word = Annotated[str, Field(max_length=4096)]


class Custom(Model):
    """A program of one's own. Its pods learn of each other by the variables that its framework's launchers set."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                f"!has(self.servers) || self.framework in {[*_TENSORFLOW, 'MXNet']}",
                "servers are of framework TensorFlow, Keras and MXNet only: leave them out",
            ),
            (
                f"!self.evaluator || self.framework in {[*_TENSORFLOW]}",
                "evaluator is of framework TensorFlow and Keras only: leave it out",
            ),
        )
    )
    image: str = Field(
        min_length=1,
        max_length=512,
        description="Image of all its pods. They run as user 10001 with a read-only root; /scratch and /tmp are "
        "writable.",
    )
    command: list[Word] = Field(
        default_factory=list,
        description="What is run, as in a container of Kubernetes. Absent: the image's entrypoint.",
        json_schema_extra={"maxItems": 64},
    )
    args: list[Word] = Field(
        default_factory=list,
        description="Its arguments. Absent: the image's, where command is absent, too.",
        json_schema_extra={"maxItems": 256},
    )
    framework: Literal["PyTorch", "TensorFlow", "Keras", "MXNet", "Other"] = Field(
        description="Which variables the pods get. PyTorch: those of torchrun. TensorFlow: TF_CONFIG. Keras: both, for "
        "whichever backend. MXNet: those of ps-lite (DMLC_*). All get MMS_*.",
    )
    port: int = Field(
        default=PORT,
        ge=1024,
        le=65_535,
        description="Where the first worker (MXNet: the scheduler; TensorFlow: each pod) listens for the others.",
    )
    servers: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="Parameter servers: ps of TensorFlow, with which the first worker is the chief; server of MXNet. "
        "Absent: none of TensorFlow, one of MXNet.",
    )
    evaluator: bool = Field(
        default=False, description="TensorFlow: one more pod, whose task in TF_CONFIG is the evaluator."
    )


def left_to_the_program(models: Mapping[str, type[BaseModel]]) -> list[tuple[str, str]]:
    """Rules (CEL) of a training's spec: what a custom task cannot honour is as by default. `models` are its blocks'.

    The API server has filled in the defaults before it asks, so a field that says its default cannot be told from one
    that is left out.
    """
    found = [
        (
            f"!has(self.task.custom) || ({_as_default(f'self.{field}', models[field])})",
            f"{field} does not apply to task.custom, whose program does that itself: leave it out",
        )
        for field in ("optimizer", "evaluation", "sync", "guard", "checkpoint")
    ]
    of_data = _as_default("self.data", models["data"], ("uri", "endpoint", "region", "secretRef"))
    return [
        *found,
        (
            f"!has(self.task.custom) || !has(self.data) || ({of_data})",
            (
                "of data only uri, endpoint, region and secretRef apply to task.custom, whose program reads it: leave "
                "out the others"
            ),
        ),
        ("has(self.task.custom) || has(self.data)", "data must be set: only task.custom does without"),
        (
            "!has(self.task.custom) || !has(self.pretrained)",
            "pretrained does not apply to task.custom: tell its program by task.custom.args where to start from",
        ),
        (
            "!has(self.task.custom) || (self.workers.minReplicas == 1 && self.workers.standby == 0)",
            (
                "workers.minReplicas and standby do not apply to task.custom, all of whose workers train or none: "
                "leave them out"
            ),
        ),
        (
            "!has(self.task.custom) || !has(self.workers.image)",
            "workers.image does not apply to task.custom, which has its own: set task.custom.image",
        ),
        (
            "!has(self.task.custom) || self.runPolicy.retainRuns == 5",
            "runPolicy.retainRuns does not apply to task.custom, whose results only its program deletes: leave it out",
        ),
        (
            (
                "!has(self.task.custom) || !has(self.task.custom.servers) || self.task.custom.framework == 'MXNet' || "
                "self.workers.replicas >= 2"
            ),
            "task.custom.servers of TensorFlow need workers.replicas of at least 2: the first worker is the chief",
        ),
    ]


def _as_default(path: str, model: type[BaseModel], kept: tuple[str, ...] = ()) -> str:
    """CEL: each field of a model is as by default, but for those that are `kept`."""
    parts = []
    for name, field in model.model_fields.items():
        if name in kept:
            continue
        default = field.get_default(call_default_factory=True)
        if default is None:
            parts.append(f"!has({path}.{name})")
        elif isinstance(default, BaseModel):
            parts.append(_as_default(f"{path}.{name}", type(default)))
        elif isinstance(default, str):
            parts.append(f"{path}.{name} == '{default}'")
        else:
            parts.append(f"{path}.{name} == {default}")
    return " && ".join(parts)
