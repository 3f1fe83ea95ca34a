"""How far the work on the data set has come, in bytes and records. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mms_workloads.contract import BadKind, BadRecord, DataReport
from mms_workloads.data import schema as schemas

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mms_workloads.sync.counting import Counting
    from mms_workloads.sync.leases import Leases
    from mms_workloads.sync.plan import Plan

NAMED_BAD_RECORDS, NAMED_BAD_KINDS = 10, 10


def counted(counting: Counting) -> DataReport:
    """Of the counting pass under way; sizes of compressed files are those as stored until they are read."""
    files = counting.files
    done = {s.file for task in counting.done for s in counting.tasks[task] if s.end is None}
    whole = sum(counting.sizes.get(i, files[i].size) for i in done)
    parts = sum(s.end - s.start for task in counting.done for s in counting.tasks[task] if s.end is not None)
    survey = counting.survey
    return DataReport(
        format=counting.format or "Text",
        files=len(files),
        bytes=sum(counting.sizes.get(i, f.size) for i, f in enumerate(files)),
        badRecords=survey.bad_count if survey else 0,
        doneBytes=whole + parts,
        doneRecords=sum(survey.kinds.values()) if survey else None,
    )


class Trained:
    """Of a plan; made once, since the plan may be large."""

    def __init__(self, plan: Plan) -> None:
        self._sizes = [sum((s.end or 0) - s.start for s in block) for block in plan.blocks()]
        schema = plan.schema
        bad = schema.bad if schema else ()
        self._records = schema.records if schema else None
        self._found = DataReport(
            format=schema.format if schema else "Text",
            files=len(plan.files),
            bytes=sum(self._sizes),
            records=self._records,
            badRecords=len(bad),
            bad=[
                BadRecord(uri=plan.files[b.file].uri, offset=b.offset, reason=b.reason) for b in bad[:NAMED_BAD_RECORDS]
            ],
            badKinds=[
                BadKind(reason=reason, count=count) for reason, count in schemas.kinds(bad).most_common(NAMED_BAD_KINDS)
            ],
            classes=len(schema.classes) if schema else 0,
        )

    def report(self, leases: Leases) -> DataReport:
        done = _bytes(self._sizes, leases)
        whole = sum(self._sizes)
        records = round(done / whole * self._records) if self._records is not None else None
        return self._found.model_copy(update={"doneBytes": done, "doneRecords": records})


def _bytes(sizes: Sequence[int], leases: Leases) -> int:
    progress = leases.progress
    done = sum(min(progress.applied[b], leases.epochs) * sizes[b] for b in leases.blocks)
    return done + sum(round(sizes[b] * part / size) for b, (part, size) in progress.partial.items())
