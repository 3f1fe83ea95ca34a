"""The pods of one role that are connected to the master: who is let in, who was heard of when, who is told what."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mms_workloads.sync import wire
from mms_workloads.sync.membership import HEARTBEAT_DEADLINE_SECONDS, Hello, Membership, Refusal
from mms_workloads.sync.wire import Message

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mms_workloads.sync.links import Link
    from mms_workloads.sync.membership import Epoch


@dataclass(slots=True)
class Peers:
    """role: worker or shard."""

    role: str
    membership: Membership
    links: dict[int, Link] = field(default_factory=dict)  # by rank

    def join(self, link: Link, hello: Hello, now: float) -> Refusal | None:
        """Lets it in, in the place of the connection that its rank had before; or says why not."""
        answer = self.membership.hello(hello, now)
        if isinstance(answer, Refusal):
            return answer
        if old := self.links.pop(link.rank, None):
            old.send(Message(wire.REFUSED, {"message": "another process of this rank has connected"}))
            old.close()
        self.membership, self.links[link.rank] = answer, link
        return None

    def present(self, link: Link) -> bool:
        """False: it was lost or replaced, and nothing that it says counts."""
        return self.links.get(link.rank) is link

    def saw(self, epoch: int) -> None:
        self.membership = self.membership.saw(epoch)

    def heard(self, rank: int, now: float) -> None:
        self.membership = self.membership.heard(rank, now)

    def heard_last(self, rank: int) -> float:
        """When a present one was heard of last."""
        return next(m.deadline for m in self.membership.members if m.rank == rank) - HEARTBEAT_DEADLINE_SECONDS

    def overdue(self, now: float) -> list[Link]:
        """Those without a sign of life since their deadline."""
        return [self.links[rank] for rank in self.membership.overdue(now)]

    def lose(self, rank: int) -> None:
        del self.links[rank]
        self.membership = self.membership.lose([rank])

    def want(self, count: int, least: int = 1) -> None:
        self.membership = self.membership.want(count, least)

    def advance(self) -> Epoch:
        """The next membership epoch."""
        self.membership = self.membership.advance()
        assert self.membership.epoch is not None  # noqa: S101 - advance() made it
        return self.membership.epoch

    def tell(self, message: Message, ranks: Iterable[int] | None = None) -> None:
        """Those of the ranks that are connected, or all."""
        for rank in self.links if ranks is None else ranks:
            if rank in self.links:
                self.links[rank].send(message)
