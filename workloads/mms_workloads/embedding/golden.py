"""The golden set of word vectors: requests with their right answers, computed where the model was trained."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from mms_workloads import golden_tensors
from mms_workloads.contract import Golden, GoldenCase
from mms_workloads.embedding.evaluation import unit_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

GOLDEN_NEIGHBOURS = 8  # cases of `neighbours`
GOLDEN_VECTORS = 4  # cases of `vectors`: two by word, two by number
GOLDEN_ANALOGIES = GOLDEN_PAIRS = 2  # cases of `analogies`; pairs of texts of the case of `similarity`
TRIED = 64  # analogies at most
GOLDEN_K = 10
# Neighbours whose scores are closer could come in either order on another machine's arithmetic.
GOLDEN_GAP = 1e-4


def golden(vectors: NDArray[np.float32], words: tuple[str, ...]) -> Golden:
    """Requests with their right answers: neighbours of frequent and of rarer words, vectors by word and by number,
    analogies, the similarity of short texts.
    """
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
    cases += itertools.islice(_analogies(units, words, spread), GOLDEN_ANALOGIES)
    cases += _similarity(units, words, spread)
    asked = sorted({min(len(words) - 1, int(len(words) ** (i / 511)) - 1) for i in range(512)})
    comparisons = [_nearest(units, words, number)[0] for number in asked if len(words) > 1]
    return Golden(cases=cases, comparisons=comparisons)


def _analogies(units: NDArray[np.float32], words: tuple[str, ...], spread: list[int]) -> Iterator[GoldenCase]:
    """Those whose order does not hang by rounding."""
    for three in itertools.islice(itertools.permutations(spread, 3), TRIED):
        k = min(GOLDEN_K, len(words) - 3)
        if k < 1:
            return
        a, b, c = units[list(three)]
        scores = units @ unit_rows((b - a + c)[None])[0]
        scores[list(three)] = -2.0
        best, gap = _best(scores, k)
        if gap >= GOLDEN_GAP:
            yield GoldenCase(
                model="analogies",
                inputs={"K": [k]},
                tensors={"IDS": golden_tensors.tensor(np.array([three], np.int64))},
                outputs={"WORDS": [words[i] for i in best], "SCORES": scores[best].tolist()},
            )


def _similarity(units: NDArray[np.float32], words: tuple[str, ...], spread: list[int]) -> list[GoldenCase]:
    """Texts of two words, each in a line of its own: else they could be a phrase, as those with _ are."""
    plain = [number for number in spread if "_" not in words[number]]
    pairs = list(zip(plain[::4], plain[1::4], plain[2::4], strict=False))[:GOLDEN_PAIRS]
    if not pairs:
        return []
    texts, scores = [], []
    for first, second, other in pairs:
        texts.append([f"{words[first]}\n{words[second]}", words[other]])
        mean = unit_rows((units[first] + units[second])[None])[0]
        scores.append(float(mean @ units[other]))
    given = {"TEXTS": golden_tensors.tensor(np.array(texts, np.object_))}
    return [GoldenCase(model="similarity", tensors=given, outputs={"SCORES": scores})]


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
    best, gap = _best(scores, k)
    case = GoldenCase(
        model="neighbours",
        inputs={"WORDS": [words[number]], "K": [k]},
        outputs={"WORDS": [words[i] for i in best], "SCORES": scores[best].tolist()},
    )
    return case, gap


def _best(scores: NDArray[np.float32], k: int) -> tuple[list[int], float]:
    """The k highest, and the smallest difference between scores that follow each other, the next one's too."""
    best = np.argpartition(-scores, min(k, len(scores) - 1))[: k + 1]
    best = best[np.argsort(-scores[best])]
    return best[:k].tolist(), float(np.diff(-scores[best]).min())
