"""The golden set of word vectors: requests with their right answers, computed where the model was trained."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mms_workloads import golden_tensors
from mms_workloads.contract import Golden, GoldenCase
from mms_workloads.embedding import graph as graphs
from mms_workloads.embedding.evaluation import lengths, unit_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

GOLDEN_NEIGHBOURS = 8  # cases of `neighbours`
GOLDEN_VECTORS = 4  # cases of `vectors`: two by word, two by number
GOLDEN_ANALOGIES = GOLDEN_PAIRS = 2  # cases of `analogies`; pairs of texts of the case of `similarity`
TRIED = 64  # analogies at most
GOLDEN_K = 10
# Neighbours whose scores are closer could come in either order on another machine's arithmetic.
GOLDEN_GAP = 1e-4
ROWS_AT_ONCE = 2048  # of vectors, whose scores with all directions are in memory


@dataclass(frozen=True, slots=True)
class Nearest:
    """The words that are nearest to a direction, the nearest first, and the next one."""

    numbers: list[int]
    scores: list[float]

    def first(self, k: int) -> tuple[list[int], list[float]]:
        return self.numbers[:k], self.scores[:k]

    @property
    def gap(self) -> float:
        """The smallest difference between scores that follow each other."""
        return float(np.diff(-np.array(self.scores)).min(initial=np.inf))


def golden(vectors: NDArray[np.float32], words: tuple[str, ...], graph: Any | None = None) -> Golden:
    """Requests with their right answers: neighbours of frequent and of rarer words, vectors by word and by number,
    analogies, the similarity of short texts. vectors: [V, d], which may be on disk; graph: that is served with them, in
    which what is asked for must be found.
    """
    # From the most frequent words down to the middle of the vocabulary, evenly on a logarithmic scale.
    span = max(2, len(words) // 2)
    spread = sorted({min(len(words) - 1, int(span ** (i / 63)) - 1) for i in range(64)})
    asked = sorted({min(len(words) - 1, int(len(words) ** (i / 511)) - 1) for i in range(512)})
    singles = sorted({*spread, *asked}) if len(words) > 1 else []
    units = dict(zip(singles, unit_rows(vectors[singles]), strict=True))
    threes = list(itertools.islice(itertools.permutations(spread, 3), TRIED)) if len(words) > 3 else []  # noqa: PLR2004
    ways = [units[b] - units[a] + units[c] for a, b, c in threes]
    known: list[tuple[int, ...]] = [*((number,) for number in singles), *threes]
    directions = unit_rows(np.array([*units.values(), *ways], np.float32).reshape(len(known), vectors.shape[1]))
    found = dict(zip(known, nearest(vectors, directions, known, GOLDEN_K + 1), strict=True))
    asks = dict(zip(known, directions, strict=True))

    def clear(one: tuple[int, ...]) -> bool:
        """Whether its order does not hang by rounding, and the graph finds them all."""
        return found[one].gap >= GOLDEN_GAP and (
            graph is None or graphs.finds(graph, asks[one], one, found[one].numbers[:GOLDEN_K])
        )

    cases: list[GoldenCase] = []
    fit = (number for number in spread if (number,) in found and clear((number,)))
    for index, number in enumerate(itertools.islice(fit, GOLDEN_NEIGHBOURS)):
        case = _neighbours(words, number, found[number,])
        given = {"IDS": [number], "K": case.inputs["K"]}
        cases.append(case.model_copy(update={"inputs": given}) if index % 2 else case)
    picks = spread[:: max(1, len(spread) // GOLDEN_VECTORS)][:GOLDEN_VECTORS]
    for index, number in enumerate(picks):
        inputs: dict[str, list[str] | list[int] | list[float]] = (
            {"WORDS": [words[number]]} if index % 2 == 0 else {"IDS": [number]}
        )
        cases.append(GoldenCase(model="vectors", inputs=inputs, outputs={"VECTORS": vectors[number].tolist()}))
    analogies = (_analogy(words, three, found[three]) for three in threes if clear(three))
    cases += itertools.islice(analogies, GOLDEN_ANALOGIES)
    cases += _similarity(unit_rows(vectors[spread]), words, spread)
    comparisons = [_neighbours(words, number, found[number,]) for number in asked if (number,) in found]
    return Golden(cases=cases, comparisons=comparisons)


def nearest(
    vectors: NDArray[np.float32], directions: NDArray[np.float32], without: Sequence[tuple[int, ...]], count: int
) -> Iterator[Nearest]:
    """Of each direction [n, d] of length 1 the `count` words whose vectors [V, d] are nearest by cosine, but those that
    are left out. The vectors are read once, in parts: they may be on disk, and more than there is memory for.
    """
    sizes = lengths(vectors)
    best = np.zeros((len(directions), 0), np.int64)
    scores = np.zeros((len(directions), 0), np.float32)
    owners = np.repeat(np.arange(len(without)), [len(one) for one in without])
    left_out = np.array([number for one in without for number in one], np.int64)
    for first in range(0, len(vectors), ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        part = directions @ (vectors[rows] / sizes[rows, None]).T
        here = (left_out >= first) & (left_out < first + part.shape[1])
        part[owners[here], left_out[here] - first] = -np.inf
        numbers = np.broadcast_to(np.arange(first, first + part.shape[1]), part.shape)
        best, scores = np.concatenate((best, numbers), axis=1), np.concatenate((scores, part), axis=1)
        if scores.shape[1] > count:
            chosen = np.argpartition(-scores, count - 1, axis=1)[:, :count]
            best, scores = np.take_along_axis(best, chosen, 1), np.take_along_axis(scores, chosen, 1)
    for numbers, values in zip(best, scores, strict=True):
        order = np.argsort(-values, kind="stable")
        order = order[np.isfinite(values[order])]
        yield Nearest(numbers[order].tolist(), values[order].tolist())


def _neighbours(words: tuple[str, ...], number: int, found: Nearest) -> GoldenCase:
    k = min(GOLDEN_K, len(words) - 1)
    numbers, scores = found.first(k)
    return GoldenCase(
        model="neighbours",
        inputs={"WORDS": [words[number]], "K": [k]},
        outputs={"WORDS": [words[i] for i in numbers], "SCORES": scores},
    )


def _analogy(words: tuple[str, ...], three: tuple[int, int, int], found: Nearest) -> GoldenCase:
    k = min(GOLDEN_K, len(words) - 3)
    numbers, scores = found.first(k)
    return GoldenCase(
        model="analogies",
        inputs={"K": [k]},
        tensors={"IDS": golden_tensors.tensor(np.array([three], np.int64))},
        outputs={"WORDS": [words[i] for i in numbers], "SCORES": scores},
    )


def _similarity(units: NDArray[np.float32], words: tuple[str, ...], spread: list[int]) -> list[GoldenCase]:
    """units: of the words of `spread`. Texts of two words, each in a line of its own: else they could be a phrase, as
    those with _ are.
    """
    plain = [at for at, number in enumerate(spread) if "_" not in words[number]]
    pairs = list(zip(plain[::4], plain[1::4], plain[2::4], strict=False))[:GOLDEN_PAIRS]
    if not pairs:
        return []
    texts, scores = [], []
    for first, second, other in pairs:
        texts.append([f"{words[spread[first]]}\n{words[spread[second]]}", words[spread[other]]])
        mean = unit_rows((units[first] + units[second])[None])[0]
        scores.append(float(mean @ units[other]))
    given = {"TEXTS": golden_tensors.tensor(np.array(texts, np.object_))}
    return [GoldenCase(model="similarity", tensors=given, outputs={"SCORES": scores})]
