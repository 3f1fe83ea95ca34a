"""A page about trained word vectors: the loss, how good they are, and a map of the most frequent words. Pure.

One file of HTML with pictures in SVG, without scripts, so that it can be opened from anywhere.
"""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from mms_workloads import pages
from mms_workloads.embedding.evaluation import unit_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mms_workloads.contract import WordEmbedding
    from mms_workloads.data.vocabulary import Vocabulary

MAPPED, FREQUENT = 250, 100  # words of the map; more frequent ones are mostly grammar
FITTED = 5000  # words whose principal components are the map's axes
SHOWN, NEIGHBOURS = 12, 6  # words with their nearest ones
WIDTH, HEIGHT = 960, 640
CURVE_HEIGHT = 220
MARGIN = 48
POINTS = 1000  # of the curve, at most
LETTER, LINE, LONGEST = 7, 12, 24  # about a letter's width, a line's height, letters that are written
METRICS = {
    "contextAUC": "A word is more similar to one that stands near it, in text that was kept back, than to another",
    "trainingContextAUC": "A word is more similar to one that stands near it, in text trained on, than to another",
    "relatedAUC": "Pairs of English words of related meaning are more similar than other pairs",
}
STYLE = f"{pages.STYLE}circle {{ fill: var(--accent); }}\n"


def page(
    vocabulary: Vocabulary,
    vectors: NDArray[np.float32],
    metrics: dict[str, float],
    losses: Sequence[tuple[int, float]],
    task: WordEmbedding,
) -> str:
    """vectors: [V, d]; losses: after so many words. HTML."""
    units = unit_rows(vectors[:FITTED])
    told = [(words, loss) for words, loss in losses if math.isfinite(loss)]
    parts = [
        f"<h1>Word vectors</h1><p>{escape(_summary(vocabulary, task))}</p>",
        "<h2>Quality</h2>" + _scores(metrics),
        *(["<h2>Loss</h2>" + _curve(told)] if len(told) > 1 else []),
        f"<h2>Map</h2><p>The two principal components of the {len(units)} most frequent words' directions.</p>"
        + _map(vocabulary.words, units),
        f"<h2>Neighbours</h2><p>By cosine, among the {len(units)} most frequent words.</p>"
        + _neighbours(vocabulary.words, units),
    ]
    body = "\n".join(f"<section>{part}</section>" for part in parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Word vectors</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n'
        f"<body>{body}</body></html>\n"
    )


def plane(units: NDArray[np.float32]) -> NDArray[np.float32]:
    """Principal components [n, 2] of rows [n, d]. Signs are fixed, so that the picture is repeatable."""
    centred = units - units.mean(axis=0)
    values, axes = np.linalg.eigh(centred.T @ centred)
    two = axes[:, np.argsort(-values)[:2]]
    places: NDArray[np.float32] = centred @ two
    if places.shape[1] < 2:  # noqa: PLR2004 - vectors of one dimension
        places = np.pad(places, ((0, 0), (0, 2 - places.shape[1])))
    return places * np.where((places**3).sum(axis=0) < 0, -1, 1).astype(np.float32)


def _summary(vocabulary: Vocabulary, task: WordEmbedding) -> str:
    name = {"SkipGram": "Skip-gram", "CBOW": "CBOW"}[task.model]
    objective = {
        "NegativeSampling": f"{task.negatives} negatives",
        "HierarchicalSoftmax": "hierarchical softmax",
        "Softmax": "exact softmax",
    }[task.objective]
    pieces = f", n-grams of {task.subwords.minLength} to {task.subwords.maxLength} characters" if task.subwords else ""
    return (
        f"{name}, {objective}{pieces}: {len(vocabulary):,} words of {task.dimensions} dimensions, "
        f"from {sum(vocabulary.counts):,} occurrences, window {task.window}."
    )


def _scores(metrics: dict[str, float]) -> str:
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="number">{value:.3f}</td>'
        f'<td class="note">{escape(METRICS.get(name, ""))}: 0.5 is chance, 1 is always.</td></tr>'
        for name, value in metrics.items()
    )
    return f"<table>{rows}</table>"


def _curve(losses: Sequence[tuple[int, float]]) -> str:
    words, values = np.array(losses[:: len(losses) // POINTS + 1], float).T
    low, high = float(values.min()), float(values.max())
    x = MARGIN + words / words.max() * (WIDTH - 2 * MARGIN)
    y = MARGIN / 2 + (high - values) / ((high - low) or 1) * (CURVE_HEIGHT - MARGIN)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    bottom = CURVE_HEIGHT - MARGIN / 2
    return (
        f'<svg viewBox="0 0 {WIDTH} {CURVE_HEIGHT}" role="img" aria-label="Loss by words trained on">'
        f'<line x1="{MARGIN}" y1="{bottom}" x2="{WIDTH - MARGIN}" y2="{bottom}"/>'
        f'<polyline points="{points}"/>'
        f'<text class="axis" x="0" y="{y[values.argmax()] + 4:.0f}">{high:.3f}</text>'
        f'<text class="axis" x="0" y="{y[values.argmin()] + 4:.0f}">{low:.3f}</text>'
        f'<text class="axis" x="{WIDTH - MARGIN}" y="{CURVE_HEIGHT - 4}" text-anchor="end">'
        f"{int(words.max()):,} words trained on</text></svg>"
    )


def _map(words: Sequence[str], units: NDArray[np.float32]) -> str:
    """Where names would lie over each other the most frequent word has one; the others tell theirs when pointed at."""
    first = min(FREQUENT, max(0, len(units) - MAPPED))
    places = plane(units)[first : first + MAPPED]
    low, high = places.min(axis=0), places.max(axis=0)
    span = np.where(high > low, high - low, 1)
    x, y = (MARGIN / 2 + (places - low) / span * (np.array([WIDTH, HEIGHT]) - 2 * MARGIN)).T
    named, dots = list[tuple[float, float, float]](), ""
    for word, a, b in zip(words[first : first + MAPPED], x.tolist(), y.tolist(), strict=True):
        box = (a, b, a + LETTER * (len(word[:LONGEST]) + 1))
        text = ""
        if not any(box[0] < right and left < box[2] and abs(b - at) < LINE for left, at, right in named):
            named.append(box)
            text = f'<text x="{a + 4:.1f}" y="{b + 4:.1f}">{escape(word[:LONGEST])}</text>'
        dots += f'<g><title>{escape(word)}</title><circle cx="{a:.1f}" cy="{b:.1f}" r="2"/>{text}</g>'
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Map of frequent words">{dots}</svg>'


def _neighbours(words: Sequence[str], units: NDArray[np.float32]) -> str:
    asked = np.unique(np.geomspace(min(FREQUENT, len(units)), len(units), SHOWN).astype(int)) - 1
    scores = units[asked] @ units.T
    scores[np.arange(len(asked)), asked] = -2  # a word is not its own neighbour
    rows = "".join(
        f"<tr><th>{escape(words[number])}</th><td>"
        + ", ".join(f"{escape(words[i])} {row[i]:.2f}" for i in np.argsort(-row)[: min(NEIGHBOURS, len(row) - 1)])
        + "</td></tr>"
        for number, row in zip(asked, scores, strict=True)
    )
    return f"<table>{rows}</table>"
