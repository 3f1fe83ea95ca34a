"""videoUnderstanding from networks of Transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from mms_workloads import vision  # noqa: F401 - before Transformers looks for torchvision
from mms_workloads.contract import VideoUnderstanding
from mms_workloads.serve import pipelines
from mms_workloads.store import JobError
from mms_workloads.tasks import transformers_video
from mms_workloads.tasks.video_understanding import VideoLabeller
from tests.unit.serve.transformers_folders import TINY
from tests.unit.tasks import datasets, taught
from tests.unit.tasks.test_task_runs import job

import transformers  # isort: skip

if TYPE_CHECKING:
    from pathlib import Path

SPEC = VideoUnderstanding(height=16, width=16, frames=4)
SHAPE = {"image_size": 16, "num_frames": 4, "num_labels": 5, **TINY}
NETWORKS = {
    "videomae": lambda: transformers.VideoMAEForVideoClassification(
        transformers.VideoMAEConfig(patch_size=8, tubelet_size=2, **SHAPE)
    ),
    "timesformer": lambda: transformers.TimesformerForVideoClassification(
        transformers.TimesformerConfig(patch_size=8, **SHAPE)
    ),
    "vivit": lambda: transformers.VivitForVideoClassification(
        transformers.VivitConfig(tubelet_size=[2, 8, 8], **SHAPE)
    ),
}


def saved(name: str, folder: Path) -> Path:
    torch.manual_seed(1)
    NETWORKS[name]().save_pretrained(folder)
    transformers.VideoMAEImageProcessor(image_mean=[0.4, 0.4, 0.4], image_std=[0.2, 0.2, 0.2]).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", NETWORKS)
def test_what_each_method_trains(tmp_path: Path, name: str) -> None:
    folder = saved(name, tmp_path)
    sizes = []
    for method in ("Head", "LoRA", "Full"):
        network = transformers_video.build(SPEC, 3, taught.start(folder, None, method), 1).eval()
        sizes.append(sum(p.numel() for p in network.parameters() if p.requires_grad))
        assert network(torch.zeros(2, 4, 3, 16, 16)).shape == (2, 3)
    assert sizes[0] == 3 * (16 + 1)
    assert sizes == sorted(set(sizes))


def test_it_is_trained_served_and_trained_further(tmp_path: Path, one_thread: None) -> None:
    folder = saved("videomae", tmp_path / "videomae")
    uri = datasets.tar_of(tmp_path / "data", datasets.videos(40))
    task = {"videoUnderstanding": {"height": 16, "width": 16, "frames": 4}}
    training = job(tmp_path, task, uri, pretrained={"store": {"uri": f"file://{folder}"}})
    one = taught.learner(training, tmp_path / "first")
    state, losses = taught.steps(one, 30, 0.01)
    assert losses[-1] < 0.7 * losses[0]
    artifact = tmp_path / "artifact"
    assert set(taught.written(one, state, artifact)) == {"accuracy", "macroF1"}
    served = pipelines.open(artifact)
    image = served.pipeline.image
    assert image is not None
    assert image.mean == pytest.approx([0.4, 0.4, 0.4]), "as the folder's weights are used to"
    record = one.corpus.records(0)[0]
    answer = served.answer(one.task.questions([record])[0])
    best = one.task._logits(state.module.eval(), one.task.prepare([record])).argmax()  # type: ignore[attr-defined]
    assert answer["LABELS"][0, 0].decode() == one.task.classes[int(best)]  # type: ignore[attr-defined]
    again = VideoLabeller(SPEC, served.pipeline.labels, taught.start(artifact, "videoUnderstanding"))
    theirs = state.module.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in again.build(9).state_dict().items())
    assert list(again.input.mean) == pytest.approx([0.4, 0.4, 0.4])


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    folder = saved("timesformer", tmp_path / "timesformer")
    with pytest.raises(JobError, match=r"set frames: 4, height: 16 there"):
        VideoLabeller(VideoUnderstanding(height=32, width=16, frames=8), ["a", "b"], taught.start(folder)).build(1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(JobError, match=r"kind bert, and videoUnderstanding starts from folders of videomae"):
        VideoLabeller(SPEC, ["a", "b"], taught.start(tmp_path / "other")).build(1)
