"""Rings of threads of this process: each collective meets at a barrier."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import torch

from mms_workloads.train.ring import Ring
from mms_workloads.transport.channel import PeerLost
from mms_workloads.transport.staged import StagedRing

if TYPE_CHECKING:
    from collections.abc import Callable

    from mms_workloads.train.ring import Wire


class Table:
    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=10)
        self.slots: list[torch.Tensor] = [torch.empty(0)] * size
        self.seats = [Seat(self, position) for position in range(size)]

    def meet(self, position: int, tensor: torch.Tensor) -> list[torch.Tensor]:
        self.slots[position] = tensor.clone()
        self.barrier.wait()
        all_of_them = list(self.slots)
        self.barrier.wait()
        return all_of_them

    def rings(self, staged: torch.device | None = None, wire: Wire = "None") -> list[Ring]:
        """staged: for tensors there, which travel through memory of the host."""
        return [Ring(StagedRing(seat, staged) if staged else seat, wire) for seat in self.seats]  # type: ignore[arg-type]


class Seat:
    """What is used of a RingTransport."""

    def __init__(self, table: Table, position: int) -> None:
        self.position, self.size = position, len(table.slots)
        self.table = table
        self.broadcasts_left = 1000

    def all_reduce(self, tensor: torch.Tensor, wire: str = "None", error: torch.Tensor | None = None) -> None:
        assert tensor.numel()
        if wire != "None":
            wanted = tensor if error is None else tensor + error
            sent = wanted.bfloat16()
            if error is not None:
                error.copy_(wanted - sent)
            tensor.copy_(sent)
        tensor.copy_(torch.stack(self.table.meet(self.position, tensor)).sum(0))

    def all_gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        return self.table.meet(self.position, tensor)

    def broadcast(self, tensor: torch.Tensor, source: int) -> None:
        self.broadcasts_left -= 1
        if self.broadcasts_left < 0:
            raise PeerLost("gone")
        assert tensor.is_contiguous(), "the transport takes no other"
        tensor.copy_(self.table.meet(self.position, tensor)[source])

    def close(self) -> None: ...


def nothing() -> None:
    """For a round that need not be computed again."""


def at_once(*work: Callable[[], object]) -> list[object]:
    """What each returned or raised."""
    results: list[object] = [None] * len(work)

    def run(index: int) -> None:
        try:
            results[index] = work[index]()
        except Exception as error:  # noqa: BLE001 - the result of the thread
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
