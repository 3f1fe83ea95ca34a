"""The counting pass: workers count the words of tasks, or survey their records, and the master merges. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mms_workloads.contract import DataFile, Reason, WordEmbedding
from mms_workloads.data import blocks, formats, vocabulary
from mms_workloads.data.counts import Counts
from mms_workloads.data.schema import EMPTY, Bad, Survey
from mms_workloads.store import Found, JobError
from mms_workloads.sync.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mms_workloads.contract import Data, RecordFormat
    from mms_workloads.data.sealed_reader import Manifest, Sealed
    from mms_workloads.data.text import Words


@dataclass(slots=True)
class Counting:
    files: Sequence[Found]
    tasks: Sequence[blocks.Block]
    sizes: dict[int, int] = field(default_factory=dict)  # decompressed, by file
    counts: Counts = field(default_factory=Counts)
    done: set[int] = field(default_factory=set)
    held: dict[int, int] = field(default_factory=dict)  # task -> rank
    format: RecordFormat | None = None  # None: running text
    survey: Survey | None = None
    sealed: Sealed | None = None  # of encrypted data
    companions: formats.Companions | None = None

    @classmethod
    def encrypted(cls, found: Manifest, records: Data | None = None) -> Counting:
        """As `start`, of a data set that is encrypted. Raises JobError."""
        if records is None and found.format != "Text":
            raise JobError(
                Reason.DATA_INVALID,
                f"the task reads running text, and the encrypted data set is of {found.format}: encrypt text",
            )
        sizes = [block.size for block in found.blocks]
        chosen = found.format if records else None
        plain = dict(enumerate(sizes))
        return cls(found.blocks, blocks.grouped(sizes), plain, format=chosen, sealed=found.sealed)

    @classmethod
    def start(cls, files: Sequence[Found], records: Data | None = None) -> Counting:
        """records: of a task that learns from them. Raises JobError."""
        chosen: RecordFormat | None = None
        if records is not None:
            files = formats.shown(files)
            chosen = formats.detect(f.uri for f in files) if records.format == "Auto" else records.format
            if records.sharding == "Random" and formats.by_folders(chosen):
                files = formats.mixed(files)
        uris, sizes = [f.uri for f in files], [f.size for f in files]
        plain = {i: f.size for i, f in enumerate(files) if not blocks.compressed(f.uri)}
        if chosen is None or records is None:
            return cls(files, blocks.counting_tasks(uris, sizes), plain)
        survey = Survey(records.quality.maxBadRecords)
        for number in formats.empty_records(chosen, uris, sizes):  # no block has them
            survey.reject(Bad(number, 0, EMPTY))
        tasks = blocks.counting_tasks(uris, sizes, whole=formats.whole(chosen))
        return cls(files, tasks, plain, format=chosen, survey=survey if survey.bad_count else None)

    def uris(self, task: int) -> dict[int, str]:
        """The files that a task needs, by their numbers."""
        names = [f.uri for f in self.files]
        numbers = {s.file for s in self.tasks[task]}
        if self.format and not self.sealed:
            if self.companions is None:
                self.companions = formats.Companions(self.format, names)
            numbers |= self.companions.of(numbers)
        return {number: names[number] for number in sorted(numbers)}

    def take(self, rank: int) -> int | None:
        """A task for a rank that has none."""
        if rank in self.held.values():
            return None
        for number in range(len(self.tasks)):
            if number not in self.done and number not in self.held:
                self.held[number] = rank
                return number
        return None

    def give_back(self, rank: int) -> None:
        self.held = {t: r for t, r in self.held.items() if r != rank}

    def add(self, task: int, counts: Words, sizes: dict[int, int], settings: WordEmbedding | None) -> None:
        """A task's result; a second one of the same task changes nothing. settings: None needs no vocabulary.

        Raises MemoryError.
        """
        if self._finish(task, sizes) and settings:
            self.counts.add(counts, settings)

    def add_survey(self, task: int, survey: Survey, sizes: dict[int, int]) -> None:
        """As `add`, of a task that learns from records. Raises JobError where too many are bad."""
        if not self._finish(task, sizes):
            return
        if self.survey is None:
            self.survey = survey
        else:
            self.survey.merge(survey)
        self.survey.check([f.uri for f in self.files])

    def _finish(self, task: int, sizes: dict[int, int]) -> bool:
        """False: it was finished before."""
        if task in self.done:
            return False
        self.done.add(task)
        self.held.pop(task, None)
        self.sizes.update(sizes)
        return True

    def complete(self) -> bool:
        return len(self.done) == len(self.tasks)

    def plan(self, task: WordEmbedding | None, block_bytes: int, *, varied: bool = False) -> Plan:
        """Task None: one that needs no vocabulary. Raises JobError: DataEmpty, VocabularyTooSmall."""
        if not sum(self.sizes.values()):
            raise JobError(
                Reason.DATA_EMPTY,
                f"all {len(self.files)} files of the data set are empty: check the URI and the upload",
            )
        files = tuple(DataFile(uri=f.uri, size=self.sizes[i], etag=f.etag) for i, f in enumerate(self.files))
        words = vocabulary.cut(self.counts, task) if task else vocabulary.Vocabulary((), ())
        schema = self.survey.schema(self.format, [f.uri for f in files]) if self.survey and self.format else None
        return Plan(files, block_bytes, words, schema, varied, self.sealed)
