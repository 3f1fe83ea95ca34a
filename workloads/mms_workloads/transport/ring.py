"""The members of one membership epoch in a ring, and their collectives (workloads/native/transport/ring.cc).

Every value that travels is rounded by one member, which goes on with the rounded value, so that all members end with
the same bits, whatever the format. A collective that fails leaves its tensors as they happen to be: what it was to
change is lost, and the epoch is over.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Literal

import torch

from mms_workloads.contract import OU_WORKER
from mms_workloads.transport import native
from mms_workloads.transport.errors import PeerLost
from mms_workloads.transport.frames import Fence, Greeting
from mms_workloads.transport.meeting import dial, result_of
from mms_workloads.transport.native import lib

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from mms_workloads.transport.meeting import Listener, Meeting, Pending
    from mms_workloads.transport.security import Security
    from mms_workloads.transport.stream import Abort, Stream

Wire = Literal["None", "BF16", "Int8"]
MAX_SIZE = 64
_WIRES: dict[str, int] = {"None": 0, "BF16": 1, "Int8": 2}


class RingTransport:
    """Collectives are called by all members in the same order, by one thread at a time. `close` may come from any."""

    _handle: int | None = None

    def __init__(self, position: int, size: int, fence: Fence, streams: tuple[Stream, Stream] | None) -> None:
        """streams: to the next member and from the previous one; None: alone."""
        self.position, self.size = position, size
        self.timeout: float | None = None  # seconds without a byte moved after which a collective gives up
        self._streams = streams
        self._busy = threading.Lock()
        if streams:
            with streams[0].used() as following, streams[1].used() as previous:
                self._handle = lib.mms_ring_new(following, previous, position, size, fence.digest)
            if not self._handle:
                raise MemoryError

    @classmethod
    def form(
        cls,
        position: int,
        addresses: Sequence[tuple[str, int]],
        listener: Listener,
        security: Security,
        fence: Fence,
        *,
        rank: int,
        incarnation: int,
        abort: Abort,
        timeout: float | None,
    ) -> RingTransport:
        """The ring of the members' listeners at `addresses`, by position; this one's is at `position`.

        Whoever knocks for an older epoch is refused; who is ahead of this member is left to the listener's next accept.
        Raises PeerLost, with the neighbours that were not reached unless it was aborted; Refused when a member holds
        another epoch than this one.
        """
        size = len(addresses)
        if size > MAX_SIZE:
            raise ValueError(f"a ring of {size} members; {MAX_SIZE} are the most")
        if size == 1:
            return cls(position, size, fence, None)
        deadline = None if timeout is None else time.monotonic() + timeout
        following, before = (position + 1) % size, (position - 1) % size
        me = Greeting(fence, OU_WORKER, rank, incarnation, _purpose(position, following, size))
        try:
            to_next = dial(*addresses[following], security, me, abort, deadline)
        except PeerLost as error:
            error.places = () if abort.is_set() else (following,)
            raise
        door = _Door(listener, fence, _purpose(before, position, size))
        try:
            while not (to_next.done and door.previous):
                if to_next.done:
                    result_of(to_next)
                door.serve(abort, deadline, [] if to_next.done else [to_next])
            return cls(position, size, fence, (result_of(to_next), door.previous))
        except BaseException as error:
            if isinstance(error, PeerLost) and not abort.is_set():
                late = deadline is not None and time.monotonic() >= deadline
                missing = {following} if to_next.result is None else set()
                error.places = tuple(sorted(missing | ({before} if late and not door.previous else set())))
            to_next.cancel()
            for stream in (to_next.result, door.previous):
                if stream:
                    stream.close()
            raise
        finally:
            door.leave()

    def all_reduce(self, tensor: Tensor, wire: Wire = "None", error: Tensor | None = None) -> None:
        """Sums a float32 tensor over the members, in place; the same bits on all.

        error: float32 of the same size, zeros at first. What the format lost of this member's part is kept there and
        added the next time (error feedback), so that the mean over many rounds is exact; where a value is not finite
        nothing is kept. NaN and Inf come out as NaN and Inf in every format. Raises PeerLost, Refused.
        """
        for name, one in (("the tensor", tensor), ("its error", error)):
            if one is not None and (one.dtype != torch.float32 or not one.is_contiguous() or one.device.type != "cpu"):
                raise ValueError(f"{name} to reduce is {one.dtype}; it must be float32, contiguous and on the CPU")
        if error is not None and error.numel() != tensor.numel():
            raise ValueError(f"{error.numel()} values of error for {tensor.numel()}")
        lost = error.data_ptr() if error is not None else None
        self._run(
            lambda ring, idle: lib.mms_ring_all_reduce(
                ring, tensor.data_ptr(), tensor.numel(), _WIRES[wire], lost, idle
            )
        )

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """Each member's tensor, by position; all have the same size. Raises PeerLost, Refused."""
        if tensor.device.type != "cpu":
            raise ValueError("a tensor to gather is on the CPU")
        mine = tensor.contiguous()
        outputs = [mine if place == self.position else torch.empty_like(mine) for place in range(self.size)]
        places = native.pointers([output.data_ptr() for output in outputs])
        self._run(lambda ring, idle: lib.mms_ring_all_gather(ring, places, mine.nbytes, idle))
        return outputs

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """Makes the tensor what the member at position `source` has, in place. Raises PeerLost, Refused."""
        if not tensor.is_contiguous() or tensor.device.type != "cpu":
            raise ValueError("a tensor to broadcast is contiguous and on the CPU")
        if not 0 <= source < self.size:
            raise ValueError(f"position {source} of a ring of {self.size}")
        self._run(lambda ring, idle: lib.mms_ring_broadcast(ring, tensor.data_ptr(), tensor.nbytes, source, idle))

    def close(self) -> None:
        """A collective that is under way fails, here and at the neighbours. Safe more than once."""
        for stream in self._streams or ():
            stream.close()
        with self._busy:
            handle, self._handle = self._handle, None
            if handle:
                lib.mms_ring_free(handle)

    def _run(self, call: Callable[[int, int], int]) -> None:
        if self._streams is None:
            return
        with self._busy:
            if self._handle is None:
                raise PeerLost("the ring was closed here")
            following, previous = self._streams
            try:
                with following.used(), previous.used():
                    handle, idle = self._handle, native.nanoseconds(self.timeout)
                    native.until_done(lambda: call(handle, idle))
            except BaseException:
                # Neither this ring nor the others' can go on: the neighbours are told by the end of the connections.
                following.close()
                previous.close()
                raise

    def __del__(self) -> None:
        if self._handle:
            self.close()


class _Door:
    """Who knocks at the listener while a ring is formed. One of them is the previous member."""

    def __init__(self, listener: Listener, fence: Fence, wanted: str) -> None:
        self.previous: Stream | None = None
        self._listener, self._fence, self._wanted = listener, fence, wanted
        self._ahead: list[Pending] = []

    def serve(self, abort: Abort, deadline: float | None, beside: Sequence[Meeting]) -> None:
        """Judges one that has greeted, or waits for something to happen. Raises PeerLost."""
        if found := self._listener.take(abort):
            self._judge(*found)
            return
        if deadline is not None and time.monotonic() >= deadline:
            raise PeerLost("the previous member did not connect in time")
        self._listener.serve(abort, deadline, beside)

    def leave(self) -> None:
        for pending in self._ahead:
            pending.defer()

    def _judge(self, pending: Pending, greeting: Greeting) -> None:
        if self._fence.older(greeting.fence):
            self._ahead.append(pending)
        elif difference := self._fence.difference(greeting.fence):
            pending.refuse(difference)
        elif greeting.purpose != self._wanted or self.previous:
            pending.refuse(f"{greeting.purpose} instead of {self._wanted}")
        else:
            with contextlib.suppress(PeerLost):  # it has gone again, and the deadline is for who comes after it
                self.previous = pending.stream()


def _purpose(sender: int, receiver: int, size: int) -> str:
    return f"ring {sender}>{receiver} of {size}"
