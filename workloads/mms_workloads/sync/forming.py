"""What a membership epoch starts from: decided when all its members have said what they hold. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mms_workloads.sync.leases import Progress, Slice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mms_workloads.contract import CheckpointRef


@dataclass(frozen=True, slots=True)
class Held:
    """The state that a member brings. Two of the same lineage and step are the same to the bit."""

    step: int | None = None  # None: it has none
    lineage: str | None = None
    progress: Progress | None = None


@dataclass(slots=True)
class Forming:
    """How far the newest epoch has come."""

    ready: dict[int, Held] = field(default_factory=dict)  # by rank
    begun: bool = False  # all were ready and know whose state counts
    started: set[int] = field(default_factory=set)  # ranks that have met the others and asked for a block
    called: bool = False  # the shards were told: all members are out of the epoch before
    filled: set[int] = field(default_factory=set)  # shards that have all their rows
    serving: set[int] = field(default_factory=set)  # shards that have begun the epoch
    told: dict[str, Any] = field(default_factory=dict)  # what the workers are told then
    asking: list[tuple[int, int]] = field(default_factory=list)  # ranks that wait for a block, the step they are at


@dataclass(frozen=True, slots=True)
class Begin:
    """Whose state counts: the member's at position `source`; or the checkpoint's, which all of them load."""

    step: int
    progress: Progress
    source: int = 0
    equal: bool = True  # all hold it already
    checkpoint: CheckpointRef | None = None
    fresh: bool = False  # as the run begins, whatever anybody holds

    def fields(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "progress": self.progress.document(),
            "source": self.source,
            "equal": self.equal,
            "fresh": self.fresh,
            "checkpoint": self.checkpoint.model_dump(mode="json") if self.checkpoint else None,
        }


@dataclass(frozen=True, slots=True)
class Restart:
    """The guard wants the next epoch to start from the checkpoint, whatever the members hold."""

    blocks: frozenset[int]  # that are not trained on any more
    samples: tuple[Slice, ...]  # that are passed over
    rate_factor: float  # on the learning rate


def decide(held: Sequence[Held], checkpoint: tuple[CheckpointRef, Progress] | None, blocks: int) -> Begin:
    """held: by position. The highest step that any member holds or the checkpoint has, else the beginning.

    A member may hold less than the checkpoint: one that was cut off, when all that went on without it are gone.
    The progress is the caller's to change.
    """
    steps = [h.step for h in held if h.step is not None]
    if steps and (checkpoint is None or max(steps) >= checkpoint[0].step):
        highest = max(steps)
        source = next(i for i, h in enumerate(held) if h.step == highest)
        equal = all((h.step, h.lineage) == (highest, held[source].lineage) for h in held)
        return Begin(highest, held[source].progress or Progress.none(blocks), source, equal)
    if checkpoint:
        reference, progress = checkpoint
        return Begin(reference.step, progress.copy(), equal=False, checkpoint=reference)
    return Begin(0, Progress.none(blocks), fresh=True)
