"""Parquet: the rows of a row group are spread evenly over its bytes, so that blocks cut it like any other file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from mms_workloads.contract import Reason
from mms_workloads.data.items import BUFFER_BYTES, Item, NoField, columns, opened, pick
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mms_workloads.contract import Fields
    from mms_workloads.data.blocks import Segment
    from mms_workloads.data.items import Source

BATCH_ROWS = 256


def rows(source: Source, segment: Segment, fields: Fields) -> Iterator[Item]:
    """Raises JobError where the file is damaged. A row's offset is its number in the file."""
    size = source.size(segment.file)
    end = size if segment.end is None else segment.end
    if size == 0:
        return
    try:
        with _opened(source, segment.file) as file:
            names = file.schema_arrow.names
            wanted = pick_columns(source.uris[segment.file], names, fields)
            before = 0
            for group, (low, high, count) in enumerate(_groups(file)):
                first, last = (_row(p, low, high, count) for p in (segment.start, end))
                for row, values in _of_group(file, group, wanted, first, last):
                    if isinstance(values, str):
                        yield Item(segment.file, before + row, None, values)
                    else:
                        yield _item(segment.file, before + row, values, fields)
                before += count
    except (pa.ArrowException, OSError) as error:
        raise _damaged(source, segment.file, error) from error


def pieces(source: Source, number: int, first: int, piece_bytes: int) -> Iterator[tuple[bytes, int]]:
    """(a Parquet file of about piece_bytes, the row that the next one begins with) from row `first` on.

    Raises JobError where the file is damaged.
    """
    if source.size(number) == 0:
        return
    try:
        with _opened(source, number) as file:
            held: list[pa.RecordBatch] = []
            row, size = 0, 0
            for batch in file.iter_batches(BATCH_ROWS):
                rest = batch.slice(max(0, first - row))
                row += batch.num_rows - rest.num_rows
                while rest.num_rows:
                    each = max(1, rest.nbytes // rest.num_rows)
                    part = rest.slice(0, max(1, (piece_bytes - size) // each))
                    held.append(part)
                    rest = rest.slice(part.num_rows)
                    row, size = row + part.num_rows, size + part.nbytes
                    if size >= piece_bytes - each:
                        yield _file(held), row
                        held, size = [], 0
            if held:
                yield _file(held), row
    except (pa.ArrowException, OSError) as error:
        raise _damaged(source, number, error) from error


def _opened(source: Source, number: int) -> pq.ParquetFile:
    """Column chunks, which may be as large as the file, are read BUFFER_BYTES at a time."""
    return pq.ParquetFile(opened(source, number), buffer_size=BUFFER_BYTES, pre_buffer=False)


def _file(batches: list[pa.RecordBatch]) -> bytes:
    out = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_batches(batches), out, compression="zstd")
    return bytes(out.getvalue())


def _damaged(source: Source, number: int, error: Exception) -> JobError:
    return JobError(
        Reason.DATA_UNREADABLE, f"{source.uris[number]} is no intact Parquet file: {error}. Upload it again"
    )


def pick_columns(uri: str, names: list[str], fields: Fields) -> list[str]:
    """The columns to read. Raises JobError."""
    try:
        return [name for name in columns(names, fields) if name is not None]
    except NoField as error:
        raise JobError(Reason.DATA_INVALID, f"{uri}: {error}") from error


def _groups(file: pq.ParquetFile) -> Iterator[tuple[int, int, int]]:
    """(first byte, byte after the last, rows) of each row group."""
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        columns = [group.column(c) for c in range(group.num_columns)]
        starts = [
            min(c.data_page_offset, c.dictionary_page_offset or c.data_page_offset)
            for c in columns
        ]  # fmt: skip
        ends = [s + c.total_compressed_size for s, c in zip(starts, columns, strict=True)]
        yield min(starts), max(ends), group.num_rows


def _row(position: int, low: int, high: int, count: int) -> int:
    """The first row whose place is at the position or behind it."""
    return min(count, max(0, -(-(position - low) * count // (high - low))))


def _of_group(
    file: pq.ParquetFile, group: int, columns: list[str], first: int, last: int
) -> Iterator[tuple[int, dict[str, object] | str]]:
    """(number in the group, values, or why there are none) of the rows [first, last)."""
    at = 0
    if first >= last:
        return
    for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns):
        begin, stop = max(0, first - at), min(batch.num_rows, last - at)
        if begin < stop:
            yield from enumerate(_values(batch.slice(begin, stop - begin)), at + begin)
        at += batch.num_rows
        if at >= last:
            return


def _values(batch: pa.RecordBatch) -> list[dict[str, object] | str]:
    """Of each row. Arrow checks neither text nor times when it reads them."""
    try:
        return list(batch.to_pylist())
    except (ValueError, ArithmeticError) as error:
        if batch.num_rows > 1:
            return [values for row in range(batch.num_rows) for values in _values(batch.slice(row, 1))]
        if isinstance(error, UnicodeDecodeError):
            return [f"it is not UTF-8: byte 0x{error.object[error.start]:02x} at {error.start} of a text"]
        return [f"it has a value that cannot be read: {error}"]


def _item(number: int, offset: int, values: dict[str, object], fields: Fields) -> Item:
    record = pick(values, fields)
    given = record["input"]
    if isinstance(given, dict) and isinstance(given.get("bytes"), bytes):  # images and sound as Hugging Face has them
        record["input"] = given["bytes"]
    return Item(number, offset, record)
