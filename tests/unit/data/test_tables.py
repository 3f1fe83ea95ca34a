"""Tables: where a row ends, and which character separates cells."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mms_workloads.contract import Fields
from mms_workloads.data import lines, parquet
from mms_workloads.data.blocks import Segment
from mms_workloads.data.scanner import Scanner
from tests.unit.data.counted import by_blocks, corpus, described

if TYPE_CHECKING:
    from pathlib import Path

GOOD = [(f"film {i}", "good") for i in range(6)]


def _lines(rows: list[tuple[str, str]]) -> str:
    return "".join(f"{text},{label}\n" for text, label in rows)


LONE = {
    "in a cell": ('a 5" screen,good\n', [('a 5" screen', "good")], 0),
    "two in a cell": ('a 5" by 3" screen,good\n', [('a 5" by 3" screen', "good")], 0),
    "opens a cell": ('"never closed,good\n', [], 1),
    "opens the last cell": ('never closed,"good\n', [], 1),
    "closed too early": ('"closed" too early,good\n', [], 1),
    "escaped": ('"a ""quoted"" word",good\n', [('a "quoted" word', "good")], 0),
    "of several lines": ('"one, two\nthree ""four""\n\nfive",good\n', [('one, two\nthree "four"\n\nfive', "good")], 0),
    "two of several lines": ('"a\nb","go\nod"\n', [("a\nb", "go\nod")], 0),
}


@pytest.mark.parametrize("behind", [GOOD[3:], [*GOOD[3:5], ("a, b", "good")]], ids=["without quotes", "with quotes"])
@pytest.mark.parametrize("case", LONE)
def test_a_lone_quote_takes_no_other_rows_with_it(tmp_path: Path, case: str, behind: list[tuple[str, str]]) -> None:
    row, found, bad = LONE[case]
    after = "".join(f'"{text}",{label}\n' if "," in text else f"{text},{label}\n" for text, label in behind)
    (tmp_path / "a.csv").write_text("text,label\n" + _lines(GOOD[:3]) + row + after)
    for block_bytes in (20, 1 << 20):
        held = corpus(described(tmp_path / "a.csv", blockBytes=block_bytes), tmp_path / str(block_bytes))
        assert by_blocks(held) == [*GOOD[:3], *found, *behind]
        assert len(held.schema.bad) == bad
        assert all("a cell that begins with a quote must end with one" in one.reason for one in held.schema.bad)


@given(
    st.lists(st.tuples(*[st.text(st.sampled_from('ab",;\t\n '), max_size=8)] * 2), max_size=12),
    st.sampled_from(",;\t"),
    st.integers(1, 60),
)
def test_rows_are_those_of_the_csv_module(
    tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str]], delimiter: str, block_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("tables")
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator="\n")
    writer.writerow(["text", "label"])
    rows = [(f"x{text}", f"y{label}") for text, label in cells]
    writer.writerows([*rows, ("the", "end")])
    (folder / "a.csv").write_bytes(out.getvalue().encode())
    data = described(folder / "a.csv", blockBytes=block_bytes, quality={"maxBadRecords": 0})
    assert by_blocks(corpus(data, folder)) == [*rows, ("the", "end")]


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("text\tlabel, of people", "a, b\tgood"),
        ("text,label", "a\tb,good"),
        ("text;label", "a, b;good"),
    ],
)
def test_the_header_tells_what_separates_cells(tmp_path: Path, header: str, row: str) -> None:
    (tmp_path / "a.csv").write_text(f"{header}\n{row}\n")
    label = header[5:]
    found = corpus(described(tmp_path / "a.csv", fields={"input": "text", "label": label}), tmp_path)
    assert by_blocks(found) == [(row.removesuffix("good")[:-1], "good")]


def test_a_table_of_one_column_has_cells_with_commas_in_quotes_only(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text\n"a, b"\nc\n')
    assert by_blocks(corpus(described(tmp_path / "a.csv"), tmp_path)) == [("a, b", None), ("c", None)]


def test_cells_hold_whatever_unicode_calls_a_line_end(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\none\u2028two\x85three,good\n", encoding="utf-8")
    assert by_blocks(corpus(described(tmp_path / "a.csv"), tmp_path)) == [("one\u2028two\x85three", "good")]


class Counting:
    """A file in memory, and what was read of it."""

    def __init__(self, name: str, content: bytes) -> None:
        self.uris, self._content = [f"file:///{name}"], content
        self.read_bytes: list[tuple[int, int]] = []

    def size(self, _: int) -> int:
        return len(self._content)

    def read(self, _: int, start: int, end: int) -> bytes:
        self.read_bytes.append((start, end))
        return self._content[start:end]

    def total(self) -> int:
        return sum(end - start for start, end in self.read_bytes)


LONG = b"".join(b"film %d,good\n" % i for i in range(400_000))
BLOCK = 256 << 10


def test_a_block_of_lines_reads_little_more_than_itself() -> None:
    for start in (0, BLOCK, 5 * BLOCK + 7):
        source = Counting("a.txt", LONG)
        found = list(lines.lines(source, Segment(0, start, start + BLOCK)))
        assert b"\n".join(line or b"" for _, line in found) in LONG
        assert source.total() <= BLOCK + lines.STEP_BYTES + 1
        assert sum(len(line or b"") + 1 for _, line in found) == pytest.approx(BLOCK, abs=40)


def test_the_header_of_a_table_is_read_once() -> None:
    source = Counting("a.csv", b"text,label\n" + LONG)
    index = {0: [0, *(len(b"text,label\n") + LONG.index(b"film %d," % i) for i in (100_000, 200_000, 300_000))]}
    scanner = Scanner(source, "CSV", Fields(), index)
    for at in index[0][1:]:
        source.read_bytes.clear()
        found = list(scanner.items(Segment(0, at, at + BLOCK)))
        assert found[0].record
        headers = sum(start == 0 for start, _ in source.read_bytes)
        assert headers == (1 if at == index[0][1] else 0)
        assert source.total() <= BLOCK + (1 + headers) * lines.STEP_BYTES


def test_a_large_group_of_rows_is_read_in_parts() -> None:
    out = io.BytesIO()
    drawn = np.random.default_rng(0)
    rows = [drawn.bytes(8000) for _ in range(4000)]
    pq.write_table(pa.table({"image": rows}), out, use_dictionary=False, data_page_size=64 << 10)
    source = Counting("a.parquet", out.getvalue())
    found = parquet.rows(source, Segment(0, 0, None), Fields())
    assert [item.record["input"] for item in found if item.record] == rows
    assert max(end - start for start, end in source.read_bytes) < source.size(0) / 3
