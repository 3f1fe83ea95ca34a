"""Golden answers are right, and do not hang by rounding."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import save_file

from mms_workloads.contract import Golden
from mms_workloads.embedding import golden as module
from mms_workloads.embedding.golden import GOLDEN_GAP
from mms_workloads.serve import embedding as served
from mms_workloads.serve import vectors_file
from mms_workloads.serve.embedding import Nearest, Question

if TYPE_CHECKING:
    from pathlib import Path

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
    assert kinds.count("analogies") == (0 if size < 4 else module.GOLDEN_ANALOGIES)
    assert kinds.count("similarity") == (0 if size < 4 else 1)
    for case in golden.cases:
        if case.model in {"analogies", "similarity"}:
            continue  # asked of the served models by `test_the_served_models_answer_so`
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
    assert {case.model for case in golden.cases} == {"vectors", "similarity"}
    assert GOLDEN_GAP > 0


@pytest.mark.parametrize("size", [12, 300])
def test_the_served_models_answer_so(tmp_path: Path, size: int) -> None:
    """Analogies and similarity, whose inputs are not [n, 1]."""
    vectors, words = random_vectors(size), WORDS[:size]
    save_file({"vectors": vectors}, tmp_path / "model.safetensors")
    (tmp_path / "vocabulary.txt").write_text("".join(f"{word}\t9\n" for word in words))
    vectors_file.prepare(tmp_path)
    held = vectors_file.load(tmp_path, unit=True)
    for case in module.golden(vectors, words).cases:
        given = {name: base64.b64decode(tensor.raw) for name, tensor in case.tensors.items()}
        if case.model == "analogies":
            ids = np.frombuffer(given["IDS"], np.int64).reshape(-1, 3)
            (found,) = served.analogies(held, [Question(ids=ids, k=np.array([case.inputs["K"]], np.int32))])
            assert isinstance(found, Nearest)
            assert [words[i] for i in found.ids[0]] == case.outputs["WORDS"]
            np.testing.assert_allclose(found.scores[0], case.outputs["SCORES"], atol=1e-5)
        elif case.model == "similarity":
            texts = np.array(_strings(given["TEXTS"]), np.object_).reshape(case.tensors["TEXTS"].shape)
            (scores,) = served.similarity(held, [Question(texts=texts)])
            np.testing.assert_allclose(np.asarray(scores)[:, 0], case.outputs["SCORES"], atol=1e-5)


def _strings(raw: bytes) -> list[bytes]:
    found = []
    while raw:
        end = 4 + int.from_bytes(raw[:4], "little")
        found.append(raw[4:end])
        raw = raw[end:]
    return found
