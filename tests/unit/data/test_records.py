"""Records of every format: each in one block, wherever the cuts are, and the same ones on every worker."""

from __future__ import annotations

import bz2
import contextlib
import csv
import functools
import gzip
import http.server
import io
import json
import lzma
import threading
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mms_workloads.contract import Reason
from mms_workloads.data import formats
from mms_workloads.store import JobError
from tests.unit.data.counted import by_blocks, corpus, counted, described, png, tar, wav

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Made = list[tuple[object, object]]

TEXTS = [f"review {i} of some film" + " \u00e4" * (i % 7) + ', "quoted"' * (i % 3) for i in range(60)]


def _text(folder: Path) -> Made:
    (folder / "a.txt").write_bytes("\r\n".join(TEXTS[:20]).encode() + b"\r\n\n")
    (folder / "b.txt").write_bytes("\n".join(TEXTS[20:]).encode())
    return [(t, None) for t in TEXTS]


def _json_lines(folder: Path) -> Made:
    made = [(t, f"class {i % 3}") for i, t in enumerate(TEXTS)]
    said = "\n".join(json.dumps({"id": i, "text": t, "label": label}) for i, (t, label) in enumerate(made))
    (folder / "a.jsonl").write_text(said + "\n", encoding="utf-8")
    return list(made)


def _csv(folder: Path) -> Made:
    made = [(t + "\nsecond, line\n" * (i % 2), str(i % 4)) for i, t in enumerate(TEXTS)]
    for name, part in (("a.csv", made[:31]), ("b.csv", made[31:])):
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "text", "label"])
            writer.writerows([i, *row] for i, row in enumerate(part))
    return list(made)


def _parquet(folder: Path) -> Made:
    made = [(png(i), i % 3) for i in range(50)]
    rows = pa.table({"image": [{"bytes": p, "path": "x"} for p, _ in made], "label": [c for _, c in made]})
    pq.write_table(rows, folder / "a.parquet", row_group_size=17)
    return list(made)


def _images(folder: Path) -> Made:
    made = []
    for name in ("cat", "dog"):
        (folder / name).mkdir()
        for i in range(12):
            data = png(i + 100 * (name == "dog"), 6 + i % 3)
            (folder / name / f"{i:02}.png").write_bytes(data)
            made.append((data, name))
    (folder / "cat" / ".DS_Store").write_bytes(b"Mac")
    (folder / "README.txt").write_bytes(b"not a record")
    return made


def _web_dataset(folder: Path) -> Made:
    made: Made = []
    for shard in range(2):
        members: dict[str, bytes] = {}
        for i in range(15):
            data = png(i + 100 * shard, 16, 16)
            boxes = [{"label": "digit", "box": [1, 2, 3 + i % 3, 9]}] * (i % 3)
            made.append((data, boxes))
            name = f"{'long/' * 30}{i:03}" if i == 7 else f"{i:03}"
            members |= {f"{name}.png": data, f"{name}.json": json.dumps({"objects": boxes}).encode()}
        tar(folder / f"{shard}.tar", members)
    return made


def _sound(folder: Path) -> Made:
    made = []
    for i in range(12):
        data = wav(i, 300 + 10 * i)
        (folder / f"{i:02}.wav").write_bytes(data)
        (folder / f"{i:02}.txt").write_text(f"said {i}\n", encoding="utf-8")
        made.append((data, f"said {i}"))
    return made


def _sound_with_table(folder: Path) -> Made:
    made: Made = [(wav(i), f"said {i}, indeed") for i in range(12)]
    for i, (data, _) in enumerate(made):
        (folder / f"{i:02}.wav").write_bytes(data)
    rows = "".join(f'{i:02},"{text}"\n' for i, (_, text) in enumerate(made))
    (folder / "metadata.csv").write_text("file_name,text\n" + rows, encoding="utf-8")
    return made


FORMATS: dict[str, tuple[Callable[[Path], Made], str, str]] = {
    "Text": (_text, "text", "none"),
    "JSONLines": (_json_lines, "text", "string"),
    "CSV": (_csv, "text", "string"),
    "Parquet": (_parquet, "image", "integer"),
    "ImageFolder": (_images, "image", "string"),
    "WebDataset": (_web_dataset, "image", "boxes"),
    "WAV": (_sound, "audio", "string"),
    "WAV with a table": (_sound_with_table, "audio", "string"),
}


def as_dealt(records: Made, name: str) -> Made:
    """Images are dealt in an order that mixes their classes."""
    return sorted(records, key=repr) if name == "ImageFolder" else records


@pytest.mark.parametrize("block_bytes", [97, 700, 4096, 1 << 20])
@pytest.mark.parametrize("name", FORMATS)
def test_each_record_is_in_one_block(tmp_path: Path, name: str, block_bytes: int) -> None:
    make, input_kind, label_kind = FORMATS[name]
    (folder := tmp_path / "data").mkdir()
    made = make(folder)
    data = described(folder, blockBytes=block_bytes)
    found = corpus(data, tmp_path)
    assert found.schema.format == name.partition(" ")[0]
    assert (found.schema.input, found.schema.label) == (input_kind, label_kind)
    assert found.schema.records == len(made)
    assert found.schema.bad == ()
    assert as_dealt(by_blocks(found), name) == as_dealt(made, name)
    assert sum(found.count(block) for block in range(len(found.blocks))) == len(made)


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".bz2", ".zst"])
@pytest.mark.parametrize("name", ["Text", "JSONLines", "CSV"])
def test_compressed_text_is_decompressed(tmp_path: Path, name: str, suffix: str) -> None:
    (folder := tmp_path / "data").mkdir()
    made = FORMATS[name][0](folder)
    compress = {
        ".gz": gzip.compress,
        ".xz": lzma.compress,
        ".bz2": bz2.compress,
        ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
    }[suffix]
    for file in sorted(folder.iterdir()):
        file.with_name(file.name + suffix).write_bytes(compress(file.read_bytes()))
        file.unlink()
    assert by_blocks(corpus(described(folder, blockBytes=300), tmp_path)) == made


LINES = st.lists(st.text(st.characters(exclude_characters="\r\n", codec="utf-8"), max_size=20), max_size=20)


@given(LINES, st.integers(1, 60), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_lines_are_cut_anywhere(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], block_bytes: int, end: str, ended: bool
) -> None:
    folder = tmp_path_factory.mktemp("lines")
    content = end.join(texts) + (end if ended else "")
    (folder / "a.txt").write_bytes(content.encode() or b"\n")
    wanted = [(t.removeprefix("\ufeff") if i == 0 else t, None) for i, t in enumerate(texts)]
    wanted = [(t, none) for t, none in wanted if t.strip()]
    if not wanted:
        return
    assert by_blocks(corpus(described(folder / "a.txt", blockBytes=block_bytes), folder)) == wanted


def test_the_schema_does_not_depend_on_who_counted_what(tmp_path: Path) -> None:
    (folder := tmp_path / "data").mkdir()
    _csv(folder)
    data = described(folder)
    assert counted(data, tmp_path) == counted(data, tmp_path, backwards=True)


def test_what_is_known_of_images(tmp_path: Path) -> None:
    pixels = []
    for name, shape in (("a", (4, 6, 3)), ("b", (5, 6, 3)), ("c", (9, 7, 3))):
        (tmp_path / "data" / name).mkdir(parents=True)
        value = np.random.default_rng(len(pixels)).integers(0, 256, shape, np.uint8)
        np.save(tmp_path / "data" / name / "0.npy", value)
        pixels.append(value / 255.0)
    schema = counted(described(tmp_path / "data"), tmp_path).schema
    assert schema
    assert schema.images
    assert schema.classes == {"a": 1, "b": 1, "c": 1}
    images = schema.images
    assert images.channels == 3
    assert (images.height.least, images.height.median, images.height.most) == (4, 5, 9)
    assert (images.width.least, images.width.median, images.width.most) == (6, 6, 7)
    together = np.concatenate([p.reshape(-1, 3) for p in pixels])
    assert images.statistics.mean == pytest.approx(together.mean(axis=0).tolist())
    assert images.statistics.std == pytest.approx(together.std(axis=0).tolist())
    means = np.stack([p.mean(axis=(0, 1)) for p in pixels])
    stds = np.stack([p.std(axis=(0, 1)) for p in pixels])
    assert images.statistics.imageMean == pytest.approx(means.mean(axis=0).tolist())
    assert images.statistics.imageMeanStd == pytest.approx(means.std(axis=0).tolist())
    assert images.statistics.imageStd == pytest.approx(stds.mean(axis=0).tolist())
    assert images.statistics.imageStdStd == pytest.approx(stds.std(axis=0).tolist())


def test_classes_are_sorted_whole_numbers_by_their_value(tmp_path: Path) -> None:
    rows = [10, 9, 2, 10, -1]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": "x", "label": v}) + "\n" for v in rows))
    schema = counted(described(tmp_path / "a.jsonl"), tmp_path).schema
    assert schema
    assert list(schema.classes.items()) == [("-1", 1), ("2", 1), ("9", 1), ("10", 2)]


def test_tags_of_words_are_classes(tmp_path: Path) -> None:
    rows = [{"tokens": ["Ada", "sleeps"], "tags": ["PER", "O"]}, {"tokens": ["She"], "tags": ["O"]}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    schema = counted(described(tmp_path / "a.jsonl"), tmp_path).schema
    assert schema
    assert (schema.input, schema.label) == ("words", "tags")
    assert schema.classes == {"O": 2, "PER": 1}
    assert schema.lengths
    assert (schema.lengths.longest, schema.lengths.mean) == (2, 1.5)
    assert schema.words == {"ada": 1, "she": 1, "sleeps": 1}


def test_words_of_texts_are_counted_and_rare_ones_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("The end.\n" * 3 + "the beginning\n" + "".join(f"rare{i}\n" for i in range(90)))
    schema = counted(described(tmp_path / "a.txt"), tmp_path).schema
    assert schema
    assert list(schema.words.items())[:3] == [("the", 4), ("end.", 3), ("beginning", 1)]
    monkeypatch.setattr("mms_workloads.data.schema.COUNTED_WORDS", 40)
    bounded = counted(described(tmp_path / "a.txt"), tmp_path).schema
    assert bounded
    assert list(bounded.words.items())[:2] == [("the", 4), ("end.", 3)]
    assert len(bounded.words) <= 40


GOOD = [json.dumps({"text": f"good {i}", "label": "a"}) for i in range(5)]
BAD = {
    "no JSON": ('{"text": ', "it is no JSON"),
    "no object": ("[1]", "no JSON object"),
    "no input": ('{"label": "a"}', "data.fields.input"),
    "null": ('{"text": null, "label": "a"}', "no input"),
    "empty": ('{"text": " ", "label": "a"}', "input is empty"),
    "another kind": ('{"text": "x", "label": 3}', "a label of kind integer"),
    "no label": ('{"text": "x"}', "no label"),
    "not finite": ('{"text": "x", "label": NaN}', "not finite"),
    "damaged image": (
        '{"text": {"base64": "iVBORw0KGgo="}, "label": "a"}',
        "8 bytes that are no image of a kind that is known",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_record_is_left_out_and_named(tmp_path: Path, case: str) -> None:
    bad, reason = BAD[case]
    (tmp_path / "a.jsonl").write_text("\n".join([*GOOD[:2], bad, *GOOD[2:]]))
    found = corpus(described(tmp_path / "a.jsonl", blockBytes=20), tmp_path)
    (one,) = found.schema.bad
    assert (one.file, one.offset) == (0, sum(len(line) + 1 for line in GOOD[:2]))
    assert reason in one.reason
    assert by_blocks(found) == [(f"good {i}", "a") for i in range(5)]
    assert found.schema.records == 5


def test_not_utf8_is_a_bad_record(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good\nb\xffd\ngood\n")
    found = corpus(described(tmp_path / "a.txt"), tmp_path)
    assert "not UTF-8: byte 0xff at 6" in found.schema.bad[0].reason
    assert by_blocks(found) == [("good", None)] * 2


@pytest.mark.parametrize("limit", [0, 2, 3, 4])
def test_more_bad_records_than_allowed_fail_the_run(tmp_path: Path, limit: int) -> None:
    lines = [*GOOD, "{", "{", '{"text": "x", "label": 7}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    data = described(tmp_path / "a.jsonl", quality={"maxBadRecords": limit})
    if limit >= 3:
        schema = counted(data, tmp_path).schema
        assert schema
        assert len(schema.bad) == 3
        return
    with pytest.raises(JobError) as raised:
        counted(data, tmp_path)
    assert raised.value.reason is Reason.DATA_INVALID
    assert "a.jsonl at 1" in raised.value.message
    assert f"maxBadRecords is {limit}" in raised.value.message
    assert not raised.value.retryable


def test_a_damaged_image_is_a_bad_record(tmp_path: Path) -> None:
    (tmp_path / "data" / "a").mkdir(parents=True)
    for i in range(3):
        (tmp_path / "data" / "a" / f"{i}.png").write_bytes(png(i, 32, 32))
    (tmp_path / "data" / "a" / "3.png").write_bytes(png(3, 32, 32)[:900])
    found = corpus(described(tmp_path / "data"), tmp_path)
    (bad,) = found.schema.bad
    assert "900 bytes that are a damaged image (image file is truncated)" in bad.reason
    assert sorted(i for i, _ in by_blocks(found)) == sorted(png(i, 32, 32) for i in range(3))


@pytest.mark.parametrize(
    ("boxes", "why"),
    [
        ([{"label": "a", "box": [1, 1, 40, 5]}], "outside of its image"),
        ([{"label": "a", "box": [5, 1, 2, 5]}], "is empty"),
        ([{"box": [1, 1, 4, 5]}], "is not {label"),
    ],
)
def test_a_box_that_is_none_is_a_bad_record(tmp_path: Path, boxes: list[object], why: str) -> None:
    good = [{"label": "a", "box": [1, 1, 4, 5]}]
    members = {}
    for i, said in enumerate([good, good, boxes]):
        members |= {f"{i}.png": png(i), f"{i}.json": json.dumps(said).encode()}
    tar(tmp_path / "a.tar", members)
    (bad,) = corpus(described(tmp_path / "a.tar"), tmp_path).schema.bad
    assert why in bad.reason


@pytest.mark.parametrize("keep", [700, 1100, 1536 + 200])
def test_a_tar_that_is_cut_short_is_told(tmp_path: Path, keep: int) -> None:
    tar(tmp_path / "a.tar", {f"{i}.txt": b"x" * 900 for i in range(3)})
    content = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(content[:keep])
    with pytest.raises(JobError, match="no intact tar"):
        counted(described(tmp_path / "a.tar"), tmp_path)


def test_a_damaged_header_is_not_the_end_of_a_tar(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", {f"{i}.txt": b"some text" for i in range(3)})
    content = bytearray((tmp_path / "a.tar").read_bytes())
    content[1024 + 3] ^= 0xFF
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(JobError, match="no header at byte 1024"):
        counted(described(tmp_path / "a.tar"), tmp_path)


def test_a_damaged_parquet_file_is_told(tmp_path: Path) -> None:
    _parquet(tmp_path)
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[-20] ^= 0xFF
    (tmp_path / "a.parquet").write_bytes(content[:-9])
    with pytest.raises(JobError, match="no intact Parquet"):
        counted(described(tmp_path / "a.parquet"), tmp_path)


def test_fields_choose_columns(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("text\tother\tstars\nx\ty\t3\n")
    data = described(tmp_path / "a.tsv", fields={"input": "other", "label": "stars"})
    assert by_blocks(corpus(data, tmp_path)) == [("y", "3")]


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_a_column_that_is_not_there_is_told(tmp_path: Path, name: str) -> None:
    if name == "a.csv":
        (tmp_path / name).write_text("one,two\n1,2\n")
    else:
        pq.write_table(pa.table({"one": ["1"], "two": ["2"]}), tmp_path / name)
    data = described(tmp_path / name, fields={"input": "three"}, quality={"maxBadRecords": 0})
    with pytest.raises(JobError, match=r"field three for data\.fields\.input, and has one, two"):
        counted(data, tmp_path)


def test_files_of_tools_are_no_data(tmp_path: Path) -> None:
    (folder := tmp_path / "data").mkdir()
    made = _csv(folder)
    (folder / "_SUCCESS").write_text("")
    (folder / ".a.csv.crc").write_bytes(b"\xff")
    assert by_blocks(corpus(described(folder), tmp_path)) == made


NAMES = {
    "text": (["a.txt", "b.txt.gz"], "Text"),
    "no suffix": (["part-0000"], "Text"),
    "lines": (["a.jsonl", "b.ndjson.zst"], "JSONLines"),
    "table": (["a.CSV", "b.csv.xz"], "CSV"),
    "columns": (["a.parquet", "_SUCCESS"], "Parquet"),
    "images": (["a/1.jpg", "b/2.PNG", "README.txt", "a/.DS_Store"], "ImageFolder"),
    "shards": (["0.tar", "1.tar.gz"], "WebDataset"),
    "sound": (["1.wav", "1.txt", "metadata.csv"], "WAV"),
}


@pytest.mark.parametrize("case", NAMES)
def test_the_format_is_told_by_the_names(case: str) -> None:
    names, expected = NAMES[case]
    assert formats.detect([f"s3://bucket/{name}" for name in names]) == expected


def test_names_of_several_formats_are_refused() -> None:
    with pytest.raises(JobError, match=r"several formats .*set data.format") as raised:
        formats.detect(["file:///a.csv", "file:///b.parquet"])
    assert raised.value.reason is Reason.DATA_INVALID


def test_a_file_without_line_ends_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mms_workloads.data import lines

    monkeypatch.setattr(lines, "LONGEST_RECORD_BYTES", 1000)
    monkeypatch.setattr(lines, "BUFFER_BYTES", 64)
    (tmp_path / "a.txt").write_bytes(b"good\n" + b"x" * 5000 + b"\ngood\n")
    found = corpus(described(tmp_path / "a.txt", blockBytes=100), tmp_path)
    assert [bad.offset for bad in found.schema.bad] == [5]
    assert by_blocks(found) == [("good", None)] * 2


def test_a_sound_that_is_cut_short_is_a_bad_record(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    _sound(tmp_path / "data")
    (tmp_path / "data" / "03.wav").write_bytes(wav(3)[:200])
    schema = counted(described(tmp_path / "data"), tmp_path).schema
    assert schema
    assert "cut short" in schema.bad[0].reason
    assert schema.rates == {8000: 11}


def test_an_animation_is_an_image_of_many_frames(tmp_path: Path) -> None:
    from PIL import Image

    frames = [Image.fromarray(np.full((8, 9), 40 * i, np.uint8)) for i in range(5)]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    (tmp_path / "data" / "walks").mkdir(parents=True)
    (tmp_path / "data" / "walks" / "0.gif").write_bytes(out.getvalue())
    schema = counted(described(tmp_path / "data"), tmp_path).schema
    assert schema
    assert schema.images
    assert (schema.images.frames.most, schema.images.height.most, schema.images.width.most) == (5, 8, 9)


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 64  # more than are asked at once: those beyond would be turned away


@contextlib.contextmanager
def served(folder: Path, kind: type[Handler] = Handler) -> Iterator[str]:
    """Its address."""
    handler = functools.partial(kind, directory=str(folder))
    with Server(("127.0.0.1", 0), handler) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{serving.server_address[1]}"
        finally:
            serving.shutdown()
            thread.join()


@pytest.mark.parametrize("name", ["JSONLines", "CSV", "Parquet", "WebDataset"])
def test_records_of_a_web_server(tmp_path: Path, name: str) -> None:
    (folder := tmp_path / "data").mkdir()
    made = FORMATS[name][0](folder)
    first = min(path for path in folder.iterdir())
    with served(folder) as address:
        found = by_blocks(corpus(described(f"{address}/{first.name}", blockBytes=4096), tmp_path))
    assert found
    assert found == made[: len(found)]


@pytest.mark.parametrize("name", ["Text", "WAV", "WAV with a table", "ImageFolder"])
def test_many_files_of_a_web_server(tmp_path: Path, name: str) -> None:
    """And what is said of them in files beside them."""
    (folder := tmp_path / "data").mkdir()
    made = FORMATS[name][0](folder)
    with served(folder) as address:
        pattern = "*/*.png" if name == "ImageFolder" else "*"
        found = corpus(described(f"{address}/{pattern}", blockBytes=1000), tmp_path)
        assert found.schema.format == name.partition(" ")[0]
        assert len(found.blocks) > 1
        assert as_dealt(by_blocks(found), name) == as_dealt(made, name)


def test_small_files_of_a_store_are_read_some_at_a_time(tmp_path: Path) -> None:
    """Of a server that answers a request only when it has four, and each file once for each pass."""
    for number in range(64):
        (folder := tmp_path / "data" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(png(number))
    four, asked = threading.Barrier(4), Counter[str]()

    class Slow(Handler):
        def do_GET(self) -> None:
            if self.path.endswith(".png"):
                asked[self.path] += 1
                four.wait(20)
            super().do_GET()

    here = by_blocks(corpus(described(tmp_path / "data", sharding="Sequential"), tmp_path / "near"))
    with served(tmp_path / "data", Slow) as address:
        data = described(f"{address}/*/*.png", sharding="Sequential")
        found = by_blocks(corpus(data, tmp_path / "far"))
    assert found == here
    assert len(found) == 64
    assert set(asked.values()) == {2}
