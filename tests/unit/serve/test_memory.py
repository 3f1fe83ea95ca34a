"""Whether another artifact fits into a container, by the files of its control group."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mms_workloads.serve import memory

if TYPE_CHECKING:
    from pathlib import Path

MIB = memory.MIB


@pytest.fixture
def cgroup(tmp_path: Path) -> Path:
    """400 MiB, of which 100 cannot be dropped."""
    folder = tmp_path / "cgroup"
    folder.mkdir()
    (folder / "memory.max").write_text(f"{400 * MIB}\n")
    (folder / "memory.stat").write_text(f"anon {90 * MIB}\nfile {250 * MIB}\nkernel {6 * MIB}\nshmem {4 * MIB}\n")
    return folder


def artifact(root: Path, name: str, mib: int) -> str:
    folder = root / name
    folder.mkdir()
    with (folder / "weights").open("wb") as file:
        file.truncate(mib * MIB)
    return str(folder)


@pytest.mark.parametrize(("mib", "fits"), [(100, True), (149, True), (151, False)])
def test_both_must_fit(tmp_path: Path, cgroup: Path, mib: int, fits: bool) -> None:
    here, more = artifact(tmp_path, "here", 150), artifact(tmp_path, "more", mib)
    if fits:
        memory.admit(more, [here], cgroup)
        return
    with pytest.raises(memory.NoRoomError, match="it needs 151 MiB beside 250 MiB, of 400 MiB: raise"):
        memory.admit(more, [here], cgroup)


@pytest.mark.parametrize(("mib", "fits"), [(99, True), (101, False)])
def test_without_a_limit_the_nodes_memory_is_the_limit(tmp_path: Path, cgroup: Path, mib: int, fits: bool) -> None:
    (cgroup / "memory.max").write_text("max\n")
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: 999999 kB\nMemAvailable:   {100 * 1024} kB\n")
    more = artifact(tmp_path, "more", mib)
    for where in (cgroup, tmp_path / "no-cgroup"):
        if fits:
            memory.admit(more, [], where, meminfo)
            continue
        with pytest.raises(memory.NoRoomError, match="needs 101 MiB, and the node has 100 MiB"):
            memory.admit(more, [], where, meminfo)
