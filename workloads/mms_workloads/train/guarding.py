"""A worker's part of the guard: it looks at its own gradient before that may poison the others'."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from mms_workloads.sync import guard as rules
from mms_workloads.sync.guard import History, Sign, Verdict
from mms_workloads.train.communicator import Flag

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mms_workloads.contract import Guard
    from mms_workloads.train.communicator import Contribution

# Between two comparisons of the parameters, whichever comes first: reading them once is little beside that.
CHECK_ROUNDS, CHECK_SECONDS = 50, 3.0


class PartedError(Exception):
    """Ranks that should hold the same parameters do not; of a round that it is found in nothing was applied.

    odd: this rank is outvoted, or nobody knows who is right: it must not go on from what it holds.
    """

    def __init__(self, message: str, parting: rules.Parting, position: int) -> None:
        super().__init__(message)
        self.parting, self.odd = parting, position in parting.odd


class Comparisons:
    """In which rounds of a membership epoch its members compare what they hold, from the first one on.

    It follows from what all of them see alike, so they agree on it.
    """

    def __init__(self) -> None:
        self._rounds, self._seconds = 0, 0.0

    @property
    def due(self) -> bool:
        return not self._rounds or self._rounds >= CHECK_ROUNDS or self._seconds >= CHECK_SECONDS

    def made(self, contributions: Sequence[Contribution]) -> None:
        """A round has been."""
        if self.due:
            self._rounds, self._seconds = 0, 0.0
        self._rounds += 1
        self._seconds += max(c.health.seconds for c in contributions)


class Guarding:
    """Of one worker process, over all its membership epochs."""

    def __init__(self, spec: Guard) -> None:
        self.spec = spec
        self._norms = (History(), History())  # of the logarithms of `scales`

    def stamp(self, mine: Contribution, norm: float) -> Contribution:
        """Adds what the others need to know of this rank's gradient. norm: of it, over all its samples."""
        flags, samples = mine.flags, mine.stats.samples
        if not math.isfinite(norm):
            flags |= Flag.NOT_FINITE
        elif samples and rules.suspicious(self._norms, norm, samples):
            flags |= Flag.SUSPECTED
        return replace(mine, flags=flags, health=replace(mine.health, norm=norm))

    def judge(self, contributions: Sequence[Contribution]) -> list[bool]:
        """Whose work goes into the parameters, by position."""
        return [rules.included(verdict, self.spec) for verdict in verdicts(contributions, self.spec)]

    def learn(self, mine: Contribution) -> None:
        """The round is committed: what it was like is usual from now on, unless it was odd."""
        if mine.stats.samples and not mine.flags & (Flag.NOT_FINITE | Flag.SUSPECTED):
            for history, value in zip(self._norms, rules.scales(mine.health.norm, mine.stats.samples), strict=True):
                history.add(rules.log(value))

    def compare(self, contributions: Sequence[Contribution], position: int) -> None:
        """Raises PartedError."""
        sums = [c.health.checksum for c in contributions]
        if min(sums) < 0 or (parting := rules.compare(sums)) is None:
            return
        who = ", ".join(map(str, sorted(parting.odd)))
        said = f"the members at places {who} hold other parameters" if parting.majority else "no two members agree"
        raise PartedError(f"{said} than the rest: memory or a network has flipped bits", parting, position)


def verdicts(contributions: Sequence[Contribution], spec: Guard) -> list[Verdict]:
    return rules.judge([sign(c) for c in contributions], spec)


def sign(c: Contribution) -> Sign:
    return Sign(c.stats.samples, c.health.norm, Flag.NOT_FINITE not in c.flags, Flag.SUSPECTED in c.flags)
