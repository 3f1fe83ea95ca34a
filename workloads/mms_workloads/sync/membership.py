"""Who takes part in a run: a pure state machine. It is given `now` and what arrived; it does no input or output.

A membership epoch is (job UID, attempt, number, ordered members). The oldest member comes first: it writes checkpoints
and the artifact. A loss ends the epoch at once; a joiner is let in by the next epoch, which the members enter together
at a round boundary. Peers that belong to another job, run or attempt, or that a newer incarnation of their rank has
replaced, are refused: DNS still names them for a while after they should be gone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

HEARTBEAT_SECONDS = 0.5
# Ten heartbeats. The control connection has a thread of its own, but on a node of two busy cores it was seen to wait
# more than two seconds for its turn; a process that dies is noticed by its closed connection, long before this.
HEARTBEAT_DEADLINE_SECONDS = 5.0
# A new master waits this long for the rest of the members that a survivor names: twice the longest reconnect backoff,
# and the time in which a Service's name follows to the new pod.
RECOVERY_GRACE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Fence:
    """What a peer must agree on to be let in."""

    uid: str
    run: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Hello:
    fence: Fence
    rank: int
    incarnation: int
    address: str = ""
    epoch: int = 0  # the last membership epoch that the peer was in
    step: int | None = None  # rounds in its parameters; None: it holds none


@dataclass(frozen=True, slots=True)
class Member:
    rank: int
    incarnation: int
    address: str
    joined: int  # rises with each join: the order of age
    deadline: float  # when it counts as lost unless it is heard of
    step: int = -1  # rounds in the parameters that it came with; -1: it came with none


@dataclass(frozen=True, slots=True)
class Epoch:
    number: int
    members: tuple[Member, ...]  # oldest first

    def position(self, rank: int) -> int | None:
        return next((i for i, m in enumerate(self.members) if m.rank == rank), None)


@dataclass(frozen=True, slots=True)
class Refusal:
    """The peer must exit: its place is taken or its job is another one."""

    message: str


@dataclass(frozen=True, slots=True)
class Membership:
    """Immutable; each transition returns the next state."""

    fence: Fence
    wanted: int  # members of an epoch at most, which the first one waits for; who is there beyond stands by
    least: int = 1  # with fewer nobody trains
    members: tuple[Member, ...] = ()
    incarnations: tuple[tuple[int, int], ...] = ()  # the highest incarnation seen of each rank
    epoch: Epoch | None = None
    last_number: int = 0  # of any epoch that this master or a peer has seen
    joins: int = 0
    recovering_until: float | None = None  # set when a peer came from an epoch that this master has not made

    def hello(self, hello: Hello, now: float) -> Membership | Refusal:
        """A peer wants in. The same incarnation again is another process or connection of it: it replaces the old."""
        if hello.fence != self.fence:
            return Refusal(f"this is {_say(self.fence)}, the peer belongs to {_say(hello.fence)}")
        known = dict(self.incarnations).get(hello.rank, -1)
        if hello.incarnation < known:
            return Refusal(
                f"incarnation {known} of rank {hello.rank} is known, the peer is incarnation {hello.incarnation}"
            )
        step = -1 if hello.step is None else hello.step
        deadline = now + HEARTBEAT_DEADLINE_SECONDS
        member = Member(hello.rank, hello.incarnation, hello.address, self.joins, deadline, step)
        others = tuple(m for m in self.members if m.rank != hello.rank)
        recovering = self.recovering_until
        if self.epoch is None and hello.step is not None and recovering is None:
            recovering = now + RECOVERY_GRACE_SECONDS
        return replace(
            self,
            members=(*others, member),
            incarnations=tuple(sorted({**dict(self.incarnations), hello.rank: hello.incarnation}.items())),
            joins=self.joins + 1,
            last_number=max(self.last_number, hello.epoch),
            recovering_until=recovering,
        )

    def saw(self, epoch: int) -> Membership:
        """Somebody else than a member knows of that epoch: the next one has a higher number."""
        return replace(self, last_number=max(self.last_number, epoch))

    def heard(self, rank: int, now: float) -> Membership:
        """A heartbeat, or anything else, came from the rank."""
        deadline = now + HEARTBEAT_DEADLINE_SECONDS
        return replace(
            self, members=tuple(replace(m, deadline=deadline) if m.rank == rank else m for m in self.members)
        )

    def lose(self, ranks: Iterable[int]) -> Membership:
        gone = set(ranks)
        return replace(self, members=tuple(m for m in self.members if m.rank not in gone))

    def want(self, workers: int, least: int = 1) -> Membership:
        return replace(self, wanted=workers, least=least)

    def enough(self) -> bool:
        return len(self.members) >= max(1, self.least)

    def overdue(self, now: float) -> tuple[int, ...]:
        """Ranks without a sign of life since their deadline."""
        return tuple(m.rank for m in self.members if m.deadline <= now)

    def broken(self) -> bool:
        """A member of the epoch is gone, or is another process than the one that joined: it cannot go on."""
        if self.epoch is None:
            return False
        present = {(m.rank, m.joined) for m in self.members}
        return any((m.rank, m.joined) not in present for m in self.epoch.members)

    def chosen(self) -> tuple[Member, ...]:
        """Members of the next epoch, oldest first: those of this one, then who brings parameters, then who waits
        longest.
        """
        inside = self._inside()
        order = sorted(self.members, key=lambda m: ((m.rank, m.joined) not in inside, -m.step, m.joined))
        return tuple(sorted(order[: self.wanted], key=lambda m: m.joined))

    def ready(self, now: float) -> bool:
        """Whether a next epoch should be made: for the first one all workers must be there, or the grace be over."""
        if not self.enough():
            return False
        if self.epoch is None:
            graced = self.recovering_until is not None and now >= self.recovering_until
            return len(self.members) >= self.wanted or graced
        return self.broken() or {(m.rank, m.joined) for m in self.chosen()} != self._inside()

    def advance(self) -> Membership:
        """The next epoch."""
        number = self.last_number + 1
        return replace(self, epoch=Epoch(number, self.chosen()), last_number=number, recovering_until=None)

    def _inside(self) -> set[tuple[int, int]]:
        return {(m.rank, m.joined) for m in self.epoch.members} if self.epoch else set()


def _say(fence: Fence) -> str:
    return f"job {fence.uid} run {fence.run} attempt {fence.attempt}"
