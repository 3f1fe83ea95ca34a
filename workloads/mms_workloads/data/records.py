"""A worker's view of a data set of records: surveys tasks, and gives blocks as records."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from mms_workloads.data import inspection, keyring, pages, readers
from mms_workloads.data.items import Record
from mms_workloads.data.scanner import Scanner
from mms_workloads.data.schema import Bad, Survey, without_particulars
from mms_workloads.logs import logger
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from mms_workloads.contract import Data, RecordFormat, Store
    from mms_workloads.data.blocks import Block, Segment
    from mms_workloads.data.items import Item, Source
    from mms_workloads.data.keyring import Keyring
    from mms_workloads.data.reader import Reader
    from mms_workloads.sync.plan import Plan

__all__ = ["Record", "RecordCorpus", "count"]

INDEX_PARTS = 4  # a block is read from at most this part of one before its start
KEPT_BLOCKS = 4  # learners hold what they make of a block; only for the golden set a few are read again
LOCKS = 16


Judge = Callable[[Record], str]  # why a good record is left out, too; "": it is not


def _anything(_: Record) -> str:
    return ""


def survey(
    source: Source, segments: Iterable[Segment], data: Data, chosen: RecordFormat, unfit: Judge = _anything
) -> Survey:
    """A counting task. Raises store.JobError."""
    found = Survey(data.quality.maxBadRecords)
    scanner = Scanner(source, chosen, data.fields)
    for segment in segments:
        whole = segment.end is None
        index: list[int] = []
        for item in scanner.items(segment):
            if whole and item.offset >= (index[-1] if index else 0) + data.blockBytes // INDEX_PARTS:
                index.append(item.offset)
            _note(found, item, unfit)
            if found.bad_count > found.limit:
                return found  # the master hears of it at once
        if index:
            found.index[segment.file] = index
    return found


def _note(found: Survey, item: Item, unfit: Judge) -> None:
    """Libraries raise whatever they like for what they were not made for: one odd record must not end the run."""
    try:
        why = unfit(item.record) if item.record is not None else ""
        inspection.note(found, item._replace(record=None, problem=why) if why else item)
    except (MemoryError, JobError):
        raise
    except Exception as error:  # noqa: BLE001 - see above
        found.reject(Bad(item.file, item.offset, f"it cannot be looked at: {type(error).__name__}"))


def count(
    reader: Reader, segments: Sequence[Segment], data: Data, chosen: RecordFormat, unfit: Judge = _anything
) -> tuple[Survey, dict[int, int]]:
    """A counting task: its survey, and the decompressed sizes of files that it read whole. Raises JobError."""
    with reader.ahead(tuple(segments)):
        found = survey(reader, segments, data, chosen, unfit)
    return found, {s.file: reader.size(s.file) for s in segments if s.end is None}


def log_bad(found: Survey, uris: Mapping[int, str], most: int, *, bare: bool) -> int:
    """Writes at most so many of them to the log, and returns how many. bare: without what the records say."""
    told = found.bad[:most]
    for bad in told:
        reason = without_particulars(bad).reason if bare else bad.reason
        logger().warning("bad record", file=uris[bad.file], at=bad.offset, reason=reason)
    return len(told)


class RecordCorpus:
    """Blocks as records: the good ones, in the order of their files. For any thread."""

    def __init__(self, store: Store, plan: Plan, data: Data, cache: Path, keys: Keyring = keyring.HELD) -> None:
        """cache: a folder for this plan alone; files that were decompressed for the counting pass are beside it."""
        assert plan.schema is not None  # noqa: S101 - made for tasks that learn from records
        self.blocks: list[Block] = plan.blocks()
        self.schema = plan.schema
        self._reader = reader = readers.planned(store, plan, cache.parent, keys)
        self._scanner = Scanner(reader, plan.schema.format, data.fields, plan.schema.index)
        self._bad = {(bad.file, bad.offset) for bad in plan.schema.bad}
        self._counts: dict[int, int] = {}
        self._kept: OrderedDict[int, Sequence[Record]] = OrderedDict()
        self._keeping = threading.Lock()
        self._reading = [threading.Lock() for _ in range(LOCKS)]

    def count(self, block: int) -> int:
        """Raises JobError."""
        return self._counts[block] if block in self._counts else len(self.records(block))

    def records(self, block: int) -> Sequence[Record]:
        """Raises JobError."""
        with self._reading[block % LOCKS]:
            with self._keeping:
                if block in self._kept:
                    self._kept.move_to_end(block)
                    return self._kept[block]
            with pages.HELD.of(block), self._reader.ahead(self.blocks[block], block):
                records = [record for segment in self.blocks[block] for record in self._good(segment)]
            with self._keeping:
                self._kept[block], self._counts[block] = records, len(records)
                while len(self._kept) > KEPT_BLOCKS:
                    self._kept.popitem(last=False)
            return records

    def _good(self, segment: Segment) -> Iterable[Record]:
        for item in self._scanner.items(segment):
            if item.record is not None and (item.file, item.offset) not in self._bad:
                yield item.record
