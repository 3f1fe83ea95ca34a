"""What is inside a checkpoint: the tables in parts, each written by another rank, with the progress and the plan.

part-<i>-of-<n>.safetensors: tensors `<table>/<slot>`, the rows that are part i of n. progress.json: step, progress.
plan.bin: what the counting pass found. The parts say nothing of the mode or the number of workers that wrote them, so
a run goes on from them in another mode and with another number. sync.checkpoints makes them durable.
"""

from __future__ import annotations

import json
import re
from functools import partial
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mms_workloads import store as stores
from mms_workloads.contract import Reason
from mms_workloads.store import JobError
from mms_workloads.sync import checkpoints

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
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
    tensors = {f"{name}/{slot}": t for name, slots in tables.items() for slot, t in slots.items()}
    fills: dict[str, Callable[[Path], object]] = {
        f"part-{place.position}-of-{place.members}.safetensors": partial(write_tensors, tensors),
        **{name: partial(_write_bytes, content) for name, content in others.items()},
    }
    return {name: checkpoints.write(stores.child(target, name), fill, scratch) for name, fill in fills.items()}


def progress_file(step: int, progress: Progress) -> bytes:
    return json.dumps({"step": step, **progress.document()}).encode()


def _write_bytes(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Raises OSError, as other ways of writing a file do."""
    try:
        save_file(tensors, path)
        path.chmod(0o644)  # it is made for its owner alone, and another user's run may go on from it
    except SafetensorError as error:
        raise OSError(str(error)) from error


def load(storage: Store, reference: CheckpointRef, scratch: Path) -> Tables:
    """All parts put together. Raises JobError ArtifactCorrupt when they are not what was written."""
    entries = checkpoints.entries(storage, reference)
    parts = sorted((int(m[1]), int(m[2]), m[0]) for name in entries if (m := _PART.fullmatch(name)))
    if not parts or [p[:2] for p in parts] != [(i, parts[0][1]) for i in range(parts[0][1])]:
        raise JobError(Reason.ARTIFACT_CORRUPT, f"{reference.uri} does not hold each part once: {sorted(entries)}")
    pieces: dict[str, list[Tensor]] = {}
    for _, _, name in parts:
        file = stores.at(storage, f"{reference.uri}/{name}")
        with stores.reading(file, scratch) as path:
            with path.open("rb") as stream:
                checkpoints.compare(file, checkpoints.digest(stream), entries[name])
            for key, tensor in load_file(path).items():  # mapped: nothing is read a second time
                pieces.setdefault(key, []).append(tensor)
    tables: Tables = {}
    for key, tensors in pieces.items():
        table, _, slot = key.partition("/")
        tables.setdefault(table, {})[slot] = torch.cat(tensors)
    return tables
