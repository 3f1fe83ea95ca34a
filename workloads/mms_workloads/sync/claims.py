"""Whose a run's storage is: of two masters that run at once, as when one was cut off, the older one changes nothing.

A master leaves a claim, masters/<attempt>-<incarnation>-<uid>.json, and then writes into it which checkpoints it has
found. Those count for it, and those that it makes itself; others do not. When it has made one valid it looks for a
newer claim, before it tells anybody or deletes what is older. Where there is none, whoever claims later finds that
checkpoint; where there is one, the master ends. So the store need only show everybody what was written, in reads and
in listings: there are neither locks nor conditional writes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mms_workloads import store as stores
from mms_workloads.contract import Reason
from mms_workloads.store import JobError
from mms_workloads.sync import checkpoints

if TYPE_CHECKING:
    from mms_workloads.contract import JobFile, Store

FOLDER = "masters"
_SUFFIX = ".json"


class Replaced(Exception):  # noqa: N818 - an event in the life of a master, not an error
    """Another master has claimed the storage since: what this one writes counts for nobody any more."""


@dataclass(frozen=True, slots=True)
class Claim:
    """found: folders of checkpoints of masters before this one. others: claims of trainings that were here before."""

    storage: Store
    name: str
    found: frozenset[str] = frozenset()
    others: frozenset[str] = frozenset()

    def counts(self, folder: str, master: str) -> bool:
        """Whether a checkpoint that this master has made valid is one."""
        return folder in self.found or master == self.name

    def check(self) -> None:
        """Raises Replaced, JobError."""
        for name in _names(self.storage):
            if name not in self.others and (name > self.name or _uid(name) != _uid(self.name)):
                raise Replaced(f"the storage was claimed by master {name}")


def name_of(job: JobFile, attempt: int, incarnation: int) -> str:
    """A later master's of the same training is greater."""
    return f"{attempt:08d}-{incarnation:08d}-{job.job.uid}"


def newer(storage: Store, name: str) -> bool:
    """Whether a later master of the same training has claimed the storage. Raises JobError."""
    return any(other > name for other in _names(storage) if _uid(other) == _uid(name))


def claim(job: JobFile, attempt: int, incarnation: int) -> Claim:
    """What is valid when the claim has been left. Raises JobError StalePeer where a later master has one already."""
    storage, name = job.storage, name_of(job, attempt, incarnation)
    if _found(storage, name) is None:
        stores.write_bytes(_file(storage, name), b"{}")
    names = _names(storage)  # only now: one that was made valid before a look for this claim, is found below
    ours = sorted((other for other in names if _uid(other) == job.job.uid), reverse=True)
    if ours and ours[0] > name:
        raise JobError(
            Reason.STALE_PEER,
            f"master {ours[0]} has claimed {storage.uri}, this one is {name}. If none with that name was ever started, "
            f"delete {_file(storage, ours[0]).uri}",
        )
    before = next((Claim(storage, one, found) for one in ours if (found := _found(storage, one)) is not None), None)
    valid = checkpoints.valid(storage, before.counts if before else checkpoints.whoevers)
    stores.write_bytes(_file(storage, name), json.dumps({"checkpoints": sorted(valid)}, indent=1).encode())
    return Claim(storage, name, frozenset(valid), names - frozenset(ours))


def _file(storage: Store, name: str) -> Store:
    return stores.child(storage, f"{FOLDER}/{name}{_SUFFIX}")


def _names(storage: Store) -> frozenset[str]:
    uris = stores.list_folder(stores.child(storage, FOLDER))
    return frozenset(uri.rpartition("/")[2].removesuffix(_SUFFIX) for uri in uris if uri.endswith(_SUFFIX))


def _uid(name: str) -> str:
    return name.split("-", 2)[-1]


def _found(storage: Store, name: str) -> frozenset[str] | None:
    """None: there is no such claim, or its master had not begun when it ended."""
    try:
        return frozenset(json.loads(stores.read_if_there(_file(storage, name)) or b"{}")["checkpoints"])
    except (ValueError, KeyError, TypeError):
        return None
