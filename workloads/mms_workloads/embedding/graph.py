"""Neighbours among very many words: a graph in which a search finds nearly all of the nearest (HNSW; Malkov and
Yashunin, 2018), by usearch. numpy only beside it: what searches runs inside Triton.

The worker that writes the artifact makes it, which takes minutes; a served model maps it. Scores are never the graph's:
it names candidates, whose cosines are computed from their vectors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

FILE = "neighbours.usearch"
LEAST_WORDS = 250_000  # for fewer a product with all vectors takes ten milliseconds or less
MOST = 64  # neighbours that are sought in the graph: of more it would have to visit much of it
CANDIDATES = 2  # for each neighbour that is asked for
BREADTH = 128  # candidates that a search keeps while it goes on, at least
LINKS, CARE = 16, 64  # of a word; candidates that are weighed for them
ROWS_AT_ONCE = 16_384


def build(vectors: NDArray[np.float32], path: Path, threads: int) -> None:
    """vectors: [V, d], which may be on disk; those of length 0 are nobody's neighbours. Raises OSError."""
    graph = _index(vectors.shape[1])
    for first in range(0, len(vectors), ROWS_AT_ONCE):
        rows = np.ascontiguousarray(vectors[first : first + ROWS_AT_ONCE])
        lengths = np.linalg.norm(rows, axis=1)
        there = np.flatnonzero(lengths)
        graph.add(first + there, rows[there] / lengths[there, None], threads=threads)
    graph.save(str(path))


def load(path: Path) -> Any | None:
    """Mapped; None where there is no such file. Raises ValueError where it is no graph."""
    if not path.exists():
        return None
    from usearch.index import Index  # noqa: PLC0415 - half a megabyte of code that small models do without

    try:
        graph: Any = Index.restore(str(path), view=True)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path.name}: {error}") from error
    if graph is None:
        raise ValueError(f"{path.name} is no graph of neighbours")
    graph.expansion_search = BREADTH
    return graph


def search(
    graph: Any, rows: NDArray[np.float32], targets: NDArray[np.float32], left_out: NDArray[np.int64], k: int
) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Of each target [n, d] at most k words but those that are left out [n, c], the nearest first, and their scores.

    rows: [V, d] of length 1. Equal scores are ordered by row.
    """
    count = CANDIDATES * (k + left_out.shape[1])
    found = []
    for target, without in zip(targets, left_out, strict=True):
        numbers = np.setdiff1d(graph.search(target, count, threads=1).keys.astype(np.int64), without)
        scores = rows[numbers] @ target
        order = np.lexsort((numbers, -scores))[:k]
        found.append((numbers[order], scores[order]))
    return found


def finds(graph: Any, target: NDArray[np.float32], left_out: tuple[int, ...], numbers: list[int]) -> bool:
    """Whether a search for so many finds these."""
    count = CANDIDATES * (len(numbers) + len(left_out))
    return set(numbers) <= set(graph.search(target, count, threads=1).keys.tolist())


def _index(dimensions: int) -> Any:
    from usearch.index import Index  # noqa: PLC0415 - see above

    return Index(ndim=dimensions, metric="ip", dtype="f16", connectivity=LINKS, expansion_add=CARE)
