"""Whether images and videos are like those that the network was trained on.

The statistics of the training data are of its images as they came, before anything resized them: shrinking takes
contrast from line art and texture. So files are looked at as they come, too. A tensor has the network's size, at which
the contrast of the training data is not known, nor its brightness where edges are cut off or filled up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from mms_workloads.contract import ImageInput, Statistics

FAR = 6.0  # standard deviations of the training data's images
LEAST = 0.02  # of a standard deviation: data whose images hardly differ would make every other one anomalous
GREY = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green and blue, as Pillow weighs them (ITU-R 601-2)
LEVELS = 256


def channels(known: Statistics, given: ImageInput) -> int:
    """With how many a file is looked at: with those of the training data, of which a grey network sees the grey."""
    return 1 if given.channels == len(known.imageMean) == 1 else 3


def of_frames(row: int, frames: Iterable[NDArray[np.uint8]], known: Statistics) -> dict[int, str]:
    """frames: of one image or video, each uint8 [H, W, C]; {row: why} where they are far from the training data."""
    counts = np.sum([_counts(one) for one in frames], axis=0)
    levels = np.arange(LEVELS) / (LEVELS - 1)
    mean, square = (counts @ values / counts.sum(axis=1) for values in (levels, levels * levels))
    deviation = np.sqrt(np.maximum(0.0, square - mean * mean))
    why = _far("brightness", mean, known.imageMean, known.imageMeanStd) or _far(
        "contrast", deviation, known.imageStd, known.imageStdStd
    )
    return {row: why} if why else {}


def of_tensors(values: NDArray[np.float32], given: ImageInput, known: Statistics | None) -> dict[int, str]:
    """Rows of float32 [n, C, H, W] or [n, T, C, H, W], 0 to 1, of another brightness, and why."""
    if known is None or given.resize != "Stretch":
        return {}
    means = values.mean(axis=(-2, -1)).reshape(len(values), -1, given.channels).mean(axis=1)
    centre, spread = np.array(known.imageMean), np.array(known.imageMeanStd)
    if given.channels < len(centre):  # that of the sum is at most the sum of the deviations
        centre, spread = (np.array([GREY @ one]) for one in (centre, spread))
    told = [(row, _far("brightness", mean, centre, spread)) for row, mean in enumerate(means)]
    return {row: why for row, why in told if why}


def _counts(frame: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Pixels of each value, by channel [C, 256]: no copy of the image as floats."""
    height, width, depth = frame.shape
    return np.array(Image.fromarray(frame.reshape(height, width) if depth == 1 else frame).histogram()).reshape(
        depth, LEVELS
    )


def _far(
    what: str,
    have: NDArray[np.floating],
    centre: Sequence[float] | NDArray[np.floating],
    spread: Sequence[float] | NDArray[np.floating],
) -> str | None:
    away = float((np.abs(have - np.array(centre)) / np.maximum(np.array(spread), LEAST)).max())
    if not away > FAR:
        return None
    return (
        f"its {what} is {away:.0f} standard deviations from that of the images that the network was trained on: send "
        "images like them, or set server.anomalies of the service to Count or Off"
    )
