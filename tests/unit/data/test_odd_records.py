"""One odd record is left out and named, whatever it is: it does not end the run."""

from __future__ import annotations

import io
import json
import struct
import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from structlog.testing import capture_logs

from mms_workloads.contract import Reason
from mms_workloads.data import inspection, records
from mms_workloads.data.blocks import Segment
from mms_workloads.data.items import Item
from mms_workloads.data.reader import Reader
from mms_workloads.data.schema import Bad, Survey
from mms_workloads.media import images
from mms_workloads.store import JobError
from tests.unit.data.counted import by_blocks, corpus, counted, described, png, riff, tar, wav

if TYPE_CHECKING:
    from pathlib import Path

    from mms_workloads.data.items import Record

GOOD = [{"text": f"good {i}", "label": "a"} for i in range(5)]
LARGE = "1" + "0" * 400
DEEP = "[" * 100_000 + "]" * 100_000
LINES = {
    "half a character": ('{"text": "so \\ud800", "label": "a"}', r"it has \ud800, which is no character"),
    "half a character as label": ('{"text": "so", "label": "\\udfff"}', r"it has \udfff, which is no character"),
    "half a character as word": ('{"text": ["a", "\\ud800"], "label": "a"}', "which is no character"),
    "half a character as tag": ('{"text": ["a"], "label": ["\\ud800"]}', "which is no character"),
    "half a character as name": ('{"\\ud800": "so"}', r"has \ud800"),
    "nested deeply": (f'{{"text": {DEEP}, "label": "a"}}', "nested too deeply"),
    "nested": (f'{{"text": {"[" * 90}{"]" * 90}, "label": "a"}}', "neither words nor numbers"),
    "a large number": (f'{{"text": [{LARGE}], "label": "a"}}', "numbers that are too large"),
    "a long reason": (json.dumps({"x" * 100_000: 1}), "xxx..."),
}


@pytest.mark.parametrize("case", LINES)
def test_a_line(tmp_path: Path, case: str) -> None:
    bad, reason = LINES[case]
    (tmp_path / "a.jsonl").write_text("\n".join([*map(json.dumps, GOOD[:2]), bad, *map(json.dumps, GOOD[2:])]))
    found = corpus(described(tmp_path / "a.jsonl", blockBytes=60), tmp_path)
    (one,) = found.schema.bad
    assert reason in one.reason
    assert len(one.reason) < 1100
    assert by_blocks(found) == [(record["text"], "a") for record in GOOD]


def test_a_score_that_is_too_large(tmp_path: Path) -> None:
    rows = [f'{{"text1": "a", "text2": "b", "score": {score}}}' for score in ("1", "0.5", LARGE)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    found = corpus(described(tmp_path / "a.jsonl", fields={"label": "score"}), tmp_path)
    assert [bad.reason for bad in found.schema.bad] == ["its label is too large a number"]
    assert (found.schema.records, found.schema.scores) == (2, (0.5, 1.0))


def test_a_box_that_is_too_large(tmp_path: Path) -> None:
    members = {}
    for i, far in enumerate(("5", LARGE)):
        members |= {f"{i}.png": png(i), f"{i}.json": f'[{{"label": "a", "box": [1, 1, {far}, 5]}}]'.encode()}
    tar(tmp_path / "a.tar", members)
    (bad,) = counted(described(tmp_path / "a.tar"), tmp_path).schema.bad
    assert "not of finite numbers" in bad.reason


@pytest.mark.parametrize("said", [DEEP, '"\\ud800"', "{"])
def test_a_label_of_a_web_dataset(tmp_path: Path, said: str) -> None:
    tar(tmp_path / "a.tar", {"0.txt": b"text", "0.json": b'"a"', "1.txt": b"text", "1.json": said.encode()})
    found = corpus(described(tmp_path / "a.tar"), tmp_path)
    assert len(found.schema.bad) == 1
    assert by_blocks(found) == [("text", "a")]


def test_text_of_a_column_that_is_not_utf8(tmp_path: Path) -> None:
    binary = pa.array([b"good 0", b"b\xffd", b"good 1", b"good 2"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), len(binary), binary.buffers())
    pq.write_table(pa.table({"text": text, "label": ["a"] * 4}), tmp_path / "a.parquet")
    found = corpus(described(tmp_path / "a.parquet"), tmp_path)
    assert found.schema.bad == (Bad(0, 1, "it is not UTF-8: byte 0xff at 1 of a text"),)
    assert by_blocks(found) == [(f"good {i}", "a") for i in range(3)]


def test_a_time_that_python_does_not_know(tmp_path: Path) -> None:
    label = pa.array([0, 1 << 60], pa.int64()).cast(pa.timestamp("ms"))
    pq.write_table(pa.table({"text": ["a", "b"], "label": label}), tmp_path / "a.parquet")
    with pytest.raises(JobError, match=r"none of them is good: .*it has a value that cannot be read"):
        counted(described(tmp_path / "a.parquet"), tmp_path)


def _npy(header: str, data: bytes) -> bytes:
    padded = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded + data


ARRAYS = {
    "huge": ("{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 1000000, 3), }", "64 bytes are there"),
    "negative": ("{'descr': '|u1', 'fortran_order': False, 'shape': (-8, 8), }", "64 bytes are there"),
    "empty": ("{'descr': '|u1', 'fortran_order': False, 'shape': (0, 8, 3), }", "has no pixels"),
    "no header": ("nothing", "no .npy file"),
    "objects": ("{'descr': '|O', 'fortran_order': False, 'shape': (2,), }", "no .npy file"),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_an_array_that_is_not_there(tmp_path: Path, case: str) -> None:
    header, reason = ARRAYS[case]
    (folder := tmp_path / "data" / "a").mkdir(parents=True)
    np.save(folder / "0.npy", np.zeros((8, 8), np.uint8))
    (folder / "1.npy").write_bytes(_npy(header, bytes(64)))
    schema = counted(described(tmp_path / "data"), tmp_path).schema
    assert schema
    (bad,) = schema.bad
    assert reason in bad.reason
    assert schema.records == 1


SOUNDS = {
    "rate 0": (riff(1, 1, 0, 16, bytes(64)), "0 samples per second"),
    "no channels": (riff(1, 0, 8000, 16, bytes(64)), "of 0 channels"),
    "48 bits": (riff(1, 1, 8000, 48, bytes(66)), "of format 1 with 48 bits"),
    "not finite": (riff(3, 1, 8000, 32, np.array([0.5, np.nan], "<f4").tobytes()), "not finite"),
    "too large": (riff(3, 1, 8000, 64, np.array([0.5, 1e200], "<f8").tobytes()), "not finite"),
    "mu-law": (riff(7, 1, 8000, 8, bytes(64)), "of format 7 with 8 bits"),
    "no format": (b"RIFF\x20\0\0\0WAVEdata\x08\0\0\0" + bytes(8), "no whole WAV file"),
    "empty": (b"", "its input is empty"),
}


@pytest.mark.parametrize("case", SOUNDS)
def test_a_sound(tmp_path: Path, case: str) -> None:
    data, reason = SOUNDS[case]
    (tmp_path / "data").mkdir()
    for name, content in (("0", wav(0)), ("1", data)):
        (tmp_path / "data" / f"{name}.wav").write_bytes(content)
        (tmp_path / "data" / f"{name}.txt").write_text("said")
    found = corpus(described(tmp_path / "data"), tmp_path)
    (bad,) = found.schema.bad
    assert (bad.file, bad.offset) == (3, 0)
    assert reason in bad.reason
    assert by_blocks(found) == [(wav(0), "said")]


def test_an_image_without_a_byte_is_counted(tmp_path: Path) -> None:
    (folder := tmp_path / "data" / "a").mkdir(parents=True)
    (folder / "0.png").write_bytes(png(0))
    (folder / "1.png").write_bytes(b"")
    (tmp_path / "data" / "README.txt").write_bytes(b"")
    data = described(tmp_path / "data", sharding="Sequential")
    found = corpus(data, tmp_path)
    assert [(found.schema.bad[0].offset, found.schema.bad[0].reason)] == [(0, "its input is empty")]
    assert len(found.schema.bad) == 1
    with pytest.raises(JobError, match="1 records are bad"):
        counted(data.model_copy(update={"quality": data.quality.model_copy(update={"maxBadRecords": 0})}), tmp_path)


@pytest.mark.parametrize("where", ["inspection", "task"])
def test_what_nobody_thought_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """But that there is no memory says nothing of the record, and an error of the store is one of the run."""
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, GOOD)))
    data = described(tmp_path / "a.jsonl")
    raised: list[Exception] = [KeyError("secret")]

    def look(record: Record) -> str:
        if record["input"] == "good 1":
            raise raised[0]
        return ""

    def kind_of(given: str) -> str:
        look({"input": given})
        return "text"

    if where == "inspection":
        monkeypatch.setattr(inspection, "kind_of", kind_of)

    def survey() -> Survey:
        reader = Reader(data.store, [data.store.uri], tmp_path)
        unfit = look if where == "task" else lambda _: ""
        return records.survey(reader, [Segment(0, 0, reader.size(0))], data, "JSONLines", unfit)

    assert [bad.reason for bad in survey().bad] == ["it cannot be looked at: KeyError"]
    for raised[0] in (MemoryError(), JobError(Reason.STORAGE_UNREACHABLE, "x")):
        with pytest.raises(type(raised[0])):
            survey()


def _photograph() -> bytes:
    """As telephones write it: the image, and a smaller one of it."""
    out = io.BytesIO()
    first, second = (
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)) for side in (32, 16)
    )
    first.save(out, "MPO", save_all=True, append_images=[second])
    return out.getvalue()


def test_a_photograph_with_a_small_one_beside_it_is_one_image(tmp_path: Path) -> None:
    (folder := tmp_path / "data" / "a").mkdir(parents=True)
    (folder / "0.jpg").write_bytes(_photograph())
    schema = counted(described(tmp_path / "data"), tmp_path).schema
    assert schema
    assert schema.images
    assert schema.bad == ()
    assert (schema.images.frames.most, schema.images.height.most) == (1, 32)


def _animation(frames: int, side: int) -> tuple[bytes, np.ndarray]:
    pixels = np.random.default_rng(1).integers(0, 256, (frames, side, side), np.uint8)
    out = io.BytesIO()
    first, *rest = (Image.fromarray(frame) for frame in pixels)
    first.save(out, "GIF", save_all=True, append_images=rest)
    return out.getvalue(), pixels


def test_the_frames_of_an_animation_are_not_held(tmp_path: Path) -> None:
    data, pixels = _animation(48, 256)
    (folder := tmp_path / "data" / "a").mkdir(parents=True)
    (folder / "0.gif").write_bytes(data)
    found = Survey(0)
    tracemalloc.start()
    inspection.note(found, Item(0, 0, {"input": data, "label": "a"}))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < pixels.nbytes / 2
    images_ = found.pixels.summary()
    assert images_.frames.most == 48
    assert images_.statistics.mean == pytest.approx([(pixels / 255.0).mean()])
    assert images_.statistics.std == pytest.approx([(pixels / 255.0).std()])


def test_an_animation_may_not_claim_to_be_huge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder := tmp_path / "data" / "a").mkdir(parents=True)
    (folder / "0.gif").write_bytes(_animation(3, 16)[0])
    (folder / "1.png").write_bytes(png(0))
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    (bad,) = counted(described(tmp_path / "data"), tmp_path).schema.bad
    assert bad.reason == "the animation has 16 x 16 pixels, and 100 at most"


@pytest.mark.parametrize("bare", [False, True])
def test_bad_records_are_logged_some_of_them(bare: bool) -> None:
    found = Survey(10)
    for i in range(3):
        found.reject(Bad(7, i, f"box [{i}, 5] is empty"))
    with capture_logs() as logs:
        assert records.log_bad(found, {7: "s3://b/a.tar"}, 2, bare=bare) == 2
    assert [(line["event"], line["file"], line["at"]) for line in logs] == [
        ("bad record", "s3://b/a.tar", 0),
        ("bad record", "s3://b/a.tar", 1),
    ]
    assert logs[1]["reason"] == ("box […, …] is empty" if bare else "box [1, 5] is empty")
