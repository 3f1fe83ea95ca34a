"""A worker's leases in one membership epoch: samples for each round, the next block read before it is needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mms_workloads.data import pages
from mms_workloads.store import JobError
from mms_workloads.sync import again, wire
from mms_workloads.sync.control import Control, Superseded
from mms_workloads.sync.leases import Lease, Slice
from mms_workloads.train.communicator import MAX_SLICES

if TYPE_CHECKING:
    from collections.abc import Iterable
    from concurrent.futures import Executor, Future

    from mms_workloads.sync.control import Inbox
    from mms_workloads.train.learner import Learner
    from mms_workloads.train.state import Agreement


AHEAD = 8  # rounds that the next block is asked for before it is needed: it may come from far away


@dataclass(frozen=True, slots=True)
class _Read:
    """What is known of a block once it has been read."""

    size: int  # samples
    dead: str | None  # why there is nothing to learn from it


@dataclass(slots=True)
class _Open:
    """A lease that is being used up."""

    lease: Lease
    position: int
    size: int


class Leaser:
    def __init__(
        self,
        control: Control,
        epoch: int,
        learner: Learner,
        agreement: Agreement,
        beside: Executor,
        *,
        members: int = 2,
        alone: bool = False,
        dead: dict[int, str] | None = None,
    ) -> None:
        """agreement: the state's, which grows with the rounds. beside: one thread, to read in.

        members: of the epoch. A single one asks for no block that its round does not need while it still holds the
        last one, which could not be leased again then: the order of blocks would depend on where it was resumed.
        alone: ranks do not step together. Then the master says how much is done, and a round has samples of one block
        only, so that whoever repeats it after a loss repeats the very same slices. dead: blocks that there is nothing
        to learn from, and why, as was found in epochs before; what is found in this one is added.
        """
        self._control, self._epoch, self._learner, self._agreement = control, epoch, learner, agreement
        self._alone, self._single = alone, members == 1
        self._open: list[_Open] = []
        self._dead = {} if dead is None else dead
        self._seen: set[Slice] = set()  # of the last round: they count, and are not trained on
        self._asked = 0  # requests that are not answered, or whose answers were not looked at
        self._ahead = 0  # of those, asked in an earlier round: that there was no block may be long ago
        self._size = 0  # samples of the last block that was opened; 0: there was none
        self._beside = beside
        self._reading: dict[tuple[int, int], Future[_Read]] = {}  # of blocks that are leased and not open yet
        with control.changing() as box:
            box.leased.clear()
        control.on_leased = self._read_ahead

    def take(self, batch: int) -> tuple[Slice, ...]:
        """At most `batch` samples for the next round; none when the master has none for it.

        A master that has announced the next epoch leases no block of this one any more: the members then make one more
        round without blocks, in which they tell each other to leave. Raises Superseded, store.JobError.
        """
        slices: list[Slice] = []
        wanted = batch
        self._seen.clear()
        while wanted and len(slices) < MAX_SLICES:
            if not self._open and not self._receive(wanted):
                break
            current = self._open[0]
            lease = current.lease
            stop, live = self._agreement.progress.part(lease.data_epoch, lease.block, current.position, current.size)
            if lease.block in self._dead:
                stop, live = current.size, False
            if live:
                stop = min(stop, current.position + wanted)
                wanted -= stop - current.position
            slices.append(Slice(lease.data_epoch, lease.block, current.position, stop, current.size))
            if not live:
                self._seen.add(slices[-1])
            current.position = stop
            if stop == current.size:
                self._open.pop(0)
            if self._alone:
                break
        if slices and (self._open or not (self._alone or self._single)):
            # Some rounds' samples, or one's where it takes several blocks.
            left = sum(one.size - one.position for one in self._open)
            self._ask(min(AHEAD * batch, max(batch, self._size)) - left)
        self._ahead = self._asked
        self._read_ahead()
        return tuple(slices)

    def live(self, slices: Iterable[Slice]) -> tuple[Slice, ...]:
        """Those that are worth training on."""
        return tuple(s for s in slices if s not in self._seen)

    def close(self) -> None:
        """What is still to come is not waited for."""
        self._control.on_leased = lambda: None
        for reading in self._reading.values():
            reading.cancel()

    def _ask(self, samples: int) -> None:
        """For as many blocks as have so many samples, if they are like the last one."""
        blocks = -(-samples // self._size) if self._size else 1
        for _ in range(blocks - self._asked):
            self._asked += 1
            step = 0 if self._alone else self._agreement.step
            held = pages.HELD.pages
            fields: dict[str, Any] = {"fetched": held.fetched.document()} if held else {}
            self._control.send(wire.LEASE, epoch=self._epoch, step=step, **fields)

    def _receive(self, samples: int) -> bool:
        """Waits for a block; False when there is none now. samples: that the round still needs."""
        while True:
            self._ask(1 if self._alone else samples)
            stale = self._ahead > 0
            answer = self._answer()
            if answer is None or answer["block"] is not None or not stale:
                break
        if answer is None:
            return False
        if self._alone:
            self._agreement.told = answer["fraction"]
        if answer["epoch"] != self._epoch or answer["block"] is None:
            return False
        lease = Lease(answer["data_epoch"], answer["block"], answer["start"])
        reading = self._reading.pop((lease.data_epoch, lease.block), None)
        try:
            found = reading.result() if reading else self._read(lease.block, lease.data_epoch)
        except JobError as error:
            if not (error.retryable and self._over(self._control.inbox)):
                raise
            if self._control.urgent(self._epoch):
                raise Superseded(f"epoch {self._epoch} ended before a block was read") from error
            return False  # the members leave in the round that follows; who has the block next reads it
        self._size = found.size
        if found.dead and lease.block not in self._dead:
            self._dead[lease.block] = found.dead
            self._control.send(wire.ANOMALY, anomaly="DeadData", rank=None, block=lease.block, action=found.dead)
        self._open.append(_Open(lease, lease.start, found.size))
        return True

    def _answer(self) -> dict[str, Any] | None:
        """The next one, waited for; none when another epoch was announced meanwhile. Raises Superseded."""
        control, epoch = self._control, self._epoch
        control.wait(lambda box: box.leased or control.urgent(epoch) or control.newer(epoch))
        if control.urgent(epoch):
            raise Superseded(f"epoch {epoch} ended before a block was leased")
        with control.changing() as box:
            if not box.leased:
                return None
            self._asked -= 1
            self._ahead = max(0, self._ahead - 1)
            return box.leased.popleft()

    def _read_ahead(self) -> None:
        """Starts to read blocks that were leased, while those before them are trained on. In any thread."""
        with self._control.changing() as box:
            for answer in box.leased:
                if answer["epoch"] == self._epoch and answer["block"] is not None:
                    key = answer["data_epoch"], answer["block"]
                    if key not in self._reading:
                        self._reading[key] = self._beside.submit(self._read, answer["block"], answer["data_epoch"])

    def _read(self, block: int, data_epoch: int) -> _Read:
        """Tries for a while where the store is away. In any thread. Raises store.JobError."""
        return again.while_away(
            lambda: self._looked_at(block, data_epoch), lambda seconds: self._control.wait(self._over, seconds)
        )

    def _over(self, box: Inbox) -> bool:
        """The epoch ends, or is about to: the members leave in a round, which this one must not hold up."""
        ends = self._control.urgent(self._epoch) or self._control.newer(self._epoch)
        return bool(ends or box.stopping or box.suspend)

    def _looked_at(self, block: int, data_epoch: int) -> _Read:
        """Raises store.JobError."""
        watched = self._learner.job.guard.deadData != "Off"
        dead = self._learner.dead(block) if watched and block not in self._dead else None
        if not dead:
            self._learner.ready(block, data_epoch)
        return _Read(self._learner.size(block), dead)
