"""What a run's network starts from: seeded numbers, an artifact of before, or a folder of Transformers or timm.

Folders are fetched once for each pod, whole, and checked against the digest where there is one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
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
TIMM = "timm/"
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


class Named(nn.Module):
    """A network of a library whose argument and result have our names."""

    def __init__(self, network: nn.Module, argument: str) -> None:
        super().__init__()
        self.network, self.argument = network, argument

    def forward(self, pixels: Tensor) -> Tensor:
        found = self.network(**{self.argument: pixels})
        logits: Tensor = found if isinstance(found, torch.Tensor) else found.logits
        return logits


def config(start: Start) -> dict[str, Any]:
    """Of a folder of Transformers or timm. Raises JobError."""
    assert start.folder is not None  # noqa: S101 - the caller has seen to it
    try:
        found: dict[str, Any] = json.loads((start.folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise start.refuse(
            f"no {CONFIG} can be read there ({error}): give a folder of Transformers or timm, or an artifact"
        ) from error
    return found


def picture_classifier(start: Start, spec: Picture, labels: int, seed: int) -> nn.Module:
    """Pixels [n, C, H, W] -> logits [n, labels]. Raises JobError."""
    from mms_workloads import vision  # noqa: F401, PLC0415 - before timm
    # isort: split

    if start.folder is None:
        return Named(_timm_from_scratch(spec, labels, seed), "x")
    from mms_workloads.tasks import transformers_library  # noqa: PLC0415 - it stands on this module

    if not transformers_library.is_start(start, "imageClassification"):
        return _from_artifact(start, spec, labels, seed)
    if "architecture" in config(start):
        return _of_timm(start, spec, labels, seed)
    from transformers import AutoModelForImageClassification  # noqa: PLC0415

    network, unset = transformers_library.make(AutoModelForImageClassification, start, seed, num_labels=labels)
    made = Named(network, "pixel_values")
    head = last_linear(network)
    if start.kind is not None:
        unset = [*unset, *load(made, start, head)]
    _look(made, start, spec)
    return trained_parts(made, head, start, seed, unset=unset)


def _of_timm(start: Start, spec: Picture, labels: int, seed: int) -> nn.Module:
    import timm  # noqa: PLC0415

    with said(start), device.seeded(seed):
        network = timm.create_model(f"local-dir:{start.folder}", pretrained=True)
        network.reset_classifier(labels)  # type: ignore[operator]
    channels = (network.pretrained_cfg.get("input_size") or (3,))[0]  # type: ignore[union-attr, operator]
    if channels != spec.channels:
        raise start.refuse(f"its images have {channels} channels: set task.imageClassification.channels to that")
    head: nn.Module = network.get_classifier()  # type: ignore[operator]
    made = Named(network, "x")
    _look(made, start, spec)
    return trained_parts(made, head, start, seed)


def _look(network: nn.Module, start: Start, spec: Picture) -> None:
    """At one image: many networks have a place for each part of it. Raises JobError where it is of the wrong size."""
    before = network.training
    try:
        with torch.no_grad():
            network.eval()(pixels=torch.zeros(1, spec.channels, spec.height, spec.width))
    except (RuntimeError, ValueError, AssertionError) as error:
        given = config(start)
        size = given.get("image_size") or (given.get("pretrained_cfg") or {}).get("input_size")
        its = f" (its config.json says {size}, and {given['num_channels']} channels)" if "num_channels" in given else ""
        raise start.refuse(
            f"it does not take images of {spec.channels} channels and {spec.height} x {spec.width} pixels ({error}): "
            f"set task.imageClassification.height, width and channels to what it was trained with{its}"
        ) from error
    network.train(before)


def _timm_from_scratch(spec: Picture, labels: int, seed: int) -> nn.Module:
    import timm  # noqa: PLC0415

    name = spec.architecture.removeprefix(TIMM)
    if not timm.is_model(name):
        raise JobError(Reason.JOB_FILE_INVALID, f"timm knows no model {name!r}: `timm.list_models()` names them")
    sized: dict[str, Any] = {"img_size": (spec.height, spec.width)} if _is_sized(name) else {}
    with device.seeded(seed):
        network: nn.Module = timm.create_model(
            name, pretrained=False, num_classes=labels, in_chans=spec.channels, **sized
        )
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):  # noqa: SLF001
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
    from mms_workloads.contract import ImageClassification  # noqa: PLC0415
    from mms_workloads.tasks.networks import SmallClassifier  # noqa: PLC0415

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
        network = Named(_timm_from_scratch(spec, labels, seed), "x")
    head = last_linear(network)
    return trained_parts(network, head, start, seed, unset=load(network, start, head))


def load(network: nn.Module, start: Start, *labelled: nn.Module) -> Sequence[nn.Parameter]:
    """The weights of an artifact of ours. labelled: layers that have as many rows as there are labels. Their parameters
    stay as they are where the artifact's are of another shape, as do those of other layers with such rows: some
    networks tell labels in several places. These are given back.

    Raises JobError: any other parameter is not in the artifact, or of another shape, or not in the network.
    """
    from safetensors.torch import load_file  # noqa: PLC0415

    assert start.folder is not None  # noqa: S101 - the caller has seen to it
    given = load_file(start.folder / WEIGHTS)
    own = {name: tensor for name, tensor in network.state_dict().items() if tensor.dim()}  # as exporting.write has it
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
    network.load_state_dict(fitting, strict=False)
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
    """Adapters beside all linear layers and convolutions but grouped ones and those of `whole`, which are trained
    themselves; in place.
    """
    from mms_workloads import vision  # noqa: F401, PLC0415 - before peft, which loads transformers

    # isort: split
    from peft import LoraConfig, inject_adapter_in_model  # noqa: PLC0415
    from transformers.pytorch_utils import Conv1D  # noqa: PLC0415 - GPT-2's linear layers

    without = set(whole)
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
