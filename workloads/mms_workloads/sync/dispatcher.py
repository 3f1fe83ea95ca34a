"""The data side of a run: what is trained on, who has which part of it, and how far the run has come.

First workers count the words of the data set, of which the plan is made. Then they lease its blocks, and their rounds
become part of the parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mms_workloads.data import blocks, formats, vocabulary
from mms_workloads.data.schema import Survey
from mms_workloads.logs import logger
from mms_workloads.sync import plan as plans
from mms_workloads.sync import progress, wire
from mms_workloads.sync.counting import Counting
from mms_workloads.sync.leases import Leases
from mms_workloads.sync.lending import Lending
from mms_workloads.sync.progress import Trained
from mms_workloads.sync.speed import Speed
from mms_workloads.sync.wire import Message

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mms_workloads.contract import DataReport, JobFile
    from mms_workloads.data.sealed_reader import Sealed
    from mms_workloads.store import Found
    from mms_workloads.sync.keys import Keys
    from mms_workloads.sync.links import Link
    from mms_workloads.sync.startup import Checkpointed
    from mms_workloads.sync.watch import Round


@dataclass(slots=True)
class Dispatcher:
    """plan, leases: None until the data set is counted."""

    job: JobFile
    counting: Counting | None = None
    plan: bytes | None = None
    leases: Leases | None = None
    step: int = 0  # rounds that are part of the parameters
    exporting: bool = False  # nothing is left to train on
    speed: Speed = field(default_factory=Speed)
    trained: Trained | None = None
    keys: Keys | None = None  # of encrypted data
    sealed: Sealed | None = None  # of the plan
    lending: Lending = field(default_factory=Lending)

    @classmethod
    def start(
        cls,
        job: JobFile,
        files: Sequence[Found] | None,
        checkpoint: Checkpointed | None,
        keys: Keys | None = None,
    ) -> Dispatcher:
        """files: the data set, where no checkpoint says what it is. Raises JobError."""
        records = job.data if formats.of_records(job.task) else None
        counting = Counting.start(files, records) if files else None
        if keys and keys.manifest:
            counting = Counting.encrypted(keys.manifest, records)
        it = cls(job, counting, keys=keys)
        if checkpoint:
            it._adopt(checkpoint.plan).restore(checkpoint.progress)
            it.step = checkpoint.ref.step
        return it

    # The plan

    def count(self, links: Iterable[Link]) -> bool:
        """Deals out what is to be counted. Whether all is, and there is a plan. Raises JobError."""
        if self.counting is None:
            return False
        if self.counting.complete():
            data = self.job.data
            varied = data.blockSizes == "Varied"
            plan = self.counting.plan(self.job.task.wordEmbedding, data.blockBytes, varied=varied)
            records = plan.schema.records if plan.schema else None
            logger().info("counted", files=len(plan.files), vocabulary=len(plan.vocabulary), records=records)
            bf16 = all(link.bf16 for link in links)
            self._adopt(plans.pack(replace(plans.needed(plan, self.job), workers=self.job.workers, bf16=bf16)))
            return True
        for link in links:
            number = None if link.counts else self.counting.take(link.rank)
            if number is not None:
                link.counts = True
                segments = [[s.file, s.start, s.end] for s in self.counting.tasks[number]]
                fields = {"task": number, "segments": segments, "uris": self.counting.uris(number)}
                if self.counting.format:
                    fields["format"] = self.counting.format
                if self.counting.sealed and self.keys:
                    held = [s.file for s in self.counting.tasks[number]]
                    keys = {block: self.keys.give(self.counting.sealed, link.rank, block, "counting") for block in held}
                    fields |= {"dataset": self.counting.sealed.dataset.hex(), "keys": keys}
                link.send(Message(wire.COUNT, fields))
        return False

    def counted(self, link: Link, message: Message) -> None:
        """Raises JobError where too many records are bad."""
        link.counts = False
        if self.counting is None:
            return
        sizes = {int(k): v for k, v in message.fields["sizes"].items()}
        if self.counting.format:
            self.counting.add_survey(message.fields["task"], Survey.unpack(message.data), sizes)
            return
        counts = vocabulary.unpack_counts(message.data)
        self.counting.add(message.fields["task"], counts, sizes, self.job.task.wordEmbedding)

    def adopt(self, plan: bytes) -> None:
        """The plan of the run, from a peer that has it from a master before this one."""
        if self.plan is None:
            self._adopt(plan)

    def send_plan(self, links: Iterable[Link]) -> None:
        """To those that do not have it."""
        assert self.plan is not None  # noqa: S101 - an epoch is made only with a plan
        digest = plans.digest(self.plan)
        for link in links:
            if link.plan != digest:
                link.send(Message(wire.PLAN, {}, self.plan))
                link.plan = digest

    # Leases and rounds

    def lease(self, rank: int, step: int, members: int = 2) -> dict[str, Any] | None:
        """The answer to a rank at this step that asks for a block: one, if it can have any. members: of the epoch.

        None while rounds that it has finished are not known here: they may free blocks for it.
        """
        if step > self.step:
            return None
        lease = self.leases.take(rank, members) if self.leases else None
        answer: dict[str, Any] = {"block": None, "fraction": self.fraction()}
        if lease:
            answer |= {"data_epoch": lease.data_epoch, "block": lease.block, "start": lease.start}
            answer["holders"] = self.lending.leased(lease.block, rank)
            if self.keys and self.sealed:
                why = f"lease in data epoch {lease.data_epoch}"
                answer["keys"] = {lease.block: self.keys.give(self.sealed, rank, lease.block, why)}
        return answer

    def key(self, rank: int, block: int) -> str | None:
        """The key of a block that the rank asks for without a lease: for the evaluation, of what is held out.

        Where nothing is, of what was trained on. None where it is given none.
        """
        if not (self.keys and self.sealed and self.leases and self.exporting):
            return None
        held_out = set(range(len(self.leases.progress.applied))) - set(self.leases.blocks)
        if block not in (held_out or self.leases.blocks):
            return None
        return self.keys.give(self.sealed, rank, block, "evaluation")

    def release(self, rank: int) -> None:
        """It is gone: others may have what it had."""
        self.lending.gone(rank)
        if self.leases:
            self.leases.give_back([rank])
        if self.counting:
            self.counting.give_back(rank)

    def commit(self, this: Round, fields: Mapping[str, Any], now: float) -> None:
        """A round is part of the parameters. fields: of its message.

        Raises ValueError when samples would be applied twice.
        """
        assert self.leases is not None  # noqa: S101 - rounds follow from a plan
        self.leases.commit(s for each in this.slices for s in each)
        self.step = this.step
        self.speed.add(now, self.leases.fraction(), fields["samples"], fields["weight"], fields["loss"])
        self.exporting = self.leases.done()

    def pause(self) -> None:
        """The membership epoch ends: what is not part of the parameters is leased again."""
        if self.leases:
            self.leases.give_back()

    def resume(self, step: int) -> None:
        """The next one begins with parameters of this step."""
        self.step = step
        self.exporting = self.leases is not None and self.leases.done()
        self.speed.pause()

    # How far it has come

    def fraction(self) -> float:
        return self.leases.fraction() if self.leases else 0.0

    def data(self) -> DataReport | None:
        if self.trained and self.leases:
            found = self.trained.report(self.leases)
        elif self.counting:
            found = progress.counted(self.counting)
        else:
            return None
        given = sum(self.keys.given.values()) if self.keys else 0
        return found.model_copy(update={"keysGiven": given, **self.lending.report()})

    def samples_per_second(self) -> int | None:
        return None if self.exporting else self.speed.samples_per_second()

    def seconds_left(self) -> int | None:
        return None if self.exporting else self.speed.seconds_left(self.fraction())

    def _adopt(self, data: bytes) -> Leases:
        plan = plans.unpack(data)
        count = len(plan.blocks())
        self.trained, self.sealed = Trained(plan), plan.sealed
        optimizer = self.job.optimizer
        self.plan, self.counting = data, None
        trained_on, _ = blocks.split(count, self.job.evaluation.split)
        self.leases = Leases.start(self.job.data, optimizer.seed, optimizer.epochs, trained_on, count)
        return self.leases
