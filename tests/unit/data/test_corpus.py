"""What a worker keeps of a data set."""

from __future__ import annotations

import gzip
import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mms_workloads.contract import DataFile, Store, WordEmbedding
from mms_workloads.data import corpus, reader, vocabulary
from mms_workloads.data.blocks import Segment
from mms_workloads.data.corpus import Cache, Corpus
from mms_workloads.data.reader import Reader
from mms_workloads.data.vocabulary import Vocabulary
from mms_workloads.sync.plan import Plan
from tests.unit.data import reference

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_a_block_that_two_threads_want_is_encoded_once(tmp_path: Path) -> None:
    cache, encoded, begun, go = Cache(tmp_path, np.int64), list[int](), threading.Event(), threading.Event()

    def encode(block: int) -> np.ndarray:
        begun.set()
        assert go.wait(10)
        encoded.append(block)
        return np.arange(1000)

    got: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: got.append(cache.get(7, encode))) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert begun.wait(10)
    go.set()
    for thread in threads:
        thread.join()
    assert encoded == [7]
    assert [one.tolist() for one in got] == [list(range(1000))] * 2
    assert cache.get(7, encode).tolist() == list(range(1000)), "and kept"
    assert encoded == [7]


@pytest.mark.parametrize("tokenizer", ["Words", "Whitespace", "Characters"])
def test_threads_count_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: str) -> None:
    plain = " ".join(f"W\u00f6rt{i % 17} don\u2019t{i % 5}" for i in range(500)).encode()
    packed = " ".join(f"w\u00f6rt{i % 13}\n" for i in range(500))
    (tmp_path / "a.txt").write_bytes(plain)
    (tmp_path / "b.gz").write_bytes(gzip.compress(packed.encode()))
    monkeypatch.setattr(corpus, "PIECE_BYTES", 100)
    task = WordEmbedding.model_validate({"tokenizer": tokenizer})
    uris = [f"file://{tmp_path}/a.txt", f"file://{tmp_path}/b.gz"]
    segments = [Segment(0, 0, 4000), Segment(0, 4000, len(plain)), Segment(1, 0, None)]
    expected = Counter(reference.tokens(plain.decode() + "\n" + packed, tokenizer))
    for threads in (1, 3, 200):
        reader = Reader(Store(uri=f"file://{tmp_path}"), uris, tmp_path / str(threads))
        words, sizes = corpus.count(reader, segments, task, threads=threads)
        assert words.words(1) == expected
        assert sizes == {1: len(packed.encode())}


@pytest.mark.parametrize("phrases", [None, {}], ids=["words", "phrases"])
def test_what_is_counted_does_not_depend_on_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phrases: dict[str, Any] | None
) -> None:
    """As many words as may be held, of which each thread sees a few of each; and far more pairs than may be held."""
    kinds, rng = 20_000, random.Random(0)
    words = [f"w{i}" for i in range(kinds)] * 6
    rng.shuffle(words)
    content = " ".join(words).encode()
    (tmp_path / "a.txt").write_bytes(content)
    monkeypatch.setattr(corpus, "PIECE_BYTES", 10_000)
    monkeypatch.setattr(corpus, "OWN_BYTES", 600_000)
    monkeypatch.setattr(vocabulary, "COUNTER_FLOOR", kinds)
    task = WordEmbedding.model_validate({"maxVocabulary": 5000, "phrases": phrases})
    for threads in (1, 16):
        reader = Reader(Store(uri=f"file://{tmp_path}"), [f"file://{tmp_path}/a.txt"], tmp_path / str(threads))
        found, _ = corpus.count(reader, [Segment(0, 0, None)], task, threads=threads)
        assert found.words(1) == dict.fromkeys(words, 6)
        assert len(list(found.pairs(1))) <= kinds


def test_a_compressed_file_is_decompressed_once_for_threads_that_want_different_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, decompress = list[str](), reader.decompress

    def watched(store: Store, target: Path, grow: Callable[[int], None]) -> None:
        done.append(store.uri)
        decompress(store, target, grow)

    monkeypatch.setattr(reader, "decompress", watched)
    path = tmp_path / "text.gz"
    path.write_bytes(gzip.compress(b"one two three four\n" * 50_000))
    size = 19 * 50_000
    plan = Plan((DataFile(uri=f"file://{path}", size=size),), size // 8 + 1, Vocabulary(("one", "two"), (2, 1)))
    found = []
    for attempt in range(3):
        corpus = Corpus(Store(uri=f"file://{path}"), plan, WordEmbedding(), tmp_path / str(attempt) / "blocks")
        with ThreadPoolExecutor(8) as pool:
            found.append([tokens.tolist() for tokens in pool.map(corpus.tokens, range(8))])
        assert [corpus.tokens(block).tolist() for block in range(8)] == found[-1], "as they were kept"
    assert found[0] == found[1] == found[2]
    assert len(done) == 3
    assert sum(len(tokens) for tokens in found[0]) >= 3 * 50_000
