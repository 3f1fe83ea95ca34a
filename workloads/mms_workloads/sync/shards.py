"""The parameter shards of a run as its master sees them: who is there, what they hold, what they are told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mms_workloads.contract import Trainer
from mms_workloads.sync import wire
from mms_workloads.sync.layout import replica_holder
from mms_workloads.sync.membership import Membership
from mms_workloads.sync.peers import Peers
from mms_workloads.sync.shard_forming import HeldShard, ShardsBegin, Wanted, corrupt, decide
from mms_workloads.sync.wire import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from mms_workloads.contract import CheckpointRef, ParameterServer
    from mms_workloads.sync.leases import Progress
    from mms_workloads.sync.links import Link
    from mms_workloads.sync.membership import Epoch, Fence

# A shard whose rows others hold leaves so long after the last one was told to stop: nodes that are drained at the same
# time do not say so at the same time.
TOGETHER_SECONDS = 2.0


@dataclass(slots=True)
class Shards:
    """Ring mode has no such object."""

    spec: ParameterServer
    peers: Peers
    called: tuple[tuple[int, int], ...] = ()  # rank and join of those that the epoch was announced to
    layout: int = 0  # shards of the epoch that was announced; 0: none was
    served: int = 0  # of the last one that has begun, which hold the parameters; 0: not known
    ready: dict[int, HeldShard] = field(default_factory=dict)
    save_wanted: bool = False  # a checkpoint is written between two epochs, when all rest at the same step
    told_at: float = 0.0  # when one of them was told to stop last

    @classmethod
    def of(cls, spec: ParameterServer, fence: Fence) -> Shards:
        return cls(spec, Peers("shard", Membership(fence, spec.shards)))

    @property
    def wanted(self) -> int:
        return self.peers.membership.wanted

    @property
    def synchronous(self) -> bool:
        """All workers step at the same time."""
        return self.spec.consistency == "Synchronous"

    @property
    def coming(self) -> int:
        """Shards of the next epoch: as many as are wanted, once those that come in addition are all there.

        Till then the others go on without: neither a checkpoint nor a lost worker waits for a pod that has no node.
        """
        waits = 0 < self.served < self.wanted and not self._there(self.wanted)
        return self.served if waits else self.wanted

    def complete(self) -> bool:
        """All that the next epoch needs are there."""
        return self._there(self.coming)

    def choose(self) -> None:
        """An epoch is about to be announced."""
        self.called, self.layout = (), self.coming

    def chosen_there(self) -> bool:
        """All that the announced epoch needs are."""
        return self._there(self.layout)

    def broken(self) -> bool:
        """A shard that the epoch was announced to is gone, or is another process."""
        present = {(m.rank, m.joined) for m in self.peers.membership.members}
        return not set(self.called) <= present

    def changes(self) -> bool:
        """The next epoch has another number of shards."""
        return self.layout not in {0, self.coming}

    def told_to_stop(self, serving: set[int], now: float) -> None:
        """One of them was. Rows that would be gone with all that were are saved."""
        self.told_at = now
        self.save_wanted = self.save_wanted or not self._stay(serving)

    def release(self, serving: set[int], now: float) -> None:
        """Lets those go that were told to stop, where others have their rows. serving: who has begun the epoch."""
        if now < self.told_at + TOGETHER_SECONDS or not self._stay(serving):
            return
        for link in self.peers.links.values():
            if link.stopping:
                link.stopping, link.leaving = False, True
                link.send(Message(wire.LEAVE))

    def last_save_wanted(self) -> bool:
        """A checkpoint for shards that are told to stop: without it their rows are lost."""
        return self.save_wanted and self._anybody_leaves()

    def all_among(self, ranks: set[int]) -> bool:
        """Whether all of the epoch's layout are."""
        return ranks >= set(range(self.layout))

    def serve(self) -> None:
        """All have begun the epoch: those that are not in its layout may go."""
        self.called = tuple((rank, joined) for rank, joined in self.called if rank < self.layout)
        self.served = self.layout

    def brings(self, layout: int) -> None:
        """A shard comes that has rows of a layout of so many; 0: it has none. A master before this one served it."""
        if not self.layout:
            self.served = max(self.served, layout)

    def incarnations(self, layout: int) -> list[tuple[int, int]]:
        """Rank and incarnation of those that a layout of so many is of."""
        return sorted((m.rank, m.incarnation) for m in self.peers.membership.members if m.rank < layout)

    def addresses(self) -> list[str]:
        members = sorted(self.peers.membership.members, key=lambda m: m.rank)
        return [m.address for m in members if m.rank < self.layout]

    def trainers(self) -> list[Trainer]:
        """Those that hold rows of the parameters, as far as they are connected."""
        links = sorted(self.peers.links.items())
        return [Trainer(rank=rank, address=one.parameters) for rank, one in links if rank < self.served]

    def call(self, epoch: Epoch, send_plan: Callable[[Iterable[Link]], None]) -> None:
        """Announces the epoch: all its workers are out of the one before."""
        members = sorted(self.peers.membership.members, key=lambda m: m.rank)
        self.called = tuple((m.rank, m.joined) for m in members)
        self.ready = {}
        addresses = {m.rank: m.address for m in members}
        fields = {
            "epoch": epoch.number,
            "urgent": True,
            "members": [[m.rank, m.incarnation, m.address] for m in epoch.members],
            "shards": [addresses.get(rank, "") for rank in range(max(addresses) + 1)],
        }
        send_plan(self.peers.links[m.rank] for m in members)
        self.peers.tell(Message(wire.EPOCH, fields), [m.rank for m in members])

    def heard(self, rank: int, held: dict[str, Any]) -> bool:
        """What a shard holds has arrived. Whether that was the last of them."""
        self.ready[rank] = HeldShard.read(held)
        return self.ready.keys() >= {rank for rank, _ in self.called}

    def decide(
        self, blocks: int, checkpoint: tuple[CheckpointRef, Progress] | None, held: Mapping[int, HeldShard]
    ) -> ShardsBegin:
        """held: by rank, what counts of `ready`."""
        return decide(Wanted(self.layout, self.spec.replicas, self.synchronous, blocks), held, checkpoint)

    def corrupt(self) -> list[int]:
        """Shards whose state and replica differ."""
        return corrupt(self.ready)

    def begin(self, begin: ShardsBegin, epoch: Epoch, lineage: str, *, suspend: bool) -> bool:
        """Tells each what it starts from. Whether that is the end: what remains is to write the checkpoint.

        The layout may be another one than was announced: see `decide`.
        """
        self.layout = len(begin.state)
        save = self.save_wanted and set(begin.state) == {"keep"} and self._agree(begin)
        final = save and (suspend or not epoch.members)
        # Also after the end: who is lost before all parts are durable has it made again. Without workers what cannot be
        # saved now cannot be later.
        self.save_wanted = suspend or (self.last_save_wanted() and not save and bool(epoch.members))
        fields = {
            "epoch": epoch.number,
            "lineage": lineage,
            "save": save,
            "final": final,
            "waits": save and (suspend or self._anybody_leaves()),
            "members": [[m.rank, m.incarnation] for m in epoch.members],
        }
        checkpoint = begin.checkpoint.model_dump(mode="json") if begin.checkpoint else None
        for rank, _ in self.called:
            inside = rank < len(begin.state)
            mine = {
                "state": begin.state[rank] if inside else None,
                "replica": begin.replica[rank] if inside else None,
                "shards": len(begin.state),
                "step": begin.step,
                "settle": begin.settle,
                "progress": begin.progress.document(),
                "before": begin.before,
                "states": begin.states,
                "replicas": begin.replicas,
                "checkpoint": checkpoint,
                "fills": any(one != "keep" for one in (*begin.state, *begin.replica) if one),
            }
            self.peers.links[rank].send(Message(wire.BEGIN, {**fields, **mine}))
        return final

    def _there(self, count: int) -> bool:
        return {m.rank for m in self.peers.membership.members} >= set(range(count))

    def _stay(self, serving: set[int]) -> bool:
        """Whether all rows of the layout are on shards that were not told to stop: their own, or as a replica."""
        present = {(m.rank, m.joined) for m in self.peers.membership.members}
        going = {rank for rank, link in self.peers.links.items() if link.stopping or link.leaving}
        staying = {rank for rank, joined in self.called if rank in serving and (rank, joined) in present} - going
        copied = self.spec.replicas > 1
        held = (
            shard in staying or (copied and replica_holder(shard, self.layout) in staying)
            for shard in range(self.layout)
        )
        return bool(self.layout) and all(held)

    def _anybody_leaves(self) -> bool:
        return any(link.stopping for link in self.peers.links.values())

    def _agree(self, begin: ShardsBegin) -> bool:
        """Whether the same samples are part of all shards' rows, so that together they are a checkpoint."""
        return begin.settle or all(h.progress == begin.progress for h in self.ready.values())
