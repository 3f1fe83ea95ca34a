"""Gradients on the wire: as they are, as bfloat16, or as int8 with a scale for each block.

What rounding loses is kept by the sender and added to its next gradient (error feedback, Seide et al., 2014), so that
nothing is lost in the long run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

Wire = Literal["None", "BF16", "Int8"]

BLOCK = 1024  # elements that share an int8 scale; the last block of a tensor may be shorter
PIECE = 1024 * BLOCK  # elements that are converted at a time: what temporaries are for, 4 MiB
_LEVELS = 127.0


def encode(gradient: Tensor, wire: Wire, error: Tensor | None = None) -> list[Tensor]:
    """The tensors that stand for a flat float32 [n]: one, or for Int8 values int8 [n] and scales float32 [n / BLOCK].

    error: float32 [n], what earlier calls lost; it is added here and holds afterwards what this call lost.
    """
    if wire == "None":
        return [gradient]
    exact = gradient if error is None else error.add_(gradient)
    encoded = [exact.bfloat16()] if wire == "BF16" else _to_int8(exact)
    if error is not None:
        for start in range(0, error.numel(), PIECE):
            error[start : start + PIECE] -= _decoded(encoded, start, PIECE)
    return encoded


def decode(encoded: Sequence[Tensor]) -> Tensor:
    """float32 [n]; the tensor itself when it is that already."""
    if encoded[0].dtype == torch.float32:
        return encoded[0]
    out = torch.empty(encoded[0].numel())
    mean_into(out, [encoded], 1.0)
    return out


def mean_into(out: Tensor, parts: Sequence[Sequence[Tensor]], samples: float) -> None:
    """Makes `out` [n] the parts' sum, in their order, over `samples`. It may be the first part itself."""
    for number, part in enumerate(parts):
        size = PIECE if part[0].dtype != torch.float32 else max(1, out.numel())  # nothing to convert: in one go
        for start in range(0, out.numel(), size):
            total, more = out[start : start + size], _decoded(part, start, size)
            if number:
                total += more
            elif more.data_ptr() != total.data_ptr():
                total.copy_(more)
    if samples != 1.0:
        out /= samples


def mismatch(encoded: Sequence[Tensor], size: int) -> str | None:
    """Why the tensors cannot stand for `size` numbers."""
    kinds = [(t.dtype, t.numel()) for t in encoded]
    known = (
        [(torch.float32, size)],
        [(torch.bfloat16, size)],
        [(torch.int8, size), (torch.float32, -(-size // BLOCK))],
    )
    return None if kinds in known else f"tensors {kinds} do not stand for {size} numbers"


def _to_int8(exact: Tensor) -> list[Tensor]:
    size = exact.numel()
    values = torch.empty(size, dtype=torch.int8)
    scales = torch.empty(-(-size // BLOCK))
    for start in range(0, size, PIECE):
        blocks = _blocks(exact[start : start + PIECE])
        scale = scales[start // BLOCK : start // BLOCK + blocks.shape[0]]
        torch.amax(blocks.abs(), 1, out=scale)
        scale /= _LEVELS
        divisor = torch.where(scale > 0, scale, 1.0)
        rounded = (blocks / divisor[:, None]).round_().to(torch.int8).view(-1)
        values[start : start + PIECE] = rounded[: min(PIECE, size - start)]
    return [values, scales]


def _decoded(encoded: Sequence[Tensor], start: int, size: int) -> Tensor:
    """The numbers [start, start + size); a view where they are float32."""
    values = encoded[0][start : start + size]
    if len(encoded) == 1:
        return values.float()
    blocks = _blocks(values)
    scales = encoded[1][start // BLOCK : start // BLOCK + blocks.shape[0]]
    return (blocks * scales[:, None]).view(-1)[: values.numel()]


def _blocks(flat: Tensor) -> Tensor:
    """[k, BLOCK], the last block filled up with zeros."""
    missing = -flat.numel() % BLOCK
    return (torch.cat((flat, flat.new_zeros(missing))) if missing else flat).view(-1, BLOCK)
