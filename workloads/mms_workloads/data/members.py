"""Records that are files, by themselves (image folders, sound) or in a tar (WebDataset)."""

from __future__ import annotations

import io
import math
import posixpath
import tarfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mms_workloads.contract import Reason
from mms_workloads.data import formats
from mms_workloads.data.blocks import Segment
from mms_workloads.data.items import LONGEST_RECORD_BYTES, Item, opened
from mms_workloads.data.lines import Table, decoded, lines, parsed, rows
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mms_workloads.contract import Fields
    from mms_workloads.data.items import Source

_LABELS = (".cls", ".json", ".txt", ".text")
_TABLE_BYTES = 256 << 20  # a table of transcripts is held in memory
_NAMES = ("file_name", "file", "filename", "path", "id", "audio")
_TRANSCRIPTS = ("text", "transcript", "transcription", "sentence", "label")


def image_folder(source: Source, segment: Segment, _: Fields) -> Iterator[Item]:
    """The class is the folder's name, as torchvision's ImageFolder has it."""
    uri = source.uris[segment.file]
    if segment.start == 0 and formats.suffix(uri) in formats.IMAGES and not formats.hidden(uri):
        yield _file(source, segment.file, formats.place(uri).split("/")[-2])


@dataclass(slots=True)
class Transcripts:
    """Labels of files of sound, by their URIs without the suffix."""

    labels: dict[str, str] = field(default_factory=dict)
    places: dict[str, str | None] = field(default_factory=dict)  # by the bare name; None: of several
    twins: Mapping[str, int] = field(default_factory=dict)  # how many files have a bare name

    def add(self, place: str, label: str) -> None:
        """Raises ValueError where the place has another label."""
        if self.labels.setdefault(place, label) != label:
            raise ValueError(f"{place} has two different labels")
        name = place.rpartition("/")[2]
        if self.places.setdefault(name, place) != place:
            self.places[name] = None

    def of(self, uri: str) -> tuple[str | None, str]:
        """The label, or why there is none. The bare name is enough where no other file or row has it."""
        stem = formats.stem(uri)
        if (label := self.labels.get(stem)) is not None:
            return label, ""
        name = stem.rpartition("/")[2]
        if name not in self.places:
            return None, "it is in no table beside it"
        place = self.places[name]
        if place is None or self.twins.get(name, 0) > 1:
            return None, "several files have its name: tables must have their paths, from the table's folder"
        return self.labels[place], ""


def sound(source: Source, segment: Segment, labels: Transcripts, numbers: Mapping[str, int]) -> Iterator[Item]:
    """The label is of tables, where there are any, else in a .txt beside it.

    numbers: of the files, by their URIs.
    """
    uri = source.uris[segment.file]
    if segment.start != 0 or formats.suffix(uri) not in formats.SOUND or formats.hidden(uri):
        return
    if labels.labels:
        named, why = labels.of(uri)
        yield Item(segment.file, 0, None, why) if named is None else _file(source, segment.file, named)
        return
    number = numbers.get(uri.rpartition(".")[0] + formats.TRANSCRIPT)
    if number is None:
        yield Item(segment.file, 0, None, "it has no transcript: put a .txt of the same name beside it")
        return
    try:
        said = decoded(source.read(number, 0, source.size(number)), 0).strip()
    except ValueError as error:
        yield Item(segment.file, 0, None, f"its transcript: {error}")
        return
    yield _file(source, segment.file, said)


def transcripts(source: Source, fields: Fields) -> Transcripts:
    """Labels of the tables of a folder of sound; names in them are paths from the table's folder. Raises JobError."""
    found = Transcripts(twins=formats.twins(source.uris))
    for number, uri in enumerate(source.uris):
        kind = formats.suffix(uri)
        if kind not in formats.TABLES or formats.hidden(uri):
            continue
        if source.size(number) > _TABLE_BYTES:
            raise JobError(Reason.DATA_INVALID, f"{uri} has more than {_TABLE_BYTES >> 20} MiB: split the data set")
        for offset, values in _values(source, number, kind):
            name = fields.input or next((n for n in _NAMES if n in values), None)
            label = fields.label or next((n for n in _TRANSCRIPTS if n in values), None)
            if name is None or label is None or name not in values or label not in values:
                raise JobError(
                    Reason.DATA_INVALID,
                    f"{uri} at byte {offset} has {', '.join(values)}: say by data.fields which column names the file "
                    "(input) and which has the label",
                )
            said = values[label]  # null, of JSON lines, is no word
            try:
                found.add(_beside(uri, str(values[name])), "" if said is None else str(said))
            except ValueError as error:
                raise JobError(Reason.DATA_INVALID, f"the table {uri} at byte {offset}: {error}") from error
    return found


def _beside(uri: str, name: str) -> str:
    """Where a file is that a table names."""
    scheme, separator, folder = formats.place(uri).rpartition("/")[0].partition("://")
    return scheme + separator + posixpath.normpath(posixpath.join(folder, formats.stem(name)))


def _values(source: Source, number: int, kind: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    whole = Segment(number, 0, None)
    try:
        if kind in {".csv", ".tsv"}:
            table = Table(source, number)
            yield from (
                (at, table.values(decoded(row, at)))
                for at, row in rows(source, whole, 0, table.delimiter)
                if at and row
            )
        else:
            yield from (
                (at, _object(decoded(line, at))) for at, line in lines(source, whole) if line is None or line.strip()
            )
    except ValueError as error:
        raise JobError(Reason.DATA_INVALID, f"the table {source.uris[number]}: {error}") from error


def _object(said: str) -> Mapping[str, Any]:
    """Raises ValueError."""
    values = parsed(said)
    if not isinstance(values, dict):
        raise ValueError("it has a line that is no JSON object")  # noqa: TRY004 - a value of the data's
    return values


def _file(source: Source, number: int, label: str) -> Item:
    size = source.size(number)
    if size > LONGEST_RECORD_BYTES:
        return Item(number, 0, None, f"it has {size} bytes, and {LONGEST_RECORD_BYTES} at most")
    data = source.read(number, 0, size)
    try:
        return Item(number, 0, {"input": _array(data, formats.suffix(source.uris[number])), "label": label})
    except ValueError as error:
        return Item(number, 0, None, str(error))


def _array(data: bytes, suffix: str) -> Any:
    """Raises ValueError."""
    if suffix != ".npy":
        return data
    try:
        _check_size(data)
        return np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"it is no .npy file of numbers: {error}") from error


def _check_size(data: bytes) -> None:
    """A small file may claim to be huge. Raises ValueError where the numbers are not there."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    wanted, there = math.prod(shape) * dtype.itemsize, len(data) - stream.tell()
    if min(shape, default=0) < 0 or wanted > there:
        raise ValueError(f"its header says shape {list(shape)} of {dtype}, and {there} bytes are there")


def web_dataset(source: Source, segment: Segment, fields: Fields, start: int) -> Iterator[Item]:
    """Members with one stem, one after the other, are a record.

    start: where a record's first header is, at the segment's start or before. Raises JobError where the tar is damaged.
    """
    size = source.size(segment.file)
    end = size if segment.end is None else segment.end
    for offset, parts, problem in groups(source, segment.file, start):
        if offset >= end:
            return
        if offset < segment.start:
            continue
        if problem:
            yield Item(segment.file, offset, None, problem)
            continue
        try:
            yield Item(segment.file, offset, _record({_suffix(n): data for n, data in parts.items()}, fields))
        except ValueError as error:
            yield Item(segment.file, offset, None, str(error))


def groups(source: Source, file: int, start: int) -> Iterator[tuple[int, dict[str, bytes], str]]:
    """(offset, members by their names, why it is no record) of each record from `start` on, where a header is."""
    stem, first, problem = "", start, ""
    parts: dict[str, bytes] = {}
    for offset, name, data in _members(source, file, start):
        folder, _, base = name.rpartition("/")
        own = f"{folder}/{base.partition('.')[0]}"
        if own != stem:
            if stem:
                yield first, parts, problem
            stem, first, parts, problem = own, offset, {}, ""
        if data is None:
            problem = f"{name} has more than {LONGEST_RECORD_BYTES} bytes"
        else:
            parts[name] = data
    if stem:
        yield first, parts, problem


def _suffix(name: str) -> str:
    _, dot, suffix = name.rpartition("/")[2].partition(".")
    return dot + suffix.lower()


def _members(source: Source, file: int, start: int) -> Iterator[tuple[int, str, bytes | None]]:
    if source.size(file) == 0:
        return
    try:
        with tarfile.open(fileobj=opened(source, file, start), mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined] # else the list grows with the file
                if not member.isfile() or _hidden(member.name):
                    continue
                if member.size > LONGEST_RECORD_BYTES:
                    yield member.offset, member.name, None
                    continue
                stream = tar.extractfile(member)
                data = stream.read() if stream else b""
                if len(data) != member.size:
                    raise tarfile.ReadError(f"{member.name} is cut short")
                yield member.offset, member.name, data
            _at_end(source, file, tar.offset)
    except (tarfile.TarError, EOFError) as error:
        raise JobError(
            Reason.DATA_UNREADABLE, f"{source.uris[file]} is no intact tar: {error}. Upload it again"
        ) from error


def _hidden(name: str) -> bool:
    """What a tool has put there: ._0001.jpg."""
    return any(part.startswith(".") for part in name.split("/") if part not in {".", ".."})


def _at_end(source: Source, file: int, offset: int) -> None:
    """A damaged header looks like the end to tarfile. Raises tarfile.ReadError."""
    header = source.read(file, offset, min(source.size(file), offset + tarfile.BLOCKSIZE))
    if any(header):
        raise tarfile.ReadError(f"there is no header at byte {offset}")


def _record(parts: Mapping[str, bytes], fields: Fields) -> dict[str, Any]:
    """Raises ValueError."""
    media = [s for s in parts if formats.suffix("x" + s) in (*formats.IMAGES, *formats.SOUND)]
    given = f".{fields.input.lstrip('.')}" if fields.input else next(iter(media), None) or _text(parts)
    if given is None or given not in parts:
        raise ValueError(f"it has no input: its files are {', '.join(parts)}; name one by data.fields.input")
    wanted, _, key = (fields.label or "").lstrip(".").partition(".")
    label = f".{wanted}" if wanted else next((s for s in _LABELS if s in parts and s != given), None)
    if label is None:
        return {"input": _value(parts, given), "label": None}
    if label not in parts:
        raise ValueError(f"it has no file {label} for data.fields.label: its files are {', '.join(parts)}")
    value = _value(parts, label)
    if isinstance(value, dict):
        found = key or next((n for n in ("label", "labels", "tags", "objects", "text") if n in value), "")
        if found not in value:
            raise ValueError(f"its {label} has no {key or 'label'}, and has {', '.join(value)}")
        value = value[found]
    return {"input": _value(parts, given), "label": value}


def _text(parts: Mapping[str, bytes]) -> str | None:
    return next((s for s in (".txt", ".text", ".json") if s in parts), None)


def _value(parts: Mapping[str, bytes], suffix: str) -> Any:
    """Raises ValueError."""
    data = parts[suffix]
    if formats.suffix("x" + suffix) in (*formats.IMAGES, *formats.SOUND):
        return _array(data, formats.suffix("x" + suffix))
    said = decoded(data, 0).strip()
    if suffix == ".cls":
        return int(said) if said.isdecimal() else said
    if suffix == ".json":
        return parsed(said)
    return said
