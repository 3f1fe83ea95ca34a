"""Images and videos as a network's input."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mms_workloads.media import images, video
from mms_workloads.media.images import MediaError
from mms_workloads.serve.pipelines import likeness
from mms_workloads.serve.pipelines.tensors import Prepared, RequestError, Signature, files, not_finite, one_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from mms_workloads.contract import ImageInput, Pipeline
    from mms_workloads.serve.pipelines.tensors import Arrays

IMAGE, PIXELS = "IMAGE", "PIXELS"
VIDEO, FRAMES = "VIDEO", "FRAMES"


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
        unlike = likeness.of_tensors(values, given, pipeline.statistics)
        odd = {**unlike, **out_of_range(values), **not_finite(values)}
        return Prepared({"pixels": images.centred(values, given)}, [(given.height, given.width)] * len(values), odd)
    found, sizes, odd = [], [], dict[int, str]()
    for row, data in files(inputs[IMAGE], IMAGE):
        try:
            pixels = images.decode(data, given.channels)
            odd |= _unlike(row, pipeline, [pixels], partial(_frames, data))
            found.append(images.resized(pixels, given))
        except MediaError as error:
            raise RequestError(f"{IMAGE}[{row}]: {error}") from error
        sizes.append(pixels.shape[:2])
    return Prepared({"pixels": _stacked([images.normalised(one, given) for one in found])}, sizes, odd)


def prepare_videos(inputs: Arrays, pipeline: Pipeline, count: int) -> Prepared:
    """VIDEO, or FRAMES of 0 to 1 -> frames float32 [n, T, C, H, W]. Raises RequestError."""
    given = image_of(pipeline)
    if one_of(inputs, (VIDEO, FRAMES)) == FRAMES:
        values = inputs[FRAMES]
        unlike = likeness.of_tensors(values, given, pipeline.statistics)
        odd = {**unlike, **out_of_range(values), **not_finite(values)}
        return Prepared({"frames": images.centred(values, given)}, None, odd)
    found, odd = [], dict[int, str]()
    for row, data in files(inputs[VIDEO], VIDEO):
        small: list[NDArray[np.uint8]] = []
        try:
            frames = _resized(video.frames(data, count, given.channels), given, small)
            odd |= _unlike(row, pipeline, frames, partial(video.frames, data, count))
            deque(frames, maxlen=0)  # those that nobody has looked at
        except MediaError as error:
            raise RequestError(f"{VIDEO}[{row}]: {error}") from error
        found.append(np.stack(small))
    return Prepared({"frames": images.normalised(np.stack(found), given)}, None, odd)


def out_of_range(values: NDArray[np.float32]) -> dict[int, str]:
    """Rows with values that no pixel has."""
    flat = values.reshape(len(values), -1)
    low, high = flat.min(axis=1), flat.max(axis=1)
    return {
        int(row): f"values from {low[row]:.4g} to {high[row]:.4g}: pixels are 0 to 1, red first"
        for row in np.flatnonzero((low < 0) | (high > 1))
    }


def _unlike(
    row: int,
    pipeline: Pipeline,
    frames: Iterable[NDArray[np.uint8]],
    decoded: Callable[[int], Iterable[NDArray[np.uint8]]],
) -> dict[int, str]:
    """{row: why} of a file that is unlike the training data. decoded: its frames with so many channels."""
    given, known = image_of(pipeline), pipeline.statistics
    if known is None:
        return {}
    channels = likeness.channels(known, given)
    return likeness.of_frames(row, frames if channels == given.channels else decoded(channels), known)


def _resized(
    frames: Iterable[NDArray[np.uint8]], given: ImageInput, small: list[NDArray[np.uint8]]
) -> Iterator[NDArray[np.uint8]]:
    """The frames as they are, each of which is added to `small` at the network's size."""
    for one in frames:
        small.append(images.resized(one, given))
        yield one


def _frames(data: bytes, channels: int) -> list[NDArray[np.uint8]]:
    return [images.decode(data, channels)]


def _stacked(arrays: Iterable[NDArray[Any]]) -> NDArray[np.float32]:
    """[n, C, H, W]; lines of other widths are filled up at the right with zeros."""
    found = list(arrays)
    widest = max(one.shape[-1] for one in found)
    return np.stack([np.pad(one, [(0, 0)] * (one.ndim - 1) + [(0, widest - one.shape[-1])]) for one in found])
