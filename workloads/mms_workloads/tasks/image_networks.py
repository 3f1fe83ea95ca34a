"""Networks of image classifiers: of timm, torchvision or Transformers, or what a training has made of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mms_workloads import vision  # noqa: F401 - before timm and torchvision
from mms_workloads.contract import ImageClassification, Reason
from mms_workloads.store import JobError
from mms_workloads.tasks import starting, torchvision_library, transformers_library
from mms_workloads.tasks.networks import BATCH_NORMS, SmallClassifier
from mms_workloads.train import device

import torch  # isort: skip
from torch import nn  # isort: skip

if TYPE_CHECKING:
    from torch import Tensor

    from mms_workloads.contract import Picture
    from mms_workloads.tasks.starting import Start

TIMM = "timm/"


class Named(nn.Module):
    """A network of a library whose argument and result have our names. architecture: as the task's field says it,
    where what it started from said so.
    """

    def __init__(self, network: nn.Module, argument: str, architecture: str = "") -> None:
        super().__init__()
        self.network, self.argument, self.architecture = network, argument, architecture

    def forward(self, pixels: Tensor) -> Tensor:
        found = self.network(**{self.argument: pixels})
        logits: Tensor = found if isinstance(found, torch.Tensor) else found.logits
        return logits


def build(start: Start, spec: Picture, labels: int, seed: int) -> nn.Module:
    """Pixels [n, C, H, W] -> logits [n, labels]. Raises JobError."""
    if start.folder is None:
        made = Named(_without_batches(_of_library(spec, labels, seed), spec), "x")
        _look(made, start, spec)
        return made
    if not transformers_library.is_start(start, "imageClassification"):
        return _from_artifact(start, spec, labels, seed)
    if start.kind is None and spec.architecture.startswith(starting.TORCHVISION):
        return _of_torchvision(start, spec, labels, seed)
    if "architecture" in starting.config(start):
        return _of_timm(start, spec, labels, seed)
    from transformers import AutoModelForImageClassification  # noqa: PLC0415

    network, unset = transformers_library.make(AutoModelForImageClassification, start, seed, num_labels=labels)
    made = Named(network, "pixel_values")
    head = starting.last_linear(network)
    if start.kind is not None:
        unset = [*unset, *starting.load(made, start, head)]
    _look(made, start, spec)
    return starting.trained_parts(made, head, start, seed, unset=unset)


def _of_timm(start: Start, spec: Picture, labels: int, seed: int) -> nn.Module:
    import timm  # noqa: PLC0415

    with starting.said(start), device.seeded(seed):
        network = timm.create_model(f"local-dir:{start.folder}", pretrained=True)
        network.reset_classifier(labels)  # type: ignore[operator]
    channels = (network.pretrained_cfg.get("input_size") or (3,))[0]  # type: ignore[union-attr, operator]
    if channels != spec.channels:
        raise start.refuse(f"its images have {channels} channels: set task.imageClassification.channels to that")
    head: nn.Module = network.get_classifier()  # type: ignore[operator]
    made = Named(network, "x", f"{TIMM}{starting.config(start)['architecture']}")
    _look(made, start, spec)
    return starting.trained_parts(made, head, start, seed)


def _of_torchvision(start: Start, spec: Picture, labels: int, seed: int) -> nn.Module:
    network, unset = torchvision_library.of_folder(start, spec, labels, seed)
    made = Named(network, "x")
    _look(made, start, spec)
    return starting.trained_parts(made, starting.last_linear(network), start, seed, unset=unset)


def _look(network: nn.Module, start: Start, spec: Picture) -> None:
    """At one image: many networks have a place for each part of it. Raises JobError where it is of the wrong size."""
    before = network.training
    try:
        with torch.no_grad():
            network.eval()(pixels=torch.zeros(1, spec.channels, spec.height, spec.width))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise _of_another_size(start, spec, error) from error
    network.train(before)


def _of_another_size(start: Start, spec: Picture, error: Exception) -> JobError:
    why = f"images of {spec.channels} channels and {spec.height} x {spec.width} pixels ({error})"
    fields = "task.imageClassification.height, width and channels"
    if start.folder is None:
        return JobError(
            Reason.JOB_FILE_INVALID,
            f"{spec.architecture} does not take {why}: set {fields} to what it is made for, or another architecture",
        )
    given = starting.config(start) if (start.folder / starting.CONFIG).exists() else {}
    size = given.get("image_size") or (given.get("pretrained_cfg") or {}).get("input_size")
    its = f" (its config.json says {size}, and {given['num_channels']} channels)" if "num_channels" in given else ""
    return start.refuse(f"it does not take {why}: set {fields} to what it was trained with{its}")


def _of_library(spec: Picture, labels: int, seed: int) -> nn.Module:
    """A network of timm or torchvision with seeded numbers. Raises JobError."""
    if spec.architecture.startswith(starting.TORCHVISION):
        return torchvision_library.network(spec, labels, seed)
    import timm  # noqa: PLC0415

    name = spec.architecture.removeprefix(TIMM)
    if not timm.is_model(name):
        raise JobError(Reason.JOB_FILE_INVALID, f"timm knows no model {name!r}: `timm.list_models()` names them")
    sized: dict[str, Any] = {"img_size": (spec.height, spec.width)} if _is_sized(name) else {}
    with device.seeded(seed):
        network: nn.Module = timm.create_model(
            name, pretrained=False, num_classes=labels, in_chans=spec.channels, **sized
        )
    return network


def _without_batches(network: nn.Module, spec: Picture) -> nn.Module:
    """Raises JobError for one whose statistics nothing has said yet."""
    if any(isinstance(module, BATCH_NORMS) for module in network.modules()):
        raise JobError(
            Reason.JOB_FILE_INVALID,
            f"{spec.architecture} normalises by batches, whose statistics several workers would not share: give "
            "pretrained weights, whose statistics stay, or an architecture with layer or group normalisation, such as "
            "timm/convnext_atto or timm/vit_tiny_patch16_224",
        )
    return network


def _is_sized(name: str) -> bool:
    """Whether a timm model is made for one size of images."""
    return name.startswith(("vit_", "deit", "beit", "swin", "mixer", "eva"))


def _from_artifact(start: Start, spec: Picture, labels: int, seed: int) -> nn.Module:
    assert start.folder is not None  # noqa: S101 - the caller has seen to it
    if start.kind != "imageClassification":
        raise start.refuse(f"it is an artifact of {start.kind}, and this task starts from imageClassification")
    before = ImageClassification.model_validate_json((start.folder / "model.json").read_bytes())
    if (before.architecture, before.channels) != (spec.architecture, spec.channels):
        raise start.refuse(
            f"it is of {before.architecture} for {before.channels} channels: set task.imageClassification.architecture "
            "and channels to that"
        )
    if spec.architecture == "Small":
        with device.seeded(seed):
            network: nn.Module = SmallClassifier(spec.channels, before.height, before.width, labels)
    else:
        network = Named(_of_library(spec, labels, seed), "x")
    head = starting.last_linear(network)
    return starting.trained_parts(network, head, start, seed, unset=starting.load(network, start, head))
