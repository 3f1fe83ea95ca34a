"""What a process keeps of a data set on its scratch volume: pages, and files that it has decompressed."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

UNFINISHED = (".part", ".partial")  # endings of files that a kill may leave


@dataclass(slots=True)
class _File:
    size: int
    decompressed: bool
    held: int = 0  # by so many that read it, or write it
    whole: bool = True


class Volume:
    """At most `limit` bytes of files, and `pages_limit` of pages: those that were used least lately go. For any thread.

    What is held stays, and so does the decompressed file that was used last, or whoever reads it piece by piece would
    decompress it for each piece: where one is larger than the limit, so much is on the volume, and nothing else.
    """

    def __init__(self, limit: float = math.inf, pages_limit: float = math.inf) -> None:
        self.limit, self.pages_limit = limit, pages_limit
        self.filling = threading.Lock()  # for who decompresses: one file at a time
        self._files: OrderedDict[Path, _File] = OrderedDict()
        self._total = self._pages = 0  # bytes
        self._last: Path | None = None  # of the decompressed ones
        self._adopted: set[Path] = set()
        self._lock = threading.Lock()

    def adopt(self, folder: Path, *, decompressed: bool = False) -> None:
        """Counts what a process before this one left there; once for a folder."""
        with self._lock:
            if folder in self._adopted:
                return
            self._adopted.add(folder)
            for path in sorted(folder.iterdir()) if folder.exists() else ():
                if path.suffix in UNFINISHED:
                    path.unlink()
                else:
                    self._count(path, path.stat().st_size, decompressed=decompressed)
            self._make_room()

    # Pages: written at once, and read at once

    def keep(self, path: Path, size: int) -> None:
        """It has been written."""
        with self._lock:
            self._count(path, size, decompressed=False)
            self._make_room()

    def used(self, path: Path) -> None:
        with self._lock:
            if path in self._files:
                self._files.move_to_end(path)

    def has(self, path: Path) -> bool:
        with self._lock:
            return path in self._files

    # Decompressed files: written bit by bit, and read for a while

    def hold(self, path: Path) -> bool:
        """Whether it is there; it then stays until it is let go."""
        with self._lock:
            file = self._files.get(path)
            if file is None or not file.whole:
                return False
            if not path.exists():  # somebody has cleared the volume
                self._forget(path)
                return False
            self._files.move_to_end(path)
            self._last = path
            file.held += 1
            return True

    def begin(self, path: Path) -> None:
        """It is about to be written, and is held by who writes it. Follow with `grow`, then `complete` or `drop`."""
        with self._lock:
            self._count(path, 0, decompressed=True)
            file = self._files[path]
            file.held, file.whole = 1, False

    def grow(self, path: Path, size: int) -> None:
        """By so many bytes, before they are written."""
        with self._lock:
            self._files[path].size += size
            self._total += size
            self._make_room()

    def complete(self, path: Path) -> None:
        with self._lock:
            self._files[path].whole = True

    def drop(self, path: Path) -> None:
        """It is not to be kept."""
        with self._lock:
            self._forget(path)
            path.unlink(missing_ok=True)

    def let_go(self, path: Path) -> None:
        with self._lock:
            if file := self._files.get(path):
                file.held -= 1
                self._make_room()

    # Under the lock

    def _count(self, path: Path, size: int, *, decompressed: bool) -> None:
        self._forget(path)
        self._files[path] = _File(size, decompressed)
        self._total += size
        self._pages += 0 if decompressed else size
        if decompressed:
            self._last = path

    def _forget(self, path: Path) -> None:
        if file := self._files.pop(path, None):
            self._total -= file.size
            self._pages -= 0 if file.decompressed else file.size

    def _make_room(self) -> None:
        while self._total > self.limit or self._pages > self.pages_limit:
            any_kind = self._total > self.limit
            may_go = (
                path
                for path, file in self._files.items()
                if not file.held and path != self._last and (any_kind or not file.decompressed)
            )
            path = next(may_go, None)
            if path is None:
                return
            self._forget(path)
            path.unlink(missing_ok=True)
