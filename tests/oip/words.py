"""The target that a served word embedding is: its four models, with right answers computed from the artifact's files.

By the definitions, in float64, without the code that serves. Words whose order in an answer hangs by rounding are not
asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file

from mms_workloads.serve.repository import MODEL_VERSION
from tests.oip.model import BINARY, Example, Model, Refusal, Spec, Target, Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

MAX_BATCH = 256
USUAL_K = 10
K = 4
ROWS = 3
CANDIDATES = 300  # of a large vocabulary, for what takes a search each
GAP = 1e-4  # of two scores whose order is certain
EXACT = 2**53 + 1  # an integer that a double does not hold: JSON's numbers must not become one
UNKNOWN = "qwertzuiop ☃"


@dataclass(frozen=True)
class Words:
    run: int
    digest: str
    words: list[str]
    vectors: NDArray[np.float32]  # [V, d]
    units: NDArray[np.float64]  # the same at length 1

    def outputs(self, *own: Tensor) -> tuple[Tensor, ...]:
        """Those of a model, with what all models answer beside them: which artifact it was."""
        rows = own[0].shape[0]
        digests, runs = [self.digest] * rows, [self.run] * rows
        return (*own, column("DIGEST", "BYTES", digests), column("VERSION", "INT64", runs))


def target(folder: Path, *, run: int, digest: str, rest: str, grpc: str) -> Target:
    """`folder` has the artifact's files, which that run of the training made. `rest` is http://host:port."""
    vectors = load_file(folder / "model.safetensors")["vectors"]
    lines = (folder / "vocabulary.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")
    words = [line.rpartition("\t")[0] for line in lines]
    units = vectors.astype(np.float64)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    known = Words(run, digest, words, vectors, units)
    models = (_vectors(known), _neighbours(known), _analogies(known), _similarity(known))
    return Target(rest, grpc, models, frozenset({BINARY, "parameters"}), ("gzip", "deflate"), raw_answers=True)


def column(name: str, datatype: str, values: Sequence[Any], width: int = 1) -> Tensor:
    """[n, width] of n * width values."""
    data = tuple(value.encode() if isinstance(value, str) else value for value in values)
    return Tensor(name, datatype, (len(data) // width, width), data)


def _specs(tensors: Sequence[Tensor], *sizes: int) -> tuple[Spec, ...]:
    return tuple(Spec(one.name, one.datatype, (-1, size)) for one, size in zip(tensors, sizes, strict=True))


def _vectors(known: Words) -> Model:
    rows = _picked(known, range(len(known.words)), ROWS)
    by_word = column("WORDS", "BYTES", [known.words[row] for row in rows])
    by_id = column("IDS", "INT64", rows)
    size = known.vectors.shape[1]
    outputs = known.outputs(column("VECTORS", "FP32", known.vectors[rows].ravel().tolist(), size))
    return Model(
        "vectors",
        str(MODEL_VERSION),
        _specs((by_word, by_id), 1, 1),
        _specs(outputs, -1, 1, 1),
        MAX_BATCH,
        (Example((by_word,), outputs), Example((by_id,), outputs)),
        (
            *_lookups(known, 1),
            Refusal((by_word, by_id), 400, "INVALID_ARGUMENT", "both of WORDS and IDS given"),
        ),
    )


def _neighbours(known: Words) -> Model:
    def best(row: int, k: int) -> list[int] | None:
        return _best(known, known.units[row], {row}, k)

    most = min(USUAL_K, len(known.words) - 1)
    some = range(0, len(known.words), max(1, len(known.words) // CANDIDATES))
    certain = [row for row in some if best(row, K) and best(row, most)]
    rows = _picked(known, certain, ROWS)
    by_word = column("WORDS", "BYTES", [known.words[row] for row in rows])
    by_id = column("IDS", "INT64", rows)

    def outputs(k: int) -> tuple[Tensor, ...]:
        return _ranked(known, [(known.units[row], best(row, k) or []) for row in rows], k)

    k = column("K", "INT32", [K] * len(rows))
    return Model(
        "neighbours",
        str(MODEL_VERSION),
        _specs((by_word, by_id, k), 1, 1, 1),
        _specs(outputs(K), -1, -1, 1, 1),
        MAX_BATCH,
        (Example((by_word, k), outputs(K)), Example((by_id, k), outputs(K)), Example((by_word,), outputs(most))),
        (
            *_lookups(known, 1),
            *(
                _refused_k(by_word, values)
                for values in ([0] * len(rows), [-1] * len(rows), [2, *[1] * (len(rows) - 1)])
            ),
        ),
    )


def _analogies(known: Words) -> Model:
    def asked(a: int, b: int, c: int) -> NDArray[np.float64]:
        direction = known.units[b] - known.units[a] + known.units[c]
        unit: NDArray[np.float64] = direction / np.linalg.norm(direction)
        return unit

    chosen = np.random.default_rng(1)
    triples: list[tuple[int, int, int]] = []
    while len(triples) < ROWS:
        a, b, c = (int(row) for row in chosen.choice(len(known.words), 3, replace=False))
        if _best(known, asked(a, b, c), {a, b, c}, K):
            triples.append((a, b, c))
    flat = [row for triple in triples for row in triple]
    by_word = column("WORDS", "BYTES", [known.words[row] for row in flat], 3)
    by_id = column("IDS", "INT64", flat, 3)
    k = column("K", "INT32", [K] * ROWS)
    outputs = _ranked(known, [(asked(*t), _best(known, asked(*t), set(t), K) or []) for t in triples], K)
    return Model(
        "analogies",
        str(MODEL_VERSION),
        _specs((by_word, by_id, k), 3, 3, 1),
        _specs(outputs, -1, -1, 1, 1),
        MAX_BATCH,
        (Example((by_word, k), outputs), Example((by_id, k), outputs)),
        _lookups(known, 3),
    )


def _similarity(known: Words) -> Model:
    rows = _picked(known, range(len(known.words)), 2 * ROWS)
    pairs = [([a], [a, b, b]) for a, b in zip(rows[::2], rows[1::2], strict=True)]
    texts = [" ".join(known.words[row] for row in text) for pair in pairs for text in pair]
    means = [known.units[text].mean(axis=0) for pair in pairs for text in pair]
    units = [mean / np.linalg.norm(mean) for mean in means]
    scores = [float(a @ b) for a, b in zip(units[::2], units[1::2], strict=True)]
    asked = column("TEXTS", "BYTES", texts, 2)
    outputs = known.outputs(column("SCORES", "FP32", scores))
    unknown = column("TEXTS", "BYTES", ["☃ ☃", known.words[0]], 2)
    return Model(
        "similarity",
        str(MODEL_VERSION),
        _specs((asked,), 2),
        _specs(outputs, 1, 1, 1),
        MAX_BATCH,
        (Example((asked,), outputs),),
        (Refusal((unknown,), 400, "INVALID_ARGUMENT", "TEXTS: no known word in"),),
    )


def _lookups(known: Words, width: int) -> tuple[Refusal, ...]:
    unknown = column("WORDS", "BYTES", [known.words[0]] * (width - 1) + [UNKNOWN], width)
    past = column("IDS", "INT64", [0] * (width - 1) + [EXACT], width)
    return (
        Refusal((unknown,), 404, "NOT_FOUND", f'WORDS: unknown word "{UNKNOWN}"'),
        Refusal((past,), 400, "INVALID_ARGUMENT", f"IDS: {EXACT} out of range"),
    )


def _refused_k(words: Tensor, values: list[int]) -> Refusal:
    return Refusal((words, column("K", "INT32", values)), 400, "INVALID_ARGUMENT", f"K: {min(values)}")


def _ranked(known: Words, found: Sequence[tuple[NDArray[np.float64], list[int]]], k: int) -> tuple[Tensor, ...]:
    """Of each target of the search and its nearest rows."""
    scores = [score for target, best in found for score in (known.units[best] @ target).tolist()]
    words = column("WORDS", "BYTES", [known.words[row] for _, best in found for row in best], k)
    return known.outputs(words, column("SCORES", "FP32", scores, k))


def _best(known: Words, direction: NDArray[np.float64], left_out: set[int], k: int) -> list[int] | None:
    """The k nearest rows; None when their order hangs by rounding."""
    scores = known.units @ direction
    scores[list(left_out)] = -np.inf
    best = np.argsort(-scores, kind="stable")[: k + 1]
    gaps = -np.diff(scores[best])
    return None if (gaps < GAP).any() else [int(row) for row in best[:k]]


def _picked(known: Words, rows: Sequence[int], count: int) -> list[int]:
    """Some of the rows, from all over the vocabulary; one whose word is not ASCII, if there is one."""
    if len(rows) < count:
        raise ValueError(f"{len(rows)} words are fit to be asked for, of {len(known.words)}: serve a larger vocabulary")
    spread = [rows[place * (len(rows) - 1) // (count - 1)] for place in range(count)]
    foreign = next((row for row in rows if not known.words[row].isascii() and row not in spread), None)
    return spread if foreign is None else [*spread[:-1], foreign]
