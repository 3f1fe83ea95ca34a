"""Records that are lines: text, JSON lines, and CSV (RFC 4180) with a header."""

from __future__ import annotations

import base64
import binascii
import csv
import io
import json
from collections import deque
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from mms_workloads.contract import Reason
from mms_workloads.data import formats
from mms_workloads.data.blocks import Segment
from mms_workloads.data.items import BUFFER_BYTES, LONGEST_RECORD_BYTES, Item, NoField, Source, pick
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mms_workloads.contract import Fields

BOM = b"\xef\xbb\xbf"
STEP_BYTES = 64 << 10  # that are read at a time to find the end of a block's last line
_DELIMITERS = "\t,;|"  # of equally frequent ones the first: a column's name has a comma rather than a tab
csv.field_size_limit(LONGEST_RECORD_BYTES)


class TooLong(ValueError):  # noqa: N818 - says what it is
    def __init__(self) -> None:
        super().__init__(f"it is longer than {LONGEST_RECORD_BYTES >> 20} MiB: a line end may be missing")


def lines(
    source: Source, segment: Segment, *, aligned: bool = False, wanted: int | None = None
) -> Iterator[tuple[int, bytes | None]]:
    """(offset, bytes without the line's end) of the lines that start in the segment; None for one that is too long.

    aligned: a line starts at segment.start, whatever is before it. wanted: behind it little is likely to be asked for,
    None: behind the segment's end.
    """
    file, size = segment.file, source.size(segment.file)
    end = size if segment.end is None else min(segment.end, size)
    aligned = aligned or segment.start == 0
    at = segment.start if aligned else segment.start - 1  # the byte before tells whether a line starts here
    parts: list[bytes] = []
    length, start, skipping = 0, at, not aligned
    while at < size and (start < end or skipping):
        behind = max(at + STEP_BYTES, end if wanted is None else wanted)
        data = source.read(file, at, min(size, at + BUFFER_BYTES, behind))
        position = 0
        while position < len(data) and (start < end or skipping):
            found = data.find(b"\n", position)
            stop = len(data) if found < 0 else found
            if not skipping and length <= LONGEST_RECORD_BYTES:
                parts.append(data[position:stop])
            length += stop - position
            position = stop + 1
            if found < 0:
                continue
            if not skipping:
                yield start, _joined(parts, length)
            parts, length, start, skipping = [], 0, at + position, False
        at += len(data)
        if skipping and at >= end:
            return  # no line starts in the segment
    if length and not skipping and start < end:
        yield start, _joined(parts, length)


def _joined(parts: list[bytes], length: int) -> bytes | None:
    if length > LONGEST_RECORD_BYTES:
        return None
    line = b"".join(parts)
    return line[:-1] if line.endswith(b"\r") else line


def decoded(line: bytes | None, offset: int) -> str:
    """Raises ValueError."""
    if line is None:
        raise TooLong
    if offset == 0:
        line = line.removeprefix(BOM)
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8: byte 0x{line[error.start]:02x} at {offset + error.start}") from error


def parsed(said: str) -> Any:
    """JSON. Raises ValueError."""
    try:
        return json.loads(said)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error


def text(source: Source, segment: Segment, _: Fields) -> Iterator[Item]:
    """Each line is an input; empty ones are none."""
    for offset, line in lines(source, segment):
        try:
            said = decoded(line, offset)
        except ValueError as error:
            yield Item(segment.file, offset, None, str(error))
            continue
        if said.strip():
            yield Item(segment.file, offset, {"input": said, "label": None})


def json_lines(source: Source, segment: Segment, fields: Fields) -> Iterator[Item]:
    for offset, line in lines(source, segment):
        if line is not None and not line.strip():
            continue
        try:
            values = parsed(decoded(line, offset))
            if not isinstance(values, dict):
                raise ValueError("it is no JSON object")  # noqa: TRY004, TRY301 - caught below, with the others
            record = pick(values, fields)
            record["input"] = _binary(record["input"])
        except (ValueError, NoField) as error:
            yield Item(segment.file, offset, None, str(error))
        else:
            yield Item(segment.file, offset, record)


def _binary(value: Any) -> Any:
    """{"base64": ...}: bytes in JSON. Raises ValueError."""
    if not isinstance(value, dict) or set(value) != {"base64"}:
        return value
    try:
        return base64.b64decode(value["base64"], validate=True)
    except (binascii.Error, TypeError) as error:
        raise ValueError(f"its base64 is damaged: {error}") from error


class Table:
    """A CSV file's columns and how they are told apart."""

    def __init__(self, source: Source, file: int) -> None:
        """Raises JobError where there is no header."""
        head = next(lines(source, Segment(file, 0, 1)), None)
        try:
            header = decoded(head[1], 0) if head else ""
        except ValueError as error:
            raise JobError(Reason.DATA_INVALID, f"the header of {source.uris[file]}: {error}") from error
        tabs = formats.suffix(source.uris[file]) == formats.TABS
        usual = max(_DELIMITERS, key=header.count)
        self.delimiter = "\t" if tabs else usual if usual in header else ","
        self.columns = [name.strip() for name in next(csv.reader([header], delimiter=self.delimiter), [])]
        if not any(self.columns) or len(set(self.columns)) != len(self.columns):
            raise JobError(
                Reason.DATA_INVALID,
                f"the first line of {source.uris[file]} names no columns, or some twice: {header[:200]!r}. Write a "
                "header with a name for each column",
            )

    def values(self, row: str) -> dict[str, str]:
        """Raises ValueError."""
        try:
            cells = next(csv.reader(io.StringIO(row, newline="\n"), delimiter=self.delimiter, strict=True))
        except csv.Error as error:
            raise ValueError(
                f"it is no row of CSV: {error}: a cell that begins with a quote must end with one, and others "
                "inside it are doubled"
            ) from error
        if len(cells) != len(self.columns):
            raise ValueError(f"it has {len(cells)} cells, and the header {len(self.columns)} columns")
        return dict(zip(self.columns, cells, strict=True))


def rows(source: Source, segment: Segment, start: int, delimiter: str) -> Iterator[tuple[int, bytes | None]]:
    """(offset, bytes) of the rows from `start`, where one begins, that begin before the segment's end.

    A quoted cell may hold line ends. One that does not end as RFC 4180 has it is a row of its first line alone: a lone
    quote takes no other rows with it.
    """
    size = source.size(segment.file)
    end = size if segment.end is None else segment.end
    coming = lines(source, Segment(segment.file, start, size), aligned=True, wanted=end)
    again: deque[tuple[int, bytes | None]] = deque()  # lines behind a quote that did not end

    def following() -> tuple[int, bytes | None] | None:
        return again.popleft() if again else next(coming, None)

    separator = delimiter.encode()
    while (line := following()) is not None and line[0] < end:
        offset, first = line
        held = [line]
        quote = _quote(first or b"", separator)
        length = len(first or b"")
        while quote is Quote.OPEN and length <= LONGEST_RECORD_BYTES and (line := following()) is not None:
            held.append(line)
            length += len(line[1] or b"")
            quote = Quote.BROKEN if line[1] is None else _quote(line[1], separator, inside=True)
        if quote is Quote.CLOSED:
            yield offset, None if first is None else b"\n".join(part for _, part in held if part is not None)
        else:
            yield offset, first
            again.extendleft(reversed(held[1:]))


class Quote(Enum):
    """How a line leaves its last quoted cell."""

    CLOSED = auto()
    OPEN = auto()  # it goes on in the next line
    BROKEN = auto()  # its end is followed by neither a separator nor a line end


def _quote(line: bytes, separator: bytes, *, inside: bool = False) -> Quote:
    """inside: the line begins within a quoted cell. A quote that does not open a cell is a character like others."""
    at = 0
    while inside or (found := line.find(b'"', at)) >= 0:
        if inside:
            at = _end_of_cell(line, at)
            if at < 0:
                return Quote.OPEN
            if line[at : at + 1] not in {b"", separator}:
                return Quote.BROKEN
            inside, at = False, at + 1
        else:
            inside, at = found == 0 or line[found - 1 : found] == separator, found + 1
    return Quote.CLOSED


def _end_of_cell(line: bytes, at: int) -> int:
    """Behind the quote that ends a cell, two of which are one inside it; -1: it does not end in this line."""
    while (found := line.find(b'"', at)) >= 0:
        if line[found + 1 : found + 2] != b'"':
            return found + 1
        at = found + 2
    return -1


def table(
    source: Source, segment: Segment, fields: Fields, start: int, table_of: Callable[[int], Table]
) -> Iterator[Item]:
    """start: where a row of the file begins, at the segment's start or before. table_of: the columns of a file."""
    if source.size(segment.file) == 0:
        return
    columns = table_of(segment.file)
    for offset, row in rows(source, segment, start, columns.delimiter):
        if offset < segment.start or offset == 0 or (row is not None and not row.strip()):
            continue
        try:
            record = pick(columns.values(decoded(row, offset)), fields)
        except (ValueError, NoField) as error:
            yield Item(segment.file, offset, None, str(error))
        else:
            yield Item(segment.file, offset, record)
