"""Networks of image classifiers: folders of timm, weights of torchvision, and what trainings have made of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mms_workloads import vision  # noqa: F401 - before timm and what else looks for torchvision
from mms_workloads.contract import Adapter, ImageClassification
from mms_workloads.serve import pipelines
from mms_workloads.store import JobError
from mms_workloads.tasks import image_networks, starting
from mms_workloads.tasks.image_classification import ImageClassifier
from mms_workloads.tasks.starting import Start
from tests.unit.tasks import datasets, taught
from tests.unit.tasks.test_starting import trained
from tests.unit.tasks.test_task_runs import job

import timm  # isort: skip
import transformers  # isort: skip
from torchvision import models  # isort: skip

if TYPE_CHECKING:
    from pathlib import Path

SPEC = ImageClassification(height=32, width=32, channels=3, architecture="timm/resnet10t")


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a hub has it: a network of a thousand labels, with statistics of its own."""
    folder = tmp_path_factory.mktemp("timm")
    torch.manual_seed(3)
    network = timm.create_model("resnet10t", num_classes=7)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
    save_file(network.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": "resnet10t",
        "num_classes": 7,
        "pretrained_cfg": {"mean": [0.4, 0.4, 0.4], "std": [0.3] * 3},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_folder_of_timm(timm_folder: Path) -> None:
    whole, head, lora = (
        image_networks.build(Start(timm_folder, "u", None, method), SPEC, 3, 1) for method in ("Full", "Head", "LoRA")
    )
    assert trained(head) == 512 * 3 + 3
    assert trained(head) < trained(lora) < trained(whole) / 2
    pixels = torch.randn(2, 3, 32, 32)
    for network in (whole, head, lora):
        assert network.eval()(pixels=pixels).shape == (2, 3)
    mean, std = starting.normalisation(Start(timm_folder, "u"), SPEC)
    assert (list(mean), list(std)) == ([0.4, 0.4, 0.4], [0.3, 0.3, 0.3])


def test_every_process_starts_alike(timm_folder: Path) -> None:
    for method in ("Full", "Head", "LoRA"):
        one, other = (
            image_networks.build(Start(timm_folder, "u", None, method), SPEC, 3, 5).state_dict() for _ in range(2)
        )
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one), method


def test_adapters_become_part_of_the_layers(timm_folder: Path) -> None:
    network = image_networks.build(Start(timm_folder, "u", None, "LoRA", Adapter(rank=2)), SPEC, 3, 1).eval()
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = network(pixels=pixels)
        merged = starting.merged(network)
        torch.testing.assert_close(merged(pixels=pixels), before, rtol=1e-3, atol=1e-4)
    assert not any("lora" in name for name in merged.state_dict())


def test_normalisation_by_batches_needs_weights() -> None:
    with pytest.raises(JobError, match=r"normalises by batches.*convnext"):
        image_networks.build(starting.NOTHING, SPEC, 3, 1)
    with pytest.raises(JobError, match="timm knows no model"):
        image_networks.build(starting.NOTHING, SPEC.model_copy(update={"architecture": "timm/nosuch"}), 3, 1)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"height": 32, "width": 32, "channels": 3}, ""),
        ({"height": 48, "width": 32, "channels": 3}, r"3 channels and 48 x 32 pixels.*says 32, and 3 channels"),
        ({"height": 32, "width": 32, "channels": 1}, r"1 channels and 32 x 32 pixels.*set task\.imageClassification"),
    ],
)
def test_images_of_the_size_of_a_vit(tmp_path: Path, given: dict[str, int], why: str) -> None:
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=16
    )
    transformers.ViTModel(config).save_pretrained(tmp_path)
    spec = ImageClassification(architecture="Pretrained", **given)
    if not why:
        found = image_networks.build(taught.start(tmp_path), spec, 3, 1)(torch.zeros(1, 3, 32, 32))
        assert found.shape == (1, 3)
        return
    with pytest.raises(JobError, match=why):
        image_networks.build(taught.start(tmp_path), spec, 3, 1)


SHUFFLED = ImageClassification(height=32, width=32, channels=3, architecture="torchvision/shufflenet_v2_x0_5")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As torchvision publishes them: a state_dict alone, of labels of its own, with statistics of its layers."""
    folder = tmp_path_factory.mktemp("torchvision")
    torch.manual_seed(3)
    network = models.get_model("shufflenet_v2_x0_5", weights=None, num_classes=7)
    with torch.no_grad():
        for _ in range(20):
            network.train()(torch.randn(16, 3, 32, 32))
    torch.save(network.state_dict(), folder / "shufflenetv2_x0.5-f707e7126e.pth")
    return folder


def test_weights_of_torchvision(weights: Path) -> None:
    given = torch.load(next(weights.iterdir()), weights_only=True)
    sizes = []
    for method in ("Head", "LoRA", "Full"):
        network = image_networks.build(Start(weights, "u", None, method), SHUFFLED, 3, 1)
        sizes.append(trained(network))
        if method != "LoRA":
            found = network.network.state_dict()  # type: ignore[operator, union-attr]
            other = {name for name, one in found.items() if one.dim() and not torch.equal(one, given[name].float())}
            assert other == {"fc.weight", "fc.bias"}
        assert network.eval()(pixels=torch.randn(2, 3, 32, 32)).shape == (2, 3)
    assert sizes[0] == 1024 * 3 + 3
    assert sizes == sorted(set(sizes))
    mean, std = starting.normalisation(Start(weights, "u"), SHUFFLED)
    assert (list(mean), list(std)) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), "those of ImageNet"


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "mnasnet0_5"])
def test_as_safetensors(tmp_path: Path, name: str) -> None:
    save_file(models.get_model(name, weights=None, num_classes=7).state_dict(), tmp_path / "model.safetensors")
    spec = SHUFFLED.model_copy(update={"architecture": f"torchvision/{name}"})
    found = image_networks.build(taught.start(tmp_path, method="Head"), spec, 7, 1)
    free = [parameter for parameter in found.parameters() if parameter.requires_grad]
    assert [list(parameter.shape)[:1] for parameter in free] == [[7], [7]]


def test_adapters_that_are_asked() -> None:
    """PyTorch's own attention takes its layers' weights, and asks none of them."""
    made = models.VisionTransformer(32, 16, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=3)
    network = starting.trained_parts(made, made.heads, Start(None, "u", None, "LoRA", Adapter(rank=2)), 1)
    network(torch.randn(2, 3, 32, 32)).sum().backward()
    names = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in network.named_parameters() if parameter.grad is not None} == names
    assert any("mlp" in name and "lora_A" in name for name in names)


def save_nothing(folder: Path) -> None:
    (folder / "readme.md").write_text("no weights")


def save_twice(folder: Path) -> None:
    for name in ("a.pth", "b.pth"):
        torch.save({}, folder / name)


def save_another(folder: Path) -> None:
    torch.save(models.resnet18(num_classes=7).state_dict(), folder / "resnet18.pth")


def save_whole(folder: Path) -> None:
    torch.save(nn.Linear(2, 2), folder / "network.pt")


def save_around(folder: Path) -> None:
    torch.save({"epoch": 3, "model": {}}, folder / "checkpoint.pth")


@pytest.mark.parametrize(
    ("save", "why"),
    [
        (save_nothing, r"one file of a state_dict .* and there are: none"),
        (save_twice, r"there are: a\.pth, b\.pth"),
        (save_another, r"its network is of another shape"),
        (save_whole, r"network\.pt cannot be read as a state_dict"),
        (save_around, r"checkpoint\.pth is no state_dict"),
        (lambda folder: (folder / "a.safetensors").write_bytes(b"{}"), r"a\.safetensors cannot be read"),
    ],
    ids=["none", "two", "another network's", "a pickle", "a training's", "cut short"],
)
def test_what_are_no_weights_of_torchvision(tmp_path: Path, save: Any, why: str) -> None:
    save(tmp_path)
    with pytest.raises(JobError, match=why):
        image_networks.build(taught.start(tmp_path), SHUFFLED, 3, 1)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"architecture": "torchvision/nosuch"}, "torchvision knows no classifier 'nosuch'"),
        ({"architecture": "torchvision/fasterrcnn_resnet50_fpn"}, "knows no classifier"),
        ({"channels": 1}, "3 channels: set task"),
        ({}, "normalises by batches"),
        (
            {"architecture": "torchvision/vit_b_16", "height": 40, "width": 40},
            r"no images of 40 pixels .*task\.imageClassification\.height and width to a multiple of 16",
        ),
        (
            {"architecture": "torchvision/vit_b_16", "height": 48},
            r"square images, and task\.imageClassification\.height is 48 and width 32: set them to the same",
        ),
    ],
)
def test_networks_that_torchvision_has_not(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(JobError, match=why):
        image_networks.build(starting.NOTHING, SHUFFLED.model_copy(update=changes), 3, 1)


def test_a_size_that_a_network_of_timm_is_not_made_for() -> None:
    spec = SPEC.model_copy(update={"architecture": "timm/pit_ti_224"})
    with pytest.raises(JobError, match=r"pit_ti_224 does not take .* 32 x 32 .*: set task\.imageClassification"):
        image_networks.build(starting.NOTHING, spec, 3, 1)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_it_is_trained_served_and_trained_further(
    tmp_path: Path, timm_folder: Path, weights: Path, library: str, one_thread: None
) -> None:
    folder, spec = {"timm": (timm_folder, SPEC), "torchvision": (weights, SHUFFLED)}[library]
    given = spec if library == "torchvision" else spec.model_copy(update={"architecture": "Small"})
    uri = datasets.image_folder(tmp_path / "digits", 200)
    task = {"imageClassification": given.model_dump()}
    pretrained = {"store": {"uri": f"file://{folder}"}}
    training = job(tmp_path, task, uri, pretrained=pretrained, data={"blockBytes": 2 << 10})
    one = taught.learner(training, tmp_path / "first")
    state, losses = taught.steps(one, 24, 0.002)
    assert losses[-1] < 0.8 * losses[0]
    artifact = tmp_path / "artifact"
    assert "accuracy" in taught.written(one, state, artifact)
    assert json.loads((artifact / "model.json").read_text())["architecture"] == spec.architecture
    labels = pipelines.open(artifact).pipeline.labels
    again = ImageClassifier(spec, labels, taught.start(artifact, "imageClassification"))
    theirs = state.module.state_dict()
    assert all(torch.equal(one, theirs[name]) for name, one in again.build(9).state_dict().items() if one.dim())
    assert list(again.input.mean) == pytest.approx(list(one.task.input.mean))  # type: ignore[attr-defined]
