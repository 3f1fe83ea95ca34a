"""The formats of traces that are read, and what is said of files that are none."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

import pytest

from mms_operator.lab import trace

if TYPE_CHECKING:
    from pathlib import Path

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:16:00.0000001,879,55
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trace.csv"


@pytest.mark.parametrize(
    ("text", "times"),
    [
        (AZURE, [0.0, 4.314579, 13.3194101]),
        ("time,user\n7.5,a\n9,b\n", [0.0, 1.5]),
        ("\ufeffTime;x\n9;1\n\n7.5;2\n", [0.0, 1.5]),
        ("user\tarrival\na\t1e3\nb\t1001\n", [0.0, 1.0]),
        ("t\n2023-11-16T18:15:46Z\n2023-11-16T19:15:47.5+01:00\n2023-11-16T18:15:48.25+00:00\n", [0.0, 1.5, 2.25]),
        ("timestamp\n2023-03-26 01:30:00\n2023-03-26 03:30:00\n", [0.0, 7200.0]),
    ],
    ids=["Azure", "seconds", "semicolons, a mark, not sorted", "tabs", "zones", "no summer time"],
)
def test_a_row_for_each_request(path: Path, text: str, times: list[float]) -> None:
    path.write_text(text, encoding="utf-8")
    assert trace.read(path) == pytest.approx(times, abs=1e-6)


def test_counts_of_times(path: Path) -> None:
    path.write_text("time,count\n100,2\n110,0\n130,3\n")
    found = trace.read(path)
    assert found == sorted(found)
    assert [0 <= time < 10 for time in found] == [True] * 2 + [False] * 3
    assert [30 <= time < 50 for time in found] == [False] * 2 + [True] * 3, "the last lasts as long as the one before"


def test_counts_of_the_same_time_are_added(path: Path) -> None:
    """As of several functions: each of them has a row for each minute."""
    path.write_text("function,time,count\na,0,2\nb,0,3\na,60,1\nb,60,0\n")
    assert [int(time // 60) for time in trace.read(path)] == [0] * 5 + [1]
    assert len(set(trace.read(path))) == 6, "spread, and not all at once"
    path.write_text("time,count\n7,2\n7,1\n")
    assert [int(time) for time in trace.read(path)] == [0] * 3


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["Unix", "Windows", "old Macs"])
def test_line_ends(path: Path, end: str) -> None:
    path.write_bytes(end.join(["time,count", "0,1", "10,2", ""]).encode())
    assert [int(time // 10) for time in trace.read(path)] == [0, 1, 1]
    path.write_bytes(end.join(["1", "2", ""]).encode())
    assert [int(time) for time in trace.read(path)] == [0, 1, 1]


@pytest.mark.parametrize("text", ["2 0 1\n", "2\n0\n1", "2,0,1", " 2\t0;1"])
def test_counts_of_seconds(path: Path, text: str) -> None:
    path.write_text(text)
    assert [int(time) for time in trace.read(path)] == [0, 0, 2]


def test_it_is_read_the_same_again(path: Path) -> None:
    path.write_text("5 " * 100)
    assert trace.read(path) == trace.read(path)


def test_a_part_of_it(path: Path) -> None:
    path.write_text("1 2 3 4")
    assert [int(time) for time in trace.read(path, begin=1, seconds=2)] == [0, 0, 1, 1, 1]
    assert [int(time) for time in trace.read(path, begin=3)] == [0] * 4
    path.write_text("t\n0\n10\n20\n30\n")
    assert trace.read(path, begin=5, seconds=15) == [5.0]


def test_of_a_long_trace_only_the_part_is_made(path: Path) -> None:
    path.write_text(f"{trace.MOST + 1} 3")
    assert len(trace.read(path, begin=1)) == 3


def test_a_quotation_mark_without_its_other_one(path: Path) -> None:
    path.write_text('time,"user\n' + "1,a\n" * 100)
    before = csv.field_size_limit(100)
    try:
        with pytest.raises(trace.TraceError, match="line 34: field larger than field limit"):
            trace.read(path)
    finally:
        csv.field_size_limit(before)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no request between 0 s and inf s"),
        ("0 0 0", "no request"),
        ("time,count\n", "has a header and no row"),
        ("when,what\n1,2\n", "no column of times in the header 'when,what': call it timestamp"),
        ("x" * 5000, "call it timestamp"),
        ("time\n1\nsoon\n", "line 3: 'soon' is neither seconds nor a date and time such as"),
        ("time\nnan\n", "line 2: 'nan' is no time"),
        ("user,time\na,1\nb\n", "line 3: 1 columns, not 2"),
        ("time,count\n1,-3\n", "line 2: '-3' is no number of requests"),
        ("time,count\n1,2.5\n", "'2.5' is no number of requests"),
        ("1 2 -3", "neither a header nor requests in each second: '-3'"),
        ("0.5\n1.2\n", "neither a header nor requests in each second: '0.5'"),
        ("time\n0\n1700000000\n", "19,676 days from the first request to the last, more than 366: give its times in"),
        (f"{10**12}", "more than 10,000,000 requests: take a part of it with --begin and --seconds"),
    ],
    ids=lambda text: text[:12].replace("\n", "/"),
)
def test_what_is_no_trace(path: Path, text: str, said: str) -> None:
    path.write_text(text)
    with pytest.raises(trace.TraceError) as error:
        trace.read(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 300 + len(str(path))
