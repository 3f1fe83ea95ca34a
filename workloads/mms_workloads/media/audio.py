"""Sound as arrays: WAV of whole numbers or floats, one channel, resampled by a windowed sinc."""

from __future__ import annotations

import io
import math
import wave
from typing import TYPE_CHECKING

import numpy as np

from mms_workloads.media.images import MediaError

if TYPE_CHECKING:
    from numpy.typing import NDArray

TAKEN = 2**20  # samples that are weighed at a time: as many outputs as that has room for
ZEROS = 16  # crossings of the sinc to each side: below -60 dB of what folds back


def decode(data: bytes, rate: int, most: float = math.inf) -> NDArray[np.float32]:
    """A WAV file's bytes -> float32 [samples], -1 to 1, the mean of its channels, at `rate`.

    Raises MediaError: it is no such file, or takes more than `most` seconds.
    """
    try:
        with wave.open(io.BytesIO(data)) as file:
            width, channels, found = file.getsampwidth(), file.getnchannels(), file.getframerate()
            raw = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise MediaError(f"{len(data)} bytes that are no WAV file of whole numbers ({error}): send PCM WAV") from error
    raw = raw[: len(raw) - len(raw) % (width * channels)]
    if not raw:
        raise MediaError("the WAV file has no samples")
    samples = _floats(raw, width).reshape(-1, channels).mean(axis=1, dtype=np.float32)
    if not found:
        raise MediaError("the WAV file says that it has 0 samples a second")
    if math.ceil(samples.size * rate / found) > most * rate:  # before its samples at `rate` are made
        raise MediaError(f"{samples.size / found:.1f} s of sound, and {most:g} s at most: cut it")
    return resampled(samples, found, rate)


def _floats(raw: bytes, width: int) -> NDArray[np.float32]:
    if width == 1:
        return (np.frombuffer(raw, np.uint8).astype(np.float32) - np.float32(128)) / np.float32(128)
    if width == 3:  # noqa: PLR2004 - bytes of a sample
        parts = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        wide = np.zeros((parts.shape[0], 4), np.uint8)
        wide[:, 1:] = parts
        return wide.view("<i4")[:, 0].astype(np.float32) / np.float32(2**31)
    return np.frombuffer(raw, f"<i{width}").astype(np.float32) / np.float32(2 ** (8 * width - 1))


def normalised(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 [samples] of mean 0 and variance 1, as Wav2Vec2FeatureExtractor has it."""
    return np.asarray((samples - samples.mean()) / np.sqrt(samples.var() + 1e-7), np.float32)


def resampled(samples: NDArray[np.float32], found: int, rate: int) -> NDArray[np.float32]:
    """float32 [samples] at `found` per second -> at `rate`: each of them from the ZEROS nearest periods."""
    if found == rate:
        return samples
    common = math.gcd(found, rate)
    up, down = rate // common, found // common
    cutoff = min(1.0, rate / found)
    reach = math.ceil(ZEROS / cutoff)
    offsets = np.arange(-reach, reach + 1)
    padded = np.pad(samples, (reach, reach + 1))
    count = math.ceil(samples.size * rate / found)
    out = np.empty(count, np.float32)
    for phase in range(min(up, count)):  # samples whose place between two given ones is the same
        start = phase * down
        taps = offsets - (start % up) / up
        window = 0.5 + 0.5 * np.cos(np.pi * np.clip(taps / (reach + 1), -1, 1))
        kernel = (cutoff * np.sinc(cutoff * taps) * window).astype(np.float32)
        own = out[phase::up]
        rows = max(1, TAKEN // offsets.size)
        for first in range(0, own.size, rows):
            centres = start // up + down * np.arange(first, min(first + rows, own.size))
            places = np.minimum(centres[:, None] + offsets + reach, padded.size - 1)
            own[first : first + rows] = padded[places] @ kernel
    return out
