"""Of whom the master hears no more, or has never heard although it should have. Pure: callers say what time it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mms_workloads.contract import Gone
from mms_workloads.sync.membership import RECOVERY_GRACE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mms_workloads.sync.links import Link

    Place = tuple[str, int]  # role and rank


@dataclass(slots=True)
class Absences:
    """took_over: when this master had the first sign of one before it, whose workers and shards should all be there."""

    took_over: float | None = None
    _lost: dict[Place, tuple[int, float]] = field(default_factory=dict)  # incarnation, when it was heard last
    _met: set[Place] = field(default_factory=set)

    def came(self, role: str, rank: int) -> None:
        self._lost.pop((role, rank), None)
        self._met.add((role, rank))

    def left(self, link: Link, now: float) -> None:
        self._lost[link.role, link.rank] = link.incarnation, now

    def all(self, wanted: Iterable[Place], now: float) -> list[Gone]:
        """wanted: the places that there should be."""
        gone = {place: (incarnation, now - since) for place, (incarnation, since) in self._lost.items()}
        if self.took_over is not None and now - self.took_over >= RECOVERY_GRACE_SECONDS:
            gone |= {place: (0, now - self.took_over) for place in wanted if place not in self._met}
        return [
            Gone.model_validate({"role": role, "rank": rank, "incarnation": incarnation, "seconds": seconds})
            for (role, rank), (incarnation, seconds) in sorted(gone.items())
        ]
