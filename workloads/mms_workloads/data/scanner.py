"""The records that begin in a part of a file, whatever the file's format."""

from __future__ import annotations

import bisect
from functools import cached_property
from typing import TYPE_CHECKING

from mms_workloads.data import lines, members

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mms_workloads.contract import Fields, RecordFormat
    from mms_workloads.data.blocks import Segment
    from mms_workloads.data.items import Item, Source


class Scanner:
    """index: as schema.Schema has it. Any number of threads may use it."""

    def __init__(
        self, source: Source, chosen: RecordFormat, fields: Fields, index: Mapping[int, Sequence[int]] | None = None
    ) -> None:
        self._source, self._format, self._fields, self._index = source, chosen, fields, index or {}
        self._tables: dict[int, lines.Table] = {}

    def items(self, segment: Segment) -> Iterator[Item]:
        """In order, the bad ones too; memory is bounded by a record. Raises store.JobError."""
        source, fields = self._source, self._fields
        match self._format:
            case "Text":
                return lines.text(source, segment, fields)
            case "JSONLines":
                return lines.json_lines(source, segment, fields)
            case "CSV":
                return lines.table(source, segment, fields, self._before(segment), self._table)
            case "WebDataset":
                return members.web_dataset(source, segment, fields, self._before(segment))
            case "ImageFolder":
                return members.image_folder(source, segment, fields)
            case "WAV":
                return members.sound(source, segment, self._transcripts, self._numbers)
            case "Parquet":
                from mms_workloads.data import parquet  # noqa: PLC0415 - pyarrow is large, and few data sets need it

                return parquet.rows(source, segment, fields)

    def _before(self, segment: Segment) -> int:
        """Where a record begins: at the segment's start or before."""
        known = self._index.get(segment.file, ())
        place = bisect.bisect_right(known, segment.start)
        return known[place - 1] if place else 0

    def _table(self, file: int) -> lines.Table:
        """Its header is read once."""
        if file not in self._tables:
            self._tables[file] = lines.Table(self._source, file)
        return self._tables[file]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {uri: i for i, uri in enumerate(self._source.uris)}

    @cached_property
    def _transcripts(self) -> members.Transcripts:
        return members.transcripts(self._source, self._fields)
