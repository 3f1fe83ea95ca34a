"""The answers by their definitions, on vectors that are small enough to be computed by hand or one at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import save_file

from mms_workloads.contract import Phrases, Subwords, WordEmbedding
from mms_workloads.embedding.subwords import buckets_of
from mms_workloads.serve import embedding, vectors_file
from mms_workloads.serve.embedding import Nearest, Question, RequestError, UnknownWordError
from mms_workloads.serve.vectors_file import ArtifactError, Embedding
from tests.unit.serve import artifacts

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

WORDS = ("king", "man", "queen", "woman", "höhe", "unrelated")
# Directions: royal, male, female, height.
VECTORS = np.array(
    [[2, 2, 0, 0], [0, 3, 0, 0], [1, 0, 1, 0], [0, 0, 5, 0], [0, 0, 0, 4], [0, -1, -1, 1]], np.float32
)  # fmt: skip
SUBWORDS = Subwords(minLength=3, maxLength=4, buckets=11)


def made(folder: Path, task: WordEmbedding | None = None, *, unit: bool = True) -> Embedding:
    tensors = {"vectors": VECTORS}
    if task and task.subwords:
        tensors["ngrams"] = ngrams()
    save_file(tensors, folder / "model.safetensors")
    (folder / "vocabulary.txt").write_text("".join(f"{word}\t1\n" for word in WORDS))
    if task:
        (folder / "model.json").write_text(task.model_dump_json(indent=1))
    assert vectors_file.prepare(folder) == 4
    return vectors_file.load(folder, unit=unit)


def ngrams() -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((SUBWORDS.buckets, 4), np.float32)


@pytest.fixture
def plain(tmp_path: Path) -> Embedding:
    return made(tmp_path)


@pytest.fixture
def with_ngrams(tmp_path: Path) -> Embedding:
    return made(tmp_path, WordEmbedding(subwords=SUBWORDS))


def rows(*texts: tuple[str | bytes, ...] | str | bytes) -> NDArray[np.object_]:
    listed = [text if isinstance(text, tuple) else (text,) for text in texts]
    return np.array([[t.encode() if isinstance(t, str) else t for t in row] for row in listed], dtype=np.object_)


def k(value: int, count: int = 1) -> NDArray[np.int32]:
    return np.full((count, 1), value, np.int32)


def of_ngrams(word: str) -> NDArray[np.float64]:
    """By the definition: the mean of the rows of its n-grams."""
    return ngrams().astype(np.float64)[buckets_of(word, SUBWORDS)].mean(axis=0)


def unit(vector: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.asarray(vector, np.float64) / np.linalg.norm(vector)


def words(model: Embedding, answer: Nearest | RequestError) -> list[list[str]]:
    assert isinstance(answer, Nearest), answer
    return [[word.decode() for word in found] for found in model.words[answer.ids]]


def test_an_analogy_by_its_definition(plain: Embedding) -> None:
    (answer,) = embedding.analogies(plain, [Question(rows(("man", "king", "woman")), k=k(3))])
    assert isinstance(answer, Nearest)
    target = unit(VECTORS[0]) - unit(VECTORS[1]) + unit(VECTORS[3])
    expected = {word: unit(target) @ unit(vector) for word, vector in zip(WORDS, VECTORS, strict=True)}
    for word in ("man", "king", "woman"):
        del expected[word]
    best = sorted(expected, key=lambda word: -expected[word])
    assert best[0] == "queen"
    assert words(plain, answer) == [best]
    np.testing.assert_allclose(answer.scores[0], [expected[word] for word in best], atol=1e-6)


def test_analogies_of_many_rows_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "SCORE_BYTES", 4 * 1500 * 7)  # seven rows of scores at a time
    built = artifacts.build(tmp_path, size=1500, dimensions=8)
    vectors_file.prepare(built.folder)
    model = vectors_file.load(built.folder, unit=True)
    asked = np.random.default_rng(2).integers(0, 1500, (40, 3))
    by_id, by_word = embedding.analogies(
        model, [Question(ids=asked, k=k(5, 40)), Question(model.words[asked], k=k(2, 40))]
    )
    assert isinstance(by_id, Nearest)
    assert isinstance(by_word, Nearest)
    assert np.array_equal(by_id.ids[:, :2], by_word.ids)
    units = np.array([unit(vector) for vector in built.vectors])
    for (a, b, c), found, scores in zip(asked, by_id.ids, by_id.scores, strict=True):
        cosines = units @ unit(units[b] - units[a] + units[c])
        best = [other for other in np.argsort(-cosines) if other not in {a, b, c}][:5]
        assert found.tolist() == best
        np.testing.assert_allclose(scores, cosines[best], atol=1e-6)


def test_an_analogy_of_the_same_words(plain: Embedding) -> None:
    """b - a + b where a is b: near to b itself, which is left out."""
    (answer,) = embedding.analogies(plain, [Question(rows(("king", "king", "king")), k=k(3))])
    assert words(plain, answer) == [["man", "queen", "woman"]]


def test_how_many_answers_an_analogy_has(plain: Embedding) -> None:
    three = rows(("man", "king", "woman"))
    asked = [Question(three), *(Question(three, k=k(number)) for number in (3, 4, 0))]
    all_others, most, more, none = embedding.analogies(plain, asked)
    assert isinstance(all_others, Nearest)
    assert isinstance(most, Nearest)
    assert all_others.ids.tolist() == most.ids.tolist()
    for number, error in ((4, more), (0, none)):
        assert isinstance(error, RequestError)
        assert f"K: {number} neighbours asked for: K must be 1 to 3" in str(error)


@pytest.mark.parametrize("asked", [None, k(1)], ids=["as many as there are", "one"])
def test_a_model_of_as_many_words_as_an_analogy_has_none_for_an_answer(
    plain: Embedding, asked: NDArray[np.int32] | None
) -> None:
    few = replace(plain, words=plain.words[np.arange(3)], rows=plain.rows[:3])  # type: ignore[arg-type]
    (error,) = embedding.analogies(few, [Question(ids=np.array([[0, 1, 2]]), k=asked)])
    assert isinstance(error, RequestError)
    assert "too few words" in str(error)


def test_a_bad_analogy_fails_alone(plain: Embedding) -> None:
    good = Question(rows(("man", "king", "woman")), k=k(1))
    before, unknown, outside, after = embedding.analogies(
        plain,
        [good, Question(rows(("man", "nope", "woman"))), Question(ids=np.array([[0, 1, 6]])), good],
    )
    assert words(plain, before) == words(plain, after) == [["queen"]]
    assert isinstance(unknown, UnknownWordError)
    assert 'unknown word "nope"' in str(unknown)
    assert isinstance(outside, RequestError)
    assert "6 out of range" in str(outside)


@pytest.mark.parametrize("length_one", [False, True])
def test_vectors_of_words_that_were_never_seen(tmp_path: Path, length_one: bool) -> None:
    model = made(tmp_path, WordEmbedding(subwords=SUBWORDS), unit=length_one)
    (found,) = embedding.vectors(model, [Question(rows("kings", "höhen", "king"))])
    assert isinstance(found, np.ndarray)
    expected = [of_ngrams("kings"), of_ngrams("höhen"), VECTORS[0]]
    np.testing.assert_allclose(found, [unit(e) for e in expected] if length_one else expected, atol=1e-6)


@pytest.mark.parametrize("subwords", [SUBWORDS, None], ids=["n-grams", "words alone"])
def test_words_are_looked_up_as_the_tokenizer_writes_them(tmp_path: Path, subwords: Subwords | None) -> None:
    model = made(tmp_path, WordEmbedding(subwords=subwords), unit=False)
    (found,) = embedding.vectors(model, [Question(rows("King", "HÖHE", "king"))])
    np.testing.assert_array_equal(found, VECTORS[[0, 4, 0]])
    capital, small = embedding.neighbours(model, [Question(rows(word), k=k(5)) for word in ("King", "king")])
    assert words(model, capital) == words(model, small), "the word itself is left out"
    if subwords:
        (found,) = embedding.vectors(model, [Question(rows("Kings"))])
        np.testing.assert_allclose(found, [of_ngrams("kings")], atol=1e-6)


def test_words_that_a_tokenizer_keeps_as_they_are(tmp_path: Path) -> None:
    model = made(tmp_path, WordEmbedding(subwords=SUBWORDS, tokenizer="Whitespace"), unit=False)
    (found,) = embedding.vectors(model, [Question(rows("King"))])
    np.testing.assert_allclose(found, [of_ngrams("King")], atol=1e-6)


def test_neighbours_of_a_word_that_was_never_seen(with_ngrams: Embedding) -> None:
    (answer,) = embedding.neighbours(with_ngrams, [Question(rows("kings", "king"), k=k(5, 2))])
    assert isinstance(answer, Nearest)
    cosines = np.array([unit(vector) for vector in VECTORS]) @ unit(of_ngrams("kings"))
    order = np.argsort(-cosines)[:5]
    assert answer.ids[0].tolist() == order.tolist(), "no word of the vocabulary is left out"
    np.testing.assert_allclose(answer.scores[0], cosines[order], atol=1e-6)
    assert 0 not in answer.ids[1]


def test_an_analogy_with_a_word_that_was_never_seen(with_ngrams: Embedding) -> None:
    (answer,) = embedding.analogies(with_ngrams, [Question(rows(("man", "kings", "woman")), k=k(3))])
    assert isinstance(answer, Nearest)
    cosines = [unit(v) @ unit(unit(of_ngrams("kings")) - unit(VECTORS[1]) + unit(VECTORS[3])) for v in VECTORS]
    best = [row for row in np.argsort(-np.array(cosines)).tolist() if row not in {1, 3}][:3]
    assert answer.ids[0].tolist() == best


@pytest.mark.parametrize(
    ("word", "kind", "says"),
    [
        ("", UnknownWordError, 'unknown word ""'),
        ("x" * 1025, UnknownWordError, "without n-grams"),
        (b"kings\xff", RequestError, "not UTF-8"),
    ],
    ids=["empty", "longer than a word", "not UTF-8"],
)
def test_words_without_ngrams(with_ngrams: Embedding, word: str | bytes, kind: type[RequestError], says: str) -> None:
    before, bad, after = embedding.vectors(with_ngrams, [Question(rows(w)) for w in ("kings", word, "kings")])
    assert type(bad) is kind
    assert says in str(bad)
    assert np.array_equal(before, after)


def test_a_word_that_is_too_short_for_ngrams(tmp_path: Path) -> None:
    model = made(tmp_path, WordEmbedding(subwords=Subwords(minLength=5, maxLength=6, buckets=11)))
    short, longer = embedding.vectors(model, [Question(rows("ab")), Question(rows("abc"))])
    assert isinstance(short, UnknownWordError)
    assert isinstance(longer, np.ndarray)


def test_similarity_by_its_definition(plain: Embedding) -> None:
    (scores,) = embedding.similarity(
        plain, [Question(texts=rows(("King, king: the MAN!", "queen"), ("Höhe", "höhe höhe"), ("man", "höhe")))]
    )
    assert isinstance(scores, np.ndarray)
    assert (scores.dtype, scores.shape) == (np.float32, (3, 1))
    left = (2 * unit(VECTORS[0]) + unit(VECTORS[1])) / 3  # "the" is unknown
    np.testing.assert_allclose(scores[:, 0], [unit(left) @ unit(VECTORS[2]), 1, 0], atol=1e-6)


def test_texts_whose_words_cancel_out_are_near_to_nothing(tmp_path: Path) -> None:
    save_file({"vectors": np.array([[1, 0], [-2, 0]], np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "vocabulary.txt").write_text("a\t1\nb\t1\n")
    vectors_file.prepare(tmp_path)
    model = vectors_file.load(tmp_path, unit=True)
    (scores,) = embedding.similarity(model, [Question(texts=rows(("a b", "a"), ("a a b", "a"), ("a", "b")))])
    assert np.asarray(scores).tolist() == [[0], [1], [-1]]


def test_similarity_of_texts_with_phrases(tmp_path: Path) -> None:
    """Read as the training read its text: from left to right, phrases of one line."""
    vectors = np.eye(5, dtype=np.float32)
    save_file({"vectors": vectors}, tmp_path / "model.safetensors")
    (tmp_path / "vocabulary.txt").write_text("new\t5\nyork\t4\ntimes\t3\nnew_york\t2\nyork_times\t1\n")
    (tmp_path / "model.json").write_text(WordEmbedding(phrases=Phrases()).model_dump_json())
    vectors_file.prepare(tmp_path)
    model = vectors_file.load(tmp_path, unit=True)
    assert embedding.words_in(b"New York Times, new york new\nyork times", model) == {
        "times": 1, "new_york": 2, "new": 1, "york_times": 1
    }  # fmt: skip
    (scores,) = embedding.similarity(model, [Question(texts=rows(("new york", "new"), ("york times", "york")))])
    assert np.asarray(scores).tolist() == [[0], [0]]
    (tmp_path / "model.json").write_text(WordEmbedding().model_dump_json())
    assert embedding.words_in(b"new york", vectors_file.load(tmp_path, unit=True)) == {"new": 1, "york": 1}


def test_similarity_of_words_that_were_never_seen(with_ngrams: Embedding) -> None:
    (scores,) = embedding.similarity(with_ngrams, [Question(texts=rows(("kings man", "queen")))])
    expected = unit(unit(of_ngrams("kings")) + unit(VECTORS[1])) @ unit(VECTORS[2])
    np.testing.assert_allclose(scores, [[expected]], atol=1e-6)


@pytest.mark.parametrize(
    ("tokenizer", "text", "found"),
    [
        ("Words", "King's man; MAN", {"king's": 1, "man": 2}),
        ("Whitespace", "King man  man", {"King": 1, "man": 2}),
        ("Characters", "aBa", {"a": 2, "b": 1}),
    ],
)
def test_texts_are_split_as_in_training(tmp_path: Path, tokenizer: str, text: str, found: dict[str, int]) -> None:
    model = made(tmp_path, WordEmbedding.model_validate({"tokenizer": tokenizer}))
    assert embedding.words_in(text.encode(), model) == found


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (("man", "xyz"), ['no known word in "xyz"', "give a text"]),
        (("", "man"), ['no known word in ""']),
        (("man", b"man \xff"), [r"b'man \xff' is not UTF-8", "encode"]),
        (("man " * 70_000, "man"), ["280000 bytes", "262144"]),
    ],
    ids=["unknown", "empty", "not UTF-8", "too long"],
)
def test_a_bad_text_fails_alone(plain: Embedding, texts: tuple[str | bytes, ...], says: list[str]) -> None:
    good = Question(texts=rows(("man", "woman")))
    before, bad, missing, after = embedding.similarity(plain, [good, Question(texts=rows(texts)), Question(), good])
    assert np.array_equal(before, after)
    assert isinstance(bad, RequestError)
    for text in says:
        assert text in str(bad)
    assert isinstance(missing, RequestError)


def test_an_artifact_that_does_not_tell_its_task(plain: Embedding) -> None:
    assert plain.task == WordEmbedding()
    assert plain.ngrams is None


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ("{", "model.json: not a task"),
        ('{"dimensions": 0}', "model.json: not a task"),
        ('{"subwords": {}}', "no tensor 'ngrams'"),
    ],
)
def test_a_task_that_does_not_fit(tmp_path: Path, task: str, says: str) -> None:
    made(tmp_path)
    (tmp_path / "model.json").write_text(task)
    with pytest.raises(ArtifactError, match=says):
        vectors_file.load(tmp_path, unit=True)


def test_ngrams_that_do_not_fit(tmp_path: Path) -> None:
    task = WordEmbedding(subwords=SUBWORDS)
    made(tmp_path, task)
    other = SUBWORDS.model_copy(update={"buckets": 12})
    (tmp_path / "model.json").write_text(WordEmbedding(subwords=other).model_dump_json())
    with pytest.raises(ArtifactError, match=r"'ngrams' is \[11, 4\], and model\.json says 12 buckets of 4 numbers"):
        vectors_file.load(tmp_path, unit=False)
    spoilt = ngrams()
    spoilt[7, 2] = np.inf
    save_file({"vectors": VECTORS, "ngrams": spoilt}, tmp_path / "model.safetensors")
    (tmp_path / "model.json").write_text(task.model_dump_json())
    with pytest.raises(ArtifactError, match="n-gram 7 is not finite"):
        vectors_file.prepare(tmp_path)


def test_words_by_row_and_rows_by_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where all words have one of two hashes."""
    monkeypatch.setattr(vectors_file, "hashed", lambda ws: np.array([len(w) % 2 for w in ws], np.int64))
    listed = [b"b", "höhe".encode(), b"a\tb", b"ccc", b"a", "a\u2028b".encode(), b"dd"]
    save_file({"vectors": np.ones((len(listed), 2), np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "vocabulary.txt").write_bytes(b"".join(word + b"\t1\n" for word in listed))
    vectors_file.prepare(tmp_path)
    found = vectors_file.load(tmp_path, unit=True).words
    assert len(found) == 7
    assert found[np.array([[6, 1], [2, 0]])].tolist() == [[listed[6], listed[1]], [listed[2], listed[0]]]
    assert found.rows([*listed, b"z", b"zz", b"", b"a\t"]).tolist() == [*range(7), -1, -1, -1, -1]
    (tmp_path / "vocabulary.txt").write_bytes(b"a\t1\nb\t1\nccc\t1\na\t1\n")
    with pytest.raises(ArtifactError, match='"a" twice'):
        vectors_file.prepare(tmp_path)
