"""Traces of requests: a CSV of arrival times or of counts per time."""

from __future__ import annotations

import csv
import math
import random
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    Interval = tuple[float, float, int]  # [begin, end) in seconds, requests

TIMES = ("timestamp", "time", "arrival", "seconds", "t")
COUNTS = ("count", "requests", "arrivals", "n")
MOST = 10_000_000  # requests: what the replay of a day of a busy service has, in some 300 MB
MOST_DAYS = 366  # from the first request to the last: all is decided anew every few seconds
_SEED = 1  # of where in its interval a request of a count falls
_DATE = re.compile(r"([^.,]*?)([.,]\d+)?(Z|[+-]\d\d:?\d\d)?", re.ASCII)
_SHOWN = 60  # letters of a file that is no trace


class TraceError(ValueError):
    """A file that is no trace; the message says what one is."""


def read(path: Path, *, begin: float = 0.0, seconds: float | None = None) -> list[float]:
    """Arrival times in seconds after `begin`, ascending. Raises TraceError, OSError.

    A table with a header that names a column of times has a row for each request, or for each time with a column of
    counts. Numbers without a header, whatever divides them, are requests of one second after the other.
    begin, seconds: of which part of it, after its first row.
    """
    text = path.read_text(encoding="utf-8", errors="replace").lstrip("\ufeff")
    head = text[:4096].split("\n", 1)[0]
    end = math.inf if seconds is None else begin + seconds
    if any(c.isalpha() for c in head):
        times = _table(path, text, head, begin, end)
    else:
        times = _spread(path, _counts(path, text), begin, end)
    found = [time - begin for time in times if begin <= time < end]
    if not found:
        raise TraceError(f"{path}: no request between {begin:g} s and {end:g} s of the trace")
    if (days := (found[-1] - found[0]) / 86_400) > MOST_DAYS:
        raise TraceError(
            f"{path}: {days:,.0f} days from the first request to the last, more than {MOST_DAYS}: give its times in "
            "seconds, and take a part of it with --begin and --seconds"
        )
    return found


def _table(path: Path, text: str, head: str, begin: float, end: float) -> list[float]:
    delimiter = next((c for c in "\t;," if c in head), ",")
    rows = _rows(path, text, delimiter)
    _, header = next(rows)
    names = [name.strip().lower() for name in header]
    at = next((names.index(name) for name in TIMES if name in names), None)
    if at is None:
        raise TraceError(
            f"{path}: no column of times in the header {head.strip()[:_SHOWN]!r}: call it {', '.join(TIMES[:-1])} or "
            f"{TIMES[-1]}; numbers without a header are requests in each second"
        )
    count = next((names.index(name) for name in COUNTS if name in names), None)
    found: list[tuple[float, int]] = []
    for line, row in rows:
        if not row:
            continue
        try:
            found.append((_seconds(row[at]), 1 if count is None else _count(row[count])))
        except IndexError as error:
            raise TraceError(f"{path}, line {line}: {len(row)} columns, not {len(names)}") from error
        except ValueError as error:
            raise TraceError(f"{path}, line {line}: {error}") from error
    if not found:
        raise TraceError(f"{path} has a header and no row")
    found.sort()
    first = found[0][0]
    if count is None:
        return [time - first for time, _ in found]
    return _spread(path, _intervals([(time - first, n) for time, n in found]), begin, end)


def _rows(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """With the number of the line that each ends in."""
    rows = csv.reader(text.splitlines(), delimiter=delimiter)
    try:
        for row in rows:
            yield rows.line_num, row
    except csv.Error as error:  # as of a quotation mark without its other one
        raise TraceError(f"{path}, line {rows.line_num}: {error}") from error


def _intervals(counts: Sequence[tuple[float, int]]) -> Iterator[Interval]:
    """counts: by time, ascending; those of one time, as of several functions, are requests of the same interval."""
    summed: dict[float, int] = {}
    for time, n in counts:
        summed[time] = summed.get(time, 0) + n
    times = list(summed)
    times.append(times[-1] + (times[-1] - times[-2] if len(times) > 1 else 1.0))
    for (time, n), end in zip(summed.items(), times[1:], strict=True):
        yield time, end, n


def _counts(path: Path, text: str) -> Iterator[Interval]:
    for i, one in enumerate(text.replace(",", " ").replace(";", " ").split()):
        try:
            yield float(i), i + 1.0, _count(one)
        except ValueError as error:
            raise TraceError(f"{path}: neither a header nor requests in each second: {error}") from error


def _spread(path: Path, intervals: Iterable[Interval], begin: float, end: float) -> list[float]:
    """Times drawn evenly within each interval that overlaps [begin, end): as of requests that are independent."""
    chance = random.Random(_SEED)  # noqa: S311 - no secret
    found: list[float] = []
    for first, last, count in intervals:
        if last <= begin or first >= end:
            continue
        if len(found) + count > MOST:
            raise TraceError(f"{path}: more than {MOST:,} requests: take a part of it with --begin and --seconds")
        found += sorted(first + (last - first) * chance.random() for _ in range(count))
    return found


def _count(text: str) -> int:
    if not (text.strip().isascii() and text.strip().isdigit()):
        raise ValueError(f"{text[:_SHOWN]!r} is no number of requests")
    return int(text)


def _seconds(text: str) -> float:
    """A number, or a date and time, in UTC unless it says its zone. Of fractions datetime knows six digits."""
    try:
        found = float(text)
    except ValueError:
        found = _date(text.strip())
    if not math.isfinite(found):
        raise ValueError(f"{text[:_SHOWN]!r} is no time")
    return found


def _date(text: str) -> float:
    whole, fraction, zone = parts.groups() if (parts := _DATE.fullmatch(text)) else (text, None, None)
    try:
        moment = datetime.fromisoformat(whole + (zone or ""))
    except ValueError as error:
        raise ValueError(
            f"{text[:_SHOWN]!r} is neither seconds nor a date and time such as 2023-11-16 18:15:46.5"
        ) from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.timestamp() + float((fraction or "0").replace(",", "."))
