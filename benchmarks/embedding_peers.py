"""Trains word vectors with gensim or fastText, or scores them: folder, kind or "scores", epochs, seed, vectors' file.

Kind "file-to-vectors": folder is the compressed corpus, the vectors' file what is written in word2vec's binary format.
"""

from __future__ import annotations

import json
import lzma
import os
import re
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

THREADS = 2
DIMENSIONS, WINDOW, NEGATIVES, SUBSAMPLE, MIN_COUNT = 100, 5, 5, 1e-3, 5
BUCKETS = 2_000_000


def peak_mib() -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def words_of(folder: Path) -> list[str]:
    lines = (folder / "words.txt").read_text(encoding="utf-8").splitlines()
    return [line.rpartition("\t")[0] for line in lines]


def gensim(kind: str, seed: int, least: int) -> Any:
    from gensim.models import Word2Vec  # noqa: PLC0415 - each process uses one of them

    rate = 0.05 if kind == "cbow" else 0.025
    tree = kind == "hierarchical"
    return Word2Vec(
        vector_size=DIMENSIONS, window=WINDOW, min_count=least, sample=SUBSAMPLE, workers=THREADS, seed=seed + 1,
        alpha=rate, min_alpha=rate * 1e-4, sg=int(kind != "cbow"), hs=int(tree), negative=0 if tree else NEGATIVES,
    )  # fmt: skip


def train(folder: Path, kind: str, epochs: int, seed: int, vectors: Path | None) -> dict[str, float]:
    model = gensim(kind, seed, 1)
    file = str(folder / "lines.txt")
    model.build_vocab(corpus_file=file)
    began = time.perf_counter()
    model.train(
        corpus_file=file, total_examples=model.corpus_count, total_words=model.corpus_total_words, epochs=epochs
    )
    took = time.perf_counter() - began
    if vectors:
        np.save(vectors, model.wv[words_of(folder)])
    return {"words_per_second": model.corpus_total_words * epochs / took, "peak_mib": peak_mib()}


def fasttext(folder: Path, epochs: int, vectors: Path | None) -> dict[str, float]:
    """Its own figure of words per second and thread: reading the vocabulary is not in it. It takes no seed."""
    import fasttext as library  # noqa: PLC0415

    with tempfile.TemporaryFile() as said:
        kept = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            model = library.train_unsupervised(
                str(folder / "lines.txt"), model="skipgram", lr=0.05, dim=DIMENSIONS, ws=WINDOW, epoch=epochs,
                minCount=1, minn=3, maxn=6, neg=NEGATIVES, bucket=BUCKETS, thread=THREADS, t=SUBSAMPLE, verbose=2,
            )  # fmt: skip
        finally:
            os.dup2(kept, 2)
        said.seek(0)
        rate = float(re.findall(rb"words/sec/thread:\s*(\d+)", said.read())[-1])
    if vectors:
        np.save(vectors, np.array([model.get_word_vector(word) for word in words_of(folder)], np.float32))
    return {"words_per_second": rate * THREADS, "peak_mib": peak_mib()}


def file_to_vectors(corpus: Path, epochs: int, seed: int, target: Path) -> dict[str, float]:
    """As gensim is fastest: the text is split into a plain file first, which its threads read by themselves."""
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "lines.txt"
        opened = lzma.open if corpus.suffix == ".xz" else open
        with opened(corpus, "rt", encoding="utf-8", errors="replace") as text, plain.open("w") as out:
            for line in text:
                out.write(" ".join(re.findall(r"\w+", line.lower())) + "\n")
        model = gensim("skip-gram", seed, MIN_COUNT)
        model.build_vocab(corpus_file=str(plain))
        model.train(
            corpus_file=str(plain),
            total_examples=model.corpus_count,
            total_words=model.corpus_total_words,
            epochs=epochs,
        )
        model.wv.save_word2vec_format(str(target), binary=True)
    return {"peak_mib": peak_mib()}


def scores(folder: Path, vectors: Path) -> dict[str, float]:
    from gensim.models import KeyedVectors  # noqa: PLC0415
    from gensim.test.utils import datapath  # noqa: PLC0415

    values = np.load(vectors)
    keyed = KeyedVectors(values.shape[1])
    keyed.add_vectors(words_of(folder), values)
    wordsim = keyed.evaluate_word_pairs(datapath("wordsim353.tsv"))
    simlex = keyed.evaluate_word_pairs(datapath("simlex999.txt"))
    analogies = keyed.evaluate_word_analogies(datapath("questions-words.txt"), restrict_vocab=30_000)
    return {"wordsim": float(wordsim[1][0]), "simlex": float(simlex[1][0]), "analogies": float(analogies[0])}


def main() -> None:
    warnings.filterwarnings("ignore")
    folder, kind, epochs, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    vectors = Path(sys.argv[5]) if len(sys.argv) > 5 else None
    if kind == "scores" and vectors:
        found = scores(folder, vectors)
    elif kind == "file-to-vectors" and vectors:
        found = file_to_vectors(folder, epochs, seed, vectors)
    elif kind == "subword":
        found = fasttext(folder, epochs, vectors)
    else:
        found = train(folder, kind, epochs, seed, vectors)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
