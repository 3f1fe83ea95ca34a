"""Labels as numbers, and how often a classifier is right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mms_workloads.contract import Reason
from mms_workloads.data.schema import class_of
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import Tensor

    from mms_workloads.tasks.task import Batch


def numbers(records: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> Tensor:
    """int64 [n]. Raises JobError for a label that is not among them."""
    place = {label: number for number, label in enumerate(labels)}
    return torch.tensor([number(place, record["label"]) for record in records], dtype=torch.int64)


def number(place: Mapping[str, int], label: object) -> int:
    """Raises JobError for a label that has none."""
    found = place.get(class_of(label))
    if found is None:
        raise JobError(
            Reason.DATA_UNREADABLE,
            f"label {class_of(label)!r} is not among the {len(place)} that the data set was found to have: it changed "
            "while the run went on. Start another run when the data rests",
        )
    return found


def accuracy(batches: Iterable[Batch], predict: Callable[[Batch], Tensor], count: int) -> dict[str, float]:
    """accuracy: the part that is right. macroF1: the mean of the F1 of labels that occur. predict: int64 [n]."""
    confusion = torch.zeros(count, count, dtype=torch.int64)  # true, predicted
    for batch in batches:
        confusion += torch.bincount(batch["label"] * count + predict(batch).cpu(), minlength=count * count).view(
            count, count
        )
    right = confusion.diagonal().double()
    true, told = confusion.sum(dim=1).double(), confusion.sum(dim=0).double()
    f1 = 2 * right / (true + told).clamp(min=1)
    total = float(true.sum())
    return {
        "accuracy": float(right.sum()) / total if total else 0.0,
        "macroF1": float(f1[true > 0].mean()) if total else 0.0,
    }


def edits(a: Sequence[object], b: Sequence[object]) -> int:
    """Changes, additions and omissions that make b of a, at least (Levenshtein, 1966)."""
    row = list(range(len(b) + 1))
    for i, one in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (one != other))
    return row[-1]
