"""The reader that a data set needs: of files as they are, or of encrypted blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mms_workloads.data import keyring
from mms_workloads.data.reader import Reader
from mms_workloads.data.sealed_reader import SealedReader

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mms_workloads.contract import Store
    from mms_workloads.data.blocks import Segment
    from mms_workloads.data.keyring import Keyring
    from mms_workloads.sync.plan import Plan


def counting(
    store: Store,
    uris: Mapping[int, str],
    segments: Sequence[Segment],
    scratch: Path,
    *,
    dataset: bytes | None = None,
    keys: Keyring = keyring.HELD,
) -> Reader:
    """For a counting task. dataset: of encrypted data."""
    names = [uris.get(i, "") for i in range(max(uris) + 1)]
    if dataset is None:
        return Reader(store, names, scratch)
    reader = SealedReader(store, names, scratch, dataset, keys)
    reader.know({s.file: s.end for s in segments if s.end is not None})
    return reader


def planned(store: Store, plan: Plan, scratch: Path, keys: Keyring = keyring.HELD) -> Reader:
    """For the blocks of a plan."""
    names = [f.uri for f in plan.files]
    reader = (
        Reader(store, names, scratch)
        if plan.sealed is None
        else SealedReader(store, names, scratch, plan.sealed.dataset, keys)
    )
    reader.expect(plan.files)
    return reader
