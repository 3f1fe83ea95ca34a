"""What the master settles with the storage before anybody trains: whose folder it is, and the last checkpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mms_workloads import store as stores
from mms_workloads.contract import CheckpointRef, JobFile, Reason, Store
from mms_workloads.store import Found, JobError
from mms_workloads.sync import checkpoints
from mms_workloads.sync.leases import Progress

if TYPE_CHECKING:
    from mms_workloads.sync.claims import Claim

OWNER = "owner.json"


@dataclass(frozen=True, slots=True)
class Checkpointed:
    ref: CheckpointRef
    plan: bytes
    progress: Progress
    quarantined: frozenset[int] = frozenset()  # blocks


def own_storage(job: JobFile) -> None:
    """Claims the run's folder; this also proves write access before any work is done. Raises JobError StorageInUse."""
    file = stores.child(job.storage, OWNER)
    mine = {
        "uid": job.job.uid,
        "namespace": job.job.namespace,
        "name": job.job.name,
        "run": job.job.run,
    }
    owner = _owner(file)
    if owner is None:
        stores.write_bytes(file, json.dumps(mine, indent=1).encode())
        owner = _owner(file)  # of two that claim at once, the later write stays: both read it and one steps back
    if owner is None:
        raise JobError(Reason.STORAGE_UNREACHABLE, f"{file.uri} was written and is not there", retryable=True)
    if owner.get("uid") != job.job.uid:
        raise JobError(
            Reason.STORAGE_IN_USE,
            f"{job.storage.uri} belongs to ModelTraining {owner.get('namespace')}/{owner.get('name')} "
            f"(uid {owner.get('uid')}): give this training another storage URI, or delete {file.uri} if that one is "
            "gone and its results may be overwritten",
        )


def _owner(file: Store) -> dict[str, object] | None:
    try:
        owner: object = json.loads(stores.read_bytes(file))
    except JobError as error:
        if error.reason is Reason.DATA_NOT_FOUND:
            return None
        if error.reason is Reason.DATA_UNREADABLE:
            raise JobError(Reason.STORAGE_DENIED, error.message, retryable=error.retryable) from error
        raise
    except ValueError:
        owner = None
    if not isinstance(owner, dict):
        raise JobError(
            Reason.STORAGE_IN_USE,
            f"{file.uri} holds no JSON object: whose folder it is cannot be told. Delete it or give another storage "
            "URI",
        )
    return owner


def prune_runs(job: JobFile) -> list[int]:
    """Deletes the folders of this training's older runs but for the newest retainRuns and the protected ones.

    A folder that another training owns, or whose owner cannot be told, is left. Raises JobError.
    """
    parent, _, last = job.storage.uri.rstrip("/").rpartition("/")
    if last != str(job.job.run):
        return []  # not the layout .../runs/<run>: nothing there is known to be a run
    runs = stores.at(job.storage, parent)
    names = {uri.removeprefix(parent + "/").split("/")[0] for uri in stores.list_folder(runs)}
    older = sorted((int(name) for name in names if name.isdigit() and int(name) < job.job.run), reverse=True)
    gone = []
    for run in older[job.retainRuns :]:
        folder = stores.child(runs, str(run))
        if run in job.protectedRuns or not _is_ours(stores.child(folder, OWNER), job):
            continue
        stores.remove_folder(folder)
        gone.append(run)
    return gone


def _is_ours(file: Store, job: JobFile) -> bool:
    try:
        owner = _owner(file)
    except JobError:
        return False
    return owner is not None and owner.get("uid") == job.job.uid


def last_checkpoint(claim: Claim, excluded: frozenset[str] = frozenset()) -> Checkpointed | None:
    """The newest checkpoint that counts, and whose plan and progress are intact. Raises JobError."""
    storage = claim.storage
    while ref := checkpoints.latest(storage, excluded, claim.counts):
        try:
            plan = checkpoints.read(storage, ref, checkpoints.PLAN)
            progress = Progress.read(json.loads(checkpoints.read(storage, ref, checkpoints.PROGRESS)))
            quarantined = checkpoints.quarantined(storage, ref)
        except (JobError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, JobError) and not checkpoints.damaged(error):
                raise
            excluded |= {ref.uri}
            continue
        return Checkpointed(ref, plan, progress, quarantined)
    return None


def data_files(job: JobFile) -> list[Found]:
    """Of data that is not encrypted. Raises JobError: DataNotFound, DataUnreadable, StorageUnreachable, ..."""
    return stores.glob(job.data.store)
