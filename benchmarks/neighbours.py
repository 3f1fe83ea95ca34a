"""Nearest neighbours of one word at a time: how long an answer takes, ours against gensim's most_similar.

Both search the same 100,000 random vectors of 100 numbers for the ten nearest by cosine, in a process each, on the same
core, with one thread, in turn: ROUNDS times PART questions each, so that what else the machine does meets both. The
answers are compared. An answer reads all vectors once, 40 MB, which bounds it from below: the time of that alone, by
numpy's max, is told, too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before numpy, which reads them when it is imported.
os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WORDS, DIMENSIONS, K = 100_000, 100, 10
ROUNDS, PART = 10, 200
WARM_UP = 5


def prepare(folder: Path) -> None:
    from mms_workloads import tensors  # noqa: PLC0415 - not in the peer's environment

    vectors = np.random.default_rng(1).standard_normal((WORDS, DIMENSIONS), np.float32)
    np.save(folder / "vectors.npy", vectors)
    tensors.write(folder / "model.safetensors", {"vectors": vectors})
    (folder / "vocabulary.txt").write_text("".join(f"word{number}\t1\n" for number in range(WORDS)))


def ours(folder: Path) -> Callable[[str], list[str]]:
    from mms_workloads.serve import embedding, vectors_file  # noqa: PLC0415 - not in the peer's environment

    vectors_file.prepare(folder)
    model = vectors_file.load(folder, unit=True)
    k = np.array([[K]], np.int32)

    def ask(word: str) -> list[str]:
        (found,) = embedding.neighbours(model, [embedding.Question(np.array([[word.encode()]], np.object_), k=k)])
        assert isinstance(found, embedding.Nearest)
        return [other.decode() for other in model.words[found.ids[0]]]

    return ask


def gensim(folder: Path) -> Callable[[str], list[str]]:
    from gensim.models import KeyedVectors  # noqa: PLC0415 - in the peer's only

    vectors = KeyedVectors(DIMENSIONS)
    vectors.add_vectors([f"word{number}" for number in range(WORDS)], np.load(folder / "vectors.npy"))
    return lambda word: [other for other, _ in vectors.most_similar(word, topn=K)]


def answer(name: str, folder: Path) -> None:
    """Asks itself the words of each line on stdin, JSON; on stdout the milliseconds of each and the answers."""
    ask = {"ours": ours, "gensim": gensim}[name](folder)
    for number in range(WARM_UP):
        ask(f"word{number}")
    print("ready", flush=True)
    for line in sys.stdin:
        took, found = [], []
        for word in json.loads(line):
            began = time.perf_counter()
            found.append(ask(word))
            took.append(1e3 * (time.perf_counter() - began))
        print(json.dumps({"ms": took, "found": found}), flush=True)


class Peer:
    def __init__(self, python: str, name: str, folder: Path) -> None:
        command = [python, __file__, name, str(folder)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._process.stdout.readline()  # ready: its start would take the other's time

    def ask(self, words: list[str]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(words), file=self._process.stdin, flush=True)
        answers: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answers

    def end(self) -> None:
        self._process.communicate()


def floor(folder: Path) -> float:
    """Milliseconds to read all vectors once; the median of many times."""
    vectors = np.load(folder / "vectors.npy")

    def times() -> Iterator[float]:
        for _ in range(50):
            began = time.perf_counter()
            vectors.view(np.int64).max()
            yield 1e3 * (time.perf_counter() - began)

    return float(np.median(list(times())))


def main() -> int:
    from benchmarks.embedding import RESULTS, peers  # noqa: PLC0415 - not in the peer's environment

    python = peers()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    took: dict[str, list[float]] = {"ours": [], "gensim": []}
    different = 0
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        prepare(folder)
        both = {"ours": Peer(sys.executable, "ours", folder), "gensim": Peer(python, "gensim", folder)}
        rng = np.random.default_rng(2)
        for _ in range(ROUNDS):
            words = [f"word{number}" for number in rng.integers(0, WORDS, PART)]
            answers = {name: peer.ask(words) for name, peer in both.items()}
            for name, of_one in answers.items():
                took[name] += of_one["ms"]
            different += sum(a != b for a, b in zip(*(one["found"] for one in answers.values()), strict=True))
        for peer in both.values():
            peer.end()
        least = floor(folder)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "neighbours.json").write_text(json.dumps({**took, "floor": least}), encoding="utf-8")
    p50, p99 = ({name: float(np.percentile(ms, q)) for name, ms in took.items()} for q in (50, 99))
    print(f"{ROUNDS * PART} questions, {different} answered differently; reading the vectors once: {least:.2f} ms")
    for q, of_both in ((50, p50), (99, p99)):
        mine, theirs = of_both["ours"], of_both["gensim"]
        print(f"RESULT neighbours-p{q} {mine:.2f} ms vs gensim {theirs:.2f} ms: {theirs / mine:.2f}x")
    return 0


if __name__ == "__main__":
    if len(sys.argv) > 1:
        answer(sys.argv[1], Path(sys.argv[2]))
    else:
        sys.exit(main())
