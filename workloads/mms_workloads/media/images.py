"""Images as arrays, by Pillow: the same for training and for serving."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mms_workloads.contract import ImageInput

MAX_PIXELS = 50_000_000  # of one image: a small file may claim to be huge
GREY = 127


class MediaError(ValueError):
    """What was given is no such thing as it should be; the message says why."""


def decode(data: bytes, channels: int) -> NDArray[np.uint8]:
    """JPEG, PNG, WebP, BMP, GIF (its first frame) -> uint8 [H, W, channels], turned as its EXIF says.

    Raises MediaError.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise MediaError(f"the image has {opened.width} x {opened.height} pixels, and {MAX_PIXELS} at most")
            upright = ImageOps.exif_transpose(opened)
            image = upright.convert("L" if channels == 1 else "RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, MediaError):
            raise
        kind = "no image" if isinstance(error, UnidentifiedImageError) else f"a damaged image ({error})"
        raise MediaError(f"{len(data)} bytes that are {kind}: send JPEG, PNG, WebP, BMP or GIF") from error
    return np.asarray(image, dtype=np.uint8).reshape(image.height, image.width, channels)


def encode(pixels: NDArray[np.uint8]) -> bytes:
    """uint8 [H, W, C] -> PNG."""
    out = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(out, "PNG")
    return out.getvalue()


def resized(pixels: NDArray[np.uint8], given: ImageInput) -> NDArray[np.uint8]:
    """uint8 [H, W, C] -> uint8 [given.height, given.width, C]."""
    height, width = pixels.shape[:2]
    if (height, width) == (given.height, given.width):
        return pixels
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    target = given.width, given.height
    if given.resize == "Crop":
        image = ImageOps.fit(image, target, Image.Resampling.BILINEAR)
    elif given.resize == "Pad":
        image = ImageOps.pad(image, target, Image.Resampling.BILINEAR, color=GREY if image.mode == "L" else (GREY,) * 3)
    else:
        image = image.resize(target, Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8).reshape(given.height, given.width, pixels.shape[2])


def normalised(pixels: NDArray[np.uint8], given: ImageInput) -> NDArray[np.float32]:
    """uint8 [..., H, W, C] -> float32 [..., C, H, W]."""
    mean, std = np.array(given.mean, np.float32), np.array(given.std, np.float32)
    scaled = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(np.moveaxis(scaled, -1, -3))


def tensor(data: bytes, given: ImageInput) -> NDArray[np.float32]:
    """The bytes of an image file -> float32 [C, H, W]. Raises MediaError."""
    return normalised(resized(decode(data, given.channels), given), given)
