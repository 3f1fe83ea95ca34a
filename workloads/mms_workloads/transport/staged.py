"""A ring whose tensors are on a GPU: they travel through page-locked memory of the host.

The transport between pods is the same as without GPUs, with its mutual TLS, its fences and its ends within
milliseconds, of which NCCL has none. Copies run on a stream of their own, beside the backward pass.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from mms_workloads.transport.ring import RingTransport, Wire


class StagedRing:
    """The collectives of a RingTransport, for tensors of any device. `close` may come from any thread."""

    def __init__(self, ring: RingTransport, device: torch.device) -> None:
        self._ring = ring
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._room = torch.empty(0)  # grows to the largest tensor

    @property
    def position(self) -> int:
        return self._ring.position

    @property
    def size(self) -> int:
        return self._ring.size

    def all_reduce(self, tensor: Tensor, wire: Wire = "None", error: Tensor | None = None) -> None:
        """As RingTransport's; the error is on the CPU. What was queued on the GPU before is part of the tensor."""
        host = self._down(tensor)
        self._ring.all_reduce(host, wire, error)
        self._up(host, tensor)

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        return self._ring.all_gather(tensor)

    def broadcast(self, tensor: Tensor, source: int) -> None:
        host = self._down(tensor)
        self._ring.broadcast(host, source)
        self._up(host, tensor)

    def close(self) -> None:
        self._ring.close()

    def _down(self, tensor: Tensor) -> Tensor:
        if self._room.numel() < tensor.numel():
            self._room = torch.empty(tensor.numel(), pin_memory=self._stream is not None)
        host = self._room[: tensor.numel()].view(tensor.shape)
        if self._stream:
            self._stream.wait_stream(torch.cuda.default_stream(tensor.device))
        with self._beside():
            host.copy_(tensor, non_blocking=True)
        self._done()
        return host

    def _up(self, host: Tensor, tensor: Tensor) -> None:
        with self._beside():
            tensor.copy_(host, non_blocking=True)
        self._done()

    def _beside(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._stream) if self._stream else nullcontext()

    def _done(self) -> None:
        if self._stream:
            self._stream.synchronize()
