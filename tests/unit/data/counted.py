"""A data set counted in this process, as workers and the master do it together."""

from __future__ import annotations

import io
import struct
import tarfile
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mms_workloads import store as stores
from mms_workloads.contract import Data, Store
from mms_workloads.data import readers, records
from mms_workloads.data.records import RecordCorpus
from mms_workloads.data.schema import Survey
from mms_workloads.sync import plan as plans
from mms_workloads.sync.counting import Counting

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mms_workloads.sync.plan import Plan


def described(where: Path | str, **more: object) -> Data:
    return Data.model_validate({"store": Store(uri=where if isinstance(where, str) else f"file://{where}"), **more})


def counted(data: Data, scratch: Path, *, backwards: bool = False) -> Plan:
    """Raises JobError."""
    counting = Counting.start(stores.glob(data.store), data)
    assert counting.format
    tasks = list(range(len(counting.tasks)))
    for task in reversed(tasks) if backwards else tasks:
        segments = list(counting.tasks[task])
        reader = readers.counting(data.store, counting.uris(task), segments, scratch / "worker")
        found, sizes = records.count(reader, segments, data, counting.format)
        counting.add_survey(task, Survey.unpack(found.pack()), sizes)
    assert counting.complete()
    plan = counting.plan(None, data.blockBytes)
    assert plans.unpack(plans.pack(plan)) == plan
    return plan


def corpus(data: Data, scratch: Path) -> RecordCorpus:
    """Raises JobError."""
    return RecordCorpus(data.store, counted(data, scratch), data, scratch / "worker" / "blocks")


def by_blocks(found: RecordCorpus) -> list[tuple[object, object]]:
    return [(r["input"], r["label"]) for block in range(len(found.blocks)) for r in found.records(block)]


def png(number: int, height: int = 8, width: int = 8, channels: int = 3) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, channels), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels).save(out, "PNG")
    return out.getvalue()


def wav(number: int, samples: int = 400, rate: int = 8000) -> bytes:
    import wave

    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((1, 2, rate, samples, "NONE", ""))
        file.writeframes(np.random.default_rng(number).integers(-9999, 9999, samples).astype("<i2").tobytes())
    return out.getvalue()


def riff(tag: int, channels: int, rate: int, bits: int, data: bytes, *, sub_format: int | None = None) -> bytes:
    """A WAV file of any format, with a chunk of a tool's own before. sub_format: of WAVE_FORMAT_EXTENSIBLE."""
    wide = channels * ((bits + 7) // 8)
    described = struct.pack("<HHIIHH", tag, channels, rate, rate * wide, wide, bits)
    if sub_format is not None:
        guid = struct.pack("<H", sub_format) + bytes.fromhex("000000001000800000aa00389b71")
        described += struct.pack("<HHI", 22, bits, 0) + guid
    chunks = ((b"LIST", b"odd"), (b"fmt ", described), (b"data", data))
    body = b"".join(name + struct.pack("<I", len(one)) + one + bytes(len(one) % 2) for name, one in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


def tar(path: Path, members: Mapping[str, bytes]) -> None:
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
