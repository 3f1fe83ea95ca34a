"""What a container may use, by the files of a control group of either version."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mms_workloads import control_group

if TYPE_CHECKING:
    from pathlib import Path

SECOND = {
    "memory.max": "30000\n",
    "memory.current": "25000\n",
    "memory.stat": "anon 5000\nfile 15500\nkernel 600\nshmem 70\ninactive_file 10000\nactive_file 4000\n"
    "slab_reclaimable 1000\n",
    "memory.events": "low 0\noom 3\noom_kill 2\n",
    "cpu.max": "250000 100000\n",
}
FIRST = {
    "memory/memory.limit_in_bytes": "30000\n",
    "memory/memory.usage_in_bytes": "25000\n",
    "memory/memory.kmem.usage_in_bytes": "600\n",
    "memory/memory.stat": "rss 1\nactive_file 2\nhierarchical_memory_limit 30000\ntotal_rss 5000\ntotal_shmem 70\n"
    "total_inactive_file 10000\ntotal_active_file 5000\n",
    "memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    "cpu/cpu.cfs_quota_us": "250000\n",
    "cpu/cpu.cfs_period_us": "100000\n",
}
UNLIMITED = (
    {**SECOND, "memory.max": "max\n", "cpu.max": "max 100000\n"},
    {**FIRST, "memory/memory.limit_in_bytes": "9223372036854771712\n", "cpu/cpu.cfs_quota_us": "-1\n"},
)


def lay(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize("files", [SECOND, FIRST], ids=["version 2", "version 1"])
def test_limits_and_use(tmp_path: Path, files: dict[str, str]) -> None:
    root = lay(tmp_path, files)
    assert control_group.memory_limit(root) == 30_000
    assert control_group.memory_fixed(root) == 5_670
    assert control_group.memory_left(root) == 20_000
    assert control_group.memory_kills(root) == 2
    assert control_group.processors(root) == 2.5


@pytest.mark.parametrize("files", UNLIMITED, ids=["version 2", "version 1"])
def test_without_limits(tmp_path: Path, files: dict[str, str]) -> None:
    root = lay(tmp_path, files)
    assert control_group.memory_limit(root) is control_group.memory_left(root) is control_group.processors(root) is None


@pytest.mark.parametrize("text", ["", "low 0\n", "oom_kill x", "x y z\n"])
def test_files_that_say_nothing(tmp_path: Path, text: str) -> None:
    root = lay(tmp_path, dict.fromkeys((*SECOND, *FIRST), text))
    assert control_group.memory_limit(root) is control_group.memory_left(root) is control_group.processors(root) is None
    assert control_group.memory_fixed(root) == control_group.memory_kills(root) == 0


def test_without_a_control_group(tmp_path: Path) -> None:
    assert control_group.memory_limit(tmp_path) is control_group.memory_left(tmp_path) is None
    assert control_group.processors(tmp_path) is None
    assert control_group.memory_fixed(tmp_path) == control_group.memory_kills(tmp_path) == 0
