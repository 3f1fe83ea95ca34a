"""Sound as arrays: WAV of whole numbers or floats, one channel, resampled by a windowed sinc."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mms_workloads.media.images import MediaError

if TYPE_CHECKING:
    from numpy.typing import NDArray

TAKEN = 2**20  # samples that are weighed at a time: as many outputs as that has room for
ZEROS = 16  # crossings of the sinc to each side: below -60 dB of what folds back
WHOLE, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE  # wFormatTag; of the last one the sub-format's first two bytes are the tag
WIDTHS = {WHOLE: (1, 2, 3, 4), FLOAT: (4, 8)}  # bytes of a sample
_FORMAT = struct.Struct("<HHIIHH")  # tag, channels, rate, bytes per second, bytes of a frame, bits of a sample
_SUB_FORMAT = 24  # where it is in the fmt chunk


@dataclass(frozen=True, slots=True)
class Wave:
    """A WAV file. frames: that its header tells; raw: those of them that are there."""

    tag: int
    channels: int
    rate: int
    width: int
    frames: int
    raw: memoryview

    @property
    def held(self) -> int:
        return len(self.raw) // (self.width * self.channels)

    def samples(self) -> NDArray[np.float32]:
        """[frames, channels], -1 to 1. Raises MediaError."""
        found = _floats(self.raw, self.width) if self.tag == WHOLE else _of_floats(self.raw, self.width)
        return found.reshape(-1, self.channels)


def parse(data: bytes) -> Wave:
    """The chunks of a WAV file (Microsoft: Multiple channel audio data and WAVE files). Raises MediaError."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise MediaError(f"{len(data)} bytes that are no WAV file: send PCM WAV")
    described: tuple[int, int, int, int] | None = None
    at = 12
    while at + 8 <= len(data):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8
        if name == b"fmt ":
            described = _described(data[at : at + size])
        elif name == b"data":
            if described is None:
                break
            tag, channels, rate, width = described
            frames = size // (width * channels)
            raw = memoryview(data)[at : at + frames * width * channels]
            return Wave(tag, channels, rate, width, frames, raw[: len(raw) - len(raw) % (width * channels)])
        at += size + size % 2
    raise MediaError(f"{len(data)} bytes that are no whole WAV file: it has no samples")


def _described(chunk: bytes) -> tuple[int, int, int, int]:
    """Tag, channels, rate, and bytes of a sample. Raises MediaError."""
    if len(chunk) < _FORMAT.size:
        raise MediaError("it is a WAV file whose header is cut short")
    tag, channels, rate, _, _, bits = _FORMAT.unpack_from(chunk)
    if tag == EXTENSIBLE and len(chunk) >= _SUB_FORMAT + 2:
        tag = int.from_bytes(chunk[_SUB_FORMAT : _SUB_FORMAT + 2], "little")
    width = (bits + 7) // 8
    if width not in WIDTHS.get(tag, ()):
        raise MediaError(
            f"it is a WAV file of format {tag} with {bits} bits: those of whole numbers of 8, 16, 24 or 32 bits "
            "(format 1) and of floats of 32 or 64 bits (format 3) can be read"
        )
    if not channels or not rate:
        raise MediaError(f"it is a WAV file of {channels} channels with {rate} samples per second")
    return tag, channels, rate, width


def decode(data: bytes, rate: int, most: float = math.inf) -> NDArray[np.float32]:
    """A WAV file's bytes -> float32 [samples], -1 to 1, the mean of its channels, at `rate`.

    Raises MediaError: it is no such file, or takes more than `most` seconds.
    """
    found = parse(data)
    if not found.held:
        raise MediaError("the WAV file has no samples")
    if math.ceil(found.held * rate / found.rate) > most * rate:  # before its samples are made
        raise MediaError(f"{found.held / found.rate:.1f} s of sound, and {most:g} s at most: cut it")
    return resampled(found.samples().mean(axis=1, dtype=np.float32), found.rate, rate)


def _of_floats(raw: memoryview, width: int) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # what float32 cannot hold is told below
        found = np.frombuffer(raw, f"<f{width}").astype(np.float32)
    if not np.isfinite(found).all():
        raise MediaError("the WAV file has samples that are not finite")
    return found


def _floats(raw: memoryview, width: int) -> NDArray[np.float32]:
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
