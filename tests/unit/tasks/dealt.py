"""A worker's own learner, of which each transform that a block is dealt is a line in a file of $DEALT."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mms_workloads.data import augmentation
from mms_workloads.train import learner

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

FOLDER = "DEALT"
MODULE = __name__
_made = learner.make


def _watched(apply: Callable[..., Any], file: Path) -> Callable[..., Any]:
    def applied(name: str, given: torch.Tensor, *rest: Any, **named: Any) -> Any:
        found = apply(name, given, *rest, **named)
        values = found[0] if isinstance(found, tuple) else found
        changed = int((values != given).any(dim=1).sum())
        tags = named.get("tags")
        together = tags is None or name == "WordDropout" or _pairs(given, tags) == _pairs(*found)
        with file.open("a") as out:
            out.write(json.dumps([name, len(given), changed, together]) + "\n")
        return found

    return applied


def _pairs(tokens: torch.Tensor, tags: torch.Tensor) -> list[list[tuple[int, int]]]:
    """Of each sample, whatever their order."""
    return [sorted(zip(*row, strict=True)) for row in zip(tokens.tolist(), tags.tolist(), strict=True)]


def make(pod: Any, *rest: Any) -> Any:
    file = Path(os.environ[FOLDER]) / f"{pod.rank}.jsonl"
    for name in ("apply_audio", "apply_text"):
        setattr(augmentation, name, _watched(getattr(augmentation, name), file))
    return _made(pod, *rest)


def transforms(folder: Path) -> dict[str, tuple[int, int, bool]]:
    """By name: samples, how many of them it changed, and whether all tags went with their words."""
    found: dict[str, tuple[int, int, bool]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for name, samples, changed, together in map(json.loads, path.read_text().splitlines()):
            before = found.get(name, (0, 0, True))
            found[name] = before[0] + samples, before[1] + changed, before[2] and together
    return found
