"""The native library of the transport (workloads/native/transport).

abi.h there is the reference: what is declared here has the same names.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_bool, c_char_p, c_int32, c_int64, c_uint32, c_uint64, c_void_p
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING

from mms_workloads import libraries
from mms_workloads.transport.errors import PeerLost, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ABI_VERSION = 1
LIBRARY = Path(__file__).with_name("libmms_transport.so")


class Status(IntEnum):
    OK = 0
    AGAIN = 1
    INTERRUPTED = 2
    LATE = 3
    ABORTED = 4
    CLOSED = 5
    BROKEN = 6
    TLS_FAILED = 7
    MISMATCH = 8
    NO_MEMORY = 9


_PROTOTYPES: libraries.Prototypes = {
    "mms_abi_version": (c_int32, ()),
    "mms_error": (c_char_p, ()),
    "mms_kernels": (c_char_p, ()),
    "mms_kernels_choose": (c_bool, (c_char_p,)),
    "mms_abort_new": (c_void_p, ()),
    "mms_abort_set": (None, (c_void_p,)),
    "mms_abort_descriptor": (c_int32, (c_void_p,)),
    "mms_abort_release": (None, (c_void_p,)),
    "mms_tls_new": (c_void_p, (c_bool, c_char_p, c_char_p, c_char_p)),
    "mms_tls_free": (None, (c_void_p,)),
    "mms_stream_new": (c_void_p, (c_int32, c_void_p, c_bool, c_void_p, c_uint64)),
    "mms_stream_rebind": (None, (c_void_p, c_void_p)),
    "mms_stream_handshake": (c_int32, (c_void_p,)),
    "mms_stream_wants": (c_int32, (c_void_p,)),
    "mms_stream_units": (c_int64, (c_void_p, c_char_p, c_uint64)),
    "mms_stream_met_tls": (c_bool, (c_void_p,)),
    "mms_stream_send_some": (c_int32, (c_void_p, c_void_p, c_uint64, POINTER(c_uint64))),
    "mms_stream_receive_some": (c_int32, (c_void_p, c_void_p, c_uint64, POINTER(c_uint64))),
    "mms_stream_send": (c_int32, (c_void_p, c_void_p, c_void_p, c_uint64, c_int64, POINTER(c_uint64))),
    "mms_stream_receive": (c_int32, (c_void_p, c_void_p, c_void_p, c_uint64, c_int64, POINTER(c_uint64))),
    "mms_stream_shutdown": (None, (c_void_p,)),
    "mms_stream_free": (None, (c_void_p,)),
    "mms_ring_new": (c_void_p, (c_void_p, c_void_p, c_uint32, c_uint32, c_uint64)),
    "mms_ring_free": (None, (c_void_p,)),
    "mms_ring_all_reduce": (c_int32, (c_void_p, c_void_p, c_uint64, c_int32, c_void_p, c_int64)),
    "mms_ring_all_gather": (c_int32, (c_void_p, c_void_p, c_uint64, c_int64)),
    "mms_ring_broadcast": (c_int32, (c_void_p, c_void_p, c_uint64, c_uint32, c_int64)),
}


def load(path: Path) -> ctypes.CDLL:
    """Raises ImportError with the remedy."""
    return libraries.load(path, "the native transport", _PROTOTYPES, version=ABI_VERSION)


lib = load(LIBRARY)


def words() -> str:
    """For this thread's last failure."""
    text: bytes = lib.mms_error()
    return text.decode(errors="replace")


def check(status: int, *, tls: type[Exception] = PeerLost) -> None:
    """Raises what the status of a call means. tls: a failure of TLS is a refusal while a connection is made."""
    match status:
        case Status.OK:
            return
        case Status.TLS_FAILED:
            raise tls(f"TLS: {words()}")
        case Status.MISMATCH:
            raise Refused(words())
        case Status.NO_MEMORY:
            raise MemoryError
        case _:
            raise PeerLost(words())


def until_done(call: Callable[[], int], **kinds: type[Exception]) -> None:
    """Repeats a blocking call that signals interrupt: between two, Python runs its handlers."""
    while (status := call()) == Status.INTERRUPTED:
        pass
    check(status, **kinds)


def nanoseconds(timeout: float | None) -> int:
    """Of a timeout in seconds, as the library takes it."""
    return -1 if timeout is None else int(timeout * 1e9)


def pointers(addresses: Sequence[int]) -> ctypes.Array[c_void_p]:
    return (c_void_p * len(addresses))(*addresses)


def sizes(numbers: Sequence[int]) -> ctypes.Array[c_uint64]:
    return (c_uint64 * len(numbers))(*numbers)
