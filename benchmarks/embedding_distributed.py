"""Word vectors on several workers of this machine, beside as many threads of one process as it has processors.

Arguments: the corpus, the number of workers, Ring or ParameterServer, None or BF16 on the wire, epochs. Words per second
between the first and the last report of the training, bytes that crossed the loopback meanwhile for each word, and the
artifact's scores.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mms_workloads.contract import JobFile
from mms_workloads.train.local import LocalRun

POLL_SECONDS = 0.1


def job(corpus: Path, folder: Path, workers: int, mode: str, wire: str, epochs: int) -> JobFile:
    fields: dict[str, Any] = {
        "job": {"namespace": "bench", "name": "words", "uid": "bench", "run": 1},
        "task": {"wordEmbedding": {}},
        "data": {"store": {"uri": f"file://{corpus}"}},
        "workers": workers,
        "syncMode": mode,
        "compression": wire,
        "storage": {"uri": f"file://{folder}/out"},
        "masterHost": "127.0.0.1",
        "optimizer": {"name": "SGD", "learningRate": 0.025, "epochs": epochs},
    }
    if mode == "ParameterServer":
        fields["parameterServer"] = {"shards": 1}
    return JobFile.model_validate(fields)


def loopback() -> int:
    """Bytes that came in by it so far."""
    lines = Path("/proc/net/dev").read_text(encoding="utf-8").splitlines()
    return next(int(line.split(":")[1].split()[0]) for line in lines if line.strip().startswith("lo:"))


def main() -> None:
    corpus, workers, mode, wire, epochs = sys.argv[1:]
    words = 0
    seen: list[tuple[float, float, int]] = []  # time, percent, bytes
    with tempfile.TemporaryDirectory() as folder:
        with LocalRun(Path(folder) / "run", job(Path(corpus), Path(folder), int(workers), mode, wire, int(epochs))) as run:
            run.start()
            report = run.until(lambda _: True)
            while report.outcome is None:
                if report.activity == "Training" and report.samplesPerSecond:
                    seen.append((time.perf_counter(), report.percent or 0.0, loopback()))
                time.sleep(POLL_SECONDS)
                report = run.until(lambda _: True)
            outcome = run.outcome()
        assert outcome.artifact is not None, outcome.message
        words = json.loads(next(Path(folder).rglob("evaluation.json")).read_text(encoding="utf-8"))["words"]
        (began, first, before), (ended, last, after) = seen[0], seen[-1]
        trained = (last - first) / 100 * words * int(epochs)
        found = {
            "words_per_second": trained / (ended - began),
            "bytes_per_word": (after - before) / trained,
            "metrics": outcome.artifact.metrics,
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
