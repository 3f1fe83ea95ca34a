"""Images, videos and sound as arrays."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from mms_workloads.media import images, video
from mms_workloads.media.images import MediaError


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_of_16_bits_is_scaled(channels: int) -> None:
    wide = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    found = images.decode(png(wide), channels)
    assert found.shape == (16, 16, channels)
    assert np.array_equal(found, np.repeat((wide // 257)[:, :, None], channels, axis=2))
    assert np.array_equal(video.frames(png(wide), 2, channels)[1], found)


def test_grey_of_16_bits_is_rounded() -> None:
    wide = np.array([[0, 128, 129, 65_535 - 128, 65_535]], np.uint16)
    assert images.decode(png(wide), 1)[0, :, 0].tolist() == [0, 0, 1, 255, 255]


def test_integers_of_32_bits_are_those_of_16() -> None:
    out = io.BytesIO()
    Image.fromarray(np.array([[-5, 0, 257, 65_535, 70_000]], np.int32)).save(out, "TIFF")
    assert images.decode(out.getvalue(), 1)[0, :, 0].tolist() == [0, 0, 1, 255, 255]


def test_grey_of_8_bits_stays() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(images.decode(png(pixels), 1)[:, :, 0], pixels)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3), (2, 8, 8, 2), (0, 8, 8, 1)])
def test_arrays_that_are_no_videos(shape: tuple[int, ...]) -> None:
    array = np.zeros(shape, np.uint8)
    for given in (array, video.encoded(array)):
        with pytest.raises(MediaError, match=r"frames are uint8 \[frames, height, width, 1 or 3\]"):
            video.frames(given, 2, 1)
