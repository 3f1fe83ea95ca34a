"""What a run's data set was found to be: the files, and the vocabulary or the records' schema.

Made by the counting pass, fixed for the run. It travels to every worker, back to a master that restarts,
and into each checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import dataclass

from mms_workloads.contract import DataFile
from mms_workloads.data import blocks
from mms_workloads.data.schema import Schema
from mms_workloads.data.sealed_reader import Sealed
from mms_workloads.data.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Plan:
    files: tuple[DataFile, ...]
    block_bytes: int
    vocabulary: Vocabulary
    schema: Schema | None = None  # of tasks that learn from records
    varied: bool = False  # blocks are of different sizes
    sealed: Sealed | None = None  # of encrypted data: each file is a block

    def blocks(self) -> list[blocks.Block]:
        if self.sealed:
            return [(blocks.Segment(i, 0, f.size),) for i, f in enumerate(self.files)]
        return blocks.cut([f.size for f in self.files], self.block_bytes, varied=self.varied)


def pack(plan: Plan) -> bytes:
    document = {
        "files": [f.model_dump(mode="json") for f in plan.files],
        "blockBytes": plan.block_bytes,
        "words": plan.vocabulary.words,
        "counts": plan.vocabulary.counts,
        "phrases": plan.vocabulary.phrases,
        "varied": plan.varied,
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
    return Plan(files, document["blockBytes"], vocabulary, schema, varied, sealed)


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
