"""How a data set is cut: into blocks for training and into tasks for the counting pass. Pure.

Files are laid end to end in the order of their URIs; a block is blockBytes of that line, so that a block may hold many
small files and a large file many blocks. Positions count decompressed bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

COUNTING_BYTES = 8 << 20  # a counting task: large enough to hide a request, small enough to share among workers
HOLD_OUT_FROM = 5  # blocks: of fewer, none can be spared for evaluation
COMPRESSED = (".gz", ".xz", ".bz2", ".zst")


@dataclass(frozen=True, slots=True)
class Segment:
    """Bytes [start, end) of a file, by its number; end None: to its end, wherever that is."""

    file: int
    start: int
    end: int | None


Block = tuple[Segment, ...]


def compressed(uri: str) -> bool:
    return uri.lower().endswith(COMPRESSED)


def cut(sizes: Sequence[int], block_bytes: int, *, varied: bool = False) -> list[Block]:
    """sizes: decompressed bytes of each file, in order. Every byte is in exactly one block; empty files are in none.

    varied: blocks are of half, once and one and a half times block_bytes in turn.
    """
    blocks: list[Block] = []
    segments: list[Segment] = []
    room = _room(0, block_bytes, varied)
    for number, size in enumerate(sizes):
        start = 0
        while start < size:
            end = min(size, start + room)
            segments.append(Segment(number, start, end))
            room -= end - start
            start = end
            if room == 0:
                blocks.append(tuple(segments))
                segments, room = [], _room(len(blocks), block_bytes, varied)
    if segments:
        blocks.append(tuple(segments))
    return blocks


def _room(number: int, block_bytes: int, varied: bool) -> int:
    return max(1, block_bytes * (1 + number % 3) // 2) if varied else block_bytes


def counting_tasks(uris: Sequence[str], sizes: Sequence[int], *, whole: bool = False) -> list[Block]:
    """sizes: bytes as stored. A compressed file is one task, since it can be read from its start only; `whole`: all."""
    alone = {i for i, uri in enumerate(uris) if whole or compressed(uri)}
    plain = [0 if i in alone else size for i, size in enumerate(sizes)]
    return [(Segment(i, 0, None),) for i in sorted(alone)] + cut(plain, COUNTING_BYTES)


def grouped(sizes: Sequence[int]) -> list[Block]:
    """Counting tasks of files that are blocks: some of them each."""
    tasks: list[Block] = []
    held: list[Segment] = []
    room = COUNTING_BYTES
    for number, size in enumerate(sizes):
        held.append(Segment(number, 0, size))
        room -= size
        if room <= 0:
            tasks.append(tuple(held))
            held, room = [], COUNTING_BYTES
    return [*tasks, tuple(held)] if held else tasks


def split(count: int, part: float) -> tuple[list[int], list[int]]:
    """The numbers of the blocks to train on, and of those kept for evaluation: every 1/part-th, from mid-stride.

    Of fewer than HOLD_OUT_FROM blocks none is kept.
    """
    if count < HOLD_OUT_FROM or not part:
        return list(range(count)), []
    every = max(2, round(1 / part))
    kept = set(range(min(every // 2, count // 2), count, every))
    return [b for b in range(count) if b not in kept], sorted(kept)
