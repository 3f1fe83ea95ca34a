"""Records that are nobody's: what a golden set asks where the data is encrypted and may not be told."""

from __future__ import annotations

import io
import wave
from typing import TYPE_CHECKING, Any

import numpy as np

from mms_workloads.media import images

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mms_workloads.data.schema import Images, Schema

SENTENCES = (
    "The quick brown fox jumps over the lazy dog .",
    "It is what it is , and what it is not it is not .",
    "One two three four five six seven eight nine ten .",
    "A good day and a bad night .",
    "The sun rises in the east and sets in the west .",
    "Water boils at one hundred degrees .",
    "A week has seven days , and a year has twelve months .",
    "The cat sat on the mat , and the dog lay by the door .",
    "She sells sea shells by the sea shore .",
    "He who laughs last laughs best .",
    "All roads lead to Rome , but Paris is worth a journey .",
    "Snow is white , grass is green , and the sky is blue .",
    "Two and two make four .",
    "An apple a day keeps the doctor away .",
    "The early bird catches the worm .",
    "Rivers run to the sea , yet the sea is never full .",
    "They came , they saw , and they went home again .",
    "A bird in the hand is worth two in the bush .",
    "Every end is a beginning of something else .",
    "What was said was not meant , and what was meant was not said .",
)
SIDE, FRAMES = 32, 8
RATE, SECONDS = 16_000, 1.0


def records(kind: str, schema: Schema, count: int) -> list[dict[str, Any]]:
    """kind: of the task. Images are as large and bright as those of the schema: others would be anomalous."""
    classes = list(schema.classes)
    return [{"input": _input(kind, i, schema.images), "label": _label(kind, classes, i)} for i in range(count)]


def _input(kind: str, number: int, usual: Images | None) -> Any:
    match kind:
        case "textClassification":
            return SENTENCES[number % len(SENTENCES)]
        case "textMatching":
            return SENTENCES[number % len(SENTENCES)], SENTENCES[(number + number % 2) % len(SENTENCES)]
        case "tokenClassification":
            return SENTENCES[number % len(SENTENCES)].split()
        case "speechRecognition":
            return _tone(220.0 * (1 + number))
        case "videoUnderstanding":
            return np.stack([_spots(number, shift, usual) for shift in range(FRAMES)])
        case _:
            return images.encode(_spots(number, 0, usual))


def _label(kind: str, classes: Sequence[str], number: int) -> Any:
    if kind == "tokenClassification":
        return ["O"] * len(SENTENCES[number % len(SENTENCES)].split())
    return classes[number % len(classes)] if classes else None


def _spots(number: int, shift: int, usual: Images | None) -> NDArray[np.uint8]:
    """uint8 [H, W, 3]: bright spots on black, another pattern for each number.

    Of two values, 0 and a, of which the part p is a, mean and standard deviation are p a and a sqrt(p (1 - p)).
    """
    height, width = (usual.height.median, usual.width.median) if usual else (SIDE, SIDE)
    means, stds = (usual.statistics.imageMean, usual.statistics.imageStd) if usual else ([0.5], [0.25])
    y, x = np.mgrid[0:height, 0:width]
    pattern = np.sin((1 + number % 5) * np.pi * x / width + shift / 2) * np.cos(
        (1 + number % 3) * np.pi * y / height + number
    )
    order = np.argsort(np.argsort(pattern, axis=None)).reshape(height, width) / pattern.size
    out = np.zeros((height, width, 3), np.uint8)
    for channel in range(3):
        mean, std = means[min(channel, len(means) - 1)], stds[min(channel, len(stds) - 1)]
        part = mean * mean / max(1e-9, mean * mean + std * std)
        out[:, :, channel] = np.where(order >= 1 - part, min(255, round(255 * mean / max(1e-9, part))), 0)
    return out


def _tone(frequency: float) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        time = np.arange(int(RATE * SECONDS)) / RATE
        file.writeframes((9000 * np.sin(2 * np.pi * frequency * time)).astype("<i2").tobytes())
    return out.getvalue()
