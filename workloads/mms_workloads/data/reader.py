"""Reads a data set's blocks: streaming, memory bounded by a block, whatever the size of files and lines.

A block owns the tokens that start in it. Cuts are made at ASCII white space: of a position p, the real cut is the first
byte after white space at or behind p, or the file's end, so neighbouring blocks agree on it without knowing each other.
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from mms_workloads import store as stores
from mms_workloads.contract import DataFile, Reason, Store
from mms_workloads.data import pages
from mms_workloads.data.ahead import SMALL_BYTES, Ahead
from mms_workloads.data.blocks import Block, Segment, compressed
from mms_workloads.data.decompressing import decompress
from mms_workloads.data.text import ASCII_SPACE
from mms_workloads.logs import logger
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

# Text without white space for longer than this is cut inside: else one token could be as large as the file.
LONGEST_TOKEN_BYTES = 64 << 10
USUAL_TOKEN_BYTES = 256  # of which the end is sought first: what lies beyond a block may come from far away
LOOKED_AT_BYTES = 1 << 20  # a file from that on is asked once whether it is still the one that was counted
_COPY_BYTES = 256 << 10
_UTF8_BYTES = 4  # of the longest character
_BOM = b"\xef\xbb\xbf"


class _Staying:
    """The decompressed file that a thread reads a block from: it stays until the block is read, or another file is."""

    def __init__(self) -> None:
        self.file = -1
        self.path = Path()
        self.held = contextlib.ExitStack()

    def turn_to(self, file: int, held: contextlib.AbstractContextManager[Path]) -> Path:
        if file != self.file:
            self.held.close()
            self.file = -1  # in case that the other one cannot be had
            self.file, self.path = file, self.held.enter_context(held)
        return self.path


class Reader:
    """Reads the files of one data set for one process. Compressed files are decompressed into `scratch`, and again
    where they had to leave its volume.
    """

    def __init__(self, store: Store, uris: Sequence[str], scratch: Path) -> None:
        self._store = store
        self._uris = list(uris)
        self._scratch = scratch
        self._sizes: dict[int, int] = {}
        self._decompressed: set[int] = set()  # what has been at least once
        self._warned = False
        self._unseen: dict[int, DataFile] = {}  # as they were counted, and have not been looked at since
        self._own = threading.local()  # what the thread reads ahead, and what stays for it

    @property
    def uris(self) -> Sequence[str]:
        return self._uris

    @contextlib.contextmanager
    def ahead(self, block: Block, number: int | None = None) -> Iterator[None]:
        """For a thread that is going to read a block's files in order: small ones that begin in it are loaded before it
        gets there, and what it reads of decompressed ones is not removed meanwhile. number: the block's.
        """
        files = [s.file for s in block if s.start == 0 and self._far(s.file)]

        def load(file: int) -> bytes | None:
            with pages.HELD.of(number):
                size = self.size(file)
                return self._bytes(file, 0, size) if size <= SMALL_BYTES else None

        self._own.staying = staying = _Staying()
        self._own.ahead = ahead = Ahead(files, load) if len(files) > 1 else None
        try:
            yield
        finally:
            self._own.staying = self._own.ahead = None
            staying.held.close()
            if ahead:
                ahead.close()

    def size(self, file: int) -> int:
        """Decompressed bytes. Raises JobError."""
        self._awaited(file)
        if file not in self._sizes:
            if compressed(self._uris[file]):
                with self._spooled(file) as spool:
                    self._sizes[file] = spool.stat().st_size
            else:
                self._sizes[file] = stores.stat(stores.at(self._store, self._uris[file])).size
        return self._sizes[file]

    def expect(self, files: Sequence[DataFile]) -> None:
        """What the counting pass found: a file that has changed is told when it is first read of the store."""
        self._sizes = {i: f.size for i, f in enumerate(files)}
        self._unseen = dict(enumerate(files))

    def know(self, sizes: Mapping[int, int]) -> None:
        """Decompressed sizes that were told."""
        self._sizes.update(sizes)

    def texts(self, block: Block) -> list[bytes]:
        """Each of its segments, UTF-8. Raises JobError: DataNotFound, DataUnreadable, StorageUnreachable."""
        return [self._text(segment) for segment in block]

    def pieces(self, block: Block, piece_bytes: int) -> list[Segment]:
        """The block's segments cut into pieces of at most `piece_bytes`, ends resolved."""
        out = []
        for segment in block:
            end = self.size(segment.file) if segment.end is None else segment.end
            out += [
                Segment(segment.file, start, min(end, start + piece_bytes))
                for start in range(segment.start, end, piece_bytes)
            ]
        return out

    def text(self, segment: Segment) -> bytes:
        return self._text(segment)

    def read(self, file: int, start: int, end: int) -> bytes:
        """Decompressed bytes; fewer than were asked for are an error. Raises JobError."""
        data = self._bytes(file, start, end)
        if len(data) != max(0, end - start):
            raise self._changed(file, f"{len(data)} bytes at {start}, not {end - start}")
        return data

    def _changed(self, file: int, what: str) -> JobError:
        return JobError(
            Reason.DATA_UNREADABLE,
            f"{self._uris[file]} changed while it was read: {what}. Start another run when the data rests",
        )

    def _look(self, file: int) -> None:
        """Once, before the store is read. Raises JobError where the file is not the one that was counted.

        Of a mounted file its time is no ETag: nodes may have copies of their own. A small file is read in one request,
        and is not worth another one: that it became shorter `read` sees.
        """
        counted = self._unseen.get(file)
        if counted is None or counted.size < LOOKED_AT_BYTES:
            return
        uri = self._uris[file]
        found = stores.stat(stores.at(self._store, uri))
        if not compressed(uri) and found.size != counted.size:
            raise self._changed(file, f"it has {found.size} bytes, and had {counted.size}")
        if not uri.startswith("file://") and found.etag and counted.etag and found.etag != counted.etag:
            raise self._changed(file, f"its ETag is {found.etag}, and was {counted.etag}")
        self._unseen.pop(file, None)

    def _text(self, segment: Segment) -> bytes:
        size = self.size(segment.file)
        end = size if segment.end is None else segment.end
        low = max(0, segment.start - 1)
        high = min(size, end + USUAL_TOKEN_BYTES)
        data = self.read(segment.file, low, high)
        if high < size and not ASCII_SPACE.search(data, end - low - 1):
            high = min(size, end + LONGEST_TOKEN_BYTES + _UTF8_BYTES)
            data = self.read(segment.file, low, high)
        first = cut_position(data, segment.start - low, at_start=segment.start == 0, left=size - segment.start)
        last = cut_position(data, end - low, at_start=end == 0, left=size - end)
        return self._checked(segment.file, data[first:last], low + first)

    def _checked(self, file: int, data: bytes, position: int) -> bytes:
        if position == 0 and data.startswith(_BOM):
            data, position = data[len(_BOM) :], len(_BOM)
        try:
            _check_utf8(data)
        except UnicodeDecodeError as error:
            at = position + error.start
            raise JobError(
                Reason.DATA_UNREADABLE,
                f"{self._uris[file]} is not UTF-8: byte 0x{data[error.start]:02x} at offset {at}"
                f"{' of the decompressed text' if compressed(self._uris[file]) else ''}. Convert the file, as with "
                "iconv -f ISO-8859-1 -t UTF-8, or leave it out of the URI's pattern",
            ) from error
        return data

    def _bytes(self, file: int, start: int, end: int) -> bytes:
        if start >= end:
            return b""
        if (held := self._awaited(file)) is not None:
            return held[start:end]
        if compressed(self._uris[file]):
            with self._spooled(file) as path, path.open("rb") as spool:
                spool.seek(start)
                return spool.read(end - start)
        return self._stored(file, start, end)

    def _awaited(self, file: int) -> bytes | None:
        """The file, where it is read ahead."""
        ahead: Ahead | None = getattr(self._own, "ahead", None)
        return ahead.get(file) if ahead else None

    def _far(self, file: int) -> bool:
        return not compressed(self._uris[file]) and not self._uris[file].startswith("file://")

    def _stored(self, file: int, start: int, end: int) -> bytes:
        """Of the store, or of who has it. Files that are mounted are read where they are."""
        uri, held = self._uris[file], pages.HELD.pages
        place = stores.at(self._store, uri)
        if held is None or uri.startswith("file://"):
            return self._load(file, place, start, end)
        return held.read(uri, start, end, self.size(file), lambda low, high: self._load(file, place, low, high))

    def _load(self, file: int, place: Store, start: int, end: int) -> bytes:
        self._look(file)
        return stores.read_bytes(place, start, end)

    def _spooled(self, file: int) -> contextlib.AbstractContextManager[Path]:
        """The decompressed file, which stays meanwhile."""
        staying: _Staying | None = getattr(self._own, "staying", None)
        held = self._held(file)
        return contextlib.nullcontext(staying.turn_to(file, held)) if staying else held

    @contextlib.contextmanager
    def _held(self, file: int) -> Iterator[Path]:
        path = self._scratch / "spool" / hashlib.sha256(self._uris[file].encode()).hexdigest()
        volume = pages.HELD.volume
        volume.adopt(path.parent, decompressed=True)
        if not volume.hold(path):
            with volume.filling:
                if not volume.hold(path):  # another thread may have written it meanwhile
                    self._spool(file, path)
        try:
            yield path
        finally:
            volume.let_go(path)

    def _spool(self, file: int, path: Path) -> None:
        volume = pages.HELD.volume
        self._look(file)
        volume.begin(path)
        try:
            decompress(stores.at(self._store, self._uris[file]), path, lambda size: volume.grow(path, size))
            self._check_spool(file, path)
        except BaseException:
            volume.drop(path)
            raise
        volume.complete(path)
        if file in self._decompressed and not self._warned:
            self._warned = True
            logger().warning("a file is decompressed again: data.cacheSize has no room for all", file=self._uris[file])
        self._decompressed.add(file)

    def _check_spool(self, file: int, path: Path) -> None:
        """Raises JobError where another file was decompressed than was counted."""
        size, wanted = path.stat().st_size, self._sizes.get(file)
        if wanted is not None and size != wanted:
            raise self._changed(file, f"it has {size} bytes when it is decompressed, and had {wanted}")


def _check_utf8(data: bytes) -> None:
    """Raises UnicodeDecodeError. In parts: characters take up to four times the memory of their bytes."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(data), _COPY_BYTES):
            decoder.decode(data[start : start + _COPY_BYTES], start + _COPY_BYTES >= len(data))
    except UnicodeDecodeError:
        data.decode("utf-8")  # tells the place in all of it


def cut_position(data: bytes, position: int, *, at_start: bool, left: int) -> int:
    """Where text that is to be cut at `position` of `data` really is cut.

    data[position - 1] must be there, and LONGEST_TOKEN_BYTES more, or what is left: `left` bytes to the file's end.
    """
    if at_start or left <= 0:
        return min(position, len(data))
    space = ASCII_SPACE.search(data, position - 1, position - 1 + LONGEST_TOKEN_BYTES)
    if space:
        return space.end()
    if left < LONGEST_TOKEN_BYTES:
        return len(data)  # the file's last token
    while position < len(data) and data[position] & 0xC0 == 0x80:  # noqa: PLR2004 - UTF-8: not the first byte of a character
        position += 1
    return position
