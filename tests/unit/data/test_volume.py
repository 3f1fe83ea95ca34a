"""What is kept on the scratch volume stays within its limit, and reads are right whatever has to go."""

from __future__ import annotations

import gzip
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from mms_workloads import store as stores
from mms_workloads.contract import Data, Store
from mms_workloads.data import blocks, decompressing, pages, reader
from mms_workloads.data.pages import Pages
from mms_workloads.data.reader import Reader
from mms_workloads.data.volume import Volume
from mms_workloads.store import JobError
from tests.unit.data.counted import corpus

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

FILES, LINES = 6, 500
LINE = 20  # bytes
SIZE = LINES * LINE


def line(file: int, number: int) -> str:
    return f"{file}-{number:05} text of it\n".ljust(LINE, "x")[:LINE]


@pytest.fixture
def uris(tmp_path: Path) -> list[str]:
    """Compressed files of SIZE bytes."""
    found = []
    for file in range(FILES):
        path = tmp_path / "data" / f"{file}.gz"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress("".join(line(file, n) for n in range(LINES)).encode()))
        found.append(f"file://{path}")
    return found


def limited(monkeypatch: pytest.MonkeyPatch, limit: float) -> Volume:
    monkeypatch.setattr(pages.HELD, "volume", volume := Volume(limit))
    return volume


def on(folder: Path) -> int:
    """Bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def decompressed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were, in order."""
    done, decompress = list[str](), reader.decompress

    def watched(store: Store, target: Path, grow: Callable[[int], None]) -> None:
        done.append(store.uri.rpartition("/")[2])
        decompress(store, target, grow)

    monkeypatch.setattr(reader, "decompress", watched)
    return done


def make(tmp_path: Path, uris: Sequence[str]) -> Reader:
    return Reader(Store(uri=f"file://{tmp_path}"), uris, tmp_path / "scratch")


@pytest.mark.parametrize("limit", [SIZE * 5 // 2, SIZE, SIZE // 10], ids=["two files", "one", "less than one"])
def test_decompressed_files_stay_within_the_limit(
    tmp_path: Path, uris: list[str], monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    limited(monkeypatch, limit)
    monkeypatch.setattr(decompressing, "CHUNK_BYTES", LINE)
    data, rng, most = make(tmp_path, uris), random.Random(0), 0
    written = stores.open_read

    def opened(store: Store) -> object:
        nonlocal most
        most = max(most, on(tmp_path / "scratch"))
        return written(store)

    monkeypatch.setattr(stores, "open_read", opened)
    for _ in range(60):
        file, number = rng.randrange(FILES), rng.randrange(LINES)
        assert data.read(file, number * LINE, (number + 1) * LINE).decode() == line(file, number)
        most = max(most, on(tmp_path / "scratch"))
    assert most <= max(limit, SIZE), "at least one file"


def test_room_is_made_before_a_file_takes_it(tmp_path: Path, uris: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only when it is there: a volume may be no larger than its limit."""
    limited(monkeypatch, SIZE * 2)
    monkeypatch.setattr(decompressing, "CHUNK_BYTES", LINE)
    seen, grow = list[int](), Volume.grow

    def grown(volume: Volume, path: Path, size: int) -> None:
        grow(volume, path, size)
        seen.append(sum(p.stat().st_size for p in path.parent.iterdir() if p.suffix != ".partial"))

    monkeypatch.setattr(Volume, "grow", grown)
    data = make(tmp_path, uris)
    for file in range(3):
        data.read(file, 0, LINE)
    assert seen[2 * LINES - 1] == SIZE
    assert seen[2 * LINES] == SIZE, "of the third file the first bytes: the first file has gone"


def test_what_was_used_least_lately_goes(
    tmp_path: Path, uris: list[str], monkeypatch: pytest.MonkeyPatch, decompressed: list[str]
) -> None:
    limited(monkeypatch, SIZE * 2)
    data = make(tmp_path, uris)
    for file in (0, 1, 0, 2, 0, 1):
        data.read(file, 0, LINE)
    assert decompressed == ["0.gz", "1.gz", "2.gz", "1.gz"]


def test_a_file_that_is_larger_than_the_limit_is_decompressed_once_for_who_reads_on(
    tmp_path: Path, uris: list[str], monkeypatch: pytest.MonkeyPatch, decompressed: list[str]
) -> None:
    limited(monkeypatch, 1)
    data = make(tmp_path, uris)
    for number in range(LINES):
        data.read(3, number * LINE, (number + 1) * LINE)
    assert decompressed == ["3.gz"]


def test_pages_and_decompressed_files_share_the_limit(
    tmp_path: Path, uris: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = limited(monkeypatch, SIZE * 2)
    monkeypatch.setattr(pages, "LEAST_BYTES", 64)
    held, data = Pages(tmp_path / "scratch" / "pages", volume, 1000), make(tmp_path, uris)

    def page(number: int) -> bytes:
        return held.read("s3://b/a", number * 1000, (number + 1) * 1000, 1 << 20, lambda a, b: bytes(b - a))

    for number in range(30):
        page(number)
    assert on(tmp_path / "scratch") == SIZE * 2
    data.read(0, 0, LINE)
    assert on(tmp_path / "scratch") == SIZE * 2
    assert on(tmp_path / "scratch" / "pages") == SIZE
    data.read(1, 0, LINE)
    assert on(tmp_path / "scratch" / "pages") == 0
    for number in range(30):
        page(number)
    assert on(tmp_path / "scratch") == SIZE * 2
    assert on(tmp_path / "scratch" / "spool") == SIZE, "what was used last"


def test_threads_that_read_different_files(
    tmp_path: Path, uris: list[str], monkeypatch: pytest.MonkeyPatch, decompressed: list[str]
) -> None:
    """The file that a block is read from stays until all of it is read, whatever other threads need."""
    limited(monkeypatch, SIZE // 2)
    data, meeting = make(tmp_path, uris), threading.Barrier(2)

    def scan(file: int) -> None:
        with data.ahead((blocks.Segment(file, 0, SIZE),)):
            for number in range(0, LINES, 50):
                meeting.wait(30)
                assert data.read(file, number * LINE, (number + 1) * LINE).decode() == line(file, number)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(scan, (0, 1)))
    assert sorted(decompressed) == ["0.gz", "1.gz"]
    assert on(tmp_path / "scratch") == SIZE, "the one that was used last"


def test_many_threads_over_few_bytes(tmp_path: Path, uris: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, SIZE)
    data = make(tmp_path, uris)

    def some(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(40):
            file, number = rng.randrange(FILES), rng.randrange(LINES)
            assert data.read(file, number * LINE, (number + 1) * LINE).decode() == line(file, number)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(some, range(6)))
    assert on(tmp_path / "scratch") == SIZE


def test_records_of_compressed_files_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the counting pass to the last block."""
    (tmp_path / "data").mkdir()
    for file in range(4):
        rows = "".join(f'{{"text": "{file}-{n}", "label": "{n % 2}"}}\n' for n in range(200))
        (tmp_path / "data" / f"{file}.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    size = len(rows)
    limited(monkeypatch, size * 2)
    given = Data(store=Store(uri=f"file://{tmp_path}/data/*"), blockBytes=1000)
    held = corpus(given, tmp_path / "scratch")
    texts = [record["input"] for block in range(len(held.blocks)) for record in held.records(block)]
    assert sorted(texts) == sorted(f"{file}-{n}" for file in range(4) for n in range(200))
    assert on(tmp_path / "scratch") <= size * 2


def test_a_process_that_comes_back_counts_what_is_there(
    tmp_path: Path, uris: list[str], monkeypatch: pytest.MonkeyPatch, decompressed: list[str]
) -> None:
    limited(monkeypatch, SIZE * 3)
    for file in range(3):
        make(tmp_path, uris).read(file, 0, LINE)
    (tmp_path / "scratch" / "spool" / "left.partial").write_bytes(b"cut short")
    limited(monkeypatch, SIZE * 2)
    again = make(tmp_path, uris)
    assert again.read(2, 0, LINE).decode() == line(2, 0)
    assert on(tmp_path / "scratch") == SIZE * 2
    assert len(decompressed) in {3, 4}, "it may be the one that had to go"


def test_a_file_that_cannot_be_decompressed_takes_no_room(
    tmp_path: Path, uris: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = limited(monkeypatch, SIZE * 2)
    damaged = tmp_path / "data" / "damaged.gz"
    damaged.write_bytes(gzip.compress(random.Random(0).randbytes(SIZE))[:-100])
    data = make(tmp_path, [*uris, f"file://{damaged}"])
    for _ in range(3):
        with pytest.raises(JobError, match="damaged"):
            data.read(FILES, 0, 1)
    data.read(0, 0, 1)
    data.read(1, 0, 1)
    assert on(tmp_path / "scratch") == SIZE * 2 == volume.limit


def test_what_was_read_has_a_limit_of_its_own(tmp_path: Path) -> None:
    volume = Volume(pages_limit=10)
    pages_, decompressed = [tmp_path / f"page{n}" for n in range(3)], tmp_path / "whole"
    for path in (*pages_, decompressed):
        path.write_bytes(b"x" * 5)
    volume.begin(decompressed)
    volume.grow(decompressed, 1000)
    volume.complete(decompressed)
    volume.let_go(decompressed)
    for path in pages_:
        volume.keep(path, 5)
    assert [path.exists() for path in pages_] == [False, True, True]
    assert volume.hold(decompressed)


def test_who_decompresses_again_is_told_why(
    tmp_path: Path, uris: list[str], decompressed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(monkeypatch, SIZE)
    data = Reader(Store(uri="file:///x"), uris, tmp_path / "scratch")
    with capture_logs() as logs:
        for file in (0, 1, 0, 1):
            data.read(file, 0, LINE)
    assert len(decompressed) == 4
    (said,) = logs
    assert "data.cacheSize" in said["event"]
