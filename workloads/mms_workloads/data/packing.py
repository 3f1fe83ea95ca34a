"""A data set as small files of its own format, each of whole records, so that each can be read by itself."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING, NamedTuple

from mms_workloads.contract import Reason
from mms_workloads.data import formats, members
from mms_workloads.data.blocks import Segment
from mms_workloads.data.lines import BOM, Table, lines, rows
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mms_workloads.contract import Fields, RecordFormat
    from mms_workloads.data.items import Source

Place = tuple[int, int]  # file, and byte in it where a record starts; of Parquet its row


class Piece(NamedTuple):
    """after: where the next one begins. ending: of a table whose cells stand between tabs, which its header alone may
    not tell.
    """

    data: bytes
    after: Place
    ending: str = ""


def pieces(source: Source, chosen: RecordFormat, fields: Fields, piece_bytes: int, start: Place) -> Iterator[Piece]:
    """Of about piece_bytes each, from `start` on. Raises JobError."""
    match chosen:
        case "Text" | "JSONLines":
            yield from _lines(source, piece_bytes, start)
        case "CSV":
            yield from _tables(source, piece_bytes, start)
        case "WebDataset":
            yield from _tars(_records(source, start), piece_bytes)
        case "ImageFolder" | "WAV":
            yield from _tars(_files(source, chosen, fields, start), piece_bytes)
        case "Parquet":
            from mms_workloads.data import parquet  # noqa: PLC0415 - pyarrow is large, and few data sets need it

            for number in range(start[0], len(source.uris)):
                first = start[1] if number == start[0] else 0
                for piece, after in parquet.pieces(source, number, first, piece_bytes):
                    yield Piece(piece, (number, after))


def _lines(source: Source, piece_bytes: int, start: Place) -> Iterator[Piece]:
    """Lines of all files, one after the other."""
    parts: list[bytes] = []
    held = 0
    for number in range(start[0], len(source.uris)):
        first = start[1] if number == start[0] else 0
        size = source.size(number)
        for offset, line in lines(source, Segment(number, first, size), aligned=True):
            if line is None:
                raise _too_long(source, number, offset)
            if held >= piece_bytes:
                yield Piece(b"".join(parts), (number, offset))
                parts, held = [], 0
            if offset == 0:
                line = line.removeprefix(BOM)  # noqa: PLW2901 - only at a file's start it is none of the text
            parts += (line, b"\n")
            held += len(line) + 1
    if parts:
        yield Piece(b"".join(parts), (len(source.uris), 0))


def _tables(source: Source, piece_bytes: int, start: Place) -> Iterator[Piece]:
    """Each with the header of its file."""
    for number in range(start[0], len(source.uris)):
        size = source.size(number)
        if not size:
            continue
        delimiter = Table(source, number).delimiter
        ending = formats.TABS if formats.suffix(source.uris[number]) == formats.TABS else ""
        header = next((row for _, row in rows(source, Segment(number, 0, size), 0, delimiter)), None)
        if header is None:
            raise _too_long(source, number, 0)
        first = start[1] if number == start[0] else 0
        parts = [header, b"\n"]
        held = 0
        for offset, row in rows(source, Segment(number, first, size), first, delimiter):
            if row is None:
                raise _too_long(source, number, offset)
            if held >= piece_bytes:
                yield Piece(b"".join(parts), (number, offset), ending)
                parts, held = [header, b"\n"], 0
            if offset:
                parts += (row, b"\n")
                held += len(row) + 1
        if held:
            yield Piece(b"".join(parts), (number + 1, 0), ending)


def _too_long(source: Source, number: int, offset: int) -> JobError:
    return JobError(
        Reason.DATA_INVALID, f"{source.uris[number]} at {offset}: a line is longer than a block can be: break it"
    )


def _records(source: Source, start: Place) -> Iterator[tuple[Place, dict[str, bytes]]]:
    """Names of members with their bytes. Each file's are in a folder of their own: its last record and the first one of
    the next file may have one stem, and would be one record where they lie side by side.
    """
    for number in range(start[0], len(source.uris)):
        first = start[1] if number == start[0] else 0
        for offset, parts, problem in members.groups(source, number, first):
            if problem:
                raise JobError(Reason.DATA_INVALID, f"{source.uris[number]} at {offset}: {problem}")
            yield (number, offset), {f"{number:06}/{name}": data for name, data in parts.items()}


def _files(
    source: Source, chosen: RecordFormat, fields: Fields, start: Place
) -> Iterator[tuple[Place, dict[str, bytes]]]:
    """Each image or sound with its label."""
    labels = members.transcripts(source, fields) if chosen == "WAV" else members.Transcripts()
    numbers = {uri: i for i, uri in enumerate(source.uris)}
    for number in range(start[0], len(source.uris)):
        uri, whole = source.uris[number], Segment(number, 0, None)
        if chosen == "WAV":
            items = members.sound(source, whole, labels, numbers)
        else:
            items = members.image_folder(source, whole, fields)
        for item in items:
            if item.record is None:
                raise JobError(Reason.DATA_INVALID, f"{uri}: {item.problem}: correct it, or leave it out")
            data = source.read(number, 0, source.size(number))
            stem = f"{number:012}"
            label = str(item.record["label"])
            yield (number, 0), {f"{stem}{formats.suffix(uri)}": data, f"{stem}.txt": label.encode()}


def _tars(records: Iterator[tuple[Place, dict[str, bytes]]], piece_bytes: int) -> Iterator[Piece]:
    out = io.BytesIO()
    tar = tarfile.open(fileobj=out, mode="w")  # noqa: SIM115 - closed where a piece ends
    last: Place = (0, 0)
    for place, parts in records:
        if out.tell() >= piece_bytes:
            tar.close()
            yield Piece(out.getvalue(), place)
            out = io.BytesIO()
            tar = tarfile.open(fileobj=out, mode="w")  # noqa: SIM115 - as above
        for name, data in parts.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        last = place
    if out.tell():
        tar.close()
        yield Piece(out.getvalue(), (last[0] + 1, 0))
