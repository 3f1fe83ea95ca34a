"""Golden answers are right, and do not hang by rounding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from mms_workloads.contract import Golden
from mms_workloads.embedding import golden as module
from mms_workloads.embedding.golden import GOLDEN_GAP

if TYPE_CHECKING:
    from numpy.typing import NDArray

WORDS = tuple(f"wört{i}" for i in range(300))


def random_vectors(size: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((size, 8), np.float32)


def answer(vectors: NDArray[np.float32], words: tuple[str, ...], number: int, k: int) -> tuple[list[str], list[float]]:
    """By the definition, in float64."""
    units = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    scores = [(float(units[number] @ units[i]), i) for i in range(len(words)) if i != number]
    best = sorted(scores, reverse=True)[:k]
    return [words[i] for _, i in best], [s for s, _ in best]


@pytest.mark.parametrize("size", [2, 3, 12, 300])
def test_golden_answers_are_right(size: int) -> None:
    vectors, words = random_vectors(size), WORDS[:size]
    golden = module.golden(vectors, words)
    assert Golden.model_validate_json(golden.model_dump_json()) == golden
    kinds = [case.model for case in golden.cases]
    assert kinds.count("vectors") >= min(module.GOLDEN_VECTORS, size // 2 + 1)
    assert kinds.count("neighbours") >= (1 if size < 300 else module.GOLDEN_NEIGHBOURS)
    for case in golden.cases:
        (asked,) = case.inputs.get("WORDS") or case.inputs["IDS"]
        number = words.index(asked) if isinstance(asked, str) else int(asked)
        if case.model == "vectors":
            assert case.outputs["VECTORS"] == vectors[number].tolist()
            continue
        expected, scores = answer(vectors, words, number, int(case.inputs["K"][0]))
        assert case.outputs["WORDS"] == expected
        assert case.outputs["SCORES"] == pytest.approx(scores, abs=1e-5)


def test_golden_cases_do_not_hang_by_rounding() -> None:
    """Of two words with the same vector either could come first."""
    vectors = random_vectors(40)
    vectors[1::2] = vectors[0::2]
    golden = module.golden(vectors, WORDS[:40])
    assert {case.model for case in golden.cases} == {"vectors"}
    assert GOLDEN_GAP > 0
