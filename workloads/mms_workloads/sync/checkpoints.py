"""Checkpoints in the run's storage, without what is inside them (train.checkpoint knows that).

<storage>/checkpoints/step-<step>-<lineage>/: each rank writes its part, then the master the manifest.json. A folder
without a manifest was cut short and means nothing; so a save survives a kill at any byte, and the checkpoint before it
stays valid till the next one is.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from blake3 import blake3
from pydantic import ValidationError

from mms_workloads import store as stores
from mms_workloads.contract import CheckpointFile, CheckpointRef, Reason, Store
from mms_workloads.store import JobError
from mms_workloads.tensors import PIECE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path
    from typing import IO

    from mms_workloads.tensors import Source

    Counts = Callable[[str, str], bool]  # of a folder and the name of the master that made it valid: see claims

MANIFEST = "manifest.json"
PROGRESS = "progress.json"
PLAN = "plan.bin"
VERSION = 2  # of the manifest


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


class Digest:
    """Of bytes as they come. Without instructions made for it SHA-256 would take longer than writing."""

    def __init__(self) -> None:
        self._hasher, self._size = blake3(), 0

    def update(self, piece: bytes | memoryview) -> None:
        self._hasher.update(piece)
        self._size += len(piece)

    def file(self) -> CheckpointFile:
        return CheckpointFile(blake3=self._hasher.hexdigest(), size=self._size)


def digest(data: bytes) -> CheckpointFile:
    whole = Digest()
    whole.update(data)
    return whole.file()


class Digested:
    """A stream whose digest is taken while it is read: a tensors.Source, of one."""

    def __init__(self, stream: IO[bytes] | Source) -> None:
        self._stream, self._digest = cast("Source", stream), Digest()

    def readinto(self, buffer: memoryview, /) -> int:
        count = self._stream.readinto(buffer) or 0
        self._digest.update(buffer[:count])
        return count

    def file(self) -> CheckpointFile:
        """Of what there is in all: the rest of the stream is read."""
        rest = memoryview(bytearray(PIECE_BYTES))
        while self.readinto(rest):
            pass
        return self._digest.file()


def folder(step: int, lineage: str) -> str:
    """Of a checkpoint: the same name on all ranks, and another one for another state."""
    return f"step-{step:010d}-{short(lineage)}"


def short(lineage: str) -> str:
    return lineage[:8]


def lineage_of(folder: str) -> str:
    """As `short` gives it."""
    return folder.rpartition("-")[2]


def write(file: Store, content: Iterable[bytes | memoryview], scratch: Path) -> CheckpointFile:
    """Stores the content, and reads it back to compare it with what was in memory: on return it is durable.

    Raises JobError.
    """
    written = Digest()
    with stores.writing(file, scratch) as stream:
        for piece in content:
            written.update(piece)
            stream.write(piece)
    verify(file, written.file())
    return written.file()


def commit(
    storage: Store,
    name: str,
    entries: dict[str, CheckpointFile],
    step: int,
    master: str = "",
    *,
    quarantined: Iterable[int] = (),
) -> CheckpointRef:
    """Writes the manifest over parts that are durable: on return the checkpoint is valid. Raises JobError.

    quarantined: blocks that are not trained on.
    """
    target = stores.child(storage, f"checkpoints/{name}")
    time = now()
    manifest = {
        "contractVersion": VERSION,
        "master": master,
        "step": step,
        "time": time,
        "files": {name: entry.model_dump() for name, entry in entries.items()},
        "quarantined": sorted(quarantined),
    }
    data = json.dumps(manifest, indent=1, sort_keys=True).encode()
    stores.write_bytes(stores.child(target, MANIFEST), data)
    if stores.read_bytes(stores.child(target, MANIFEST)) != data:
        raise JobError(Reason.STORAGE_UNREACHABLE, f"{target.uri}/{MANIFEST} reads back differently", retryable=True)
    return CheckpointRef(uri=target.uri, step=step, digest="sha256:" + hashlib.sha256(data).hexdigest(), time=time)


def verify(file: Store, entry: CheckpointFile) -> None:
    """Streams a stored file and compares it. Raises JobError ArtifactCorrupt."""
    with stores.open_read(file) as stream:
        compare(file, Digested(stream).file(), entry)


def compare(file: Store, found: CheckpointFile, entry: CheckpointFile | None) -> None:
    """Raises JobError ArtifactCorrupt where a file is not the one that the manifest lists."""
    if found != entry:
        listed = f"lists {entry.size} bytes, BLAKE3 {entry.blake3}" if entry else "does not list it"
        raise JobError(
            Reason.ARTIFACT_CORRUPT,
            f"{file.uri} is not what was written: {found.size} bytes, BLAKE3 {found.blake3}; the manifest {listed}",
        )


def whoevers(folder: str, master: str) -> bool:
    """All count."""
    del folder, master
    return True


def latest(storage: Store, excluded: frozenset[str] = frozenset(), counts: Counts = whoevers) -> CheckpointRef | None:
    """The newest checkpoint with a readable manifest; `excluded`: URIs of damaged ones. Raises JobError."""
    for name in sorted(_folders(storage), reverse=True):
        found = None if _uri(storage, name) in excluded else _manifest(storage, name)
        if found and counts(name, found[1]):
            return found[0]
    return None


def valid(storage: Store, counts: Counts) -> set[str]:
    """The folders of those with a readable manifest. Raises JobError."""
    return {name for name in _folders(storage) if (found := _manifest(storage, name)) and counts(name, found[1])}


def _manifest(storage: Store, name: str) -> tuple[CheckpointRef, str] | None:
    """With the master that made it valid. None: it is none, or was cut short while it was written. Raises JobError."""
    uri = _uri(storage, name)
    data = stores.read_if_there(stores.at(storage, f"{uri}/{MANIFEST}"))
    try:
        manifest = json.loads(data or b"{}")
        digest = "sha256:" + hashlib.sha256(data or b"").hexdigest()
        reference = CheckpointRef(uri=uri, step=manifest["step"], digest=digest, time=manifest["time"])
        return reference, str(manifest.get("master", ""))
    except (ValueError, KeyError, TypeError):
        return None


def read(storage: Store, checkpoint: CheckpointRef, name: str) -> bytes:
    """A small file of a checkpoint, verified. Raises JobError ArtifactCorrupt."""
    file = stores.at(storage, f"{checkpoint.uri}/{name}")
    data = stores.read_bytes(file)
    compare(file, digest(data), entries(storage, checkpoint).get(name))
    return data


def entries(storage: Store, checkpoint: CheckpointRef) -> dict[str, CheckpointFile]:
    """What its manifest lists.

    Raises JobError ArtifactCorrupt when the manifest is not the one that was written, InternalError when another
    release has written it: going on from an older checkpoint, or from none, would throw work away.
    """
    manifest = _read_manifest(storage, checkpoint)
    try:
        return {name: CheckpointFile.model_validate(entry) for name, entry in manifest.get("files", {}).items()}
    except ValidationError as error:
        raise JobError(
            Reason.INTERNAL,
            f"{checkpoint.uri} is of a release that writes checkpoints of version {manifest.get('contractVersion')}, "
            f"and this one reads version {VERSION}: finish the training with that release, or start it anew with "
            "another storage URI",
        ) from error


def quarantined(storage: Store, checkpoint: CheckpointRef) -> frozenset[int]:
    """Blocks that were not trained on when it was made. Raises JobError ArtifactCorrupt."""
    return frozenset(map(int, _read_manifest(storage, checkpoint).get("quarantined", ())))


def _read_manifest(storage: Store, checkpoint: CheckpointRef) -> dict[str, Any]:
    file = stores.at(storage, f"{checkpoint.uri}/{MANIFEST}")
    data = stores.read_bytes(file)
    if "sha256:" + hashlib.sha256(data).hexdigest() != checkpoint.digest:
        raise JobError(Reason.ARTIFACT_CORRUPT, f"{file.uri} is not what was written")
    found: dict[str, Any] = json.loads(data)
    return found


def damaged(error: JobError) -> bool:
    """Whether an error says that a checkpoint is of no use, and not that it cannot be read now or by us."""
    return error.reason in {Reason.ARTIFACT_CORRUPT, Reason.DATA_NOT_FOUND}


def prune(storage: Store, keep: int, newest: CheckpointRef, check: Callable[[], object] = lambda: None) -> None:
    """Deletes what is older than `newest` but for `keep` - 1 checkpoints, and folders that never got a manifest.

    Newer ones, damaged or of workers that were given up, are left: `newest` is what this run goes on from.
    check: raises where nothing may be deleted; what comes after it is left, too.
    """
    current = newest.uri.rpartition("/")[2]
    folders: dict[str, bool] = {}  # with a manifest
    for uri in stores.list_folder(stores.child(storage, "checkpoints")):
        one, name = uri.split("/")[-2:]
        folders[one] = folders.get(one, False) or name == MANIFEST
    older = sorted((f for f in folders if f < current), reverse=True)
    kept = [current, *(f for f in older if folders[f])][:keep]
    check()
    for one in older:
        if one < kept[-1]:
            stores.remove_folder(stores.child(storage, f"checkpoints/{one}"))


def remove(storage: Store, checkpoint: CheckpointRef) -> None:
    """Raises JobError. What a kill leaves of it does not match its manifest."""
    stores.remove_folder(stores.at(storage, checkpoint.uri))


def _uri(storage: Store, name: str) -> str:
    return f"{storage.uri.rstrip('/')}/checkpoints/{name}"


def _folders(storage: Store) -> set[str]:
    return {uri.split("/")[-2] for uri in stores.list_folder(stores.child(storage, "checkpoints"))}
