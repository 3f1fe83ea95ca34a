"""The checkpoints of a run as its master keeps them: which parts are durable, which one is valid, which are damaged.

A checkpoint becomes valid by its manifest, which the master writes when all parts are there.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from mms_workloads.contract import CheckpointFile, CheckpointRef
from mms_workloads.logs import logger
from mms_workloads.store import JobError
from mms_workloads.sync import again, checkpoints, startup
from mms_workloads.sync.leases import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from mms_workloads.contract import JobFile
    from mms_workloads.sync.claims import Claim

# A store that hangs says nothing: of two checkpoints in a row that do not become valid it is told after so long.
LATE_SECONDS = 60.0
LINEAGES = 16  # a part that is written while so many epochs begin is of one that was given up


@dataclass(slots=True)
class Saving:
    """A checkpoint on its way."""

    folder: str
    step: int
    parts: int
    final: bool = False  # nobody trains any more: the run is suspended with it
    done: set[int] = field(default_factory=set)
    files: dict[str, CheckpointFile] = field(default_factory=dict)


@dataclass(slots=True)
class Checkpoints:
    """Whatever writes to the storage raises Replaced where another master has claimed it."""

    job: JobFile
    claim: Claim
    newest: tuple[CheckpointRef, Progress] | None = None
    bad: frozenset[str] = frozenset()  # URIs
    savings: dict[str, Saving] = field(default_factory=dict)  # by folder
    lineages: deque[str] = field(default_factory=lambda: deque(maxlen=LINEAGES))  # of the last membership epochs
    unsure: bool = False  # a manifest may be durable although the store did not say so
    asked: list[float] = field(default_factory=list)  # when, since the last one became valid or was told to be late
    given_up: dict[str, int] = field(default_factory=dict)  # by lineage: the step from which on none is any good

    @classmethod
    def of(cls, job: JobFile, claim: Claim, found: startup.Checkpointed | None) -> Checkpoints:
        return cls(job, claim, (found.ref, found.progress) if found else None)

    @property
    def reference(self) -> CheckpointRef | None:
        return self.newest[0] if self.newest else None

    def ask(self, now: float) -> str:
        """One is asked for. What there is to say of those before it that have not become valid, where they should."""
        asked, waited = len(self.asked), now - self.asked[0] if self.asked else 0.0
        late = asked > 1 and waited >= LATE_SECONDS
        self.asked = [now] if late else [*self.asked, now]
        said = f"none of {asked} that were asked for in the last {waited:.0f} s has become valid: the store may hang"
        return f"{said}, or checkpoint.intervalSeconds is shorter than one takes" if late else ""

    def add(self, fields: dict[str, Any]) -> Saving | None:
        """A part is durable. The checkpoint, when that was the last part that was missing."""
        if self._given_up(fields["folder"], fields["step"]):
            return None
        saving = self.savings.setdefault(fields["folder"], Saving(fields["folder"], fields["step"], fields["parts"]))
        if fields["part"] in saving.done:
            return None
        saving.done.add(fields["part"])
        saving.files.update({name: CheckpointFile.model_validate(entry) for name, entry in fields["files"].items()})
        saving.final = saving.final or fields["final"]
        return saving if len(saving.done) == saving.parts else None

    def under_way(self) -> list[Saving]:
        """Those that the members of the newest epoch make, as far as parts are durable."""
        newest = {checkpoints.short(lineage) for lineage in list(self.lineages)[-1:]}
        return [saving for folder, saving in self.savings.items() if checkpoints.lineage_of(folder) in newest]

    async def commit(
        self, saving: Saving, quarantined: frozenset[int], away: Callable[[JobError], None]
    ) -> CheckpointRef | None:
        """Makes it valid; it is the newest unless a later step's was faster. None: it was given up meanwhile.

        away: is told when the store does not answer. A final checkpoint is tried again then; of another one there is
        none, and the next one will do. Raises JobError where it is of no use to try again.
        """
        for tries in itertools.count():
            try:
                return await self._commit(saving, quarantined)
            except JobError as error:
                if not error.retryable:
                    raise
                self.unsure = True
                away(error)
            if not saving.final:
                break
            await asyncio.sleep(again.pause(tries))
        return None

    async def _commit(self, saving: Saving, quarantined: frozenset[int]) -> CheckpointRef | None:
        storage = self.job.storage
        if self._given_up(saving.folder, saving.step):
            return None
        files, master = saving.files, self.claim.name
        make = partial(checkpoints.commit, storage, saving.folder, files, saving.step, master, quarantined=quarantined)
        ref = await asyncio.to_thread(make)
        await asyncio.to_thread(self.claim.check)  # after it: whoever claims the storage from here on finds it
        document = json.loads(await asyncio.to_thread(checkpoints.read, storage, ref, checkpoints.PROGRESS))
        # It may be given up at any time until here; from here on `discard` finds it.
        if self._given_up(saving.folder, saving.step):
            await asyncio.to_thread(checkpoints.remove, storage, ref)
            return None
        self.savings = {name: one for name, one in self.savings.items() if one.step > saving.step}
        self.asked = []
        if self.newest is None or ref.step >= self.newest[0].step:
            self.newest = (ref, Progress.read(document))
        return ref

    async def prune(self, ref: CheckpointRef) -> None:
        try:
            keep = self.job.checkpoint.keep
            await asyncio.to_thread(checkpoints.prune, self.job.storage, keep, ref, self.claim.check)
        except JobError as error:  # the checkpoint is durable all the same
            logger().warning("old checkpoints stay", reason=error.reason, message=error.message)

    def damaged(self, uri: str) -> bool:
        """Whether that is news."""
        known = uri in self.bad
        self.bad |= {uri}
        return not known

    async def discard(self, before: int) -> None:
        """What was saved from step `before` on is worthless, also what is being written.

        It is removed: whoever starts after all pods were lost would go on from it. Raises JobError.
        """
        self.given_up.update(dict.fromkeys(map(checkpoints.short, self.lineages), before))
        if self.unsure:
            await self.reload()
        while self.newest and self.newest[0].step >= before:
            await asyncio.to_thread(self.claim.check)
            await asyncio.to_thread(checkpoints.remove, self.job.storage, self.newest[0])
            self.damaged(self.newest[0].uri)
            await self.reload()

    def is_void(self, lineage: str | None) -> bool:
        """Whether it is of a time that a rollback gave up. Whoever was not there then brings it yet."""
        return lineage is not None and checkpoints.short(lineage) in self.given_up

    def _given_up(self, folder: str, step: int) -> bool:
        lineage = checkpoints.lineage_of(folder)
        return lineage in self.given_up and step >= self.given_up[lineage]

    async def reload(self) -> None:
        """Takes the newest one that is not damaged. Raises JobError."""
        self.unsure = False
        found = await asyncio.to_thread(startup.last_checkpoint, self.claim, self.bad)
        self.newest = (found.ref, found.progress) if found else None

    async def check(self) -> None:
        """Whether the storage is this master's: else raises Replaced. Raises JobError."""
        await asyncio.to_thread(again.while_away, self.claim.check, time.sleep)
