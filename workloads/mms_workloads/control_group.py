"""What the container may use and has used, as its control group says: of version 2, or of 1 with its controllers apart.

Everything is None, or 0, where there is no control group that tells.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/sys/fs/cgroup")  # of the container, by its own cgroup namespace or as the runtime mounts it
_UNLIMITED = 1 << 62  # version 1 says so with about as many pages as there can be


def memory_limit(root: Path = ROOT) -> int | None:
    """Bytes."""
    text = _read(root / "memory.max") or _read(root / "memory" / "memory.limit_in_bytes")
    limit = _number(text)
    return None if limit is None or limit >= _UNLIMITED else limit


def memory_fixed(root: Path = ROOT) -> int:
    """Bytes that cannot be dropped: of processes, of the kernel on their behalf, and of shared memory."""
    rows = _memory(root)
    return sum(rows.get(name, 0) for name in ("anon", "kernel", "shmem"))


def memory_left(root: Path = ROOT) -> int | None:
    """Bytes that may still be taken. Copies of files count as used, and go when memory is wanted."""
    limit = memory_limit(root)
    used = _number(_read(root / "memory.current") or _read(root / "memory" / "memory.usage_in_bytes"))
    if limit is None or used is None:
        return None
    rows = _memory(root)
    return limit - used + sum(rows.get(name, 0) for name in ("active_file", "inactive_file", "slab_reclaimable"))


def processors(root: Path = ROOT) -> float | None:
    """Of the limit; None without one."""
    said = (_read(root / "cpu.max") or "").split()
    if not said:
        said = [_read(root / "cpu" / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")]
    quota, period = (_number(one) for one in said) if len(said) == 2 else (None, None)  # noqa: PLR2004
    return quota / period if quota and period and quota > 0 else None


def memory_kills(root: Path = ROOT) -> int:
    """How many processes the kernel has killed for want of memory."""
    rows = _rows(root / "memory.events") or _rows(root / "memory" / "memory.oom_control")
    return rows.get("oom_kill", 0)


def _memory(root: Path) -> dict[str, int]:
    """memory.stat, by the names of version 2."""
    if rows := _rows(root / "memory.stat"):
        return rows
    folder = root / "memory"
    rows = {name.removeprefix("total_"): value for name, value in _rows(folder / "memory.stat").items()}
    kernel = _number(_read(folder / "memory.kmem.usage_in_bytes")) or 0
    return {**rows, "anon": rows.get("rss", 0), "kernel": kernel}  # a total follows what it is of


def _rows(file: Path) -> dict[str, int]:
    pairs = (line.split() for line in (_read(file) or "").splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}  # noqa: PLR2004


def _number(text: str | None) -> int | None:
    try:
        return int(text or "")
    except ValueError:  # "max"
        return None


def _read(file: Path) -> str | None:
    try:
        return file.read_text().strip()
    except OSError:
        return None
