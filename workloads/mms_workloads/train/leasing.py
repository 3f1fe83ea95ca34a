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
        mixed: int = 1,
        alone: bool = False,
        dead: dict[int, str] | None = None,
        suspects: set[int] | None = None,
    ) -> None:
        """agreement: the state's, which grows with the rounds. beside: one thread, to read in.

        members: of the epoch. A single one's rounds are the same whenever its blocks come: it waits for those that it
        can have. mixed: blocks that a round's samples are dealt from, while there are so many. alone: ranks do not step
        together. Then the master says how much is done, and a round has samples of one block only, so that whoever
        repeats it after a loss repeats the very same slices. dead: blocks that there is nothing to learn from, and why,
        as was found in epochs before; what is found in this one is added. suspects: blocks of which one has samples
        whose gradient is not finite, likewise: see `made`. They are no part of the progress: where their process is
        gone, the next such gradient starts the search again.
        """
        self._control, self._epoch, self._learner, self._agreement = control, epoch, learner, agreement
        self._alone, self._single, self._mixed = alone, members == 1, 1 if alone else mixed
        self._none_now = False  # a single member has all that it can have until it has used up a block
        self._suspects = set() if suspects is None else suspects
        self._apart: int | None = None  # the one of them that the last round was taken from
        self._open: list[_Open] = []
        self._dead = {} if dead is None else dead
        self._seen: set[Slice] = set()  # of the last round: they count, and are not trained on
        self._scarce = False  # the last answer was that there is no block
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
        wanted, used_up, self._apart = batch, False, None
        self._seen.clear()
        while wanted and len(slices) < MAX_SLICES and self._fill(wanted):
            chosen = self._open if slices else self._to_search() or self._open
            for number, current in enumerate(chosen):
                share = -(-wanted // (len(chosen) - number))
                wanted -= self._draw(current, share, slices)
            used_up |= self._close_used_up()
            if self._alone or self._apart is not None:
                break
        if slices and (self._open or not self._alone):
            self._ask(self._needed(batch))
        if used_up:
            self._none_now = False  # also where it was told so in this round, which the master does not know yet
        self._ahead = self._asked
        self._read_ahead()
        return tuple(slices)

    def made(self, *, finite: bool) -> None:
        """The round was; finite: this rank's gradient. Where it was not, the rounds that follow are each taken from one
        of the blocks until that gives a finite one: so it is known of which block it is, and no other is left out.
        """
        if self._apart is not None:
            if finite:
                self._suspects.discard(self._apart)
        elif not finite and self._mixed > 1:
            self._suspects |= {one.lease.block for one in self._open}

    def _to_search(self) -> list[_Open]:
        """The suspect that the round is taken from, if one is open."""
        found = [one for one in self._open if one.lease.block in self._suspects][:1]
        self._apart = found[0].lease.block if found else None
        return found

    def _fill(self, wanted: int) -> bool:
        """Opens as many blocks as samples are dealt from. Whether one is open.

        Where several members step together no one waits for more than its first.
        """
        while len(self._open) < self._mixed and not self._none_now:
            if self._open and not self._single and not self._at_hand():
                break
            if not self._receive(wanted):
                break
        self._open.sort(key=lambda one: (one.lease.data_epoch, one.lease.block))
        return bool(self._open)

    def _draw(self, current: _Open, share: int, slices: list[Slice]) -> int:
        """Adds at most `share` samples of a block to the round, and how many; what is only seen among them beside."""
        lease, drawn = current.lease, 0
        while drawn < share and current.position < current.size and len(slices) < MAX_SLICES:
            stop, live = self._agreement.progress.part(lease.data_epoch, lease.block, current.position, current.size)
            if lease.block in self._dead:
                stop, live = current.size, False
            if live:
                stop = min(stop, current.position + share - drawn)
                drawn += stop - current.position
            slices.append(Slice(lease.data_epoch, lease.block, current.position, stop, current.size))
            if not live:
                self._seen.add(slices[-1])
            current.position = stop
            if self._alone:
                break
        return drawn

    def _close_used_up(self) -> bool:
        """Whether there was one."""
        left = [one for one in self._open if one.position < one.size]
        if len(left) == len(self._open):
            return False
        self._open, self._none_now = left, False
        return True

    def live(self, slices: Iterable[Slice]) -> tuple[Slice, ...]:
        """Those that are worth training on."""
        return tuple(s for s in slices if s not in self._seen)

    def close(self) -> None:
        """What is still to come is not waited for."""
        self._control.on_leased = lambda: None
        for reading in self._reading.values():
            reading.cancel()

    def _needed(self, batch: int) -> int:
        """Blocks to ask for ahead: some rounds' samples, or one's where it takes several; and in the place of those
        that are used up by then.
        """
        left = [one.size - one.position for one in self._open]
        samples = min(AHEAD * batch, max(batch, self._size)) - sum(left)
        lasting = sum(of_one > AHEAD * -(-batch // self._mixed) for of_one in left)
        return max(self._blocks(samples), self._mixed - lasting)

    def _blocks(self, samples: int) -> int:
        """That have so many, if they are like the last one."""
        return -(-samples // self._size) if self._size else 1

    def _ask(self, blocks: int) -> None:
        """For so many ahead; while there are none, for one at a time."""
        for _ in range((min(blocks, 1) if self._scarce else blocks) - self._asked):
            self._asked += 1
            step = 0 if self._alone else self._agreement.step
            held = pages.HELD.pages
            fields: dict[str, Any] = {"fetched": held.fetched.document()} if held else {}
            self._control.send(wire.LEASE, epoch=self._epoch, step=step, **fields)

    def _at_hand(self) -> bool:
        """Whether a block is leased and read."""
        with self._control.changing() as box:
            while box.leased and box.leased[0]["block"] is None:
                self._next(box)
            if not box.leased:
                return False
            reading = self._reading.get((box.leased[0]["data_epoch"], box.leased[0]["block"]))
        return reading is not None and reading.done()

    def _receive(self, samples: int) -> bool:
        """Waits for a block; False when there is none now. samples: that the round still needs."""
        while True:
            self._ask(1 if self._alone else max(self._blocks(samples), self._mixed - len(self._open)))
            stale = self._ahead > 0
            answer = self._answer()
            if answer is None or answer["block"] is not None or not stale:
                break
        if answer is None:
            return False
        if self._alone:
            self._agreement.told = answer["fraction"]
        if answer["epoch"] != self._epoch or answer["block"] is None:
            self._none_now = self._single and not self._alone and bool(self._open)
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
            return self._next(box) if box.leased else None

    def _next(self, box: Inbox) -> dict[str, Any]:
        """Takes an answer, of which there is one."""
        answer = box.leased.popleft()
        self._asked -= 1
        self._ahead = max(0, self._ahead - 1)
        self._scarce = answer["block"] is None
        return answer

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
