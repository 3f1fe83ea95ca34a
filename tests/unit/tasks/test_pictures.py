"""Records' images become the pixels that a service makes of the same image."""

from __future__ import annotations

import numpy as np
import pytest

from mms_workloads.contract import ImageInput
from mms_workloads.media import images
from mms_workloads.tasks import pictures

RED, GREEN, BLUE = ([255, 0, 0], [0, 255, 0], [0, 0, 255])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(4, 3, 3), (4, 3, 1), (4, 3)])
def test_an_array_is_trained_on_as_it_is_served(channels: int, shape: tuple[int, ...]) -> None:
    record = {"input": np.random.default_rng(0).integers(0, 256, shape, np.uint8)}
    trained = pictures.decoded(record, channels)
    (asked,) = pictures.questions([record])
    served = images.decode(asked["IMAGE"][0, 0], channels)
    np.testing.assert_array_equal(trained, served)


def test_grey_is_how_bright_a_colour_looks() -> None:
    given = ImageInput(channels=1, height=1, width=3)
    found = pictures.stacked([{"input": np.array([[RED, GREEN, BLUE]], np.uint8)}], given)
    assert found.flatten().tolist() == [76, 150, 29]
