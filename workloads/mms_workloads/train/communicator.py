"""How ranks exchange what a round changed. The loop knows the protocol only; Ring is the all-reduce among workers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from mms_workloads.embedding.skipgram import BlockStats
from mms_workloads.sync.leases import Lease
from mms_workloads.train.merge import merge_scale

if TYPE_CHECKING:
    from mms_workloads.train.groups import Group
    from mms_workloads.train.state import State


class Flag(IntFlag):
    """What a rank has heard; all ranks see all flags of a round and so leave, or stop, at the same one."""

    NEWER_EPOCH = 1
    SUSPEND = 2
    LEAVING = 4


NO_FLAGS = Flag(0)


@dataclass(frozen=True, slots=True)
class Contribution:
    """One rank's part of a round; lease None: it had no block."""

    lease: Lease | None
    stats: BlockStats
    flags: Flag = NO_FLAGS


class Communicator(Protocol):
    def exchange(self, state: State, mine: Contribution, rate: float) -> list[Contribution]:
        """Makes the round's changes part of `state` on all ranks, or of none here. Returns all contributions.

        Raises groups.PeerLost: then `state` is as it was before the round but for its working copy.
        """

    def share(self, state: State, source: int) -> None:
        """Gives all ranks the base of the member at position `source`.

        Raises groups.PeerLost: then the base is as it was before.
        """


class Ring:
    """All-reduce of the touched rows among the members of a membership epoch."""

    def __init__(self, group: Group) -> None:
        self._group = group

    def exchange(self, state: State, mine: Contribution, rate: float) -> list[Contribution]:
        gathered = self._group.all_gather(_encode(mine))
        contributions = [_decode(row) for row in gathered]
        # Which rows anybody touched: only those travel. A block touches thousands, a vocabulary may have millions.
        touches = torch.cat((state.touches.vectors, state.touches.contexts))
        counts = torch.stack((touches, (touches > 0).float()))
        self._group.all_reduce(counts)
        rows = counts[0].nonzero().squeeze(1)  # none in a round without blocks
        split = int((rows < state.size).sum())
        parts = (rows[:split], rows[split:] - state.size)
        delta = torch.cat((state.delta_vectors(parts[0]), state.delta_contexts(parts[1])))
        if rows.numel():
            self._group.all_reduce(delta)
        delta *= merge_scale(counts[0, rows], counts[1, rows], rate)[:, None]
        state.commit(parts, (delta[:split], delta[split:]), [c.lease for c in contributions if c.lease])
        return contributions

    def share(self, state: State, source: int) -> None:
        parameters = state.base if self._group.position == source else state.working
        for tensor in (parameters.vectors, parameters.contexts):
            self._group.broadcast(tensor, source)
        if parameters is state.working:
            state.adopt()
        state.reset()


def _encode(mine: Contribution) -> Tensor:
    lease = mine.lease or Lease(-1, -1)
    stats = mine.stats
    # float64 holds whole numbers up to 2^53 exactly.
    values = [lease.data_epoch, lease.block, int(mine.flags), stats.words, stats.pairs, stats.loss]
    return torch.tensor(values, dtype=torch.float64)


def _decode(row: Tensor) -> Contribution:
    data_epoch, block, flags, words, pairs, loss = row.tolist()
    lease = Lease(int(data_epoch), int(block)) if block >= 0 else None
    return Contribution(lease, BlockStats(int(words), pairs, loss), Flag(int(flags)))
