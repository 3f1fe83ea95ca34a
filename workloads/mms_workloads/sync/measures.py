"""What follows from the guard's verdicts for the run: blocks that are left out, and what the next epoch starts from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mms_workloads.sync.forming import Restart

if TYPE_CHECKING:
    from mms_workloads.sync.leases import Leases, Progress
    from mms_workloads.sync.saving import Checkpoints
    from mms_workloads.sync.watch import Rollback, Watch


@dataclass(slots=True)
class Measures:
    watch: Watch
    checkpoints: Checkpoints
    quarantined: set[int] = field(default_factory=set)  # blocks that are not trained on, as workers of this run tell
    remembered: frozenset[int] = frozenset()  # as the checkpoint does that it goes on from: they are told again
    left_out: set[int] = field(default_factory=set)  # those that are not since a rollback
    restart: Restart | None = None  # what the next epoch starts from, whatever its members hold
    _parted_in: int = -1  # the epoch whose members were last found to differ

    @property
    def dead(self) -> frozenset[int]:
        return self.remembered | self.quarantined

    def found(self, anomaly: dict[str, Any], rank: int) -> tuple[int, str] | None:
        """An anomaly that a worker tells: whose it is and what is done, if that is news."""
        block, action = anomaly["block"], anomaly["action"]
        if block is not None:
            if block in self.quarantined:
                return None
            self.quarantined.add(block)
            return anomaly["rank"], f"block {block} is not trained on: {action}"
        epoch = anomaly.get("epoch", 0)
        if epoch == self._parted_in:  # all members tell it
            return None
        self._parted_in = epoch
        return rank, action

    async def roll_back(self, wanted: Rollback, leases: Leases) -> str:
        """Gives up what was saved since, and says what is done. Raises JobError."""
        await self.checkpoints.discard(wanted.before)
        rate = leases.progress.rate_factor * wanted.rate_factor
        # A run that would have nothing left to train on goes on with all, more slowly.
        blocks = wanted.blocks if len(wanted.blocks) < len(leases.blocks) else frozenset[int]()
        self.restart = Restart(blocks, wanted.samples, rate)
        newest = self.checkpoints.newest
        said = [f"{wanted.action}: back to {f'the checkpoint of step {newest[0].step}' if newest else 'the beginning'}"]
        if rate != 1:
            said.append(f"at {rate:g} of the learning rate")
        if blocks:
            said.append(f"without blocks {', '.join(map(str, sorted(blocks)))}")
        if wanted.samples:
            said.append(f"without {sum(s.stop - s.start for s in wanted.samples)} samples")
        return ", ".join(said)

    def take_restart(self) -> Restart | None:
        """For one epoch."""
        restart, self.restart = self.restart, None
        return restart

    def go_on_from(self, leases: Leases, progress: Progress, restart: Restart | None) -> None:
        """An epoch begins with this state; what a rollback leaves out is left out of an older checkpoint's, too."""
        restart = restart or Restart(frozenset(), (), leases.progress.rate_factor)
        self.left_out |= restart.blocks
        progress.skip(self.left_out, leases.epochs)
        progress.passed_over = sorted({*progress.passed_over, *leases.progress.passed_over, *restart.samples})
        progress.rate_factor = min(progress.rate_factor, restart.rate_factor)
        leases.restore(progress)
