"""Images and videos as a network's input, and whether they are like those that it was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mms_workloads.media import images, video
from mms_workloads.media.images import MediaError
from mms_workloads.serve.pipelines.tensors import Prepared, RequestError, Signature, files, not_finite, one_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from mms_workloads.contract import ImageInput, Pipeline, Statistics
    from mms_workloads.serve.pipelines.tensors import Arrays

IMAGE, PIXELS = "IMAGE", "PIXELS"
VIDEO, FRAMES = "VIDEO", "FRAMES"
FAR = 6.0  # standard deviations of the training data's images
LEAST = 0.02  # of a standard deviation: data whose images hardly differ would make every other one anomalous


def image_of(pipeline: Pipeline) -> ImageInput:
    if pipeline.image is None:
        raise ValueError(f"pipeline.json: task {pipeline.task} needs image: its height and width")
    return pipeline.image


def image_inputs(given: ImageInput) -> tuple[Signature, ...]:
    width = -1 if given.resize == "Line" else given.width
    shape = (given.channels, given.height, width)
    return Signature(IMAGE, "BYTES", (1,), optional=True), Signature(PIXELS, "FP32", shape, optional=True)


def prepare_images(inputs: Arrays, pipeline: Pipeline) -> Prepared:
    """IMAGE, or PIXELS of 0 to 1 -> pixels float32 [n, C, H, W]; about: height and width of each image as it came.

    Raises RequestError.
    """
    given = image_of(pipeline)
    if one_of(inputs, (IMAGE, PIXELS)) == PIXELS:
        values = inputs[PIXELS]
        odd = {**out_of_range(values), **unlike(values, pipeline.statistics), **not_finite(values)}
        return Prepared({"pixels": images.centred(values, given)}, [(given.height, given.width)] * len(values), odd)
    found, sizes = [], []
    for row, data in files(inputs[IMAGE], IMAGE):
        try:
            pixels = images.decode(data, given.channels)
        except MediaError as error:
            raise RequestError(f"{IMAGE}[{row}]: {error}") from error
        sizes.append(pixels.shape[:2])
        found.append(images.resized(pixels, given))
    values = _stacked([np.moveaxis(one.astype(np.float32) / np.float32(255), -1, -3) for one in found])
    odd = unlike(values, pipeline.statistics)
    return Prepared({"pixels": _stacked([images.normalised(one, given) for one in found])}, sizes, odd)


def prepare_videos(inputs: Arrays, pipeline: Pipeline, count: int) -> Prepared:
    """VIDEO, or FRAMES of 0 to 1 -> frames float32 [n, T, C, H, W]. Raises RequestError."""
    given = image_of(pipeline)
    if one_of(inputs, (VIDEO, FRAMES)) == FRAMES:
        values = inputs[FRAMES]
        odd = {**out_of_range(values), **_unlike_frames(values, pipeline), **not_finite(values)}
        return Prepared({"frames": images.centred(values, given)}, None, odd)
    found = []
    for row, data in files(inputs[VIDEO], VIDEO):
        try:
            decoded = video.frames(data, count, given.channels)
        except MediaError as error:
            raise RequestError(f"{VIDEO}[{row}]: {error}") from error
        found.append(np.stack([images.resized(one, given) for one in decoded]))
    pixels = np.stack(found)
    odd = _unlike_frames(np.moveaxis(pixels.astype(np.float32) / np.float32(255), -1, -3), pipeline)
    return Prepared({"frames": images.normalised(pixels, given)}, None, odd)


def out_of_range(values: NDArray[np.float32]) -> dict[int, str]:
    """Rows with values that no pixel has."""
    flat = values.reshape(len(values), -1)
    low, high = flat.min(axis=1), flat.max(axis=1)
    return {
        int(row): f"values from {low[row]:.4g} to {high[row]:.4g}: pixels are 0 to 1, red first"
        for row in np.flatnonzero((low < 0) | (high > 1))
    }


def unlike(values: NDArray[np.float32], known: Statistics | None) -> dict[int, str]:
    """Images float32 [n, C, H, W], 0 to 1, that are far from those that the network was trained on, and why."""
    if known is None:
        return {}
    found: dict[int, str] = {}
    means, deviations = values.mean(axis=(2, 3)), values.std(axis=(2, 3))
    for what, have, centre, spread in (
        ("brightness", means, known.imageMean, known.imageMeanStd),
        ("contrast", deviations, known.imageStd, known.imageStdStd),
    ):
        middle, width = np.array(centre, np.float32), np.maximum(np.array(spread, np.float32), LEAST)
        away = np.abs(have - middle) / width
        for row in np.flatnonzero((away > FAR).any(axis=1)):
            found[int(row)] = (
                f"its {what} is {float(away[row].max()):.0f} standard deviations from that of the images that the "
                "network was trained on"
            )
    return found


def _unlike_frames(values: NDArray[np.float32], pipeline: Pipeline) -> dict[int, str]:
    """Videos, by the frame in their middle."""
    return unlike(values[:, values.shape[1] // 2], pipeline.statistics)


def _stacked(arrays: Iterable[NDArray[Any]]) -> NDArray[np.float32]:
    """[n, C, H, W]; lines of other widths are filled up at the right with zeros."""
    found = list(arrays)
    widest = max(one.shape[-1] for one in found)
    return np.stack([np.pad(one, [(0, 0)] * (one.ndim - 1) + [(0, widest - one.shape[-1])]) for one in found])
