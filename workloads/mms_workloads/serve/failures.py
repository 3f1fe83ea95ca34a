"""Requests at which a model failed, counted by its processes for the agent. This runs inside Triton, too.

Triton counts a batch as failed only where all of it is. One request of a batch spoils no other, and would be a success.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class Failures:
    """Of one process, in a file beside the generations': those of processes before it stay in it."""

    def __init__(self, generations: Path, instance: str, triton: int) -> None:
        """instance: the process's name; triton: the version of its model."""
        self._file = generations.with_name(f"failed-{instance}.{triton}")
        self._count = _read(self._file)

    def add(self, number: int) -> None:
        self._count += number
        part = self._file.with_name(f"{self._file.name}.part")
        try:
            part.write_text(str(self._count))
            part.replace(self._file)
        except OSError as error:  # the answer goes out, and the next failure tells of this one
            print(f"{self._file}: {error}", flush=True)  # noqa: T201 - Triton's log


def total(generations: Path) -> int:
    """Of all processes that there were."""
    return sum(_read(file) for file in generations.parent.glob("failed-*") if file.suffix != ".part")


def _read(file: Path) -> int:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return 0
