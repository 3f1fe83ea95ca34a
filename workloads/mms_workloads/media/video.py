"""Videos as frames: animated images (GIF, WebP, PNG) by Pillow, and arrays as numpy saves them."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from mms_workloads.media.images import MediaError, eight_bits, limited

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_NPY = b"\x93NUMPY"
_DIMENSIONS = 4


def frames(video: bytes | NDArray[np.uint8], count: int, channels: int) -> Iterator[NDArray[np.uint8]]:
    """`count` frames, evenly spaced from the first to the last, each uint8 [H, W, channels]. One is made at a time: all
    of them at the size that they have may not fit into memory.

    video: a file's bytes (GIF, WebP, PNG, or .npy of uint8 [T, H, W, C]) or such an array. Raises MediaError, at any of
    them.
    """
    if not isinstance(video, bytes):
        if why := no_frames(video):
            raise MediaError(why)
        for place in _evenly(len(video), count):
            yield _of_channels(video[place], channels)
        return
    if video.startswith(_NPY):
        try:
            array = np.load(io.BytesIO(video), allow_pickle=False)
        except Exception as error:  # MemoryError, too: the file says how large the array is
            raise MediaError(f"{len(video)} bytes that are no whole .npy file ({error})") from error
        yield from frames(array, count, channels)
        return
    yield from _animated(video, count, channels)


def _animated(video: bytes, count: int, channels: int) -> Iterator[NDArray[np.uint8]]:
    try:
        with Image.open(io.BytesIO(video)) as opened:
            limited(opened, "video")
            for place in _evenly(getattr(opened, "n_frames", 1), count):
                opened.seek(place)
                frame = np.asarray(eight_bits(opened, channels), dtype=np.uint8)
                yield frame.reshape(opened.height, opened.width, channels)
    except (MediaError, MemoryError):
        raise
    except Exception as error:  # as of images
        why = "no image of a kind that is known" if isinstance(error, UnidentifiedImageError) else str(error)
        raise MediaError(
            f"{len(video)} bytes that are no video that can be read ({why}): send an animated GIF, WebP or PNG, or "
            "frames as .npy"
        ) from error


def no_frames(array: NDArray[Any]) -> str:
    """Why an array is no video; "" where it is one."""
    if array.ndim == _DIMENSIONS and array.dtype == np.uint8 and array.size and array.shape[3] in {1, 3}:
        return ""
    return f"an array {array.dtype} of shape {list(array.shape)}: frames are uint8 [frames, height, width, 1 or 3]"


def encoded(video: bytes | NDArray[np.uint8]) -> bytes:
    """As a client sends it."""
    if isinstance(video, bytes):
        return video
    out = io.BytesIO()
    np.save(out, video)
    return out.getvalue()


def _evenly(there: int, count: int) -> list[int]:
    return [round(place) for place in np.linspace(0, there - 1, count)]


def _of_channels(frame: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    if frame.shape[2] == channels:
        return frame
    grey = frame.mean(axis=2, keepdims=True).astype(np.uint8)
    return grey if channels == 1 else np.repeat(grey, channels, axis=2)
