"""WAV files of each format as arrays."""

from __future__ import annotations

import numpy as np
import pytest

from mms_workloads.contract import SpeechRecognition
from mms_workloads.data import inspection
from mms_workloads.media import audio
from mms_workloads.media.images import MediaError
from mms_workloads.tasks import unfit
from tests.unit.data.counted import riff

WAVES = np.sin(np.linspace(0, 40, 800)).reshape(400, 2) * 0.9
EXTENSIBLE = 0xFFFE


def _bytes(tag: int, bits: int) -> bytes:
    if tag == audio.FLOAT:
        return WAVES.astype(f"<f{bits // 8}").tobytes()
    if bits == 8:
        return np.rint(WAVES * 127 + 128).astype(np.uint8).tobytes()
    wide = np.rint(WAVES * (2 ** (bits - 1) - 1)).astype("<i4")
    return wide.view(np.uint8).reshape(-1, 4)[:, : bits // 8].tobytes()


@pytest.mark.parametrize("wrapped", [False, True], ids=["", "extensible"])
@pytest.mark.parametrize(("tag", "bits"), [(1, 8), (1, 16), (1, 24), (1, 32), (3, 32), (3, 64)])
def test_each_format(tag: int, bits: int, wrapped: bool) -> None:
    data = riff(EXTENSIBLE if wrapped else tag, 2, 8000, bits, _bytes(tag, bits), sub_format=tag if wrapped else None)
    found = audio.decode(data, 8000)
    assert found.dtype == np.float32
    assert found == pytest.approx(WAVES.mean(axis=1), abs=0.02 if bits == 8 else 1e-4)
    assert inspection._sound(data) == (8000, 400 / 8000)
    spec = SpeechRecognition(sampleRate=8000, maxSeconds=0.01, alphabet="a")
    assert unfit._sound(spec, {"input": data, "label": "a"}).startswith("it takes 0.1 s")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (riff(1, 1, 8000, 16, b""), "no samples"),
        (riff(6, 1, 8000, 8, bytes(8)), "format 6 with 8 bits"),
        (riff(EXTENSIBLE, 1, 8000, 8, bytes(8), sub_format=7), "format 7 with 8 bits"),
        (riff(1, 1, 8000, 56, bytes(56)), "with 56 bits"),
        (riff(1, 1, 0, 16, bytes(8)), "0 samples per second"),
        (riff(1, 1, 8000, 16, bytes(8))[:30], "no samples"),
        (b"RIFF", "4 bytes that are no WAV"),
        (b"", "no WAV"),
    ],
)
def test_what_is_no_sound(data: bytes, why: str) -> None:
    with pytest.raises(MediaError, match=why):
        audio.decode(data, 8000)


def test_a_sound_that_is_cut_short_is_heard_as_far_as_it_goes() -> None:
    data = riff(1, 2, 8000, 16, _bytes(1, 16))
    assert audio.decode(data[:-401], 8000).shape == (299,)
