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

SENTENCES = (
    "The quick brown fox jumps over the lazy dog .",
    "It is what it is , and what it is not it is not .",
    "One two three four five six seven eight nine ten .",
    "A good day and a bad night .",
)
SIDE, FRAMES = 32, 8
RATE, SECONDS = 16_000, 1.0


def records(kind: str, classes: Sequence[str], count: int) -> list[dict[str, Any]]:
    """kind: of the task."""
    return [{"input": _input(kind, i), "label": _label(kind, classes, i)} for i in range(count)]


def _input(kind: str, number: int) -> Any:
    match kind:
        case "textClassification":
            return SENTENCES[number % len(SENTENCES)]
        case "tokenClassification":
            return SENTENCES[number % len(SENTENCES)].split()
        case "speechRecognition":
            return _tone(220.0 * (1 + number))
        case "videoUnderstanding":
            return np.stack([_waves(number, shift) for shift in range(FRAMES)])
        case _:
            return images.encode(_waves(number, 0))


def _label(kind: str, classes: Sequence[str], number: int) -> Any:
    if kind == "tokenClassification":
        return ["O"] * len(SENTENCES[number % len(SENTENCES)].split())
    return classes[number % len(classes)] if classes else None


def _waves(number: int, shift: int) -> NDArray[np.uint8]:
    """uint8 [SIDE, SIDE, 3]: another pattern for each number."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE * 2 * np.pi
    grey = np.sin((1 + number % 5) * x + shift / 2) * np.cos((1 + number % 3) * y + number)
    return np.repeat(((grey + 1) * 127.5).astype(np.uint8)[:, :, None], 3, axis=2)


def _tone(frequency: float) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        time = np.arange(int(RATE * SECONDS)) / RATE
        file.writeframes((9000 * np.sin(2 * np.pi * frequency * time)).astype("<i2").tobytes())
    return out.getvalue()
