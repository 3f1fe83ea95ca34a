"""A worker's own learner, which also writes the loss of each of its rounds into a file of $RECORDED."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mms_workloads.train import learner

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = "RECORDED"
MODULE = __name__
_made = learner.make


class _Recorded:
    def __init__(self, it: Any, rank: int) -> None:
        self._it, self._file = it, Path(os.environ[FOLDER]) / f"{rank}.jsonl"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._it, name)

    def compute(self, state: Any, slices: Any, place: Any) -> Any:
        stats = self._it.compute(state, slices, place)
        if stats.samples:
            with self._file.open("a") as file:
                file.write(json.dumps([state.agreement.step, stats.samples, stats.loss]) + "\n")
        return stats


def make(pod: Any, *rest: Any) -> Any:
    return _Recorded(_made(pod, *rest), pod.rank)


def losses(folder: Path) -> list[float]:
    """The mean over a step's samples, by step."""
    sums: dict[int, list[float]] = {}
    for step, samples, loss in _lines(folder):
        total = sums.setdefault(step, [0.0, 0.0])
        total[0] += samples * loss
        total[1] += samples
    return [loss / samples for _, (loss, samples) in sorted(sums.items())]


def _lines(folder: Path) -> Iterator[tuple[int, int, float]]:
    for path in sorted(folder.glob("*.jsonl")):
        yield from map(json.loads, path.read_text().splitlines())
