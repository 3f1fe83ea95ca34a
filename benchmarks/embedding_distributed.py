"""Word vectors on several workers of this machine, beside as many threads of one process as it has processors.

Arguments: the corpus, the number of workers, Ring or ParameterServer, None or BF16 on the wire, epochs, seed, the list
of words, and where their vectors go. Words per second between the first and the last report of the training, and bytes
that crossed the loopback meanwhile for each word.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from mms_workloads.contract import JobFile
from mms_workloads.train.local import LocalRun

POLL_SECONDS = 0.1
LEAST_POINTS = 10


def job(corpus: Path, folder: Path, epochs: int, seed: int, **how: Any) -> JobFile:
    fields: dict[str, Any] = {
        "job": {"namespace": "bench", "name": "words", "uid": "bench", "run": 1},
        "task": {"wordEmbedding": {}},
        "data": {"store": {"uri": f"file://{corpus}"}},
        "evaluation": {"split": 0},  # all words are trained on
        **how,
        "storage": {"uri": f"file://{folder}/out"},
        "masterHost": "127.0.0.1",
        "optimizer": {"name": "SGD", "learningRate": 0.025, "epochs": epochs, "seed": seed},
    }
    if how["syncMode"] == "ParameterServer":
        fields["parameterServer"] = {"shards": 1}
    return JobFile.model_validate(fields)


def loopback() -> int:
    """Bytes that came in by it so far."""
    lines = Path("/proc/net/dev").read_text(encoding="utf-8").splitlines()
    return next(int(line.split(":")[1].split()[0]) for line in lines if line.strip().startswith("lo:"))


def in_order(artifact: Path, listed: Path) -> np.ndarray:
    """The artifact's vectors of the listed words, a word and its count a line. [V, d], float32"""
    lines = (artifact / "vocabulary.txt").read_text(encoding="utf-8").splitlines()
    rows = {line.rpartition("\t")[0]: row for row, line in enumerate(lines)}
    words = [line.rpartition("\t")[0] for line in listed.read_text(encoding="utf-8").splitlines()]
    return load_file(artifact / "model.safetensors")["vectors"][[rows[word] for word in words]]


def main() -> None:
    corpus, workers, mode, wire, epochs, seed, listed, vectors = sys.argv[1:]
    how: dict[str, Any] = {"workers": int(workers), "syncMode": mode, "compression": wire}
    seen: list[tuple[float, float, int]] = []  # time, percent, bytes
    with tempfile.TemporaryDirectory() as folder:
        with LocalRun(Path(folder) / "run", job(Path(corpus), Path(folder), int(epochs), int(seed), **how)) as run:
            run.start()
            report = run.until(lambda _: True)
            while report.outcome is None:
                if report.activity == "Training" and (not seen or report.percent != seen[-1][1]):
                    seen.append((time.perf_counter(), report.percent, loopback()))  # whole points, when they change
                time.sleep(POLL_SECONDS)
                report = run.until(lambda _: True)
            outcome = run.outcome()
        assert outcome.artifact is not None, outcome.message
        artifact = next(Path(folder).rglob("evaluation.json")).parent
        words = json.loads((artifact / "evaluation.json").read_text(encoding="utf-8"))["words"]
        np.save(vectors, in_order(artifact, Path(listed)))
        assert len(seen) > LEAST_POINTS, "the training is too short to be measured"
        (began, first, before), (ended, last, after) = seen[1], seen[-1]
        trained = (last - first) / 100 * words * int(epochs)
        found = {
            "words_per_second": trained / (ended - began),
            "bytes_per_word": (after - before) / trained,
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
