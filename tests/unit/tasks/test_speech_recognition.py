"""The network of ours that hears: a sound is told as if it were alone, however long it is and whatever its rate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from mms_workloads.contract import SpeechRecognition
from mms_workloads.serve import pipelines
from mms_workloads.tasks import exporting
from mms_workloads.tasks.speech_recognition import SpeechRecogniser
from mms_workloads.tasks.starting import NOTHING

if TYPE_CHECKING:
    from pathlib import Path

SPEC = SpeechRecognition(alphabet="ab ", sampleRate=8000, maxSeconds=2, dimensions=32, layers=2, heads=2)
SOUNDS = torch.randn(3, 12_000, generator=torch.Generator().manual_seed(1)) / 10
LENGTHS = [12_000, 3_100, 7_777]


def network(spec: SpeechRecognition = SPEC) -> torch.nn.Module:
    made = SpeechRecogniser(spec, NOTHING).build(1).eval()
    with torch.no_grad():  # so that it tells letters, too
        made.get_parameter("head.bias").copy_(torch.linspace(-1, 1, 4))
    return made


@pytest.mark.parametrize("rest", [0.0, 3.0])
def test_a_sound_is_told_as_alone(rest: float) -> None:
    """Whatever it is filled up with."""
    made = network()
    sounds = SOUNDS.clone()
    for row, length in enumerate(LENGTHS):
        sounds[row, length:] = rest
    with torch.no_grad():
        together = made(sounds, torch.tensor(LENGTHS))
        for row, length in enumerate(LENGTHS):
            alone = made(SOUNDS[row : row + 1, :length], torch.tensor([length]))[0]
            own = int(made.steps(torch.tensor(length)))  # type: ignore[operator]
            torch.testing.assert_close(together[row, :own], alone[:own], rtol=1e-4, atol=1e-5)
            assert together[row, own:].argmax(dim=1).eq(0).all(), "what follows a sound is silence"
            assert together[row, :own].argmax(dim=1).ne(0).any()


@pytest.mark.parametrize("samples", [1, 79, 200, 201])
def test_a_sound_of_less_than_a_window(samples: int) -> None:
    with torch.no_grad():
        found = network()(torch.ones(2, samples) / 10, torch.tensor([samples, 1]))
    assert found.shape[1] >= 1
    assert bool(torch.isfinite(found).all())


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100])
@pytest.mark.parametrize("seconds", [0.5, 30.0])
def test_a_sound_as_long_as_there_may_be(rate: int, seconds: float) -> None:
    spec = SPEC.model_copy(update={"sampleRate": rate, "maxSeconds": seconds, "layers": 0})
    made = network(spec)
    longest = round(seconds * rate)
    with torch.no_grad():
        found = made(torch.zeros(1, longest), torch.tensor([longest]))
    assert found.shape[1] >= int(made.steps(torch.tensor(longest)))  # type: ignore[operator]


def test_it_is_served_alone_and_together_alike(tmp_path: Path) -> None:
    task = SpeechRecogniser(SPEC, NOTHING)
    module, example, varying = task.exported(network())
    exporting.to_onnx(module, example, varying, task.outputs(), tmp_path / "model.onnx")
    (tmp_path / "pipeline.json").write_text(task.pipeline(tmp_path).model_dump_json())
    served = pipelines.open(tmp_path)
    asked = [
        {"SAMPLES": SOUNDS[row : row + 1, :length].numpy().clip(-1, 1)}
        for row, length in enumerate([*LENGTHS[:2], 150])
    ]
    alone = [served.answer(one)["TEXT"][0, 0] for one in asked]
    assert any(alone)
    samples, lengths = np.zeros((3, LENGTHS[0]), np.float32), np.array([[LENGTHS[0]], [LENGTHS[1]], [150]])
    for row, one in enumerate(asked):
        samples[row, : one["SAMPLES"].shape[1]] = one["SAMPLES"]
    together = served.answer({"SAMPLES": samples, "LENGTHS": lengths})["TEXT"]
    assert together[:, 0].tolist() == alone
