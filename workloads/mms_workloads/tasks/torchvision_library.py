"""Image classifiers of torchvision: its networks, and the weights that it publishes for them.

Weights are one file of a state_dict, as `torch.save` or safetensors write it; no config.json is beside them.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

from torch import nn

from mms_workloads import vision  # noqa: F401 - before torchvision
from mms_workloads.contract import Reason
from mms_workloads.store import JobError
from mms_workloads.tasks import starting
from mms_workloads.train import device

import torch  # isort: skip
from torchvision import models  # isort: skip

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from mms_workloads.contract import Picture
    from mms_workloads.tasks.starting import Start

SUFFIXES = (".pth", ".pt", ".safetensors")
CHANNELS = 3
# The first two have outputs that only training asks, and take images of another range than they say; the others tell
# labels by a convolution.
WITHOUT = {"googlenet", "inception_v3", "squeezenet1_0", "squeezenet1_1"}


def network(spec: Picture, labels: int, seed: int) -> nn.Module:
    """Pixels [n, 3, H, W] -> logits [n, labels], with seeded numbers. Raises JobError."""
    name = spec.architecture.removeprefix(starting.TORCHVISION)
    if name not in set(models.list_models(module=models)) - WITHOUT:
        raise JobError(
            Reason.JOB_FILE_INVALID,
            f"torchvision knows no classifier {name!r} that can be trained here: "
            "`torchvision.models.list_models(module=torchvision.models)` names them",
        )
    if spec.channels != CHANNELS:
        raise JobError(
            Reason.JOB_FILE_INVALID,
            f"networks of torchvision see images of {CHANNELS} channels: set task.imageClassification.channels to that",
        )
    sized: dict[str, Any] = {}
    if name.startswith("vit_"):
        if spec.height != spec.width:
            raise JobError(
                Reason.JOB_FILE_INVALID,
                f"{spec.architecture} sees square images, and task.imageClassification.height is {spec.height} and "
                f"width {spec.width}: set them to the same",
            )
        sized = {"image_size": spec.height}
    try:
        with device.seeded(seed):
            made: nn.Module = models.get_model(name, weights=None, num_classes=labels, **sized)
    except AssertionError as error:
        raise JobError(
            Reason.JOB_FILE_INVALID,
            f"{spec.architecture} is made for no images of {spec.height} pixels ({error}): set "
            f"task.imageClassification.height and width to a multiple of {name.rpartition('_')[2]}",
        ) from error
    return made


def of_folder(start: Start, spec: Picture, labels: int, seed: int) -> tuple[nn.Module, Sequence[nn.Parameter]]:
    """The network with the folder's weights, and the parameters that tell labels where it has others.

    Raises JobError.
    """
    made = network(spec, labels, seed)
    return made, starting.put(made, _weights(start), start, starting.last_linear(made))


def normalisation(architecture: str) -> tuple[Sequence[float], Sequence[float]]:
    """mean, std, as torchvision's weights are used to them. Raises JobError."""
    given = models.get_model_weights(architecture.removeprefix(starting.TORCHVISION)).DEFAULT.transforms()
    return given.mean, given.std


def _weights(start: Start) -> Mapping[str, Tensor]:
    assert start.folder is not None  # noqa: S101 - the caller has seen to it
    found = sorted(path for path in start.folder.iterdir() if path.suffix in SUFFIXES)
    if len(found) != 1:
        named = ", ".join(path.name for path in found) or "none"
        raise start.refuse(
            f"weights of torchvision are one file of a state_dict ({', '.join(SUFFIXES)}), and there are: {named}"
        )
    return _read(start, found[0])


def _read(start: Start, path: Path) -> Mapping[str, Tensor]:
    from safetensors import SafetensorError  # noqa: PLC0415 - beside what it raises
    from safetensors.torch import load_file  # noqa: PLC0415

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        given = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, EOFError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise start.refuse(f"{path.name} cannot be read as a state_dict: {error}") from error
    if not isinstance(given, dict) or not all(isinstance(one, torch.Tensor) for one in given.values()):
        raise start.refuse(f"{path.name} is no state_dict: save `network.state_dict()`")
    return given
