"""How good word vectors are, measured on the text itself: no word list can be assumed for an unknown corpus.

contextAUC: how often a word is more similar (cosine) to a word that really stands near it, in text that was never
trained on, than to one that does not. The other one is drawn by shuffling the neighbours, so both have exactly the same
frequencies: 0.5 for untrained vectors and for vectors whose words were shuffled, whatever the corpus.

relatedAUC: the same question for pairs of English words that are related in meaning, against the pairs' words shuffled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from mms_workloads.embedding.distribution import Distribution

SHUFFLES = 20  # of the related pairs: few pairs need several draws
LEAST_RELATED_PAIRS = 20
PAIRS_AT_ONCE = ROWS_AT_ONCE = 8192
MAX_BLOCKS = 40  # some million pairs: the error is below a thousandth by then

_RELATED = """
war peace|war army|army navy|soldiers troops|freedom liberty|law laws|court judge|justice law|money debt|
gold silver|bank banks|tax taxes|trade commerce|import export|imports exports|school schools|teacher school|
children parents|mother father|son daughter|man woman|men women|boy girl|king queen|brother sister|
husband wife|city town|river lake|sea ocean|ship ships|land sea|north south|east west|summer winter|day night|
week month|month year|year years|morning evening|hot cold|water river|food bread|corn wheat|farm farmers|
horse horses|doctor hospital|health disease|church god|religion church|science scientific|music song|
book books|read write|buy sell|rich poor|old young|large small|high low|great greater|good bad|first second|
two three|hundred thousand|million billion|increase decrease|workers labor|wages employment|energy oil|
coal iron|president congress|senate house|government governments|treaty treaties|france spain|england britain|
germany france|russia soviet|european europe|american america|mexico texas|january february|july august|
black white|red blue
"""


def related_pairs() -> list[tuple[str, str]]:
    pairs = [pair.split() for pair in _RELATED.replace("\n", "").split("|")]
    return [(first, second) for first, second in pairs]


def lengths(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of the rows [V]; 1 for a row of zeros. In parts: there is memory for the vectors once."""
    out = np.empty(len(vectors), np.float32)
    for first in range(0, len(vectors), ROWS_AT_ONCE):
        out[first : first + ROWS_AT_ONCE] = np.linalg.norm(vectors[first : first + ROWS_AT_ONCE], axis=1)
    return np.where(out > 0, out, np.float32(1))


def unit_rows(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1; a row of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units: NDArray[np.float32] = vectors / np.maximum(lengths, 1e-12)
    return units


def measured(
    vectors: NDArray[np.float32],
    vocabulary: Sequence[str],
    blocks: Iterable[NDArray[np.int32]],
    words: Distribution,
    window: int,
    *,
    seed: int,
    held_out: bool,
) -> dict[str, float]:
    """The metrics by name; held_out: whether the blocks were not trained on."""
    metrics = {"contextAUC" if held_out else "trainingContextAUC": context_auc(vectors, blocks, words, window, seed)}
    related = related_auc(vectors, vocabulary, seed)
    return metrics if related is None else {**metrics, "relatedAUC": related}


def context_auc(
    vectors: NDArray[np.float32], blocks: Iterable[NDArray[np.int32]], words: Distribution, window: int, seed: int
) -> float:
    """Vectors [V, d]; blocks: word numbers with -1 between sentences. 0.5 when there is no pair to compare."""
    sizes = lengths(vectors)
    rng = np.random.default_rng(seed)
    wins = total = 0.0
    for tokens in blocks:
        for left, right, other in _comparisons(tokens, words, window, rng):
            wins, total = wins + _wins(vectors, sizes, left, right, other), total + len(left)
    return wins / total if total else 0.5


def sample(tokens: NDArray[np.int32], words: Distribution, window: int, seed: int, size: int) -> NDArray[np.int32]:
    """Comparisons of contextAUC drawn from one block, at most `size`: [n, 3], a word, one near it, one that is not."""
    rng = np.random.default_rng(seed)
    found = [np.stack(one, axis=1) for one in _comparisons(tokens, words, window, rng)]
    all_ = np.concatenate(found) if found else np.empty((0, 3), np.int32)
    return np.ascontiguousarray(rng.permutation(all_)[:size], np.int32)


def _comparisons(
    tokens: NDArray[np.int32], words: Distribution, window: int, rng: np.random.Generator
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]]:
    """Of each distance: words [n], words that stand so far from them, and the same words shuffled."""
    sentence = np.cumsum(tokens < 0)
    used = (tokens >= 0) & (rng.random(len(tokens)) < words.keep[np.maximum(tokens, 0)])
    ids, sentence = tokens[used], sentence[used]
    for distance in range(1, window + 1):
        left, right = ids[:-distance], ids[distance:]
        pairs = (sentence[:-distance] == sentence[distance:]) & (left != right)
        left, right = left[pairs], right[pairs]
        other = rng.permutation(right)
        fair = other != left
        yield left[fair], right[fair], other[fair]


def related_auc(vectors: NDArray[np.float32], vocabulary: Sequence[str], seed: int) -> float | None:
    """None when fewer than LEAST_RELATED_PAIRS pairs are in the vocabulary."""
    asked = {word for pair in related_pairs() for word in pair}
    numbers = {word: number for number, word in enumerate(vocabulary) if word in asked}
    pairs = [(numbers[a], numbers[b]) for a, b in related_pairs() if a in numbers and b in numbers]
    if len(pairs) < LEAST_RELATED_PAIRS:
        return None
    sizes = lengths(vectors)
    rng = np.random.default_rng(seed)
    left, right = np.array(pairs).T
    wins = total = 0.0
    for _ in range(SHUFFLES):
        other = rng.permutation(right)
        fair = (other != right) & (other != left)
        wins, total = wins + _wins(vectors, sizes, left[fair], right[fair], other[fair]), total + int(fair.sum())
    return wins / total


def _wins(
    vectors: NDArray[np.float32],
    sizes: NDArray[np.float32],
    left: NDArray[Any],
    right: NDArray[Any],
    other: NDArray[Any],
) -> float:
    """How often left is nearer to right than to other, by cosine; in parts, since memory must not grow with a block."""
    wins = 0.0
    for first in range(0, len(left), PAIRS_AT_ONCE):
        part = slice(first, first + PAIRS_AT_ONCE)
        asked, there, away = vectors[left[part]], right[part], other[part]
        near = np.einsum("nd,nd->n", asked, vectors[there]) / sizes[there]
        far = np.einsum("nd,nd->n", asked, vectors[away]) / sizes[away]
        wins += float((near > far).sum() + 0.5 * (near == far).sum())
    return wins
