"""What a run's network starts from: seeded numbers, an artifact of before, or a folder of Transformers, timm or
torchvision.

Folders are fetched once for each pod, whole, and checked against the digest where there is one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from mms_workloads import store as stores
from mms_workloads.contract import Adapter, ArtifactManifest, Reason
from mms_workloads.store import JobError
from mms_workloads.train import device

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from mms_workloads.contract import Picture, Pretrained

MANIFEST = "manifest.json"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TORCHVISION = "torchvision/"
HALF = (0.5,)
SHOWN = 3  # parameters that a message names


@dataclass(frozen=True, slots=True)
class Start:
    """folder: None where the network begins with seeded numbers. kind: of an artifact of ours."""

    folder: Path | None = None
    uri: str = ""
    kind: str | None = None
    method: str = "Full"
    adapter: Adapter = field(default_factory=Adapter)

    def refuse(self, why: str) -> JobError:
        return JobError(Reason.PRETRAINED_UNFIT, f"pretrained {self.uri}: {why}")


NOTHING = Start()


def fetch(given: Pretrained | None, scratch: Path) -> Start:
    """Raises JobError."""
    if given is None:
        return NOTHING
    key = hashlib.sha256(f"{given.store.uri} {given.digest}".encode()).hexdigest()[:12]
    folder = scratch / f"pretrained-{key}"
    if not folder.exists():
        with stores.scratch_folder(scratch, f"{stores.ON_ITS_WAY}pretrained-") as part:
            _download(given, part)
            part.rename(folder)
    kind = None
    if (folder / MANIFEST).exists():
        kind = ArtifactManifest.model_validate_json((folder / MANIFEST).read_bytes()).kind
    return Start(folder, given.store.uri, kind, given.method, given.adapter)


def _download(given: Pretrained, folder: Path) -> None:
    prefix = given.store.uri.rstrip("/") + "/"
    found = stores.list_folder(given.store)
    if not found:
        raise JobError(Reason.DATA_NOT_FOUND, f"pretrained {given.store.uri}: there are no files: check the address")
    for uri in found:
        name = uri.removeprefix(prefix)
        target = folder / name
        if target.resolve().is_relative_to(folder.resolve()):
            target.parent.mkdir(parents=True, exist_ok=True)
            stores.download(stores.at(given.store, uri), target)
    if given.digest is None:
        return
    manifest = folder / MANIFEST
    if not manifest.exists() or _sha256(manifest) != given.digest.removeprefix("sha256:"):
        raise JobError(
            Reason.ARTIFACT_CORRUPT, f"pretrained {given.store.uri}: {MANIFEST} has not the digest {given.digest}"
        )
    for name, entry in ArtifactManifest.model_validate_json(manifest.read_bytes()).files.items():
        if not (folder / name).exists() or _sha256(folder / name) != entry.sha256:
            raise JobError(
                Reason.ARTIFACT_CORRUPT,
                f"pretrained {given.store.uri}: {name} is missing or not what was published: restore it",
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def config(start: Start) -> dict[str, Any]:
    """Of a folder of Transformers or timm. Raises JobError."""
    assert start.folder is not None  # noqa: S101 - the caller has seen to it
    try:
        found: dict[str, Any] = json.loads((start.folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise start.refuse(
            f"no {CONFIG} can be read there ({error}): give a folder of Transformers or timm, an artifact, or, with "
            "task.imageClassification.architecture torchvision/NAME, weights of torchvision"
        ) from error
    return found


def load(network: nn.Module, start: Start, *labelled: nn.Module) -> Sequence[nn.Parameter]:
    """The weights of an artifact of ours. labelled: layers that have as many rows as there are labels. Their parameters
    stay as they are where the artifact's are of another shape, as do those of other layers with such rows: some
    networks tell labels in several places. These are given back.

    Raises JobError: any other parameter is not in the artifact, or of another shape, or not in the network.
    """
    from safetensors.torch import load_file  # noqa: PLC0415

    assert start.folder is not None  # noqa: S101 - the caller has seen to it
    return put(network, load_file(start.folder / WEIGHTS), start, *labelled)


def put(
    network: nn.Module, weights: Mapping[str, Tensor], start: Start, *labelled: nn.Module
) -> Sequence[nn.Parameter]:
    """The weights into the network, as `load` does. Raises JobError."""
    whole = network.state_dict()
    given, own = (
        {name: tensor for name, tensor in tensors.items() if tensor.dim()}  # as exporting.write has it
        for tensors in (weights, whole)
    )
    fitting = {name: tensor for name, tensor in given.items() if name in own and own[name].shape == tensor.shape}
    may_differ = {id(parameter) for module in labelled for parameter in module.parameters()}
    left = {name: parameter for name, parameter in network.named_parameters() if name not in fitting}
    unset = {name: parameter for name, parameter in left.items() if id(parameter) in may_differ}
    rows = {(len(given[name]), len(own[name])) for name in unset if name in given}
    unset |= {
        name: parameter
        for name, parameter in left.items()
        if name in given and (len(given[name]), len(own[name])) in rows and given[name].shape[1:] == own[name].shape[1:]
    }
    if wrong := sorted((own.keys() | given.keys()) - fitting.keys() - unset.keys()):
        said = ", ".join(f"{name} is {_shape(given, name)} and would be {_shape(own, name)}" for name in wrong[:SHOWN])
        more = f", and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise start.refuse(
            f"its network is of another shape: {said}{more}. Set the fields of the task that say how large the network "
            "is as its model.json has them"
        )
    whole.update(fitting)
    network.load_state_dict(whole)
    return list(unset.values())


def _shape(tensors: Mapping[str, Tensor], name: str) -> str:
    return str(list(tensors[name].shape)) if name in tensors else "not there"


def load_own(network: nn.Module, start: Start, kind: str, *labelled: nn.Module) -> Sequence[nn.Parameter]:
    """As `load` does, of an artifact of the same task, of which no library has networks of ours. Raises JobError."""
    if start.kind != kind:
        given = f"an artifact of {start.kind}" if start.kind else "no artifact of a training"
        raise start.refuse(
            f"it is {given}, and {kind} starts from artifacts of {kind} alone: name a training of that task in "
            "pretrained.trainingRef, or leave pretrained out. A folder of Transformers is served as it is by "
            "model.pretrained of a ModelService"
        )
    return load(network, start, *labelled)


def last_linear(network: nn.Module) -> nn.Module:
    """The layer that tells the labels: the last linear one."""
    return [module for module in network.modules() if isinstance(module, nn.Linear)][-1]


def trained_parts(
    network: nn.Module,
    head: nn.Module,
    start: Start,
    seed: int,
    *,
    new: bool = True,
    unset: Sequence[nn.Parameter] = (),
) -> nn.Module:
    """The network with what the method trains requiring a gradient, and nothing else. new: the head is, so that it is
    always trained; unset: parameters for which there were no weights, which are always trained, too.
    """
    if start.method == "Full":
        return network
    if start.method == "LoRA":
        with device.seeded(seed):
            _adapted(network, [*head.modules(), *_holding(network, unset)], start.adapter)
    else:
        network.requires_grad_(requires_grad=False)
    if new:
        head.requires_grad_(requires_grad=True)
    for parameter in unset:
        parameter.requires_grad = True
    return network


def _holding(network: nn.Module, parameters: Sequence[nn.Parameter]) -> list[nn.Module]:
    """The layers that the parameters are of."""
    wanted = {id(parameter) for parameter in parameters}
    return [one for one in network.modules() if any(id(own) in wanted for own in one.parameters(recurse=False))]


def _adapted(network: nn.Module, whole: Sequence[nn.Module], adapter: Adapter) -> None:
    """Adapters beside all linear layers and convolutions but grouped ones, those of `whole`, which are trained
    themselves, and those of PyTorch's own attention, which it does not ask; in place.
    """
    from mms_workloads import vision  # noqa: F401, PLC0415 - before peft, which loads transformers

    # isort: split
    from peft import LoraConfig, inject_adapter_in_model  # noqa: PLC0415
    from transformers.pytorch_utils import Conv1D  # noqa: PLC0415 - GPT-2's linear layers

    attention = [module for module in network.modules() if isinstance(module, nn.MultiheadAttention)]
    without = {*whole, *(layer for module in attention for layer in module.modules())}
    found = [
        (name, isinstance(module, Conv1D))
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | Conv1D) or (isinstance(module, nn.Conv2d) and module.groups == 1)
        if module not in without
    ]
    network.requires_grad_(requires_grad=False)
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        target_modules=[name for name, _ in found],
        fan_in_fan_out=any(transposed for _, transposed in found),
    )
    inject_adapter_in_model(config, network)


def merged(network: nn.Module) -> nn.Module:
    """Without adapters: what they learnt becomes part of the layers that they stand beside. In place."""
    if not any(hasattr(module, "lora_A") for module in network.modules()):
        return network
    from mms_workloads import vision  # noqa: F401, PLC0415 - before peft, which loads transformers

    # isort: split
    from peft.tuners.lora import LoraLayer  # noqa: PLC0415

    for name, module in list(network.named_modules()):
        if not isinstance(module, LoraLayer):
            continue
        module.merge()
        parent, _, last = name.rpartition(".")
        setattr(network.get_submodule(parent), last, module.get_base_layer())
    return network


def normalisation(start: Start, spec: Picture) -> tuple[Sequence[float], Sequence[float]]:
    """mean, std of the channels, as the weights are used to them."""
    if start.folder is None:
        return HALF, HALF
    mean: Sequence[float] = HALF
    std: Sequence[float] = HALF
    if start.kind is not None:
        image = json.loads((start.folder / "pipeline.json").read_text(encoding="utf-8")).get("image") or {}
        mean, std = image.get("mean", HALF), image.get("std", HALF)
    elif spec.architecture.startswith(TORCHVISION):
        from mms_workloads.tasks import torchvision_library  # noqa: PLC0415 - it stands on this module

        mean, std = torchvision_library.normalisation(spec.architecture)
    elif (start.folder / "preprocessor_config.json").exists():
        found = json.loads((start.folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        mean, std = found.get("image_mean", HALF), found.get("image_std", HALF)
    else:
        found = config(start)
        found = found.get("pretrained_cfg", found)
        mean, std = found.get("mean", HALF), found.get("std", HALF)
    return (mean, std) if len(mean) in {1, spec.channels} else (HALF, HALF)


@contextlib.contextmanager
def said(start: Start) -> Iterator[None]:
    """What a library says of a folder, as the user's matter."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise start.refuse(f"it cannot be loaded: {error}") from error
