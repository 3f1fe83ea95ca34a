"""How samples come into rounds: in which order those of a block, and from how many blocks at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from mms_workloads.contract import JobFile

MOST_MIXED = 16  # blocks
MIXED_BYTES = 16 << 20  # of data that they have together, at most: prepared it may be ten times as many


def mixed(job: JobFile, *, blocks: int, batch: int, members: int) -> int:
    """Blocks that a member's rounds are dealt from, together.

    One after the other they would give each round samples that are stored side by side, which are often alike. In the
    order of their files only where that is asked for.

    blocks: to train on; batch: samples of the member.
    """
    if job.data.sharding != "Random":
        return 1
    shared = blocks // (2 * members)  # each member has as many again leased ahead
    return max(1, min(MOST_MIXED, batch, MIXED_BYTES // job.data.blockBytes, shared))


def order(seed: int, data_epoch: int, block: int, count: int) -> Tensor:
    """int64 [count]: the random order of a block's samples in a data epoch."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(combined(seed, data_epoch, block)))


def combined(*numbers: int) -> int:
    """A seed of several numbers."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number) % 2**63
    return seed
