"""Reads a data set from its start to its end with nothing on a disk: compressed files are decompressed as they come."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mms_workloads import store as stores
from mms_workloads.data.blocks import compressed
from mms_workloads.data.decompressing import chunks
from mms_workloads.data.reader import Reader

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mms_workloads.contract import Store

BEHIND_BYTES = 4 << 20  # kept of what was read: who reads on goes back a little


class StreamingReader(Reader):
    """For one thread, whose reads go forward. A compressed file is read twice, first for its size; and again from its
    start for whoever goes back.
    """

    def __init__(self, store: Store, uris: Sequence[str], *, forgetful: bool = True) -> None:
        """forgetful: not, where a file is read in any order; one is then held in memory."""
        super().__init__(store, uris, Path())
        self._stream: _Stream | None = None
        self._behind = BEHIND_BYTES if forgetful else None

    def size(self, file: int) -> int:
        if file not in self._sizes and compressed(self.uris[file]):
            self._sizes[file] = sum(map(len, chunks(stores.at(self._store, self.uris[file]))))
        return super().size(file)

    def _bytes(self, file: int, start: int, end: int) -> bytes:
        if start >= end or not compressed(self.uris[file]):
            return super()._bytes(file, start, end)
        if self._stream is None or self._stream.file != file or start < self._stream.start:
            self._stream = _Stream(file, chunks(stores.at(self._store, self.uris[file])), self._behind)
        return self._stream.read(start, end)


class _Stream:
    """The part of a file that is held: from `start` on."""

    def __init__(self, file: int, coming: Iterator[bytes], behind: int | None) -> None:
        self.file, self.start = file, 0
        self._coming, self._behind = coming, behind
        self._held = bytearray()

    def read(self, start: int, end: int) -> bytes:
        """Fewer bytes than were asked for where the file ends."""
        while self.start + len(self._held) < end and (chunk := next(self._coming, b"")):
            self._held += chunk
            self._forget(start)
        return bytes(self._held[start - self.start : end - self.start])

    def _forget(self, start: int) -> None:
        """In large steps: what is behind is moved each time."""
        if self._behind is None:
            return
        old = min(start - self.start, len(self._held)) - self._behind
        if old >= self._behind:
            del self._held[:old]
            self.start += old
