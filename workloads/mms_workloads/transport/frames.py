"""A channel: messages with tensors over one connection, each with a digest of the fence."""

from __future__ import annotations

import hashlib
import json
import math
import operator
import struct
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mms_workloads.transport.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mms_workloads.transport.stream import Stream

MAX_HEADER_BYTES = 1 << 24
MAX_MESSAGE_BYTES = 1 << 40
MAX_DIMENSIONS = 64  # of a tensor, for torch's operations
_FRAME = struct.Struct("<4sIQ")  # magic, bytes of the JSON text that follows, digest of the fence
_MAGIC = b"MMSF"
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}


@dataclass(frozen=True, slots=True)
class Fence:
    """The membership epoch that a connection is part of."""

    uid: str  # of the job
    run: int
    attempt: int
    epoch: int

    @property
    def digest(self) -> int:
        """64 bits that differ when any field does."""
        text = f"{self.uid}\0{self.run}\0{self.attempt}\0{self.epoch}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")

    def difference(self, other: Fence) -> str:
        """What of `other` is not as here, in words; empty: nothing."""
        mine = [(f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self)]
        return ", ".join(f"{name} {theirs} instead of {own}" for name, own, theirs in mine if own != theirs)

    def older(self, other: Fence) -> bool:
        """Whether `other` is a later epoch of the same run."""
        same = (self.uid, self.run) == (other.uid, other.run)
        return same and (self.attempt, self.epoch) < (other.attempt, other.epoch)


@dataclass(frozen=True, slots=True)
class Greeting:
    """Who connects, and what for."""

    fence: Fence
    role: str
    rank: int
    incarnation: int
    purpose: str

    @staticmethod
    def read(document: dict[str, Any]) -> Greeting:
        """Raises ValueError."""
        try:
            fence = Fence(**document["fence"])
            found = Greeting(**{**document, "fence": fence})
        except (KeyError, TypeError) as error:
            raise ValueError(f"no greeting: {error}") from error
        words = (fence.uid, found.role, found.purpose)
        numbers = (fence.run, fence.attempt, fence.epoch, found.rank, found.incarnation)
        if not all(type(one) is str for one in words) or not all(type(one) is int for one in numbers):
            raise ValueError(f"no greeting: a field of another type in {document}"[:500])
        return found


@dataclass(frozen=True, slots=True)
class Spec:
    """A tensor that a message carries."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def empty(self) -> Tensor:
        """Raises Refused where there is no memory for it."""
        try:
            return torch.empty(self.shape, dtype=self.dtype)
        except RuntimeError as error:
            raise Refused(f"a message with {self}: {error}") from error


class Channel:
    """A connection to one peer. One thread may send while another receives; after PeerLost or Refused it is of no use.

    Buffers are bytes-like objects or contiguous tensors on the CPU; their bytes travel as they are, little endian.
    """

    def __init__(self, stream: Stream, fence: Fence, peer: Greeting | None) -> None:
        """peer: who connected here; None on the side that connected."""
        self.peer = peer
        self.timeout: float | None = None  # seconds without a byte moved after which an operation gives the peer up
        self._stream, self._digest = stream, fence.digest

    def send(self, *buffers: Any) -> None:
        """Raises PeerLost."""
        self._stream.send(buffers, self.timeout)

    def receive_into(self, *buffers: Any) -> None:
        """Fills all of them. Raises PeerLost."""
        self._stream.receive(buffers, self.timeout)

    def send_message(self, header: dict[str, Any], *tensors: Tensor) -> None:
        """The header as JSON, then the tensors. Raises PeerLost."""
        specs = [[str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for tensor in tensors]
        text = json.dumps([header, specs], separators=(",", ":")).encode()
        if len(text) > MAX_HEADER_BYTES:
            raise ValueError(f"a header of {len(text):,} bytes; {MAX_HEADER_BYTES:,} are allowed")
        self.send(_FRAME.pack(_MAGIC, len(text), self._digest) + text, *tensors)

    def receive_message(
        self, buffers: Callable[[dict[str, Any], list[Spec]], Sequence[Tensor]] | None = None
    ) -> tuple[dict[str, Any], list[Tensor]]:
        """The header and the tensors.

        buffers: is given the header and what tensors follow, and gives those to receive into, of the same sizes.
        Raises PeerLost; Refused when the message is of another epoch.
        """
        head = bytearray(_FRAME.size)
        self.receive_into(head)
        magic, length, digest = _FRAME.unpack(head)
        if magic != _MAGIC or length > MAX_HEADER_BYTES:
            raise Refused("the peer sent something else than a message")
        if digest != self._digest:
            raise Refused("the message is of another membership epoch")
        text = bytearray(length)
        self.receive_into(text)
        header, specs = _read(text)
        tensors = list(buffers(header, specs)) if buffers else [spec.empty() for spec in specs]
        if [tensor.nbytes for tensor in tensors] != [spec.nbytes for spec in specs]:
            raise ValueError(f"buffers of {[tensor.nbytes for tensor in tensors]} bytes for {specs}")
        self.receive_into(*tensors)
        return header, tensors

    def close(self) -> None:
        """Whoever waits on it, here or at the peer, is woken. Safe in any thread, and more than once."""
        self._stream.close()


def _read(text: bytearray) -> tuple[dict[str, Any], list[Spec]]:
    try:
        header, described = json.loads(text)
        specs = [Spec(_DTYPES[name], tuple(map(operator.index, shape))) for name, shape in described]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise Refused(f"the header of a message cannot be read: {error!r}") from error
    if not isinstance(header, dict):
        raise Refused("the header of a message cannot be read: it is no object")
    if not all(map(_sensible, specs)) or sum(spec.nbytes for spec in specs) > MAX_MESSAGE_BYTES:
        raise Refused(f"a message with {specs}"[:500])
    return header, specs


def _sensible(spec: Spec) -> bool:
    """Also of a tensor without values: torch multiplies its other sizes."""
    if len(spec.shape) > MAX_DIMENSIONS or any(size < 0 for size in spec.shape):
        return False
    return math.prod(max(1, size) for size in spec.shape) * spec.dtype.itemsize <= MAX_MESSAGE_BYTES
