"""What is inside a checkpoint: the tables in parts, each written by another rank, with the progress and the plan.

part-<i>-of-<n>.safetensors: tensors `<table>/<slot>`, the rows that are part i of n. progress.json: step, progress.
plan.bin: what the counting pass found. The parts say nothing of the mode or the number of workers that wrote them, so
a run goes on from them in another mode and with another number. sync.checkpoints makes them durable.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import torch

from mms_workloads import store as stores
from mms_workloads import tensors
from mms_workloads.contract import Reason
from mms_workloads.store import JobError
from mms_workloads.sync import checkpoints

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from torch import Tensor

    from mms_workloads.contract import CheckpointFile, CheckpointRef, Store
    from mms_workloads.sync.leases import Progress
    from mms_workloads.train.learner import Place
    from mms_workloads.train.state import Tables

_PART = re.compile(r"part-(\d+)-of-(\d+)\.safetensors")


def write_part(
    target: Store, tables: Tables, place: Place, others: Mapping[str, bytes], scratch: Path
) -> dict[str, CheckpointFile]:
    """Writes the part of `place` and the files `others`, and reads them back. Raises JobError."""
    arrays = {f"{name}/{slot}": t.numpy() for name, slots in tables.items() for slot, t in slots.items()}
    contents: dict[str, Iterable[bytes | memoryview]] = {
        f"part-{place.position}-of-{place.members}.safetensors": tensors.content(arrays),
        **{name: [content] for name, content in others.items()},
    }
    return {name: checkpoints.write(stores.child(target, name), each, scratch) for name, each in contents.items()}


def progress_file(step: int, progress: Progress) -> bytes:
    return json.dumps({"step": step, **progress.document()}).encode()


def load(storage: Store, reference: CheckpointRef, scratch: Path) -> Tables:
    """All parts put together. Raises JobError ArtifactCorrupt when they are not what was written."""
    entries = checkpoints.entries(storage, reference)
    parts = sorted((int(m[1]), int(m[2]), m[0]) for name in entries if (m := _PART.fullmatch(name)))
    if not parts or [p[:2] for p in parts] != [(i, parts[0][1]) for i in range(parts[0][1])]:
        raise JobError(Reason.ARTIFACT_CORRUPT, f"{reference.uri} does not hold each part once: {sorted(entries)}")
    pieces: dict[str, list[Tensor]] = {}
    for _, _, name in parts:
        file = stores.at(storage, f"{reference.uri}/{name}")
        with stores.reading(file, scratch) as path, path.open("rb") as stream:
            source = checkpoints.Digested(stream)
            try:
                found = tensors.read(source, entries[name].size)
            except ValueError as error:
                raise JobError(Reason.ARTIFACT_CORRUPT, f"{file.uri} is not what was written: {error}") from error
            checkpoints.compare(file, source.file(), entries[name])
        for key, array in found.items():
            pieces.setdefault(key, []).append(torch.from_numpy(array))
    tables: Tables = {}
    for key, rows in pieces.items():
        table, _, slot = key.partition("/")
        tables.setdefault(table, {})[slot] = rows[0] if len(rows) == 1 else torch.cat(rows)
    return tables
