"""Whether an image is like those of the training: as it came, whatever the network sees of it."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mms_workloads.contract import ImageInput, Pipeline
from mms_workloads.data import inspection, public
from mms_workloads.data.items import Item
from mms_workloads.data.schema import Survey
from mms_workloads.media import images, video
from mms_workloads.serve.pipelines import pictures
from tests.unit.serve.networks import request
from tests.unit.tasks import datasets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mms_workloads.contract import Statistics
    from mms_workloads.data.schema import Schema

SIZE = 192


def surveyed(inputs: Sequence[Any]) -> Schema:
    """As a run's counting pass has it."""
    survey = Survey(0)
    for number, one in enumerate(inputs):
        inspection.note(survey, Item(0, number, {"input": one, "label": str(number % 2)}))
    return survey.schema("ImageFolder", ["data"])


def known(inputs: Sequence[Any]) -> Statistics:
    found = surveyed(inputs).images
    assert found is not None
    return found.statistics


def pipeline(statistics: Statistics, **changes: Any) -> Pipeline:
    given = ImageInput(**{"height": 16, "width": 16, "channels": 1, **changes})
    return Pipeline(task="imageClassification", image=given, statistics=statistics)


def odd(asked: Pipeline, *files: bytes) -> dict[int, str]:
    return dict(pictures.prepare_images({"IMAGE": request(*files)}, asked).odd)


def drawings(count: int = 40) -> list[bytes]:
    """Thin black lines on white, all with the same ink: what shrinks to an even grey."""
    made = []
    for number in range(count):
        page = np.full((SIZE, SIZE), 255, np.uint8)
        page[number % 4 :: 4] = 0
        page = page if number % 2 else page.T
        made.append(datasets.png(np.ascontiguousarray(page)))
    return made


def coloured(count: int = 60) -> list[bytes]:
    """Digits in shades of orange."""
    tones = np.array([0.9, 0.45, 0.05]) + np.random.RandomState(0).normal(0, 0.02, (count, 3))
    drawn = datasets.digits()[0][:count, :, :, None] * tones[:, None, None].clip(0, 1)
    return [datasets.png(one.astype(np.uint8)) for one in drawn]


def tensor(data: bytes, given: ImageInput) -> NDArray[np.float32]:
    """As a client prepares it: PIXELS [1, C, H, W]."""
    pixels = images.resized(images.decode(data, given.channels), given)
    return np.moveaxis(pixels.astype(np.float32) / np.float32(255), -1, 0)[None]


@pytest.mark.parametrize("resize", ["Stretch", "Crop", "Pad"])
@pytest.mark.parametrize("channels", [1, 3])
def test_fine_drawings_that_a_small_network_sees_as_grey(resize: str, channels: int) -> None:
    files = drawings()
    asked = pipeline(known(files), resize=resize, channels=channels)
    assert odd(asked, *files) == {}
    assert images.resized(images.decode(files[0], 1), asked.image or ImageInput(height=1, width=1)).std() < 20
    flat, white = (datasets.png(np.full((SIZE, SIZE), tone, np.uint8)) for tone in (191, 255))
    assert "contrast is 22 standard deviations" in odd(asked, files[0], flat)[1]
    assert "brightness" in odd(asked, white)[0]


def test_a_grey_network_of_coloured_data() -> None:
    files = coloured()
    asked = pipeline(known(files), height=8, width=8)
    assert odd(asked, *files) == {}
    blue = datasets.png((datasets.digits()[0][0][:, :, None] * np.array([0, 0.1, 0.9])).astype(np.uint8))
    assert odd(asked, blue), "the colours are those of the file"
    assert asked.image is not None
    pixels = np.concatenate([tensor(one, asked.image) for one in files])
    assert not pictures.prepare_images({"PIXELS": pixels}, asked).odd
    assert "brightness" in pictures.prepare_images({"PIXELS": np.ones((1, 1, 8, 8), np.float32)}, asked).odd[0]


@pytest.mark.parametrize("files", [drawings(), coloured()], ids=["drawings", "coloured"])
def test_made_up_questions_are_like_the_data(files: list[bytes]) -> None:
    """Of encrypted data, of which a golden set asks nothing else."""
    made = [record["input"] for record in public.records("imageClassification", surveyed(files), 20)]
    for channels in (1, 3):
        assert odd(pipeline(known(files), channels=channels, height=8, width=8), *made) == {}


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_data(channels: int) -> None:
    files = [datasets.png(one) for one in datasets.digits()[0][:60]]
    asked = pipeline(known(files), channels=channels, height=8, width=8)
    assert odd(asked, *files) == {}
    assert odd(asked, datasets.png(np.full((8, 8), 255, np.uint8)))


def test_tensors_are_of_the_network_s_size() -> None:
    """At which the training data's contrast is not known, and its brightness only where all of an image is seen."""
    files = drawings()
    for resize, told in (("Stretch", True), ("Crop", False), ("Pad", False)):
        asked = pipeline(known(files), resize=resize)
        assert asked.image is not None
        assert not pictures.prepare_images({"PIXELS": tensor(files[0], asked.image)}, asked).odd
        white = pictures.prepare_images({"PIXELS": np.ones((1, 1, 16, 16), np.float32)}, asked)
        assert bool(white.odd) == told
        out = pictures.prepare_images({"PIXELS": np.full((1, 1, 16, 16), 9, np.float32)}, asked)
        assert "pixels are 0 to 1" in out.odd[0], "the remedy before the rest"


def test_videos_by_all_the_frames_that_are_looked_at() -> None:
    """Each has a flash in its middle, and is as bright as the others."""
    samples = [np.load(io.BytesIO(sample["npy"])) for sample in datasets.videos(30)]
    for one in samples:
        one[len(one) // 2] = 255
    asked = pipeline(known(samples), height=20, width=20).model_copy(update={"task": "videoUnderstanding"})
    sent = [video.encoded(one) for one in samples]
    assert not pictures.prepare_videos({"VIDEO": request(*sent)}, asked, 6).odd
    white = video.encoded(np.full((6, 20, 20, 1), 255, np.uint8))
    assert "brightness" in pictures.prepare_videos({"VIDEO": request(sent[0], white)}, asked, 6).odd[1]
    bright = {"FRAMES": np.ones((1, 6, 1, 20, 20), np.float32)}
    assert "brightness" in pictures.prepare_videos(bright, asked, 6).odd[0]
