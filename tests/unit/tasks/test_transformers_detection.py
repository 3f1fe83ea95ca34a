"""objectDetection from detectors of Transformers, with the library's own loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from mms_workloads.contract import ObjectDetection
from mms_workloads.serve import pipelines
from mms_workloads.store import JobError
from mms_workloads.tasks import transformers_detection
from mms_workloads.tasks.object_detection import ObjectDetector
from tests.unit.serve import transformers_folders
from tests.unit.tasks import datasets, taught
from tests.unit.tasks.test_task_runs import job

import transformers  # isort: skip

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SPEC = ObjectDetection(height=32, width=32)


def detr(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    seen = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage4"]
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False, backbone=None, backbone_config=seen, d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=5,
        num_labels=3,
    )  # fmt: skip
    torch.manual_seed(1)
    transformers.DetrForObjectDetection(config).save_pretrained(folder)


def trained(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def scene() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three images: with two objects, with one, and with none."""
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    boxes, objects = torch.zeros(3, 5, 4), torch.full((3, 5), -1)
    boxes[0, 0], boxes[0, 1], boxes[1, 0] = torch.tensor(
        [[0.1, 0.1, 0.5, 0.5], [0.2, 0.3, 0.5, 0.9], [0.5, 0.5, 1.0, 0.8]]
    )
    objects[0, 0], objects[0, 1], objects[1, 0] = 0, 1, 1
    return pixels, boxes, objects


@pytest.mark.parametrize("make", [detr, transformers_folders.yolos], ids=["detr", "yolos"])
def test_each_image_counts_alike_in_any_batch(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path)
    sizes = []
    for method in ("Head", "LoRA", "Full"):
        network = transformers_detection.build(SPEC, 2, taught.start(tmp_path, None, method), 1).eval()
        sizes.append(trained(network))
    assert sizes == sorted(set(sizes))
    pixels, boxes, objects = scene()
    together = network.loss(pixels, boxes, objects)
    alone = sum(network.loss(pixels[i : i + 1], boxes[i : i + 1], objects[i : i + 1]) for i in range(3))
    torch.testing.assert_close(together, alone)
    found, scores = network(pixels)
    assert (found.shape, scores.shape) == ((3, 5, 4), (3, 5, 2))
    assert bool((found[..., 2:] >= found[..., :2]).all())
    assert 0 <= float(found.detach().min()) <= float(found.detach().max()) <= 1


def test_it_is_trained_served_and_trained_further(tmp_path: Path, one_thread: None) -> None:
    folder = tmp_path / "yolos"
    transformers_folders.yolos(folder)
    uri = datasets.tar_of(tmp_path / "data", datasets.scenes(30, size=32))
    task = {"objectDetection": {"height": 32, "width": 32}}
    training = job(tmp_path, task, uri, pretrained={"store": {"uri": f"file://{folder}"}})
    one = taught.learner(training, tmp_path / "first")
    state, losses = taught.steps(one, 50, 0.01)
    assert losses[-1] < 0.9 * losses[0]
    artifact = tmp_path / "artifact"
    metrics = taught.written(one, state, artifact)
    assert "meanAveragePrecision" in metrics
    served = pipelines.open(artifact)
    image = served.pipeline.image
    assert image is not None
    assert image.mean == pytest.approx([0.485, 0.456, 0.406]), "as the folder's weights are used to"
    asked = one.task.questions([one.corpus.records(0)[0]])[0]
    assert served.answer(asked)["COUNT"].shape == (1, 1)
    network = ObjectDetector(SPEC, ["a", "b"], taught.start(artifact, "objectDetection", "Head")).build(1)
    theirs = state.module.state_dict()
    differ = [name for name, tensor in network.state_dict().items() if not np.array_equal(tensor, theirs[name])]
    assert all("class_labels_classifier.layers.2" in name for name in differ), "other labels have another last layer"
    assert len(differ) == 2


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    transformers_folders.yolos(tmp_path / "yolos")
    with pytest.raises(JobError, match=r"images have 3 channels: set task\.objectDetection\.channels"):
        ObjectDetector(ObjectDetection(channels=1), ["a"], taught.start(tmp_path / "yolos")).build(1)
    (tmp_path / "bert").mkdir()
    transformers_folders.bert(tmp_path / "bert", transformers.BertModel)
    with pytest.raises(JobError, match=r"kind bert, and objectDetection starts from folders of detr and yolos"):
        ObjectDetector(SPEC, ["a"], taught.start(tmp_path / "bert")).build(1)
