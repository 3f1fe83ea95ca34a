"""Checkpoints in the run's storage, without what is inside them (train.checkpoint knows that).

<storage>/checkpoints/step-<step>-<lineage>/: each rank writes its part, then the master the manifest.json. A folder
without a manifest was cut short and means nothing; so a save survives a kill at any byte, and the checkpoint before it
stays valid till the next one is.
"""

from __future__ import annotations

import hashlib
import io
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from blake3 import blake3
from pydantic import ValidationError

from mms_workloads import store as stores
from mms_workloads.contract import CheckpointFile, CheckpointRef, Reason, Store
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import IO

MANIFEST = "manifest.json"
PROGRESS = "progress.json"
PLAN = "plan.bin"
_PIECE_BYTES = 1 << 20  # is hashed while it is in the processor's cache


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def digest(stream: IO[bytes]) -> CheckpointFile:
    """Of what is left of the stream. Without instructions made for it SHA-256 would take longer than writing."""
    hasher, size = blake3(), 0
    while piece := stream.read(_PIECE_BYTES):
        hasher.update(piece)
        size += len(piece)
    return CheckpointFile(blake3=hasher.hexdigest(), size=size)


def folder(step: int, lineage: str) -> str:
    """Of a checkpoint: the same name on all ranks, and another one for another state."""
    return f"step-{step:010d}-{short(lineage)}"


def short(lineage: str) -> str:
    return lineage[:8]


def lineage_of(folder: str) -> str:
    """As `short` gives it."""
    return folder.rpartition("-")[2]


def write(file: Store, fill: Callable[[Path], object], scratch: Path) -> CheckpointFile:
    """Stores what `fill` writes to a path, and reads it back: on return it is durable. Raises JobError."""
    with stores.writing(file, scratch) as path:
        fill(path)
        with path.open("rb") as stream:
            entry = digest(stream)
    verify(file, entry)
    return entry


def commit(storage: Store, name: str, entries: dict[str, CheckpointFile], step: int) -> CheckpointRef:
    """Writes the manifest over parts that are durable: on return the checkpoint is valid. Raises JobError."""
    target = stores.child(storage, f"checkpoints/{name}")
    time = now()
    manifest = {
        "contractVersion": 1,
        "step": step,
        "time": time,
        "files": {name: entry.model_dump() for name, entry in entries.items()},
    }
    data = json.dumps(manifest, indent=1, sort_keys=True).encode()
    stores.write_bytes(stores.child(target, MANIFEST), data)
    if stores.read_bytes(stores.child(target, MANIFEST)) != data:
        raise JobError(Reason.STORAGE_UNREACHABLE, f"{target.uri}/{MANIFEST} reads back differently", retryable=True)
    return CheckpointRef(uri=target.uri, step=step, digest="sha256:" + hashlib.sha256(data).hexdigest(), time=time)


def verify(file: Store, entry: CheckpointFile) -> None:
    """Streams a stored file and compares it. Raises JobError ArtifactCorrupt."""
    with stores.open_read(file) as stream:
        compare(file, digest(stream), entry)


def compare(file: Store, found: CheckpointFile, entry: CheckpointFile | None) -> None:
    """Raises JobError ArtifactCorrupt where a file is not the one that the manifest lists."""
    if found != entry:
        listed = f"lists {entry.size} bytes, BLAKE3 {entry.blake3}" if entry else "does not list it"
        raise JobError(
            Reason.ARTIFACT_CORRUPT,
            f"{file.uri} is not what was written: {found.size} bytes, BLAKE3 {found.blake3}; the manifest {listed}",
        )


def latest(storage: Store, excluded: frozenset[str] = frozenset()) -> CheckpointRef | None:
    """The newest checkpoint with a readable manifest; `excluded`: URIs of damaged ones. Raises JobError."""
    for name in sorted(_folders(storage), reverse=True):
        uri = f"{storage.uri.rstrip('/')}/checkpoints/{name}"
        if uri in excluded:
            continue
        try:
            data = stores.read_bytes(stores.at(storage, f"{uri}/{MANIFEST}"))
            manifest = json.loads(data)
            return CheckpointRef(
                uri=uri,
                step=manifest["step"],
                digest="sha256:" + hashlib.sha256(data).hexdigest(),
                time=manifest["time"],
            )
        except (ValueError, KeyError, TypeError):
            continue  # cut short while it was written: the one before counts
        except JobError as error:
            if error.reason is not Reason.DATA_NOT_FOUND:
                raise
    return None


def read(storage: Store, checkpoint: CheckpointRef, name: str) -> bytes:
    """A small file of a checkpoint, verified. Raises JobError ArtifactCorrupt."""
    file = stores.at(storage, f"{checkpoint.uri}/{name}")
    data = stores.read_bytes(file)
    compare(file, digest(io.BytesIO(data)), entries(storage, checkpoint).get(name))
    return data


def entries(storage: Store, checkpoint: CheckpointRef) -> dict[str, CheckpointFile]:
    """What its manifest lists. Raises JobError ArtifactCorrupt when the manifest is not the one that was written."""
    file = stores.at(storage, f"{checkpoint.uri}/{MANIFEST}")
    data = stores.read_bytes(file)
    if "sha256:" + hashlib.sha256(data).hexdigest() != checkpoint.digest:
        raise JobError(Reason.ARTIFACT_CORRUPT, f"{file.uri} is not what was written")
    try:
        return {name: CheckpointFile.model_validate(entry) for name, entry in json.loads(data)["files"].items()}
    except ValidationError as error:
        raise JobError(Reason.ARTIFACT_CORRUPT, f"{file.uri} is of another release: {error}") from error


def damaged(error: JobError) -> bool:
    """Whether an error says that a checkpoint is of no use, and not that it cannot be read now or by us."""
    return error.reason in {Reason.ARTIFACT_CORRUPT, Reason.DATA_NOT_FOUND}


def prune(storage: Store, keep: int, newest: CheckpointRef) -> None:
    """Deletes what is older than `newest` but for `keep` - 1 checkpoints, and folders that never got a manifest.

    Newer ones, damaged or of workers that were given up, are left: `newest` is what this run goes on from.
    """
    current = newest.uri.rpartition("/")[2]
    folders: dict[str, bool] = {}  # with a manifest
    for uri in stores.list_folder(stores.child(storage, "checkpoints")):
        one, name = uri.split("/")[-2:]
        folders[one] = folders.get(one, False) or name == MANIFEST
    older = sorted((f for f in folders if f < current), reverse=True)
    kept = [current, *(f for f in older if folders[f])][:keep]
    for one in older:
        if one < kept[-1]:
            stores.remove_folder(stores.child(storage, f"checkpoints/{one}"))


def remove(storage: Store, checkpoint: CheckpointRef) -> None:
    """Raises JobError. What a kill leaves of it does not match its manifest."""
    stores.remove_folder(stores.at(storage, checkpoint.uri))


def _folders(storage: Store) -> set[str]:
    return {uri.split("/")[-2] for uri in stores.list_folder(stores.child(storage, "checkpoints"))}
