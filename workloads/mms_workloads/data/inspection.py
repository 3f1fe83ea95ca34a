"""Looks at a record: of which kind its input and label are, and what is to be measured of it."""

from __future__ import annotations

import io
import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

from mms_workloads.data.schema import EMPTY, NOTHING, PAIR, Bad, class_of
from mms_workloads.media import audio, images
from mms_workloads.media.images import MediaError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from PIL.ImageFile import ImageFile

    from mms_workloads.data.items import Item
    from mms_workloads.data.schema import Survey

ANIMATED = {"GIF", "WEBP", "PNG"}  # of others more than one image are versions or pages: MPO of telephones, TIFF
GREY_MODES = {"1", "L", "I", "I;16", "F", "LA"}
MOST_FRAMES = 256  # of an animation: those behind are not looked at
OUTSIDE = 1.0  # pixels by which a box may reach out of its image: tools round differently
CORNERS = 4


class BadRecord(ValueError):  # noqa: N818 - says what it is
    pass


def note(survey: Survey, item: Item) -> None:
    """Adds an item to a survey."""
    if item.record is None:
        survey.reject(Bad(item.file, item.offset, item.problem))
        return
    try:
        given, label = item.record["input"], item.record["label"]
        kind = kind_of(given)
        pixels = _pixels(given) if kind == "image" else None
        sound = _sound(given) if kind == "audio" else None
        labels = label_kind(label, given if kind == "words" else None, pixels.shape[1:3] if pixels else None)
        score = _score(label) if kind == PAIR and labels in {"integer", "number"} else None
    except (BadRecord, MediaError) as error:
        survey.reject(Bad(item.file, item.offset, str(error)))
        return
    survey.good(item.file, item.offset, f"{kind} {labels}", _classes(labels, label))
    if pixels:
        _measure(survey, pixels)
    elif sound is not None:
        rate, seconds = sound
        survey.rates[rate] += 1
        survey.length(seconds)
    elif kind in {"text", "words", PAIR}:
        survey.length(max(map(len, given)) if kind == PAIR else len(given))
        survey.read(given.lower().split() if kind == "text" else " ".join(given).lower().split())
    if score is not None:
        survey.score(score)


def kind_of(given: Any) -> str:
    """Cheap: bytes are told by how they begin. Raises BadRecord."""
    if isinstance(given, str):
        if not given.strip():
            raise BadRecord(EMPTY)
        return _written("text", given)
    if isinstance(given, bytes):
        if not given:
            raise BadRecord(EMPTY)
        return "audio" if given[:4] in {b"RIFF", b"RIFX"} and given[8:12] == b"WAVE" else "image"
    if isinstance(given, np.ndarray):
        return "image" if given.dtype == np.uint8 and given.ndim in {2, 3, 4} else _numbers(given)
    if isinstance(given, list):
        return _list(given)
    if isinstance(given, tuple):
        if not all(isinstance(one, str) and one.strip() for one in given):
            raise BadRecord("one of its two texts is empty, or none")
        return _written(PAIR, *given)
    if given is None:
        raise BadRecord("it has no input")
    raise BadRecord(f"its input is {_name(given)}: a text, words, numbers, an image or a sound is wanted")


def _list(given: list[Any]) -> str:
    if not given:
        raise BadRecord(EMPTY)
    if all(isinstance(one, str) for one in given):
        return _written("words", *given)
    return _numbers(np.asarray(_flat(given)))


def _written(kind: str, *texts: str) -> str:
    """The kind. JSON can name halves of characters (surrogates), which nothing can write. Raises BadRecord."""
    try:
        for text in texts:
            text.encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start].encode(errors="backslashreplace").decode()
        raise BadRecord(f"it has {half}, which is no character") from error
    return kind


def _flat(given: list[Any]) -> list[Any]:
    try:
        array = np.array(given, dtype=np.float64)
    except OverflowError as error:
        raise BadRecord("its input has numbers that are too large") from error
    except (ValueError, TypeError) as error:
        raise BadRecord("its input is a list of neither words nor numbers") from error
    flat: list[Any] = array.ravel().tolist()
    return flat


def _numbers(array: NDArray[Any]) -> str:
    if array.dtype.kind not in "biuf" or not array.size:
        raise BadRecord(f"its input is an array of {array.dtype} with {array.size} entries: numbers are wanted")
    if not np.isfinite(array).all():
        raise BadRecord("its input has entries that are not finite")
    return "numbers"


def label_kind(label: Any, words: Sequence[str] | None, shape: tuple[int, int] | None) -> str:
    """words: of the input, where it is that; shape: height and width, where it is an image. Raises BadRecord."""
    if label is None:
        return NOTHING
    if isinstance(label, str):
        if not label.strip():
            raise BadRecord("its label is empty")
        return _written("string", label)
    if isinstance(label, bool | int):
        return "integer"
    if isinstance(label, float):
        if not math.isfinite(label):
            raise BadRecord("its label is not finite")
        return "number"
    if not isinstance(label, list):
        raise BadRecord(f"its label is {_name(label)}: a word, a number or a list is wanted")
    return _labels(label, words, shape)


def _labels(labels: list[Any], words: Sequence[str] | None, shape: tuple[int, int] | None) -> str:
    if words is not None and len(labels) != len(words):
        raise BadRecord(f"it has {len(words)} words and {len(labels)} labels")
    if not labels:
        return "empty"
    if all(isinstance(one, dict) for one in labels):
        for one in labels:
            _check_box(one, shape)
        return _written("boxes", *(class_of(one["label"]) for one in labels))
    if all(isinstance(one, str | int) for one in labels):
        return _written("tags", *map(class_of, labels))
    raise BadRecord("its label is a list of neither tags nor boxes with {label, box: [x0, y0, x1, y1]}")


def _check_box(one: dict[str, Any], shape: tuple[int, int] | None) -> None:
    box = one.get("box")
    if one.get("label") is None or not isinstance(box, list) or len(box) != CORNERS:
        raise BadRecord("a box is not {label, box: [x0, y0, x1, y1]}")
    if not all(isinstance(v, int | float) and abs(v) <= sys.float_info.max for v in box):
        raise BadRecord(f"box {box} is not of finite numbers")
    x0, y0, x1, y1 = box
    height, width = shape or (math.inf, math.inf)
    inside = min(x0, y0) >= -OUTSIDE and x1 <= width + OUTSIDE and y1 <= height + OUTSIDE
    if not (x0 < x1 and y0 < y1 and inside):
        where = f" of {width} x {height} pixels" if shape else ""
        raise BadRecord(f"box {box} is empty or outside of its image{where}")


def _classes(kind: str, label: Any) -> list[str]:
    if kind in {"string", "integer"}:
        return [class_of(label)]
    if kind == "tags":
        return [class_of(one) for one in label]
    return [class_of(one["label"]) for one in label] if kind == "boxes" else []


def _score(label: float) -> float:
    """Raises BadRecord."""
    try:
        return float(label)
    except OverflowError as error:
        raise BadRecord("its label is too large a number") from error


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is measured of an image. shape: frames, height, width, channels; frames are 1 but for animations.

    counts: int64 [channels, 256], how many values are each.
    """

    shape: tuple[int, int, int, int]
    counts: NDArray[np.int64]


def _pixels(given: bytes | NDArray[np.uint8]) -> _Seen:
    """Raises MediaError."""
    if isinstance(given, np.ndarray):
        array = given.reshape((1,) * (given.ndim == 3) + given.shape) if given.ndim > 2 else given[None, :, :, None]  # noqa: PLR2004
        if not array.size:
            raise MediaError(f"an array of shape {list(given.shape)} has no pixels")
        frames, height, width, channels = array.shape
        return _Seen((frames, height, width, channels), _counts(array))
    try:
        with Image.open(io.BytesIO(given)) as opened:
            channels = 1 if opened.mode in GREY_MODES else 3
            if opened.format in ANIMATED and getattr(opened, "n_frames", 1) > 1:
                return _animation(opened, channels)
    except UnidentifiedImageError as error:  # its own words name an object in memory
        raise MediaError(f"{len(given)} bytes that are no image of a kind that is known") from error
    except (MediaError, MemoryError):
        raise
    except Exception as error:  # what Pillow raises for damaged files is of many kinds
        raise MediaError(f"{len(given)} bytes that are no intact image: {error}") from error
    decoded = images.decode(given, channels)
    return _Seen((1, *decoded.shape), _counts(decoded))


def _animation(opened: ImageFile, channels: int) -> _Seen:
    """One frame is in memory at a time. Raises MediaError, and what Pillow raises."""
    if opened.width * opened.height > images.MAX_PIXELS:
        raise MediaError(f"the animation has {opened.width} x {opened.height} pixels, and {images.MAX_PIXELS} at most")
    counts, frames = np.zeros((channels, 256), np.int64), 0
    for frame, _ in zip(ImageSequence.Iterator(opened), range(MOST_FRAMES), strict=False):
        values = np.asarray(frame.convert("L" if channels == 1 else "RGB"))
        counts += _counts(values.reshape(-1, channels))
        frames += 1
    return _Seen((frames, opened.height, opened.width, channels), counts)


def _counts(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """uint8 [..., C] -> int64 [C, 256]. No copy of the image as floats is made."""
    values = pixels.reshape(-1, pixels.shape[-1])
    return np.stack([np.bincount(values[:, channel], minlength=256) for channel in range(values.shape[1])])


def _measure(survey: Survey, seen: _Seen) -> None:
    scale = np.arange(256) / 255.0
    parts = seen.counts / seen.counts.sum(axis=1, keepdims=True)
    survey.pixels.add(seen.shape, (parts @ scale).tolist(), (parts @ (scale * scale)).tolist())


def _sound(given: bytes) -> tuple[int, float]:
    """Samples per second, seconds. Raises BadRecord, MediaError."""
    found = audio.parse(given)
    held, frames = found.held, found.frames
    if held != frames or not frames:
        raise BadRecord(f"it is cut short: {held} of {frames} samples are there" if frames else "it has no samples")
    if found.tag == audio.FLOAT:
        found.samples()  # all are finite
    return found.rate, frames / found.rate


def _name(value: Any) -> str:
    return f"of type {type(value).__name__}"
