"""What the master says of the data: bytes and records, while it is counted and while it is trained on."""

from __future__ import annotations

from mms_workloads.contract import Data, DataFile, Store
from mms_workloads.data.blocks import COUNTING_BYTES
from mms_workloads.data.schema import Bad, Schema, Survey
from mms_workloads.data.vocabulary import Vocabulary
from mms_workloads.store import Found
from mms_workloads.sync import progress
from mms_workloads.sync.counting import Counting
from mms_workloads.sync.leases import Leases, Slice
from mms_workloads.sync.plan import Plan
from mms_workloads.sync.progress import Trained

DATA = Data(store=Store(uri="file:///data"))


def test_the_counting_pass_says_what_it_has_read() -> None:
    files = [Found("file:///data/a.jsonl", COUNTING_BYTES + 10, None), Found("file:///data/b.jsonl.gz", 100, None)]
    counting = Counting.start(files, DATA)
    assert progress.counted(counting).doneBytes == 0
    for task, segments in enumerate(counting.tasks):
        survey = Survey(limit=9)
        survey.good(0, 0, "text string", ["a"])
        counting.add_survey(task, survey, {1: 700} if segments[0].file == 1 else {})
        assert progress.counted(counting).doneRecords == task + 1
    said = progress.counted(counting)
    assert (said.format, said.files) == ("JSONLines", 2)
    assert said.bytes == said.doneBytes == COUNTING_BYTES + 710


def test_training_counts_the_bytes_of_its_blocks_over_all_epochs() -> None:
    cells = [Bad(0, at, f"it has {at} cells, and the header 4 columns") for at in (5, 6)]
    bad = (Bad(0, 3, "damaged"), *cells)
    schema = Schema("CSV", "text", "string", {"a": 3, "b": 5}, 8, bad)
    plan = Plan((DataFile(uri="file:///a.csv", size=100),), 30, Vocabulary((), ()), schema)
    leases = Leases.start(DATA, 1, 2, [0, 1, 3], 4)
    trained = Trained(plan)
    first = trained.report(leases)
    assert (first.bytes, first.records, first.classes, first.badRecords) == (100, 8, 2, 3)
    assert first.bad[0].uri == "file:///a.csv"
    kinds = [(kind.count, kind.reason) for kind in first.badKinds]
    assert kinds == [(2, "it has … cells, and the header … columns"), (1, "damaged")]
    assert (first.doneBytes, first.doneRecords) == (0, 0)
    leases.commit([Slice(0, 0, 0, 4, 4), Slice(0, 3, 0, 1, 2)])
    assert trained.report(leases).doneBytes == 30 + 5
    leases.commit([Slice(0, 3, 1, 2, 2), Slice(1, 0, 0, 4, 4)])
    assert trained.report(leases).doneBytes == 30 + 10 + 30
    assert trained.report(leases).doneRecords == round(70 / 100 * 8)
