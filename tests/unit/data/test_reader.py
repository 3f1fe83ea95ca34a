"""Reading blocks: where the cuts fall must not change the tokens."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mms_workloads import store as stores
from mms_workloads.contract import DataFile, Reason, Store
from mms_workloads.data import blocks, decompressing, reader
from mms_workloads.data.blocks import COUNTING_BYTES, Segment
from mms_workloads.data.reader import Reader
from mms_workloads.data.text import Words
from mms_workloads.store import Found, JobError
from tests.unit.data import reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".txt": lambda data: data,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
    ".GZ": gzip.compress,
    ".Xz": lzma.compress,
    ".ZST": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}
# Words of one to four bytes a character, with what separates them and what only looks as if it did.
PIECES = [
    "a",
    "don't",
    "höhe",
    "漢字",
    "🦀x",
    "ΣΑΣ",
    "x" * 30,
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "\x0b",
    "\u00a0",
    "\u2028",
    ".",
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=60).map("".join)


def texts_by_blocks(folder: Path, files: list[tuple[str, str]], block_bytes: int) -> list[list[bytes]]:
    """files: (suffix, text). The texts of every block."""
    uris = []
    for number, (suffix, content) in enumerate(files):
        path = folder / f"{number}{suffix}"
        path.write_bytes(COMPRESS[suffix](content.encode()))
        uris.append(f"file://{path}")
    data = Reader(Store(uri=f"file://{folder}"), uris, folder / "scratch")
    sizes = [data.size(number) for number in range(len(uris))]
    assert sizes == [len(content.encode()) for _, content in files]
    return [data.texts(block) for block in blocks.cut(sizes, block_bytes)]


@given(st.lists(st.tuples(st.sampled_from(list(COMPRESS)), TEXTS), max_size=3), st.integers(1, 80))
@example([(".txt", "\ufeffa b")], 1)
@example([(".txt", "\ufeff"), (".gz", "ab")], 2)
def test_any_cutting_gives_the_same_tokens(files: list[tuple[str, str]], block_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = [part for block in texts_by_blocks(Path(folder), files, block_bytes) for part in block]
    expected = [word for _, content in files for word in reference.words(content)]
    assert [word for part in found for word in reference.words(part.decode())] == expected
    words = Words()
    for part in found:
        words.count(part, "Words")
    assert words.above(0) == Counter(reference.kept(expected))


@pytest.mark.parametrize("block_bytes", [1000, reader.LONGEST_TOKEN_BYTES, 300_000])
@pytest.mark.parametrize("character", ["x", "ö", "漢", "🦀"])
def test_text_without_white_space_is_cut_between_characters(tmp_path: Path, character: str, block_bytes: int) -> None:
    """No token grows without bound, no character is split, none is lost or read twice."""
    content = "start " + character * 200_000 + " end"
    texts = texts_by_blocks(tmp_path, [(".txt", content)], block_bytes)
    found = [word for block in texts for part in block for word in part.decode().split()]
    assert "".join(found) == content.replace(" ", "")
    assert (found[0], found[-1]) == ("start", "end")
    limit = reader.LONGEST_TOKEN_BYTES + block_bytes + 4
    assert max(len(word.encode()) for word in found) <= limit


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfword next")
    data = Reader(Store(uri="file:///x"), [f"file://{tmp_path}/a.txt"], tmp_path)
    assert data.texts((Segment(0, 0, 5), Segment(0, 5, 12))) == [b"word ", b"next"]


@pytest.mark.parametrize("suffix", [".txt", ".gz"])
@pytest.mark.parametrize("offset", [0, 5, 1234, 99_999])
def test_text_that_is_not_utf8(tmp_path: Path, suffix: str, offset: int) -> None:
    """The message gives the place in the file, not in the block, and a remedy."""
    content = bytearray(b"word " * 20_000)
    content[offset] = 0xE9
    (tmp_path / f"latin{suffix}").write_bytes(COMPRESS[suffix](bytes(content)))
    data = Reader(Store(uri="file:///x"), [f"file://{tmp_path}/latin{suffix}"], tmp_path / "scratch")
    cut = blocks.cut([data.size(0)], 512)
    with pytest.raises(JobError, match=f"byte 0xe9 at offset {offset}") as raised:
        [data.texts(block) for block in cut]
    assert (raised.value.reason, raised.value.retryable) == (Reason.DATA_UNREADABLE, False)
    assert "iconv" in raised.value.message
    assert f"latin{suffix}" in raised.value.message
    assert ("decompressed" in raised.value.message) == (suffix == ".gz")


SPOILT: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda d: d[:-7],
    "half": lambda d: d[: len(d) // 2],
    "other format": lambda _: b"not an archive",
    "damaged": lambda d: d[:40] + b"\xff" * 40 + d[80:],
}
SPOILT_ARCHIVES = [
    (suffix, how)
    for suffix in (".gz", ".xz", ".bz2", ".zst")
    for how in SPOILT
    if (suffix, how) != (".zst", "damaged")  # Arrow writes no checksums
]


@pytest.mark.parametrize(("suffix", "how"), SPOILT_ARCHIVES)
def test_a_damaged_archive(tmp_path: Path, suffix: str, how: str) -> None:
    whole = COMPRESS[suffix]("".join(f"word{i * 7919 % 1000} " for i in range(5000)).encode())
    (tmp_path / f"a{suffix}").write_bytes(SPOILT[how](whole))
    data = Reader(Store(uri="file:///x"), [f"file://{tmp_path}/a{suffix}"], tmp_path / "scratch")
    with pytest.raises(JobError, match="damaged or cut short: upload it again") as raised:
        data.size(0)
    assert (raised.value.reason, raised.value.retryable) == (Reason.DATA_UNREADABLE, False)
    assert not list((tmp_path / "scratch").rglob("*.partial"))
    assert not any(path.is_file() for path in (tmp_path / "scratch").rglob("*"))


def test_a_store_that_fails_is_no_damaged_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(io.BytesIO):
        def read(self, *_: object) -> bytes:
            raise OSError("the connection broke")

    @contextlib.contextmanager
    def opened(store: Store) -> Iterator[io.BytesIO]:
        with stores.errors(store):
            yield Failing()

    (tmp_path / "a.zst").write_bytes(COMPRESS[".zst"](b"word"))
    monkeypatch.setattr(stores, "open_read", opened)
    data = Reader(Store(uri="file:///x"), [f"file://{tmp_path}/a.zst"], tmp_path / "scratch")
    with pytest.raises(JobError, match="the connection broke") as raised:
        data.size(0)
    assert (raised.value.reason, raised.value.retryable) == (Reason.STORAGE_UNREACHABLE, True)


def test_decompression_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"word"))

    def full(_: Store) -> Iterator[bytes]:
        yield b"wo"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(decompressing, "chunks", full)
    data = Reader(Store(uri="file:///x"), [f"file://{tmp_path}/a.gz"], tmp_path / "scratch")
    with pytest.raises(JobError, match="make the volume larger"):
        data.size(0)


def test_a_file_that_changes_while_the_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("word " * 100)
    data = Reader(Store(uri="file:///x"), [f"file://{path}"], tmp_path)
    data.expect([DataFile(uri=f"file://{path}", size=500)])
    path.write_text("word " * 10)
    with pytest.raises(JobError, match="changed while it was read") as raised:
        data.texts((Segment(0, 250, 500),))
    assert raised.value.reason == Reason.DATA_UNREADABLE


@pytest.mark.parametrize("suffix", [".txt", ".gz"])
def test_a_file_that_grew_after_it_was_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.setattr(reader, "LOOKED_AT_BYTES", 500)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(COMPRESS[suffix](b"word " * 120))
    data = Reader(Store(uri="file:///x"), [f"file://{path}"], tmp_path / "scratch")
    data.expect([DataFile(uri=f"file://{path}", size=500)])
    with pytest.raises(JobError, match="changed while it was read: it has 600 bytes") as raised:
        data.texts((Segment(0, 0, 250),))
    assert raised.value.reason == Reason.DATA_UNREADABLE


@pytest.mark.parametrize(("etag", "changed"), [("one", False), ("other", True), (None, False)])
def test_a_file_of_a_store_that_was_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, etag: str | None, changed: bool
) -> None:
    """It is asked once whether it is the one that was counted."""
    asked: list[str] = []

    def stat(store: Store) -> Found:
        asked.append(store.uri)
        return Found(store.uri, 500, etag)

    monkeypatch.setattr(reader, "LOOKED_AT_BYTES", 500)
    monkeypatch.setattr(stores, "stat", stat)
    monkeypatch.setattr(stores, "read_bytes", lambda _, start, end: (b"word " * 100)[start:end])
    data = Reader(Store(uri="s3://b/x"), ["s3://b/x/a.txt"], tmp_path)
    data.expect([DataFile(uri="s3://b/x/a.txt", size=500, etag="one")])
    if changed:
        with pytest.raises(JobError, match="its ETag is other, and was one"):
            data.texts((Segment(0, 0, 250),))
        return
    assert len(data.texts((Segment(0, 0, 250), Segment(0, 250, 500)))) == 2
    assert asked == ["s3://b/x/a.txt"]
    data.expect([DataFile(uri="s3://b/x/a.txt", size=499, etag="another")])
    assert data.texts((Segment(0, 0, 250),))
    assert asked == ["s3://b/x/a.txt"], "a small one is not worth a request"


def test_a_compressed_file_is_decompressed_once(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"one two three"))
    uris = [f"file://{path}"]
    assert Reader(Store(uri="file:///x"), uris, tmp_path / "scratch").size(0) == 13
    path.unlink()
    again = Reader(Store(uri="file:///x"), uris, tmp_path / "scratch")
    assert again.texts((Segment(0, 4, 13),)) == [b"two three"]


def test_pieces_cover_a_whole_compressed_file(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"x" * 25))
    data = Reader(Store(uri="file:///x"), [f"file://{tmp_path}/a.gz"], tmp_path / "scratch")
    assert data.pieces((Segment(0, 0, None),), 10) == [Segment(0, 0, 10), Segment(0, 10, 20), Segment(0, 20, 25)]
    assert COUNTING_BYTES > 10
