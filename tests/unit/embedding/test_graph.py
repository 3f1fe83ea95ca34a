"""Neighbours in a graph: nearly all of the nearest, by their own scores, and never another kind of answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from mms_workloads.embedding import graph
from mms_workloads.embedding.golden import golden
from mms_workloads.serve import embedding, vectors_file
from mms_workloads.serve.embedding import Nearest, Question
from mms_workloads.serve.vectors_file import ArtifactError
from tests.unit.serve import artifacts

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SIZE = 4000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with a graph; word 9 has a vector of zeros."""
    made = tmp_path_factory.mktemp("artifact")
    vectors = np.random.default_rng(1).normal(size=(SIZE, 24)).astype(np.float32)
    vectors[9] = 0
    save_file({"vectors": vectors}, made / "model.safetensors")
    (made / "vocabulary.txt").write_text("".join(f"{word}\t1\n" for word in artifacts.words_of(SIZE)))
    graph.build(vectors, made / graph.FILE, threads=2)
    vectors_file.prepare(made)
    return made


def answers(of: vectors_file.Embedding, question: Question) -> Nearest:
    (found,) = embedding.neighbours(of, [question])
    assert isinstance(found, Nearest)
    return found


def both(folder: Path, ids: list[int], k: int) -> tuple[Nearest, Nearest]:
    """By the graph and by all vectors."""
    held = vectors_file.load(folder, unit=True)
    plain = vectors_file.Embedding(held.words, held.rows, held.unit, held.task, held.ngrams)
    question = Question(ids=column(ids, np.int64), k=column([k] * len(ids), np.int32))
    return answers(held, question), answers(plain, question)


def column(values: list[int], kind: Any) -> NDArray[Any]:
    return np.array(values, kind)[:, None]


@pytest.mark.parametrize("k", [1, 10, 40])
def test_nearly_all_of_the_nearest(folder: Path, k: int) -> None:
    found, exact = both(folder, list(range(20, 520)), k)
    same = [len(set(a) & set(b)) / k for a, b in zip(found.ids, exact.ids, strict=True)]
    assert np.mean(same) > 0.98
    assert (np.diff(found.scores, axis=1) <= 0).all()
    assert np.mean(np.isclose(found.scores[:, 0], exact.scores[:, 0])) > 0.98
    assert not (found.ids == column(list(range(20, 520)), np.int64)).any(), "a word is not its own neighbour"
    assert not (found.ids == 9).any()


def test_analogies_leave_their_words_out(folder: Path) -> None:
    held = vectors_file.load(folder, unit=True)
    (found,) = embedding.analogies(held, [Question(ids=np.array([[1, 2, 3]], np.int64))])
    assert isinstance(found, Nearest)
    assert not set(found.ids[0].tolist()) & {1, 2, 3}


def test_many_neighbours_are_sought_among_all(folder: Path) -> None:
    found, exact = both(folder, [5], graph.MOST + 1)
    assert found.ids.tolist() == exact.ids.tolist()


def test_where_the_graph_knows_too_few(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "search", lambda *_: [(np.array([1]), np.ones(1))])
    found, exact = both(folder, [5], 10)
    assert found.ids.tolist() == exact.ids.tolist()


def test_vectors_as_they_are_need_no_graph(folder: Path) -> None:
    assert vectors_file.load(folder, unit=False).graph is None


def test_a_damaged_graph(folder: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "vocabulary.txt", *vectors_file.MADE):
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / graph.FILE).write_bytes(b"graph" * 100)
    with pytest.raises(ArtifactError, match=r"neighbours\.usearch"):
        vectors_file.load(tmp_path, unit=True)


def test_golden_cases_are_what_the_graph_finds(folder: Path) -> None:
    """Whoever serves it is held to them."""

    class Blind:
        """Finds nothing for every other request."""

        asked = 0

        def search(self, target: NDArray[np.float32], count: int, threads: int) -> Any:
            self.asked += 1
            found = whole.search(target, count, threads=threads)
            return found if self.asked % 2 else whole.search(-target, count, threads=threads)

    built = vectors_file.load(folder, unit=False)
    whole = graph.load(folder / graph.FILE)
    words = tuple(artifacts.words_of(SIZE))
    vectors = np.asarray(built.rows)
    with_all, with_half = golden(vectors, words, whole), golden(vectors, words, Blind())
    assert [case for case in with_half.cases if case.model == "neighbours"] != [
        case for case in with_all.cases if case.model == "neighbours"
    ]
    held = vectors_file.load(folder, unit=True)
    numbers = {word: number for number, word in enumerate(words)}
    for case in with_half.cases:
        if case.model == "neighbours":
            asked = case.inputs.get("IDS") or [numbers[word] for word in case.inputs["WORDS"]]
            found = answers(held, Question(ids=column(asked, np.int64), k=column([10], np.int32)))
            assert [words[i] for i in found.ids[0]] == case.outputs["WORDS"]
