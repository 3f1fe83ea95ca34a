"""Boxes as left, top, right, bottom: how far two overlap, which are kept, and how well detections fit the truth."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


def overlaps(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of each pair. a [n, 4], b [m, 4] -> [n, m]."""
    corner = torch.maximum(a[:, None, :2], b[None, :, :2])
    far = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    common = (far - corner).clamp(min=0).prod(dim=2)
    return common / (_area(a)[:, None] + _area(b)[None] - common).clamp(min=1e-9)


def generalised(a: Tensor, b: Tensor) -> Tensor:
    """Generalised intersection over union of pairs (Rezatofighi et al., 2019). a, b [n, 4] -> [n], -1 to 1."""
    common = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(dim=1)
    union = (_area(a) + _area(b) - common).clamp(min=1e-9)
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(dim=1).clamp(min=1e-9)
    return common / union - (hull - union) / hull


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)


def kept(boxes: Tensor, scores: Tensor, overlap: float) -> Tensor:
    """The rows that stay when of two boxes that overlap more the better one does: int64, the best first."""
    order = scores.argsort(descending=True)
    apart = overlaps(boxes[order], boxes[order]) <= overlap
    alive = torch.ones(len(order), dtype=torch.bool)
    for row in range(len(order)):
        if alive[row]:
            alive[row + 1 :] &= apart[row, row + 1 :]
    return order[alive]


@dataclass(slots=True)
class AveragePrecision:
    """The mean over the labels of the area under precision by recall, at an overlap of half.

    Everingham et al., The PASCAL Visual Object Classes Challenge, 2010.
    """

    labels: int
    threshold: float = 0.5
    _found: list[list[tuple[float, bool]]] = field(init=False)  # by label: score, whether it is a true object
    _truth: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self._found = [[] for _ in range(self.labels)]
        self._truth = [0] * self.labels

    def add(self, boxes: Tensor, scores: Tensor, found: Tensor, true_boxes: Tensor, true_labels: Tensor) -> None:
        """One image: boxes [n, 4], scores and labels `found` [n]; the truth [m, 4], [m]."""
        for label in range(self.labels):
            mine = (found == label).nonzero()[:, 0]
            mine = mine[scores[mine].argsort(descending=True)]
            truth = true_boxes[true_labels == label]
            self._truth[label] += len(truth)
            fits = overlaps(boxes[mine], truth)
            free = torch.ones(len(truth), dtype=torch.bool)
            for row, one in enumerate(mine):
                best = int((fits[row] * free).argmax()) if len(truth) else -1
                right = best >= 0 and bool(free[best]) and float(fits[row, best]) >= self.threshold
                if right:
                    free[best] = False
                self._found[label].append((float(scores[one]), right))

    def mean(self) -> float:
        """Over the labels that there are objects of."""
        found = [self._area(label) for label in range(self.labels) if self._truth[label]]
        return sum(found) / len(found) if found else 0.0

    def _area(self, label: int) -> float:
        ordered = sorted(self._found[label], key=lambda one: -one[0])
        if not ordered:
            return 0.0
        right = torch.tensor([one[1] for one in ordered], dtype=torch.float64).cumsum(dim=0)
        precision = right / torch.arange(1, len(ordered) + 1)
        precision = precision.flip(0).cummax(dim=0).values.flip(0)
        recall = right / self._truth[label]
        steps = torch.diff(recall, prepend=torch.zeros(1, dtype=torch.float64))
        return float((precision * steps).sum())
