"""Trains word vectors with gensim, or scores vectors: folder, kind or "scores", epochs, seed, and the vectors' file."""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np
from gensim.models import KeyedVectors, Word2Vec
from gensim.test.utils import datapath

THREADS = 2


def peak_mib() -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def train(folder: Path, kind: str, epochs: int, seed: int, vectors: Path | None) -> dict[str, float]:
    rate = 0.05 if kind == "cbow" else 0.025
    tree = kind == "hierarchical"
    file = str(folder / "lines.txt")
    model = Word2Vec(
        vector_size=100, window=5, min_count=1, sample=1e-3, workers=THREADS, seed=seed + 1, alpha=rate,
        min_alpha=rate * 1e-4, sg=int(kind != "cbow"), hs=int(tree), negative=0 if tree else 5,
    )  # fmt: skip
    model.build_vocab(corpus_file=file)
    began = time.perf_counter()
    model.train(
        corpus_file=file, total_examples=model.corpus_count, total_words=model.corpus_total_words, epochs=epochs
    )
    took = time.perf_counter() - began
    if vectors:
        words = [line.rpartition("\t")[0] for line in (folder / "words.txt").read_text(encoding="utf-8").splitlines()]
        np.save(vectors, model.wv[words])
    return {"words_per_second": model.corpus_total_words * epochs / took, "peak_mib": peak_mib()}


def scores(folder: Path, vectors: Path) -> dict[str, float]:
    values = np.load(vectors)
    words = [line.rpartition("\t")[0] for line in (folder / "words.txt").read_text(encoding="utf-8").splitlines()]
    keyed = KeyedVectors(values.shape[1])
    keyed.add_vectors(words, values)
    wordsim = keyed.evaluate_word_pairs(datapath("wordsim353.tsv"))
    simlex = keyed.evaluate_word_pairs(datapath("simlex999.txt"))
    analogies = keyed.evaluate_word_analogies(datapath("questions-words.txt"), restrict_vocab=30_000)
    return {"wordsim": float(wordsim[1][0]), "simlex": float(simlex[1][0]), "analogies": float(analogies[0])}


def main() -> None:
    warnings.filterwarnings("ignore")
    folder, kind, epochs, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    vectors = Path(sys.argv[5]) if len(sys.argv) > 5 else None
    if kind == "scores" and vectors:
        print(json.dumps(scores(folder, vectors)))
    else:
        print(json.dumps(train(folder, kind, epochs, seed, vectors)))


if __name__ == "__main__":
    main()
