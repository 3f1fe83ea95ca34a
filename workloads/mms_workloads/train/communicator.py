"""How ranks make a round's work part of what all of them hold. The loop knows the protocol only, not the mode."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from mms_workloads.sync.leases import Slice

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mms_workloads.contract import PrivacyReport
    from mms_workloads.train.state import State

MAX_SLICES = 64  # of a contribution


class Flag(IntFlag):
    """What a rank has heard; all ranks see all flags of a round and so leave, stop or save at the same one."""

    NEWER_EPOCH = 1
    SUSPEND = 2
    LEAVING = 4
    CHECKPOINT = 8
    NOT_FINITE = 16  # the rank's own gradient
    SUSPECTED = 32  # it is far beyond what the rank's gradients were


NO_FLAGS = Flag(0)


@dataclass(frozen=True, slots=True)
class Stats:
    """What a rank did in a round."""

    samples: int  # words, sequences, images: what the data set's size is told in
    weight: float  # terms of the loss: pairs, tokens, samples
    loss: float  # mean over them
    privacy: PrivacyReport | None = None  # with the round, of a run of differential privacy; other ranks do not hear it


NOTHING = Stats(0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Health:
    """What the guard looks at."""

    norm: float = 0.0  # of the rank's gradient or change, over all its samples
    seconds: float = 0.0  # its computation
    checksum: int = -1  # of all that it holds, before the round; -1: not in this round


WELL = Health()


@dataclass(frozen=True, slots=True)
class Contribution:
    """One rank's part of a round; without slices it had no data."""

    slices: tuple[Slice, ...] = ()
    stats: Stats = NOTHING
    flags: Flag = NO_FLAGS
    health: Health = WELL
    applied: bool = True  # False: its slices count as seen, but nothing of the round went into the parameters


class Communicator(Protocol):
    def attach(self, state: State) -> None:
        """The state whose rounds follow."""

    def prepare(self, state: State, rows: Callable[[], Mapping[str, Tensor]]) -> None:
        """Makes the rows that a round reads current. rows: by sparse table, int64 [n], ascending. Raises PeerLost."""

    def exchange(
        self, state: State, mine: Contribution, rate: float, again: Callable[[], object]
    ) -> list[Contribution]:
        """Makes the round's work part of `state` on all ranks, or of none here. Returns all contributions.

        rate: the learning rate of the round. again: computes the round's work anew, where it was mixed with that of a
        rank that is left out. Raises transport.PeerLost, guarding.PartedError: then what is agreed is as it was.
        """

    def compare(self, checksum: int) -> None:
        """Shows all ranks that hold the same what this one holds. Raises transport.PeerLost, guarding.PartedError."""

    def share(self, state: State, source: int) -> None:
        """Gives all ranks what the member at position `source` holds. Raises transport.PeerLost."""

    def close(self) -> None:
        """Its connections are not used again."""


_HEAD = 8
_WIDTH = _HEAD + 5 * MAX_SLICES


def encode(mine: Contribution) -> Tensor:
    """float64 [_WIDTH], which holds whole numbers up to 2^53 exactly."""
    stats, health = mine.stats, mine.health
    out = torch.full((_WIDTH,), -1.0, dtype=torch.float64)
    head = [len(mine.slices), int(mine.flags), stats.samples, stats.weight, stats.loss, health.norm, health.seconds]
    head.append(health.checksum)
    flat = [x for s in mine.slices for x in (s.data_epoch, s.block, s.start, s.stop, s.size)]
    values = head + flat
    out[: len(values)] = torch.tensor(values, dtype=torch.float64)
    return out


def decode(row: Tensor) -> Contribution:
    count, flags, samples, weight, loss, norm, seconds, checksum, *rest = row.tolist()
    slices = tuple(Slice(*(int(x) for x in rest[5 * i : 5 * i + 5])) for i in range(int(count)))
    health = Health(norm, seconds, int(checksum))
    return Contribution(slices, Stats(int(samples), weight, loss), Flag(int(flags)), health)
