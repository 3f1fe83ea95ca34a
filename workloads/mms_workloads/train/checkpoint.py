"""What is inside a checkpoint: the tables in parts, each written by another rank, with the progress and the plan.

part-<i>-of-<n>.safetensors: tensors `<table>/<slot>`, the rows that are part i of n. progress.json: step, progress.
plan.bin: what the counting pass found. The parts say nothing of the mode or the number of workers that wrote them, so
a run goes on from them in another mode and with another number. sync.checkpoints makes them durable.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from mms_workloads import store as stores
from mms_workloads import tensors
from mms_workloads.contract import Reason
from mms_workloads.store import JobError
from mms_workloads.sync import checkpoints

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mms_workloads.contract import CheckpointFile, CheckpointRef, Store
    from mms_workloads.sync.leases import Progress
    from mms_workloads.train.learner import Place
    from mms_workloads.train.state import Tables

HEAD_BYTES = 1 << 20  # of a part, in which its header is
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


def load(
    storage: Store,
    reference: CheckpointRef,
    scratch: Path,
    window: Callable[[str], tuple[int, int]] | None = None,
    into: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
) -> Tables:
    """All parts put together: of each table all rows, or those of its window [start, stop), numbered in the whole.

    into: tensors whose memory becomes the result's, where it is contiguous and on the CPU: memory that is new to the
    process takes longer to get than to read a checkpoint into. What they hold is worthless when the call fails.

    Raises JobError ArtifactCorrupt when they are not what was written.
    """
    entries = checkpoints.entries(storage, reference)
    parts = sorted((int(m[1]), int(m[2]), m[0]) for name in entries if (m := _PART.fullmatch(name)))
    if not parts or [p[:2] for p in parts] != [(i, parts[0][1]) for i in range(parts[0][1])]:
        raise JobError(Reason.ARTIFACT_CORRUPT, f"{reference.uri} does not hold each part once: {sorted(entries)}")
    files = {name: stores.at(storage, f"{reference.uri}/{name}") for _, _, name in parts}
    rooms = _rooms([_places(file, entries[name]) for name, file in files.items()], window, into or {})
    for name, file in files.items():
        with stores.reading(file, scratch) as path, path.open("rb") as stream:
            source = checkpoints.Digested(stream)
            with _told(file):
                tensors.fill(source, entries[name].size, lambda place: rooms[place.name].next(place.shape[0]))
            checkpoints.compare(file, source.file(), entries[name])
    tables: Tables = {}
    for key, room in rooms.items():
        table, _, slot = key.partition("/")
        tables.setdefault(table, {})[slot] = torch.from_numpy(room.rows)
    return tables


def _places(file: Store, entry: CheckpointFile) -> Mapping[str, tensors.Place]:
    head = stores.read_bytes(file, 0, min(entry.size, HEAD_BYTES))
    with _told(file):
        return tensors.places(io.BytesIO(head), entry.size)


@dataclass(slots=True)
class _Room:
    """For rows [first, first + n) of a tensor, of which file after file has some: they are in memory once."""

    rows: NDArray[np.float32]  # [n, columns]
    first: int
    passed: int = 0  # rows of the tensor that the files so far had

    def next(self, count: int) -> Iterator[memoryview]:
        """Where the bytes of as many more rows belong."""
        begin, self.passed = self.passed, self.passed + count
        size = self.rows.shape[1] * self.rows.itemsize
        low, high = (min(max(at, begin), self.passed) for at in (self.first, self.first + len(self.rows)))
        yield from tensors.nowhere((low - begin) * size)
        yield self.rows[low - self.first : high - self.first].reshape(-1).view(np.uint8).data
        yield from tensors.nowhere((self.passed - high) * size)


def _rooms(
    parts: Sequence[Mapping[str, tensors.Place]],
    window: Callable[[str], tuple[int, int]] | None,
    into: Mapping[str, Mapping[str, torch.Tensor]],
) -> dict[str, _Room]:
    shapes: dict[str, tuple[int, int]] = {}
    for places in parts:
        for key, place in places.items():
            rows, columns = place.shape
            shapes[key] = (shapes.get(key, (0, 0))[0] + rows, columns)
    rooms = {}
    for key, (rows, columns) in shapes.items():
        table, _, slot = key.partition("/")
        start, stop = window(table) if window else (0, rows)
        if stop > rows:
            raise JobError(Reason.ARTIFACT_CORRUPT, f"the checkpoint has {rows} rows of {key}, fewer than the model")
        shape, given = (stop - start, columns), into.get(table, {}).get(slot)
        fits = given is not None and given.shape == shape and given.is_contiguous() and given.device.type == "cpu"
        rooms[key] = _Room(given.numpy() if given is not None and fits else np.empty(shape, np.float32), start)
    return rooms


@contextlib.contextmanager
def _told(file: Store) -> Iterator[None]:
    """Of what is no file of a checkpoint."""
    try:
        yield
    except (ValueError, KeyError) as error:
        raise JobError(Reason.ARTIFACT_CORRUPT, f"{file.uri} is not what was written: {error}") from error
