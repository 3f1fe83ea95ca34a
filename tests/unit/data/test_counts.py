"""Counts of more words than memory holds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mms_workloads.contract import Reason, Store, WordEmbedding
from mms_workloads.data import corpus, vocabulary
from mms_workloads.data import counts as module
from mms_workloads.data.blocks import Segment
from mms_workloads.data.counts import Counts
from mms_workloads.data.reader import Reader
from mms_workloads.store import JobError
from tests.unit.data.words import words_of

WORD = st.text("abcß漢🦀", min_size=1, max_size=3)
LONG = WORD.map(lambda word: (word * 1024).encode()[:1024].decode(errors="ignore"))
COUNTED = st.dictionaries(WORD | LONG | st.tuples(WORD, WORD).map(" ".join), st.integers(1, 50), max_size=30)


def limit(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(module, "HELD_BYTES", 2000)
    patch.setattr(module, "BYTES_AT_ONCE", 50)


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch)


@given(st.lists(COUNTED, max_size=8), st.integers(1, 60), st.integers(1, 10))
def test_what_is_counted_does_not_depend_on_memory(
    tmp_path_factory: pytest.TempPathFactory, each: list[dict[str, int]], least: int, size: int
) -> None:
    """Of words and of pairs, short and long; and whether it is asked once or again."""
    counts, expected = Counts(tmp_path_factory.getbasetemp()), Counter[str]()
    with pytest.MonkeyPatch.context() as patch:
        limit(patch)
        for one in each:
            counts.add(words_of(one), WordEmbedding(minCount=1000))
            expected.update(one)
    words = {word: count for word, count in expected.items() if " " not in word and count >= least}
    first = sorted(words.items(), key=lambda one: (-one[1], one[0]))[:size]
    for _ in range(2):
        assert counts.words(least) == words
        assert dict(counts.pairs(least)) == {w: c for w, c in expected.items() if " " in w and c >= least}
        most = counts.most(least, size)
        assert most.items() >= dict(first).items()
        assert len(most) <= size + size // 4 or len(most) == len(words)


@pytest.mark.usefixtures("little_memory")
def test_each_word_is_in_one_file(tmp_path: Path) -> None:
    counts, task = Counts(tmp_path / "new"), WordEmbedding(minCount=1000)
    for _ in range(2):
        counts.add(words_of({f"w{i}": 1 for i in range(2000)}), task)
    parts = [part.above(0) for part in counts.parts()]
    assert len(parts) == module.FILES
    assert sum(map(len, parts)) == 2000
    assert max(map(len, parts)) < 4 * 2000 / module.FILES, "evenly"
    assert list((tmp_path / "new").iterdir()) == [], "files without names"


@pytest.mark.usefixtures("little_memory")
def test_memory_grows_with_the_vocabulary(tmp_path: Path) -> None:
    """Words that will be in it have rows of the matrices, which are made when all is counted. Pairs have none."""
    for frequent, files in (({f"w{i}": 5 for i in range(500)}, 0), ({f"w{i} x": 5 for i in range(500)}, 64)):
        counts = Counts(tmp_path)
        for number in range(3):
            rare = {f"r{number}-{i}": 1 for i in range(500)}
            counts.add(words_of({**frequent, **rare}), WordEmbedding(dimensions=200))
        assert len(list(counts.parts())) == max(1, files)


@pytest.mark.usefixtures("little_memory")
def test_no_room_for_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.tempfile, "TemporaryFile", lambda **_: Path("/dev/full").open("w+b"))  # noqa: SIM115
    counts, task = Counts(tmp_path), WordEmbedding(minCount=1000)
    counts.add(words_of({f"w{i}": 1 for i in range(2000)}), task)
    with pytest.raises(JobError, match=r"the scratch volume cannot be written .*No space.*: make it larger") as raised:
        counts.add(words_of({"more": 1}), task)
    assert (raised.value.reason, raised.value.retryable) == (Reason.INTERNAL, True)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("phrases", [None, {"minCount": 2, "threshold": 1}], ids=["words", "phrases"])
def test_a_vocabulary_of_a_text_that_memory_does_not_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phrases: dict[str, Any] | None, threads: int
) -> None:
    """It is the one of a text that memory holds: pieces, and parts of them, end at lines."""
    rng = np.random.default_rng(1)
    lines = [" ".join(f"w{i}" for i in np.minimum(rng.zipf(1.2, 8), 1 << 20)) for _ in range(4000)]
    (tmp_path / "text").write_text("\n".join(lines))
    task = WordEmbedding.model_validate({"minCount": 2, "maxVocabulary": 500, "phrases": phrases})
    monkeypatch.setattr(corpus, "PIECE_BYTES", 20_000)
    store, segment = Store(uri=f"file://{tmp_path}"), Segment(0, 0, None)

    def cut() -> vocabulary.Vocabulary:
        reader = Reader(store, [f"file://{tmp_path}/text"], tmp_path)
        counts, _ = corpus.count(reader, [segment], task, threads=threads, folder=tmp_path)
        files.append(len(list(counts.parts())))
        return vocabulary.cut(counts, task)

    files = list[int]()
    expected = cut()
    monkeypatch.setattr(module, "HELD_BYTES", 100_000)
    monkeypatch.setattr(corpus, "SLICE_BYTES", 2000)
    assert cut() == expected
    assert files == [1, module.FILES]
    assert len(expected) == 500
    assert bool(expected.phrases) is bool(phrases)
