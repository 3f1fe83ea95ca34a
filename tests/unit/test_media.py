"""Images, videos and sound as arrays."""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from mms_workloads.contract import ImageInput
from mms_workloads.media import audio, images, video
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
    assert np.array_equal(list(video.frames(png(wide), 2, channels))[1], found)


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
            list(video.frames(given, 2, 1))


@pytest.mark.parametrize("size", [(90, 60), (61, 200), (1000, 3)])
@pytest.mark.parametrize("part", [1.0, 0.875])
def test_a_crop_is_the_middle_of_the_resized_image(size: tuple[int, int], part: float) -> None:
    given = ImageInput(height=32, width=32, resize="Crop", cropPart=part)
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    scale = max(int(32 / part) / side for side in size)
    wide, high = (max(32, int(scale * side + 1e-9)) for side in size)
    whole = Image.fromarray(pixels).resize((wide, high), Image.Resampling.BILINEAR)
    left, top = round((wide - 32) / 2), round((high - 32) / 2)
    wanted = np.asarray(whole.crop((left, top, left + 32, top + 32)), int)
    assert np.abs(images.resized(pixels, given) - wanted).max() <= 1


def test_no_more_of_a_long_image_is_made_than_is_kept() -> None:
    given = ImageInput(height=224, width=224, resize="Crop")
    pixels = np.zeros((1, 200_000, 3), np.uint8)
    before = images.Image.Image.resize
    made = []

    def resize(image: Image.Image, size: tuple[int, int], *more: object, **others: object) -> Image.Image:
        made.append(size)
        return before(image, size, *more, **others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "resize", resize)
        assert images.resized(pixels, given).shape == (224, 224, 3)
    assert made == [(224, 224)]


def animated(*, form: str) -> bytes:
    frames = [Image.fromarray(np.full((30, 30), shade, np.uint8)) for shade in (0, 80, 160, 240)]
    out = io.BytesIO()
    frames[0].save(out, form, save_all=True, append_images=frames[1:])
    return out.getvalue()


@pytest.mark.parametrize("form", ["PNG", "GIF", "WEBP"])
def test_a_video_that_is_cut_off(form: str) -> None:
    whole = animated(form=form)
    assert len(list(video.frames(whole, 4, 1))) == 4
    for end in range(len(whole)):
        try:
            list(video.frames(whole[:end], 4, 1))
            images.decode(whole[:end], 3)
        except MediaError as error:
            assert "send" in str(error)  # noqa: PT017 - there need not be one


def test_a_damaged_exif_is_told_as_a_damaged_image() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    out = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(out, "JPEG", exif=exif)
    data = out.getvalue().replace(b"MM\0*\0\0\0\x08\0\x01\x01\x12", b"MM\0*\0\0\0\x08\xff\xff\x01\x12")
    assert data != out.getvalue()
    for end in range(30, 60):
        try:
            images.decode(data[:20] + data[20:end] + data[end + 1 :], 3)
        except MediaError as error:
            assert "damaged" in str(error) or "no image" in str(error)  # noqa: PT017 - as above


def test_an_npy_that_says_it_is_huge() -> None:
    data = video.encoded(np.zeros((2, 4, 4, 1), np.uint8)).replace(b"(2, 4, 4, 1), ", b"(2, 4000000000, 4000000, 1), ")
    with pytest.raises(MediaError, match="no whole"):
        list(video.frames(data, 2, 1))


def test_frames_are_made_one_at_a_time() -> None:
    array = np.zeros((4, 1000, 1000, 1), np.uint8)
    tracemalloc.start()
    for one in video.frames(array, 16, 3):
        assert one.shape == (1000, 1000, 3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40 << 20, "16 frames are 48 MB, one and what it is made from far less"


@pytest.mark.parametrize("rates", [(44_100, 16_000), (8_000, 16_000), (16_000, 8_000), (22_050, 16_000)])
def test_a_long_sound_is_resampled_in_parts_to_the_same(rates: tuple[int, int]) -> None:
    sound = np.random.default_rng(0).normal(0, 0.1, 3 * rates[0]).astype(np.float32)
    found = audio.resampled(sound, *rates)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audio, "TAKEN", 7 * 100)
        np.testing.assert_allclose(audio.resampled(sound, *rates), found, atol=1e-6, rtol=0)


def test_resampling_takes_little_memory() -> None:
    sound = np.zeros(60 * 48_000, np.float32)
    tracemalloc.start()
    audio.resampled(sound, 48_000, 16_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 80 << 20, "the sound and 17 MB of places and samples; all of them at once are 1.1 GB"
