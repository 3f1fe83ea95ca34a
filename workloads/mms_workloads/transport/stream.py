"""A connected socket in the native library's hands, and what wakes those who wait on it."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from mms_workloads.transport import native
from mms_workloads.transport.errors import PeerLost, Refused
from mms_workloads.transport.native import Status, lib

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mms_workloads.transport.security import Context

REKEY_BYTES = 64 << 30  # sent under one key; RFC 8446, 5.5 allows AES-GCM 2^24.5 records of 16 KiB, which is 362 GiB


class Abort:
    """Set once, it wakes every operation that was started with it, and fails those that follow. Safe in any thread."""

    def __init__(self) -> None:
        self._handle = lib.mms_abort_new()
        if not self._handle:
            raise OSError(native.words())
        self._lock = threading.Lock()
        self._set = False
        self._finalizer = weakref.finalize(self, lib.mms_abort_release, self._handle)

    def set(self) -> None:
        with self._lock:
            self._set = True
            if self._finalizer.alive:
                lib.mms_abort_set(self._handle)

    def is_set(self) -> bool:
        return self._set

    def close(self) -> None:
        """Nothing is started with it any more. Streams that have it keep it, and are no longer woken by `set`."""
        with self._lock:
            self._finalizer()

    @property
    def handle(self) -> int:
        if not self._finalizer.alive:
            raise ValueError("an Abort that was closed")
        return int(self._handle)

    def fileno(self) -> int:
        return int(lib.mms_abort_descriptor(self.handle))


class Stream:
    """Owns the descriptor. One thread may send while another receives; `close` may come from any."""

    _handle: int | None = None

    def __init__(self, descriptor: int, context: Context | None, abort: Abort, *, server: bool) -> None:
        """context: None for a plain stream. What it raises leaves the descriptor closed."""
        self.descriptor = descriptor
        self._lock = threading.Lock()
        self._users = 0
        self._closed = False
        with ExitStack() as failed:
            failed.callback(os.close, descriptor)
            self._handle = lib.mms_stream_new(
                descriptor, context.handle if context else None, server, abort.handle, REKEY_BYTES
            )
            if not self._handle:
                raise MemoryError
            failed.pop_all()

    def handshake(self) -> int:
        """A step of it; the poll events that the next one waits for, 0 when it is done. Raises PeerLost, Refused."""
        with self.used() as handle:
            return self._step(lib.mms_stream_handshake(handle), handle)

    def send_some(self, data: bytes) -> tuple[int, int]:
        """(poll events to wait for, or 0; bytes that were taken)."""
        sent = ctypes.c_uint64()
        with self.used() as handle:
            status = lib.mms_stream_send_some(handle, address_of(data)[0], len(data), ctypes.byref(sent))
            return self._step(status, handle), sent.value

    def receive_some(self, size: int) -> tuple[int, bytes]:
        """(poll events to wait for, or 0; at most `size` bytes)."""
        buffer, got = bytearray(size), ctypes.c_uint64()
        with self.used() as handle:
            status = lib.mms_stream_receive_some(handle, address_of(buffer)[0], size, ctypes.byref(got))
            return self._step(status, handle), bytes(buffer[: got.value])

    def units(self) -> set[str]:
        """Organisational units of the peer's certificate; none without TLS."""
        text = ctypes.create_string_buffer(4096)
        with self.used() as handle:
            length = lib.mms_stream_units(handle, text, len(text))
        return set(text.raw[: max(length, 0)].decode(errors="replace").splitlines())

    def met_tls(self) -> bool:
        """Whether what came over a TLS connection was TLS."""
        with self.used() as handle:
            return bool(lib.mms_stream_met_tls(handle))

    def rebind(self, abort: Abort) -> None:
        with self.used() as handle:
            lib.mms_stream_rebind(handle, abort.handle)

    def send(self, buffers: Sequence[Any], timeout: float | None) -> None:
        """All of them. Raises PeerLost."""
        self._move(lib.mms_stream_send, [address_of(buffer) for buffer in buffers], timeout)

    def receive(self, buffers: Sequence[Any], timeout: float | None) -> None:
        """Fills all of them. Raises PeerLost."""
        self._move(lib.mms_stream_receive, [address_of(buffer, writable=True) for buffer in buffers], timeout)

    def shut_down(self) -> None:
        """Whoever waits on it, here or at the peer, is woken and fails."""
        with self._lock:
            if self._handle:
                lib.mms_stream_shutdown(self._handle)

    def close(self) -> None:
        with self._lock:
            if self._handle and not self._closed:
                self._closed = True
                lib.mms_stream_shutdown(self._handle)
                self._free_unused()

    @contextmanager
    def used(self) -> Iterator[int]:
        """The native stream, which lives until the block ends. Raises PeerLost when it was closed."""
        with self._lock:
            if self._closed or self._handle is None:
                raise PeerLost("the connection was closed here")
            self._users += 1
        try:
            yield self._handle
        finally:
            with self._lock:
                self._users -= 1
                self._free_unused()

    def _free_unused(self) -> None:
        if self._closed and not self._users:
            lib.mms_stream_free(self._handle)
            self._handle = None

    def _move(self, function: Any, places: list[tuple[int, int, Any]], timeout: float | None) -> None:
        data, sizes = native.pointers([p[0] for p in places]), native.sizes([p[1] for p in places])
        done = ctypes.c_uint64()
        with self.used() as handle:
            native.until_done(
                lambda: function(handle, data, sizes, len(places), native.nanoseconds(timeout), ctypes.byref(done))
            )

    def _step(self, status: int, handle: int) -> int:
        if status == Status.AGAIN:
            return int(lib.mms_stream_wants(handle))
        native.check(status, tls=Refused)
        return 0

    def __del__(self) -> None:
        if self._handle:
            self.close()


def address_of(buffer: Any, *, writable: bool = False) -> tuple[int, int, Any]:
    """(address, bytes, what keeps it alive) of something bytes-like or a contiguous CPU tensor."""
    if isinstance(buffer, Tensor):
        if not buffer.is_contiguous() or buffer.device.type != "cpu":
            raise ValueError("tensors on the wire are contiguous and on the CPU")
        return buffer.data_ptr(), buffer.numel() * buffer.element_size(), buffer
    view = np.frombuffer(buffer, np.uint8) if len(memoryview(buffer).cast("B")) else np.empty(0, np.uint8)
    if writable and not view.flags.writeable:
        raise ValueError("a buffer to receive into is writable")
    return int(view.ctypes.data), view.nbytes, view
