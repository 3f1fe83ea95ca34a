"""Records as they stand in files: where each begins, what it is, or why it is none."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mms_workloads.contract import Fields

Record = Mapping[str, Any]

INPUTS = ("input", "text", "image", "audio", "video", "tokens", "words", "sentence", "review", "content")
PAIRS = (
    ("text1", "text2"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("first", "second"),
    ("anchor", "positive"),
    ("question", "answer"),
)
LABELS = (
    "label",
    "labels",
    "class",
    "category",
    "target",
    "tags",
    "ner_tags",
    "objects",
    "sentiment",
    "transcript",
    "transcription",
)
LONGEST_RECORD_BYTES = 64 << 20  # so that a file without line ends does not fill the memory
BUFFER_BYTES = 1 << 20


class Item(NamedTuple):
    """problem: why there is no record. offset: of its first byte in the decompressed file; of Parquet its row."""

    file: int
    offset: int
    record: Record | None
    problem: str = ""


class Source(Protocol):
    """The decompressed files of a data set, by their numbers."""

    @property
    def uris(self) -> Sequence[str]: ...

    def size(self, file: int) -> int: ...

    def read(self, file: int, start: int, end: int) -> bytes:
        """Raises store.JobError."""


class _Raw(io.RawIOBase):
    def __init__(self, source: Source, file: int) -> None:
        self._source, self._file, self._size, self._at = source, file, source.size(file), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._source.read(self._file, self._at, min(self._size, self._at + len(buffer)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def opened(source: Source, file: int, at: int = 0) -> IO[bytes]:
    """A file for libraries that want one: read ahead by BUFFER_BYTES. Raises store.JobError while it is read."""
    stream = io.BufferedReader(_Raw(source, file), BUFFER_BYTES)
    stream.seek(at)
    return stream


class NoField(ValueError):  # noqa: N818 - says what is not there
    """A record lacks the field that was asked for; the message has those that it has."""


def pick(values: Mapping[str, Any], fields: Fields) -> dict[str, Any]:
    """A record of named values; the input of two texts is a tuple, and their label a number where it is one as text.

    Raises NoField.
    """
    chosen, pair, label = columns(values, fields)
    if pair is None:
        return {"input": values[chosen], "label": values[label] if label else None}
    return {"input": (values[chosen], values[pair]), "label": _number(values[label]) if label else None}


def columns(values: Iterable[str], fields: Fields) -> tuple[str, str | None, str | None]:
    """The names of the input, of the other text where the input is two, and of the label. Raises NoField."""
    names = list(values)
    pairs = [both for both in PAIRS if set(both) <= set(names) and fields.pair in {None, both[1]}]
    chosen = fields.input or next((name for name in INPUTS if name in names and name != fields.pair), None)
    pair = fields.pair
    if chosen is None and pairs:
        chosen, pair = pairs[0]
    usual = (*LABELS, "score") if pair else LABELS
    label = fields.label or next((name for name in usual if name in names and name not in {chosen, pair}), None)
    has = ", ".join(map(str, names)) or "nothing"
    if chosen is None or chosen not in names:
        wanted = f"field {chosen}" if chosen else "field with a usual name"
        raise NoField(f"it has no {wanted} for data.fields.input, and has {has}")
    if pair and pair not in names:
        raise NoField(f"it has no field {pair} for data.fields.pair, and has {has}")
    if fields.label and label not in names:
        raise NoField(f"it has no field {label} for data.fields.label, and has {has}")
    return chosen, pair, label


def _number(label: Any) -> Any:
    """What a table has as text."""
    if not isinstance(label, str):
        return label
    for kind in (int, float):
        try:
            return kind(label)
        except ValueError:
            continue
    return label
