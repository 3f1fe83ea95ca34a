"""The golden set of word vectors: requests with their right answers, computed where the model was trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mms_workloads.contract import Golden, GoldenCase
from mms_workloads.embedding.evaluation import unit_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

GOLDEN_NEIGHBOURS = 8  # cases of `neighbours`
GOLDEN_VECTORS = 4  # cases of `vectors`: two by word, two by number
GOLDEN_K = 10
# Neighbours whose scores are closer could come in either order on another machine's arithmetic.
GOLDEN_GAP = 1e-4


def golden(vectors: NDArray[np.float32], words: tuple[str, ...]) -> Golden:
    """Requests with their right answers: neighbours of frequent and of rarer words, vectors by word and by number."""
    units = unit_rows(vectors)
    cases: list[GoldenCase] = []
    # From the most frequent words down to the middle of the vocabulary, evenly on a logarithmic scale.
    span = max(2, len(words) // 2)
    spread = sorted({min(len(words) - 1, int(span ** (i / 63)) - 1) for i in range(64)})
    by_number = False
    for number in spread:
        case = _neighbours(units, words, number, by_number=by_number)
        if case:
            cases.append(case)
            by_number = not by_number
        if len(cases) == GOLDEN_NEIGHBOURS:
            break
    picks = spread[:: max(1, len(spread) // GOLDEN_VECTORS)][:GOLDEN_VECTORS]
    for index, number in enumerate(picks):
        inputs: dict[str, list[str] | list[int] | list[float]] = (
            {"WORDS": [words[number]]} if index % 2 == 0 else {"IDS": [number]}
        )
        cases.append(GoldenCase(model="vectors", inputs=inputs, outputs={"VECTORS": vectors[number].tolist()}))
    asked = sorted({min(len(words) - 1, int(len(words) ** (i / 511)) - 1) for i in range(512)})
    comparisons = [_nearest(units, words, number)[0] for number in asked if len(words) > 1]
    return Golden(cases=cases, comparisons=comparisons)


def _neighbours(
    units: NDArray[np.float32], words: tuple[str, ...], number: int, *, by_number: bool
) -> GoldenCase | None:
    """None when the order of the answer hangs by rounding."""
    case, gap = _nearest(units, words, number)
    if gap < GOLDEN_GAP:
        return None
    return case.model_copy(update={"inputs": {"IDS": [number], "K": case.inputs["K"]}}) if by_number else case


def _nearest(units: NDArray[np.float32], words: tuple[str, ...], number: int) -> tuple[GoldenCase, float]:
    """A word's neighbours, and the smallest difference between scores that follow each other, the next one's too."""
    k = min(GOLDEN_K, len(words) - 1)
    scores = units @ units[number]
    scores[number] = -2.0  # a word is not its own neighbour
    best = np.argpartition(-scores, min(k, len(words) - 1))[: k + 1]
    best = best[np.argsort(-scores[best])]
    case = GoldenCase(
        model="neighbours",
        inputs={"WORDS": [words[number]], "K": [k]},
        outputs={"WORDS": [words[i] for i in best[:k].tolist()], "SCORES": scores[best[:k]].tolist()},
    )
    return case, float(np.diff(-scores[best]).min())
