"""What a run's data set was found to be: the files, and the vocabulary or the records' schema. And what else all of its
pods must hold to be the same for as long as it lasts.

Made by the counting pass, fixed for the run. It travels to every worker, back to a master that restarts,
and into each checkpoint, in clear: docs/data.md says what of it whoever reads the run's storage learns.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mms_workloads.contract import DataFile
from mms_workloads.data import blocks
from mms_workloads.data import schema as schemas
from mms_workloads.data.schema import Schema
from mms_workloads.data.sealed_reader import Sealed
from mms_workloads.data.vocabulary import Vocabulary

if TYPE_CHECKING:
    from mms_workloads.contract import JobFile

TEXTS = ("textClassification", "tokenClassification", "textMatching")


@dataclass(frozen=True, slots=True)
class Plan:
    files: tuple[DataFile, ...]
    block_bytes: int
    vocabulary: Vocabulary
    schema: Schema | None = None  # of tasks that learn from records
    varied: bool = False  # blocks are of different sizes
    sealed: Sealed | None = None  # of encrypted data: each file is a block
    workers: int = 0  # that the run was begun with: learning rates and shares go by it. 0: it does not say
    bf16: bool = False  # whether all workers that it was begun with have instructions for products in BF16

    def blocks(self) -> list[blocks.Block]:
        if self.sealed:
            return [(blocks.Segment(i, 0, f.size),) for i, f in enumerate(self.files)]
        return blocks.cut([f.size for f in self.files], self.block_bytes, varied=self.varied)


def needed(plan: Plan, job: JobFile) -> Plan:
    """What the run makes use of. Checkpoints hold the plan, so what it tells of records must not be more.

    Words are of use to a text network that knows none yet. Of encrypted or private data bad records have reasons
    without what the records say; of private data there are no statistics, and of each class not how many are of it.
    """
    schema = plan.schema
    if schema is None:
        return plan
    if str(job.task.kind) not in TEXTS or job.pretrained:
        schema = replace(schema, words={})
    if job.privacy or job.data.encryption:
        bad = tuple(map(schemas.without_particulars, schema.bad))
        schema = replace(schema, bad=bad, lengths=None)
    if job.privacy:
        schema = replace(schema, images=None, classes=dict.fromkeys(schema.classes, 0))
    return replace(plan, schema=schema)


def pack(plan: Plan) -> bytes:
    document = {
        "files": [f.model_dump(mode="json") for f in plan.files],
        "blockBytes": plan.block_bytes,
        "words": plan.vocabulary.words,
        "counts": plan.vocabulary.counts,
        "phrases": plan.vocabulary.phrases,
        "varied": plan.varied,
        "workers": plan.workers,
        "bf16": plan.bf16,
        "sealed": plan.sealed.document() if plan.sealed else None,
        "schema": plan.schema.document() if plan.schema else None,
    }
    return zlib.compress(json.dumps(document, ensure_ascii=False).encode(), 6)


def unpack(data: bytes) -> Plan:
    document = json.loads(zlib.decompress(data))
    vocabulary = Vocabulary(tuple(document["words"]), tuple(document["counts"]), tuple(document["phrases"]))
    schema = Schema.read(document["schema"]) if document.get("schema") else None
    sealed = Sealed.read(document["sealed"]) if document.get("sealed") else None
    files, varied = tuple(DataFile(**f) for f in document["files"]), document.get("varied", False)
    workers, bf16 = document.get("workers", 0), document.get("bf16", False)
    return Plan(files, document["blockBytes"], vocabulary, schema, varied, sealed, workers, bf16)


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
