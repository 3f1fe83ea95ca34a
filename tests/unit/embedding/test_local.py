"""A whole run in this process, from compressed text to files."""

from __future__ import annotations

import dataclasses
import lzma
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mms_workloads import memory
from mms_workloads.contract import Reason, Store, WordEmbedding
from mms_workloads.embedding import local
from mms_workloads.embedding.local import Progress, Settings
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from collections.abc import Callable

TOPICS = [[f"{topic}{i}" for i in range(12)] for topic in ("ship", "farm", "court")]


def settings(path: Path, *, threads: int = 1, epochs: int = 8, **task: Any) -> Settings:
    fields = {"dimensions": 16, "subsample": 0, "minCount": 1, **task}
    return Settings(Store(uri=f"file://{path}"), WordEmbedding.model_validate(fields), epochs, 0.05, 1, threads)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    lines = [" ".join(rng.choice(TOPICS[i % 3], 10)).title() for i in range(3000)]
    path = tmp_path / "corpus.txt.xz"
    path.write_bytes(lzma.compress("\n".join(lines).encode()))
    return path


@pytest.mark.parametrize(
    "task",
    [
        {},
        {"model": "CBOW"},
        {"objective": "HierarchicalSoftmax"},
        {"objective": "Softmax", "maxVocabulary": 1000},
        {"subwords": {"buckets": 2000}},
    ],
    ids=["skip-gram", "cbow", "tree", "softmax", "subwords"],
)
def test_from_text_to_vectors(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, task: dict[str, Any]
) -> None:
    monkeypatch.setattr(local, "BLOCK_BYTES", 40_000)  # several blocks
    told: list[Progress] = []
    result = local.embed(settings(corpus, threads=2, **task), tmp_path / "out", tmp_path / "scratch", told.append)
    assert sorted(result.words) == sorted(word for topic in TOPICS for word in topic)
    units = result.vectors / np.linalg.norm(result.vectors, axis=1, keepdims=True)
    of = np.array([next(i for i, topic in enumerate(TOPICS) if word in topic) for word in result.words])
    scores = units @ units.T - 3 * np.eye(len(units))
    assert (of[np.argsort(-scores)[:, :11]] == of[:, None]).mean() > 0.95
    assert result.trained == 8 * 30_000
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {
        "model.safetensors", "vocabulary.txt", "vectors.bin", "report.html",
    }  # fmt: skip
    phases = list(dict.fromkeys(one.phase for one in told))
    assert phases == ["counting", "encoding", "training", "writing"] == list(result.seconds)
    training = [one for one in told if one.phase == "training" and one.loss is not None]
    assert [one.done for one in training] == sorted(one.done for one in training)
    assert training[-1].done == 1.0
    assert training[-1].loss < training[0].loss  # type: ignore[operator]


@pytest.mark.parametrize("threads", [1, 2])
def test_counting_tells_how_far_it_is(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr(local.corpus, "PIECE_BYTES", 40_000)
    told: list[Progress] = []
    local.embed(settings(corpus, threads=threads, epochs=1), tmp_path / "out", tmp_path / "s", told.append)
    counting = [one.done for one in told if one.phase == "counting"]
    assert counting == sorted(counting)
    assert len(counting) > 4
    assert 0.5 < counting[-1] < 1


@pytest.mark.parametrize("model", ["SkipGram", "CBOW"])
@pytest.mark.parametrize(
    "task",
    [
        {},
        {"windowing": "Fixed", "subsample": 0.01},
        {"objective": "HierarchicalSoftmax"},
        {"objective": "Softmax", "maxVocabulary": 1000},
        {"subwords": {"buckets": 500}},
        {"subwords": {"buckets": 500}, "objective": "HierarchicalSoftmax"},
        {"phrases": {"minCount": 5, "threshold": 1}},
    ],
    ids=["negatives", "fixed", "tree", "softmax", "subwords", "subwords, tree", "phrases"],
)
def test_the_same_seed_gives_the_same_bits(tmp_path: Path, corpus: Path, task: dict[str, Any], model: str) -> None:
    """Of all files, with one thread; and other bits with another seed."""
    found = []
    for run, seed in enumerate((1, 1, 2)):
        given, out = settings(corpus, epochs=1, model=model, **task), tmp_path / f"out-{run}"
        local.embed(dataclasses.replace(given, seed=seed), out, tmp_path / f"scratch-{run}", lambda _: None)
        found.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert found[0] == found[1]
    assert ("_" in found[0]["vocabulary.txt"].decode()) is ("phrases" in task)
    assert found[0]["vectors.bin"] != found[2]["vectors.bin"]


def test_writing_tells_how_far_it_is(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local.files, "ROWS_AT_ONCE", 6)
    for text, least in ((False, 6), (True, 12)):
        told: list[Progress] = []
        given = dataclasses.replace(settings(corpus, epochs=1), text=text)
        local.embed(given, tmp_path / "out", tmp_path / f"s-{text}", told.append)
        writing = [one.done for one in told if one.phase == "writing"]
        assert writing == sorted(writing)
        assert len(writing) > least
        assert writing[-1] == pytest.approx(1.0)


def test_a_training_that_diverges_is_told(tmp_path: Path, corpus: Path) -> None:
    given = dataclasses.replace(settings(corpus, epochs=1), learning_rate=1e38)
    with pytest.raises(JobError, match=r"not finite: lower optimizer\.learningRate"):
        local.embed(given, tmp_path / "out", tmp_path / "scratch", lambda _: None)
    assert not (tmp_path / "out").exists()


def test_memory_that_is_not_there_is_told_before_it_is_taken(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the matrices, of 2 x 36 + 2000 rows, there are the words' own vectors and what is kept of each row."""

    def made(*_: Any) -> None:
        raise AssertionError("parameters were made")

    monkeypatch.setattr(local, "initial_parameters", made)
    monkeypatch.setattr(memory, "available", lambda: 2072 * 16 * 4 + 36 * 16 * 4)
    said = r"of 36 words and 2,000 buckets of 16 dimensions takes .* GiB of memory and .* are free: lower dimensions, "
    with pytest.raises(JobError, match=f"{said}maxVocabulary or subwords.buckets") as raised:
        local.embed(settings(corpus, subwords={"buckets": 2000}), tmp_path / "out", tmp_path / "s", lambda _: None)
    assert raised.value.reason == Reason.OUT_OF_MEMORY
    assert not (tmp_path / "out").exists()


def test_phrases(tmp_path: Path) -> None:
    path, rng = tmp_path / "text", np.random.default_rng(1)
    lines = [
        " ".join([*rng.choice(TOPICS[i % 3], 6), *(["new", "york"] if i % 7 == 0 else ["york"][: i % 2])])
        for i in range(2000)
    ]
    path.write_text("\n".join(lines))
    task = {"phrases": {"minCount": 5, "threshold": 5}, "minCount": 5}
    result = local.embed(settings(path, epochs=1, **task), tmp_path / "out", tmp_path / "s", lambda _: None)
    assert "new_york" in result.words
    assert "york" in result.words
    assert "new" not in result.words
    assert "new_york\t286\n" in (tmp_path / "out" / "vocabulary.txt").read_text()


def test_chinese_by_characters(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("机器学习是人工智能的一个分支。GPT-4\n机器学习很有用\n" * 50, encoding="utf-8")
    task = {"tokenizer": "Characters", "minCount": 100}
    result = local.embed(settings(path, epochs=1, **task), tmp_path / "out", tmp_path / "s", lambda _: None)
    assert set(result.words) == set("机器学习")


def test_a_loss_that_was_not_measured_is_no_point_of_the_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the second block, which begins with a line of one word, and is short. Its words count all the same."""
    path, curves, told = tmp_path / "text", list[list[tuple[int, float]]](), list[Progress]()
    path.write_text("one two three four\n" * 50 + "one\ntwo three\n")
    monkeypatch.setattr(local, "BLOCK_BYTES", 19 * 50)

    def page(*given: Any) -> str:
        curves.append(given[3])
        return ""

    monkeypatch.setattr(local.report, "page", page)
    result = local.embed(settings(path, epochs=2), tmp_path / "out", tmp_path / "s", told.append)
    assert result.trained == 2 * 203
    assert [words for words, _ in curves[0]] == [200, 403]
    assert min(loss for _, loss in curves[0]) > 0
    assert [one.loss is None for one in told if one.words] == [False, True, False, True]


@pytest.mark.parametrize(
    ("content", "task", "reason", "said"),
    [
        (b"", {}, Reason.DATA_EMPTY, "all files are empty: check them"),
        (b" \n ... \n", {}, Reason.DATA_EMPTY, "no word"),
        (b"one two three", {"minCount": 5}, Reason.VOCABULARY_TOO_SMALL, "lower minCount"),
        (b"one\ntwo\nthree\n" * 50, {}, Reason.DATA_INVALID, "no two words stand in one line"),
        (b"one two \xff three", {}, Reason.DATA_UNREADABLE, "not UTF-8: byte 0xff at offset 8"),
        (b"one two two", {"subwords": {"buckets": 10**12}}, Reason.OUT_OF_MEMORY, "lower dimensions"),
    ],
    ids=["empty", "no word", "only rare words", "one word a line", "not UTF-8", "too large"],
)
def test_refusals(tmp_path: Path, content: bytes, task: dict[str, Any], reason: Reason, said: str) -> None:
    path = tmp_path / "text"
    path.write_bytes(content)
    with pytest.raises(JobError, match=said) as raised:
        local.embed(settings(path, **task), tmp_path / "out", tmp_path / "scratch", lambda _: None)
    assert raised.value.reason == reason
    assert not (tmp_path / "out").exists()


def test_a_line_without_an_end_is_bounded_work(tmp_path: Path) -> None:
    """A token of 40 MB is no word; what stands around it is."""
    path = tmp_path / "text"
    path.write_bytes(b"one two " * 100 + b"x" * (40 << 20) + b" one two" * 100)
    result = local.embed(settings(path, epochs=1), tmp_path / "out", tmp_path / "scratch", lambda _: None)
    assert set(result.words) <= {"one", "two"} | {word for word in result.words if set(word) == {"x"}}
    assert {"one", "two"} <= set(result.words)


def test_memory_that_is_free(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 100 kB\nMemAvailable: 50 kB\n")
    assert memory.available(tmp_path, meminfo) == 50 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available(tmp_path, meminfo) == 50 * 1024
    (tmp_path / "memory.max").write_text("30000\n")
    (tmp_path / "memory.current").write_text("25000\n")
    (tmp_path / "memory.stat").write_text("anon 5000\ninactive_file 10000\nactive_file 4000\nslab_reclaimable 1000\n")
    assert memory.available(tmp_path, meminfo) == 20_000, "copies of files go when memory is wanted"
    assert memory.available(tmp_path / "none", tmp_path / "none") is None


def test_results_that_have_no_place_are_refused_before_the_work(tmp_path: Path, corpus: Path) -> None:
    told: list[Progress] = []
    (tmp_path / "out").write_text("a file")
    for output in (tmp_path / "out", tmp_path / "out" / "below"):
        with pytest.raises(NotADirectoryError, match="name a folder"):
            local.embed(settings(corpus), output, tmp_path / "scratch", told.append)
    with pytest.raises(OSError, match=r"/proc/out: nothing can be written there .*: name another folder"):
        local.embed(settings(corpus), Path("/proc/out"), tmp_path / "scratch", told.append)
    assert told == []


PEAK = """
import sys
from pathlib import Path
from mms_workloads.contract import Store, WordEmbedding
from mms_workloads.embedding import local
task = WordEmbedding.model_validate_json(sys.argv[3])
settings = local.Settings(Store(uri=sys.argv[1]), task, epochs=1, learning_rate=0.05, seed=1, threads=2)
(scratch := Path(sys.argv[2]) / "scratch").mkdir()
words = len(local.embed(settings, Path(sys.argv[2]) / "out", scratch, lambda _: None).words)
print(words, Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""


def repeated(rng: np.random.Generator) -> str:
    return " ".join(map(str, np.minimum(rng.zipf(1.3, 5_000_000), 20_000).tolist()))


def different(rng: np.random.Generator, words: int = 4_000_000) -> str:
    """A word in three stands in other places, too."""
    rare, often = iter(range(words)), iter(rng.integers(0, 1000, words // 2).tolist())
    return "\n".join(
        " ".join(f"x{next(rare):x} y{next(rare):x} {next(often)}" for _ in range(10)) for _ in range(words // 20)
    )


@pytest.mark.parametrize(
    ("text", "task"),
    [
        (repeated, {"minCount": 1}),
        (different, {}),
        (partial(different, words=500_000), {"phrases": {}}),
        (partial(different, words=500_000), {"minCount": 1, "maxVocabulary": 20_000}),
    ],
    ids=["words", "different words", "pairs", "a small part of the words"],
)
def test_memory_does_not_grow_with_the_corpus(
    tmp_path: Path, text: Callable[[np.random.Generator], str], task: dict[str, Any]
) -> None:
    """The matrices, the vocabulary, and 100 MiB for all else, the interpreter among it."""
    (tmp_path / "corpus").write_text(text(np.random.default_rng(1)))
    given = WordEmbedding.model_validate({"dimensions": 100, **task}).model_dump_json()
    command = [sys.executable, "-c", PEAK, f"file://{tmp_path}/corpus", str(tmp_path), given]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    words, peak = map(int, said.stdout.split())
    matrices, vocabulary = 2 * words * 112 * 4, 200 * words
    assert peak * 1024 < matrices + vocabulary + (100 << 20), (words, peak)
