"""Connectionist temporal classification (Graves et al., 2006): the likeliest labels, without repetitions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mms_workloads.serve.pipelines.classifying import label_of, likelihoods

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from mms_workloads.contract import Pipeline

BLANK = 0


def read(logits: NDArray[np.float32], steps: Sequence[int], pipeline: Pipeline) -> tuple[list[str], list[float]]:
    """Of logits [n, T, labels], of which each row has so many steps: texts, and how sure each label was in the mean."""
    likely = likelihoods(logits, pipeline)
    best, sure = likely.argmax(axis=2), likely.max(axis=2)
    texts, scores = [], []
    for row, count in enumerate(steps):
        labels = best[row, :count]
        kept = labels != BLANK
        kept[1:] &= labels[1:] != labels[:-1]
        texts.append("".join(label_of(pipeline, int(one)) for one in labels[kept]))
        scores.append(float(sure[row, :count][kept].mean()) if kept.any() else 0.0)
    return texts, scores
