"""The membership epochs of a run: when the next one is due, who is in it, what it starts from, who is told what.

An epoch is announced to its members. When they are out of the one before, they say what they hold, and it begins: in
Ring mode with the newest parameters that a member holds. In ParameterServer mode the shards hold them; those are called
when all workers are ready, and workers begin when all shards have.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mms_workloads.contract import Reason
from mms_workloads.logs import logger
from mms_workloads.sync import wire
from mms_workloads.sync.forming import Begin, Forming, Held, Restart, decide
from mms_workloads.sync.leases import Leases, Progress
from mms_workloads.sync.stalls import Stalls
from mms_workloads.sync.watch import round_of
from mms_workloads.sync.wire import Message

if TYPE_CHECKING:
    from collections.abc import Callable

    from mms_workloads.sync.absences import Place
    from mms_workloads.sync.dispatcher import Dispatcher
    from mms_workloads.sync.links import Link
    from mms_workloads.sync.measures import Measures
    from mms_workloads.sync.membership import Epoch
    from mms_workloads.sync.peers import Peers
    from mms_workloads.sync.saving import Checkpoints
    from mms_workloads.sync.shards import Shards
    from mms_workloads.sync.watch import Round

# A collective that failed without the loss of a member is tried again in a next epoch. A member's death is noticed by
# its neighbours and by us at about the same time: this is left for us.
BROKEN_GRACE_SECONDS = 1.0
# Shards of which some have applied a push that others have not are laid out anew after so long, in which workers finish
# the blocks that it was of.
CHANGE_SECONDS = 5.0


@dataclass(slots=True)
class Epochs:
    """suspending: members are to save once more, and then nobody trains. Callers say what time it is."""

    workers: Peers
    shards: Shards | None
    dispatcher: Dispatcher
    checkpoints: Checkpoints
    measures: Measures
    save_seconds: float  # from one checkpoint to the next
    incident: Callable[[str, int | None, str], None]  # kind, rank, action
    suspending: bool = False
    forming: Forming = field(default_factory=Forming)
    stalls: Stalls = field(default_factory=Stalls)
    _previous: Epoch | None = None  # its last rounds may be told after the next one was announced
    _seen: int = 0  # the last of them
    _again: tuple[float, str] | None = None  # when and why the epoch is given up although nobody was lost
    _save_at: float = 0.0
    _change_at: float = 0.0  # another number of shards is not tried before
    # Rank and incarnation of those that make a checkpoint in the newest epoch, in the order of their parts.
    _writers: list[tuple[int, int]] = field(default_factory=list)

    @property
    def current(self) -> Epoch | None:
        return self.workers.membership.epoch

    def shards_ready(self) -> int:
        return len(self.forming.serving & self.shards.peers.links.keys()) if self.shards else 0

    def goes_on_without(self, rank: int) -> bool:
        """The worker is in no epoch, and one has begun: it is more than are wanted, or stands by."""
        return self.current is not None and self.forming.begun and self.current.position(rank) is None

    # What is due

    def due(self, now: float) -> bool:
        """A loss does not wait. A joiner waits until the members of the epoch that is being formed have met.

        Shards that are told to stop after the last worker save in an epoch without any.
        """
        membership, shards = self.workers.membership, self.shards
        if shards and not shards.complete():
            return False
        if not membership.members:
            epoch = membership.epoch
            rests = shards and epoch and (epoch.members or self.forming.begun or shards.broken())
            return bool(shards and rests and shards.last_save_wanted())
        if self._again and now >= self._again[0]:
            return membership.enough()
        epoch = membership.epoch
        lost = bool(shards and (shards.broken() or (epoch and not self.forming.called and shards.changes())))
        met = epoch is None or membership.broken() or lost or self.forming.started >= {m.rank for m in epoch.members}
        changes = bool(shards and shards.changes() and now >= self._change_at)
        waits = bool(shards and epoch and (lost or changes or shards.save_wanted))
        return met and (membership.ready(now) or (waits and membership.enough()))

    def advance(self) -> None:
        """Announces the next epoch."""
        shards, again = self.shards, self._again
        broken = self.workers.membership.broken() or bool(shards and shards.broken())
        if again and again[1] and not broken:
            self.incident("EpochRestarted", None, f"its members meet again, since an exchange failed: {again[1]}")
            members = self.current.members if self.current else ()
            self._part_with(self.stalls.failed(members, shards.peers.membership.members if shards else ()))
        elif broken or again:
            self.stalls.lost()
        urgent = broken or again is not None or not self.forming.begun
        if self.forming.begun:
            self._previous, self._seen = self.current, self.dispatcher.step
        epoch = self.workers.advance()
        self.forming, self._again = Forming(), None
        if shards:
            shards.choose()
        self.dispatcher.pause()
        ranks = [m.rank for m in epoch.members]
        logger().info("membership epoch", epoch=epoch.number, ranks=ranks, urgent=urgent)
        fields = {
            "epoch": epoch.number,
            "urgent": urgent,
            "members": [[m.rank, m.incarnation, m.address] for m in epoch.members],
            "shards": shards.addresses() if shards else [],
        }
        self.dispatcher.send_plan(self.workers.links[rank] for rank in ranks)
        self._tell(Message(wire.EPOCH, fields))

    def restart(self, at: float, why: str = "") -> None:
        """The epoch is given up at this time, unless a loss ends it before. why: where that is an incident."""
        self._again = at, why

    def watch(self, now: float) -> None:
        """Gives up an epoch in which nothing moves any more, or one that waits for its members to leave such a one."""
        expected = not self.suspending and not self.dispatcher.exporting
        if expected and self._again is None and (why := self.stalls.verdict(now)):
            self.restart(now, why)

    def call_shards(self) -> None:
        """When all workers are out of the epoch before, and all shards that this one needs are there."""
        epoch, shards = self.current, self.shards
        if epoch is None or shards is None or self.forming.called:
            return
        if self._all_ready(epoch) and shards.chosen_there():
            self.forming.called = True
            shards.call(epoch, self.dispatcher.send_plan)

    def save_due(self, now: float) -> bool:
        running = self.forming.begun and not self.workers.membership.broken() and not self.dispatcher.exporting
        return running and now >= self._save_at

    def saving(self) -> bool:
        """A checkpoint is on its way whose parts can all come yet: who writes those that it lacks is there."""
        there = {
            (m.rank, m.incarnation) for m in (self.shards.peers if self.shards else self.workers).membership.members
        }
        return any(
            all(writer in there for part, writer in enumerate(self._writers) if part not in one.done)
            for one in self.checkpoints.under_way()
        )

    def save(self, now: float) -> None:
        self._save_at = now + self.save_seconds
        if self.shards:
            self.shards.save_wanted = True  # in the next epoch's beginning, when all shards rest at the same step
        else:
            self._tell(Message(wire.CHECKPOINT))

    def suspend(self) -> None:
        self.suspending = True
        if self.shards:
            self.shards.save_wanted = True
        elif self.forming.begun:
            self._tell(Message(wire.SUSPEND))

    # What members say

    def ready(self, link: Link, message: Message, now: float) -> None:
        epoch, f = self.current, message.fields
        if epoch is None or f["epoch"] != epoch.number or self.forming.begun:
            return
        progress = Progress.read(f["progress"]) if f["progress"] else None
        self.forming.ready[link.rank] = Held(f["step"], f["lineage"], progress)
        if self.shards is None and self._all_ready(epoch):
            self._begin(epoch, now)

    def shard_ready(self, link: Link, message: Message, now: float) -> None:
        epoch, shards = self.current, self.shards
        if epoch is None or shards is None or message.fields["epoch"] != epoch.number or self.forming.begun:
            return
        if shards.heard(link.rank, message.fields["held"]) and not shards.broken():
            self._begin_with_shards(epoch, shards, now)

    def shard_filled(self, link: Link, message: Message) -> None:
        if self.shards is None or not self._is_of_current(message):
            return
        self.forming.filled.add(link.rank)
        if self.shards.all_among(self.forming.filled):
            self.shards.peers.tell(Message(wire.GO, {"epoch": message.fields["epoch"]}))

    def shard_started(self, link: Link, message: Message, now: float) -> None:
        if self.shards is None or not self._is_of_current(message):
            return
        self.forming.serving.add(link.rank)
        if self.shards.all_among(self.forming.serving):
            self.shards.serve()
            self.stalls.began(now)
            self._tell(Message(wire.BEGIN, self.forming.told))

    def lease(self, link: Link, message: Message) -> None:
        if self._is_of_current(message):
            self.forming.started.add(link.rank)
            self.forming.asking.append((link.rank, message.fields["step"]))
            if fetched := message.fields.get("fetched"):
                self.dispatcher.lending.fetched(link.rank, fetched)
            self.answer_leases()

    def release(self, rank: int) -> None:
        """The worker is gone: others may have what it had, and it waits for nothing more."""
        self.dispatcher.release(rank)
        self.forming.asking = [one for one in self.forming.asking if one[0] != rank]

    def answer_leases(self) -> None:
        """Those that can be answered by now."""
        asking, self.forming.asking = self.forming.asking, []
        members = len(self.current.members) if self.current else 0
        for rank, step in asking:
            answer = self.dispatcher.lease(rank, step, members)
            if answer is None:
                self.forming.asking.append((rank, step))
            else:
                answer["epoch"] = self.workers.membership.last_number
                links = (self.workers.links.get(other) for other in answer.pop("holders", ()))
                if addresses := [link.pages for link in links if link and link.pages]:
                    answer["holders"] = addresses
                self.workers.links[rank].send(Message(wire.LEASED, answer))

    def progress(self, link: Link, number: int, fields: dict[str, Any], now: float) -> Round | None:
        """A round of the epoch of that number, for the guard to see. Of this epoch it becomes part of the parameters.

        The first member reports each round. What it could not say before it was lost, the others hold.
        """
        of_this = self._has_begun(number)
        epoch = self.current if of_this else self._previous
        if epoch is None or number != epoch.number:
            return None
        ranks, last = [m.rank for m in epoch.members], self.dispatcher.step if of_this else self._seen
        if self.shards and not self.shards.synchronous:  # each worker counts its own
            fields, ranks = {**fields, "step": last + 1}, [link.rank]
        if fields["step"] != last + 1:  # it was told before
            return None
        this = round_of(fields, ranks)
        if of_this:
            self.dispatcher.commit(this, fields, now)
            self.stalls.round(now)
        elif self.forming.begun:
            return None
        else:  # the members hold the round and will say so; what the guard saw of it nobody would tell any more
            self._seen = this.step
            self.stalls.round(now)
        return this

    def broken(self, link: Link, message: Message, now: float) -> None:
        """A collective has failed, or a connection could not be made."""
        epoch, f = self.current, message.fields
        if epoch is None or f["epoch"] != epoch.number:
            return
        for role, ranks in (("worker", f.get("unreached", ())), ("shard", f.get("shards", ()))):
            self.stalls.missed((link.role, link.rank), [(role, rank) for rank in ranks])
        if self._again is None:
            self.restart(now + BROKEN_GRACE_SECONDS, f["why"])
            logger().info("collective failed", rank=link.rank, why=f["why"])

    # How an epoch begins

    def _begin(self, epoch: Epoch, now: float) -> None:
        """All members are out of the epoch before: decides whose parameters the new one starts from."""
        leases, restart = self._leases(), self.measures.take_restart()
        brought = [self.forming.ready[m.rank] for m in epoch.members]
        held = [Held() if self.checkpoints.is_void(one.lineage) else one for one in brought]
        begin = decide([] if restart else held, self.checkpoints.newest, len(leases.progress.applied))
        self._go_on_from(epoch, begin, restart, now)
        self._writers = [(m.rank, m.incarnation) for m in epoch.members]
        self.stalls.began(now)
        self.forming.begun = True
        self._tell(Message(wire.BEGIN, {"epoch": epoch.number, "lineage": self._new_lineage(), **begin.fields()}))
        if self.suspending:
            self._tell(Message(wire.SUSPEND))

    def _begin_with_shards(self, epoch: Epoch, shards: Shards, now: float) -> None:
        """What the shards hold counts; workers hold nothing that could be lost."""
        leases, restart = self._leases(), self.measures.take_restart()
        if odd := shards.corrupt():
            action = f"the rows of {_names(odd)} are not what their replicas are: all go back to the checkpoint"
            self.incident("Corruption", odd[0], action)
        forget = restart is not None or bool(odd)
        held = {} if forget else {r: h for r, h in shards.ready.items() if not self.checkpoints.is_void(h.lineage)}
        self.stalls.pause()  # rows may travel for as long as they take
        of_shards = shards.decide(len(leases.progress.applied), self.checkpoints.newest, held)
        begin = Begin(of_shards.step, of_shards.progress)
        self._go_on_from(epoch, begin, restart, now)
        lineage, announced = self._new_lineage(), shards.layout
        self._writers = shards.incarnations(len(of_shards.state))
        if shards.begin(of_shards, epoch, lineage, suspend=self.suspending):
            self.forming.begun = not (epoch.members or self.suspending)  # whoever is told to stop later, saves again
            return
        self.forming.begun = True
        if shards.layout != announced:
            self._change_at = now + CHANGE_SECONDS
        # When all shards have begun.
        told = {"epoch": epoch.number, "lineage": lineage, "shards": shards.addresses()}
        self.forming.told = {**told, **begin.fields()}

    def _go_on_from(self, epoch: Epoch, begin: Begin, restart: Restart | None, now: float) -> None:
        self.measures.go_on_from(self._leases(), begin.progress, restart)
        self.measures.watch.restarted(begin.step, {m.rank: m.joined for m in epoch.members})
        self.dispatcher.resume(begin.step)
        self._save_at = now + self.save_seconds

    def _new_lineage(self) -> str:
        """Members that were lost may go on from the same step on their own: what follows here is told apart."""
        lineage = secrets.token_hex(8)
        self.checkpoints.lineages.append(lineage)
        return lineage

    def _part_with(self, place: Place | None) -> None:
        """It reaches the master and not its peers: another pod may have a better place."""
        if place is not None:
            role, rank = place
            why = f"other members do not reach it, nor it them: the {role} is replaced"
            self.incident("Unreachable", rank, why)
            again = self.stalls.parted > 1  # then it may be the program's or the network's fault, and not the place's
            reason = Reason.PEERS_STILL_UNREACHABLE if again else Reason.PEERS_UNREACHABLE
            peers = self.shards.peers if self.shards and role == "shard" else self.workers
            peers.tell(Message(wire.EVICT, {"why": why, "reason": reason}), [rank])

    # Small things

    def _leases(self) -> Leases:
        assert self.dispatcher.leases is not None  # noqa: S101 - an epoch is made only with a plan
        return self.dispatcher.leases

    def _all_ready(self, epoch: Epoch) -> bool:
        """And all are still there: else it never begins, and another one follows."""
        return len(self.forming.ready) == len(epoch.members) and not self.workers.membership.broken()

    def _is_of_current(self, message: Message) -> bool:
        """And that one has begun."""
        return self._has_begun(message.fields["epoch"])

    def _has_begun(self, number: int) -> bool:
        """It is the current epoch's."""
        return self.current is not None and number == self.current.number and self.forming.begun

    def _tell(self, message: Message) -> None:
        if epoch := self.current:
            self.workers.tell(message, [m.rank for m in epoch.members])


def _names(shards: list[int]) -> str:
    return f"shard{'s' if len(shards) > 1 else ''} {', '.join(map(str, shards))}"
