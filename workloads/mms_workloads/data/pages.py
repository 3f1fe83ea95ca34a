"""What a worker has read of the store, as it is stored, in pages on its scratch volume; and where else it may be.

A page is a part of a file about as large as a block, or an encrypted block. It comes from the volume, else from a peer
that has had the block it is wanted for, else from the store. Of encrypted data that is ciphertext, everywhere. Of the
pages beside a block only the few bytes are kept in which its first line begins and its last one ends: those would be
three pages for each block.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mms_workloads.data.volume import Volume
from mms_workloads.logs import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

LEAST_BYTES, MOST_BYTES = 4 << 10, 1 << 20  # of a page
EDGE = 8  # times as many bytes has the page whose edge is read alone


@dataclass(slots=True)
class Fetched:
    """Bytes, by where they came from."""

    volume: int = 0
    peers: int = 0
    store: int = 0

    def document(self) -> dict[str, int]:
        return {"volume": self.volume, "peers": self.peers, "store": self.store}


@dataclass(slots=True)
class Peers:
    """Who has had which block, as the master said with its lease, the next in the ring first."""

    ask: Callable[[str, str], bytes | None] | None = None  # an address, a page's name
    _of: dict[int, Sequence[str]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def know(self, block: int, addresses: Sequence[str]) -> None:
        with self._lock:
            self._of[block] = tuple(addresses)

    def get(self, block: int | None, name: str) -> bytes | None:
        with self._lock:
            addresses = self._of.get(block, ()) if block is not None else ()
        if self.ask is None:
            return None
        return next((data for address in addresses if (data := self.ask(address, name)) is not None), None)


class Pages:
    """Pages in a folder of the volume, within its limit. For any thread."""

    def __init__(self, folder: Path, volume: Volume, page_bytes: int, peers: Peers | None = None) -> None:
        self._bytes = min(MOST_BYTES, max(LEAST_BYTES, page_bytes))
        self._folder, self._volume, self._peers = folder, volume, peers or Peers()
        self._lock = threading.Lock()
        self._asking = threading.local()
        self.fetched = Fetched()
        folder.mkdir(parents=True, exist_ok=True)
        volume.adopt(folder)

    @contextlib.contextmanager
    def of(self, block: int | None) -> Iterator[None]:
        """What this thread reads in it is for a block."""
        self._asking.block = block
        try:
            yield
        finally:
            self._asking.block = None

    def read(self, uri: str, start: int, end: int, size: int, load: Callable[[int, int], bytes]) -> bytes:
        """Bytes [start, end) of a file of `size`. load: from the store. Raises what it raises."""
        parts = []
        for page in range(start // self._bytes, -(-end // self._bytes)):
            low, high = self._kept_as(uri, start, end, page, size)
            data = self._page(_name(uri, low, high), high - low, lambda a=low, b=high: load(a, b))  # type: ignore[misc]
            parts.append(data[max(0, start - low) : end - low])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _kept_as(self, uri: str, start: int, end: int, page: int, size: int) -> tuple[int, int]:
        """What is read for the part of [start, end) that lies on the page."""
        low, high = page * self._bytes, min(size, (page + 1) * self._bytes)
        first, last = max(start, low), min(end, high)
        whole = last - first >= min(high - low, end - start) / EDGE or self._volume.has(
            self._folder / _name(uri, low, high)
        )
        return (low, high) if whole else (first, last)

    def whole(self, uri: str, load: Callable[[], bytes]) -> bytes:
        """A file that is one page."""
        return self._page(_name(uri, 0, 0), None, load)

    def kept(self, name: str) -> bytes | None:
        """For a peer. name: of a page; none of ours has a / in it, and what else is on the volume is nobody's."""
        path = self._folder / name
        if "/" in name or not self._volume.has(path):
            return None
        try:
            return path.read_bytes()
        except OSError:
            return None  # it has gone meanwhile

    def _page(self, name: str, size: int | None, load: Callable[[], bytes]) -> bytes:
        data = self.kept(name)
        if data is not None and size in {None, len(data)}:
            self._volume.used(self._folder / name)
            with self._lock:
                self.fetched.volume += len(data)
            return data
        data = self._peers.get(getattr(self._asking, "block", None), name)
        from_peer = data is not None and size in {None, len(data)}
        if data is None or not from_peer:
            data = load()
        with self._lock:
            self.fetched.peers += len(data) if from_peer else 0
            self.fetched.store += 0 if from_peer else len(data)
        self._keep(name, data)
        return data

    def _keep(self, name: str, data: bytes) -> None:
        if len(data) > self._volume.limit:
            return
        path = self._folder / name
        partial = path.with_name(f"{name}-{threading.get_ident()}.part")
        try:
            partial.write_bytes(data)
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            logger().warning("a page is not kept", error=str(error))
            return
        self._volume.keep(path, len(data))


def _name(uri: str, low: int, high: int) -> str:
    return f"{hashlib.sha256(uri.encode()).hexdigest()}-{low}-{high}"


class Holder:
    """What this process keeps. A worker, which works for one run, sets a limit and has pages; others do neither."""

    def __init__(self) -> None:
        self.volume = Volume()
        self.pages: Pages | None = None
        self.peers = Peers()

    def of(self, block: int | None) -> contextlib.AbstractContextManager[None]:
        return self.pages.of(block) if self.pages else contextlib.nullcontext()


HELD = Holder()
