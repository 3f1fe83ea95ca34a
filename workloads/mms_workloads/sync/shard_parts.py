"""What a shard says and holds beside its state: its standing, its answers, a part that is being filled."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from mms_workloads.sync.leases import Progress
    from mms_workloads.sync.push import Answer
    from mms_workloads.sync.shard_state import Lent, ShardState

Part = Literal["state", "replica"]  # its own rows, or its copy of those of the shard before it
Member = tuple[int, int]  # rank and incarnation of a worker


@dataclass(frozen=True, slots=True)
class Over:
    """The epoch has ended, or was never begun here."""

    why: str


@dataclass(frozen=True, slots=True)
class Answered:
    """parameters: by dense table, of the shard's rows; to be given to `release` when they are sent."""

    answer: Answer
    parameters: dict[str, Lent]


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a shard is. step, replica_step: -1 where it holds nothing."""

    epoch: int
    step: int
    can_go_back: bool
    progress: Progress
    replica_step: int
    replica_progress: Progress
    awaited: tuple[int, ...] = ()  # ranks of workers that others wait for


@dataclass(slots=True)
class Filling:
    """A part that is not in use yet. origins: step and progress of those that its rows were fetched from."""

    state: ShardState
    origins: list[tuple[int, Progress]] = field(default_factory=list)

    def origin(self, part: Part, step: int | None, progress: Progress | None) -> tuple[int, Progress]:
        """Raises ValueError."""
        if missing := self.state.gaps():
            raise ValueError(f"the {part} lacks {', '.join(missing)}: fetch or put these rows first")
        if not self.origins:
            if step is None or progress is None:
                raise ValueError(f"nobody said which step the {part} is: give step and progress")
            return step, progress
        if any(progress != self.origins[0][1] for _, progress in self.origins):
            raise ValueError(
                f"the {part} was fetched from shards that have applied different samples: "
                "finish their blocks in an epoch of the layout before"
            )
        return max(at for at, _ in self.origins), self.origins[0][1]
