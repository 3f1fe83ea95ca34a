"""Where things lie: the state of one cluster in one folder, built programs in a cache outside the tree."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from mms_cluster.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mms_cluster.report import Reporter

GIB = 1024**3


def state_folder() -> Path:
    """`$MMS_CLUSTER_DIR`, or mms-cluster in the user's state folder."""
    if chosen := os.environ.get("MMS_CLUSTER_DIR"):
        return Path(chosen).absolute()
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base).absolute() / "mms-cluster"


def cache_folder() -> Path:
    """The folder mms in the user's cache folder. Everything in it can be deleted and is made again."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / "mms"


def require_space(folder: Path, gib: int, why: str) -> None:
    """Refuse to start what would fill the disk that holds `folder`."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < gib * GIB:
        raise ClusterError(
            f"{why} needs {gib} GiB of free disk at {existing}, and {free / GIB:.1f} GiB are free: "
            f"delete something there, or set XDG_CACHE_HOME and MMS_CLUSTER_DIR to folders on a larger disk."
        )


def write(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Whole or not at all, and only when it changes: some of the readers watch for writes."""
    if path.exists() and path.read_bytes() == content:
        return
    partial = path.with_name(path.name + ".partial")
    partial.touch(mode)
    partial.write_bytes(content)
    partial.replace(path)


@contextlib.contextmanager
def locked(path: Path, report: Reporter | None = None) -> Iterator[None]:
    """Hold `path` as a lock between processes; wait for it, saying so. The kernel releases it when its holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if report:
                report.line(f"waiting for another mms_cluster that is at work (it holds {path})")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
