"""How good word vectors are, measured on the text itself: no word list can be assumed for an unknown corpus.

contextAUC: how often a word is more similar (cosine) to a word that really stands near it, in text that was never
trained on, than to one that does not. The other one is drawn by shuffling the neighbours, so both have exactly the same
frequencies: 0.5 for untrained vectors and for vectors whose words were shuffled, whatever the corpus.

relatedAUC: the same question for pairs of English words that are related in meaning, against the pairs' words shuffled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mms_workloads.embedding.word2vec import Distribution

SHUFFLES = 20  # of the related pairs: few pairs need several draws
LEAST_RELATED_PAIRS = 20
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


def unit_rows(vectors: Tensor) -> Tensor:
    """Rows of length 1; a row of zeros stays."""
    lengths: Tensor = vectors.norm(dim=1, keepdim=True)
    return vectors / lengths.clamp(min=1e-12)


def context_auc(vectors: Tensor, blocks: Iterable[Tensor], words: Distribution, window: int, seed: int) -> float:
    """Vectors [V, d]; blocks: word numbers with -1 between sentences. 0.5 when there is no pair to compare."""
    units = unit_rows(vectors)
    rng = torch.Generator().manual_seed(seed)
    wins = total = 0.0
    for tokens in blocks:
        sentence = (tokens < 0).cumsum(0)
        used = (tokens >= 0) & (torch.rand(tokens.numel(), generator=rng) < words.keep[tokens.clamp(min=0)])
        ids, sentence = tokens[used], sentence[used]
        for distance in range(1, window + 1):
            left, right = ids[:-distance], ids[distance:]
            pairs = (sentence[:-distance] == sentence[distance:]) & (left != right)
            left, right = left[pairs], right[pairs]
            other = right[torch.randperm(right.numel(), generator=rng)]
            fair = other != left
            score = _wins(units, left[fair], right[fair], other[fair])
            wins, total = wins + score, total + int(fair.sum())
    return wins / total if total else 0.5


def related_auc(vectors: Tensor, vocabulary: Sequence[str], seed: int) -> float | None:
    """None when fewer than LEAST_RELATED_PAIRS pairs are in the vocabulary."""
    numbers = {word: number for number, word in enumerate(vocabulary)}
    pairs = [(numbers[a], numbers[b]) for a, b in related_pairs() if a in numbers and b in numbers]
    if len(pairs) < LEAST_RELATED_PAIRS:
        return None
    units = unit_rows(vectors)
    rng = torch.Generator().manual_seed(seed)
    left, right = (torch.tensor(side) for side in zip(*pairs, strict=True))
    wins = total = 0.0
    for _ in range(SHUFFLES):
        other = right[torch.randperm(right.numel(), generator=rng)]
        fair = (other != right) & (other != left)
        wins, total = wins + _wins(units, left[fair], right[fair], other[fair]), total + int(fair.sum())
    return wins / total


def _wins(units: Tensor, left: Tensor, right: Tensor, other: Tensor) -> float:
    near, far = (units[left] * units[right]).sum(1), (units[left] * units[other]).sum(1)
    return float((near > far).sum() + 0.5 * (near == far).sum())
