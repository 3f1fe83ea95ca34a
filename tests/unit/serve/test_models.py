"""The models as Triton calls them, on a stand-in for the backend's module that has only what Triton 2.51's has."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from mms_workloads.serve import embedding, generations, vectors_file
from mms_workloads.serve.generations import Generation, Generations
from tests.unit.serve import artifacts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.unit.serve.artifacts import Built

DIGEST = "sha256:abc"


class TritonError:
    UNAVAILABLE = 4
    NOT_FOUND = 5
    INVALID_ARG = 3
    INTERNAL = 1

    def __init__(self, message: str, code: int = 0) -> None:
        self.message, self.code = message, code


class Tensor:
    def __init__(self, name: str, value: np.ndarray) -> None:
        assert value.flags.c_contiguous
        self.name, self.value = name, value

    def as_numpy(self) -> np.ndarray:
        return self.value


@dataclass
class InferenceResponse:
    output_tensors: list[Tensor] = field(default_factory=list)
    error: TritonError | None = None

    def __getitem__(self, name: str) -> np.ndarray:
        assert self.error is None, self.error.message
        return next(tensor.value for tensor in self.output_tensors if tensor.name == name)


class Request(dict[str, np.ndarray]):
    """Tensors by name, and the request's parameters."""

    given: str = ""

    def parameters(self) -> str:
        return self.given


def get_input_tensor_by_name(request: Request, name: str) -> Tensor | None:
    return Tensor(name, request[name]) if name in request else None


@pytest.fixture(scope="module")
def triton_models() -> Iterator[Any]:
    backend = ModuleType("triton_python_backend_utils")
    for item in (TritonError, Tensor, InferenceResponse, get_input_tensor_by_name):
        setattr(backend, item.__name__, item)
    sys.modules[backend.__name__] = backend
    yield importlib.import_module("mms_workloads.serve.triton_models")
    del sys.modules[backend.__name__], sys.modules["mms_workloads.serve.triton_models"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    made = artifacts.build(tmp_path_factory.mktemp("artifact"), size=1500, dimensions=8)
    vectors_file.prepare(made.folder)
    return made


def initialized(model: Any, folder: Path) -> Any:
    path = folder / "generations.json"
    one = Generation(digest=DIGEST, version=3, folder=str(folder))
    generations.write(path, Generations(serving=DIGEST, held=[one]))
    (folder / "control-key").write_text("key\n")
    parameters = {"generations": {"string_value": str(path)}}
    model.initialize(
        {
            "model_config": json.dumps({"parameters": parameters}),
            "model_name": type(model).__name__,
            "model_instance_name": f"{type(model).__name__}_0",
            "model_version": "1",
        }
    )
    return model


@pytest.fixture(scope="module")
def neighbours(triton_models: Any, built: Built) -> Any:
    return initialized(triton_models.Neighbours(), built.folder)


@pytest.fixture(scope="module")
def vectors(triton_models: Any, built: Built) -> Any:
    return initialized(triton_models.Vectors(), built.folder)


def asked(*requests: dict[str, np.ndarray]) -> list[Request]:
    return [Request(request) for request in requests]


def words(*texts: str | bytes) -> np.ndarray:
    return np.array([[text.encode() if isinstance(text, str) else text] for text in texts], dtype=np.object_)


def column(*values: int, dtype: type = np.int64) -> np.ndarray:
    return np.array([[value] for value in values], dtype=dtype)


def k(value: int, rows: int) -> np.ndarray:
    return column(*[value] * rows, dtype=np.int32)


@pytest.mark.parametrize("count", [1, 10, 40, 1499], ids=lambda count: f"k={count}")
def test_neighbours_are_the_nearest(neighbours: Any, built: Built, count: int) -> None:
    (response,) = neighbours.execute(asked({"WORDS": words("word5", "höhe"), "K": k(count, 2)}))
    for i, row in enumerate((5, 1)):
        expected = artifacts.cosine_neighbours(built.vectors, row, count)
        np.testing.assert_allclose(response["SCORES"][i], [score for _, score in expected], atol=1e-6)
        assert [word.decode() for word in response["WORDS"][i][:10]] == [built.words[o] for o, _ in expected[:10]]
    assert response["SCORES"].dtype == np.float32
    assert response["DIGEST"].tolist() == [[DIGEST.encode()]] * 2
    assert response["VERSION"].tolist() == [[3]] * 2


def test_a_request_may_name_the_artifact_that_is_to_answer(triton_models: Any, tmp_path: Path) -> None:
    """In one batch, whichever serves."""
    made = [artifacts.build(tmp_path / str(seed), size=300, dimensions=4 + seed, seed=seed) for seed in range(2)]
    for one in made:
        vectors_file.prepare(one.folder)
    path = tmp_path / "generations.json"
    held = [Generation(digest=f"d{n}", version=n + 1, folder=str(one.folder)) for n, one in enumerate(made)]
    generations.write(path, Generations(serving="d0", held=held))
    (tmp_path / "control-key").write_text("key\n")
    model = triton_models.Vectors()
    parameters = {"generations": {"string_value": str(path)}}
    model.initialize(
        {
            "model_config": json.dumps({"parameters": parameters}),
            "model_name": "vectors",
            "model_instance_name": "vectors_0",
            "model_version": "1",
        }
    )
    requests = asked(*[{"WORDS": words("word5")}] * 6)
    for request, pin in zip(requests, ("key d1", None, "key d2", "key d0", "d1", "yek d1"), strict=True):
        request.given = json.dumps({"mms_pin": pin}) if pin else ""
    first, second, third, fourth, *others = model.execute(requests)
    assert [one["DIGEST"][0, 0] for one in others] == [b"d0", b"d0"], "without the key it is as if nothing was named"
    assert first["VECTORS"][0].tolist() == made[1].vectors[5].tolist()
    assert second["VECTORS"].tolist() == fourth["VECTORS"].tolist() == [made[0].vectors[5].tolist()]
    assert [one["DIGEST"][0, 0] for one in (first, second, fourth)] == [b"d1", b"d0", b"d0"]
    assert [one["VERSION"][0, 0] for one in (first, second, fourth)] == [2, 1, 1]
    assert (third.error.code, "d2 is not held" in third.error.message) == (TritonError.UNAVAILABLE, True)
    model.finalize()


def test_neighbours_of_many_words_in_parts(neighbours: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (whole,) = neighbours.execute(asked({"IDS": column(*range(100))}))
    monkeypatch.setattr(embedding, "SCORE_BYTES", 4 * 1500 * 7)  # seven rows of scores at a time
    (parts,) = neighbours.execute(asked({"IDS": column(*range(100))}))
    assert whole["WORDS"].shape == (100, 10)
    assert whole["WORDS"].tolist() == parts["WORDS"].tolist()


def test_equal_scores_are_in_the_order_of_the_rows(tmp_path: Path) -> None:
    save_file({"vectors": np.tile(np.array([[1, 0]], np.float32), (300, 1))}, tmp_path / "model.safetensors")
    (tmp_path / "vocabulary.txt").write_text("".join(f"w{i}\t1\n" for i in range(300)))
    vectors_file.prepare(tmp_path)
    model = vectors_file.load(tmp_path, unit=True)
    (answer,) = embedding.neighbours(model, [embedding.Question(ids=column(2), k=k(4, 1))])
    assert isinstance(answer, embedding.Nearest)
    assert answer.ids.tolist() == [[0, 1, 3, 4]]


def test_vectors(vectors: Any, built: Built) -> None:
    by_word, by_id = vectors.execute(asked({"WORDS": words("word9", "word0")}, {"IDS": column(9, 0)}))
    np.testing.assert_array_equal(by_word["VECTORS"], built.vectors[[9, 0]])
    np.testing.assert_array_equal(by_id["VECTORS"], built.vectors[[9, 0]])


@pytest.mark.parametrize(
    ("request_", "code", "says"),
    [
        ({"WORDS": words("word1499", "nope")}, TritonError.NOT_FOUND, ['word "nope"', "1500 words", "tokenizer"]),
        ({"WORDS": words(*[f"x{i}" for i in range(9)])}, TritonError.NOT_FOUND, ['"x0", "x1", "x2" and 6 more']),
        ({"WORDS": words("")}, TritonError.NOT_FOUND, ['unknown word ""']),
        ({"WORDS": words(b"\xff\xfe")}, TritonError.INVALID_ARG, ["not UTF-8"]),
        ({"IDS": column(1500)}, TritonError.INVALID_ARG, ["1500 out of range", "0 to 1499"]),
        ({"IDS": column(-1)}, TritonError.INVALID_ARG, ["-1 out of range"]),
        ({}, TritonError.INVALID_ARG, ["neither of WORDS and IDS"]),
        ({"WORDS": words("word0"), "IDS": column(0)}, TritonError.INVALID_ARG, ["both of WORDS and IDS"]),
        ({"IDS": column(0), "K": k(0, 1)}, TritonError.INVALID_ARG, ["K: 0", "1 to 1499"]),
        ({"IDS": column(0), "K": k(-3, 1)}, TritonError.INVALID_ARG, ["K: -3"]),
        ({"IDS": column(0), "K": k(1500, 1)}, TritonError.INVALID_ARG, ["K: 1500", "1 to 1499"]),
        ({"IDS": column(0, 1), "K": column(1, 2, dtype=np.int32)}, TritonError.INVALID_ARG, ["K: 1, 2", "the same"]),
        ({"IDS": column(*range(1000)), "K": k(1499, 1000)}, TritonError.INVALID_ARG, ["fewer words"]),
    ],
    ids=["unknown", "many unknown", "empty", "not utf-8", "id high", "id low", "neither", "both", "k=0", "k<0", "k=V",
         "two ks", "too much"],
)  # fmt: skip
def test_a_bad_request_fails_alone(neighbours: Any, request_: Request, code: int, says: list[str]) -> None:
    good = {"WORDS": words("word5"), "K": k(2, 1)}
    before, bad, after = neighbours.execute(asked(good, request_, good))
    assert bad.error.code == code
    assert not bad.output_tensors
    for text in says:
        assert text in bad.error.message
    assert before["WORDS"].tolist() == after["WORDS"].tolist()
    assert before["WORDS"].shape == (1, 2)


def test_vectors_refuse_too(vectors: Any) -> None:
    bad, good = vectors.execute(asked({"WORDS": words("nope")}, {"IDS": column(3)}))
    assert "nope" in bad.error.message
    assert good["VECTORS"].shape == (1, 8)


def test_analogies(triton_models: Any, built: Built) -> None:
    analogies = initialized(triton_models.Analogies(), built.folder)
    three = words("word3", "word4", "word5").reshape(1, 3)
    bad = words("word3", "nope", "word5").reshape(1, 3)
    first, refused, second = analogies.execute(
        asked({"WORDS": three}, {"WORDS": bad}, {"IDS": column(3, 4, 5).reshape(1, 3)})
    )
    assert first["WORDS"].shape == first["SCORES"].shape == (1, 10)
    assert first["WORDS"].tolist() == second["WORDS"].tolist()
    assert not {b"word3", b"word4", b"word5"} & set(first["WORDS"][0])
    assert (refused.error.code, first["DIGEST"].tolist()) == (TritonError.NOT_FOUND, [[DIGEST.encode()]])


def test_similarity(triton_models: Any, built: Built) -> None:
    similarity = initialized(triton_models.Similarity(), built.folder)
    pairs = words("word3 word4", "word4, WORD3!", "Höhe", "word1").reshape(2, 2)
    good, refused = similarity.execute(asked({"TEXTS": pairs[:1]}, {"TEXTS": pairs}))
    np.testing.assert_allclose(good["SCORES"], [[1]], atol=1e-6)
    assert good["DIGEST"].tolist() == [[DIGEST.encode()]]
    assert refused.error.code == TritonError.INVALID_ARG
    assert '"word1"' in refused.error.message


def test_a_vector_of_zeros_is_near_to_nothing(tmp_path: Path) -> None:
    matrix = np.array([[0, 0], [1, 0], [2, 0], [0, 3], [-1, 0]], np.float32)
    save_file({"vectors": matrix}, tmp_path / "model.safetensors")
    (tmp_path / "vocabulary.txt").write_text("a\t1\nb\t1\nc\t1\nd\t1\ne\t1\n")
    vectors_file.prepare(tmp_path)
    (answer,) = embedding.neighbours(vectors_file.load(tmp_path, unit=True), [embedding.Question(ids=column(0, 1))])
    assert isinstance(answer, embedding.Nearest)
    assert answer.scores.tolist() == [[0, 0, 0, 0], [1, 0, 0, -1]]
    assert answer.ids.tolist() == [[1, 2, 3, 4], [2, 0, 3, 4]]


def test_a_word_may_hold_what_others_take_for_a_line_break(tmp_path: Path) -> None:
    (tmp_path / "vocabulary.txt").write_bytes("a\u2028b\t1\nc\x0bd\te\t1\n".encode())
    assert vectors_file.read_vocabulary(tmp_path / "vocabulary.txt") == ["a\u2028b".encode(), b"c\x0bd\te"]
