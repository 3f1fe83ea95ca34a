"""Images as arrays, by Pillow: the same for training and for serving."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mms_workloads.contract import ImageInput

MAX_PIXELS = 50_000_000  # of one image: a small file may claim to be huge
WIDEST_LINE = 16_384  # pixels of a line of text, as the network sees it
GREY = 127
WIDEST = 65_535  # of 16 bits


class MediaError(ValueError):
    """What was given is no such thing as it should be; the message says why."""


def decode(data: bytes, channels: int) -> NDArray[np.uint8]:
    """JPEG, PNG, WebP, BMP, GIF (its first frame) -> uint8 [H, W, channels], turned as its EXIF says.

    Raises MediaError.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            limited(opened, "image")
            image = eight_bits(ImageOps.exif_transpose(opened), channels)
    except (MediaError, MemoryError):
        raise
    except Exception as error:  # Pillow raises whatever its readers come upon: EOFError, struct.error, KeyError
        kind = "no image" if isinstance(error, UnidentifiedImageError) else f"a damaged image ({error})"
        raise MediaError(f"{len(data)} bytes that are {kind}: send JPEG, PNG, WebP, BMP or GIF") from error
    return np.asarray(image, dtype=np.uint8).reshape(image.height, image.width, channels)


def limited(opened: Image.Image, what: str) -> None:
    """Raises MediaError where it has more pixels than are looked at; none of them is read yet."""
    if opened.width * opened.height > MAX_PIXELS:
        raise MediaError(f"the {what} has {opened.width} x {opened.height} pixels, and {MAX_PIXELS} at most")


def eight_bits(image: Image.Image, channels: int) -> Image.Image:
    """Of mode L or RGB. Grey of 16 bits, which Pillow clips at 255, becomes grey of 8: 65,535 is 255."""
    if image.mode.startswith("I"):
        wide = np.clip(np.asarray(image, dtype=np.float32), 0, WIDEST)
        image = Image.fromarray(np.rint(wide / (WIDEST / 255)).astype(np.uint8))
    return image.convert("L" if channels == 1 else "RGB")


def encode(pixels: NDArray[np.uint8]) -> bytes:
    """uint8 [H, W, C] -> PNG."""
    out = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(out, "PNG")
    return out.getvalue()


def resized(pixels: NDArray[np.uint8], given: ImageInput) -> NDArray[np.uint8]:
    """uint8 [H, W, C] -> uint8 [given.height, given.width, C]; of a Line, as wide as it becomes.

    Raises MediaError: the line is too long.
    """
    height, width = pixels.shape[:2]
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    method = Image.Resampling.BICUBIC if given.interpolation == "Bicubic" else Image.Resampling.BILINEAR
    target = given.width, given.height
    if given.resize == "Crop":
        image = _cropped(image, given, method)
    elif given.resize == "Pad":
        image = ImageOps.pad(image, target, method, color=GREY if image.mode == "L" else (GREY,) * 3)
    elif given.resize == "PadEnd":
        scale = min(given.width / width, given.height / height)
        inside = max(1, round(width * scale)), max(1, round(height * scale))
        page = Image.new(image.mode, target)
        page.paste(image.resize(inside, method))
        image = page
    elif given.resize == "Line":
        wide = max(1, math.ceil(given.height * width / height))
        if wide > WIDEST_LINE:
            raise MediaError(
                f"a line of {width} x {height} pixels becomes {wide} wide at the height of {given.height} that the "
                f"network sees, and {WIDEST_LINE} at most: cut it into parts"
            )
        image = image.resize((wide, given.height), method)
    elif (width, height) != target:
        image = image.resize(target, method)
    return np.asarray(image, dtype=np.uint8).reshape(image.height, image.width, pixels.shape[2])


def _cropped(image: Image.Image, given: ImageInput, method: Image.Resampling) -> Image.Image:
    """The middle of the image as it is when resized until it covers height x width, or more where only a part of it is
    kept. No more than that middle is made: of an image that is much wider than high the whole would be huge.
    """
    wide, high = int(given.width / given.cropPart), int(given.height / given.cropPart)
    if wide * image.height >= high * image.width:
        high = int(wide * image.height / image.width)
    else:
        wide = int(high * image.width / image.height)
    wide, high = max(wide, given.width), max(high, given.height)
    left, top = round((wide - given.width) / 2), round((high - given.height) / 2)
    across, down = image.width / wide, image.height / high
    box = left * across, top * down, (left + given.width) * across, (top + given.height) * down
    return image.resize((given.width, given.height), method, box=box)


def normalised(pixels: NDArray[np.uint8], given: ImageInput) -> NDArray[np.float32]:
    """uint8 [..., H, W, C] -> float32 [..., C, H, W]."""
    return centred(np.moveaxis(pixels.astype(np.float32) / np.float32(255), -1, -3), given)


def centred(values: NDArray[np.float32], given: ImageInput) -> NDArray[np.float32]:
    """float32 [..., C, H, W], 0 to 1, red first -> the same as the network wants them."""
    mean = np.array(given.mean, np.float32).reshape(-1, 1, 1)
    std = np.array(given.std, np.float32).reshape(-1, 1, 1)
    if given.order == "BGR":
        values = values[..., ::-1, :, :]
    found = np.ascontiguousarray((values - mean) / std)
    missing = given.width - found.shape[-1]
    if given.resize == "Line" and missing > 0:
        found = np.pad(found, [(0, 0)] * (found.ndim - 1) + [(0, missing)])
    return found


def placed(boxes: NDArray[np.float32], height: int, width: int, given: ImageInput) -> NDArray[np.float32]:
    """Boxes [..., 4], parts of what the network saw -> parts of the image of that height and width."""
    if given.resize == "Stretch":
        return boxes
    scale = (max if given.resize == "Crop" else min)(given.width / width, given.height / height)
    if given.resize == "Crop":
        scale /= given.cropPart
    inside = np.array([width * scale / given.width, height * scale / given.height], np.float32)
    offset = np.zeros(2, np.float32) if given.resize == "PadEnd" else (1 - inside) / 2
    found = (boxes.reshape(*boxes.shape[:-1], 2, 2) - offset) / inside
    return np.clip(found, 0, 1).reshape(boxes.shape).astype(np.float32)


def tensor(data: bytes, given: ImageInput) -> NDArray[np.float32]:
    """The bytes of an image file -> float32 [C, H, W]. Raises MediaError."""
    return normalised(resized(decode(data, given.channels), given), given)
