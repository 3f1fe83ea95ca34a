"""What word vectors are worth where few texts have labels, on film reviews. `make bench-few-labels`.

The vectors are learnt from the text of 4,000 reviews without their labels (wordEmbedding). A classifier of 50, 100 and
200 labelled reviews starts from them (pretrained, method Head) or from nothing, with the same network, learning rate
and epochs. Both are runs of the product: a master and a worker on this machine; what is measured is how the artifact,
as it is served, answers 1,000 other reviews. The learning rate is the better one of 0.001, 0.003 and 0.006 for the side
without vectors.
"""

from __future__ import annotations

import json
import lzma
import os
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from mms_workloads.contract import ArtifactRef, JobFile
from mms_workloads.serve import pipelines
from mms_workloads.train.local import LocalRun

DATA = Path(os.environ.get("MMS_REVIEWS", "../shared/data"))
LABELS = [int(one) for one in os.environ.get("MMS_BENCH_LABELS", "50,100,200").split(",")]
SEEDS = range(1, 1 + int(os.environ.get("MMS_BENCH_SEEDS", "3")))
WORDS: dict[str, Any] = {"dimensions": 100, "minCount": 3}
TEXT: dict[str, Any] = {"dimensions": 100, "layers": 1, "heads": 4, "maxLength": 256}
SECONDS = 1200.0

Review = dict[str, Any]


def reviews(part: str) -> list[Review]:
    """part: train or test. text, and label as a word."""
    with lzma.open(DATA / f"reviews-{part}.jsonl.xz", "rt") as lines:
        found = [json.loads(line) for line in lines]
    return [{"text": r["text"].replace("<br />", " "), "label": str(r["label"])} for r in found]


def trained(folder: Path, task: dict[str, Any], lines: str, suffix: str, **more: Any) -> ArtifactRef:
    folder.mkdir(parents=True)
    (folder / f"data{suffix}").write_text(lines)
    job = {
        "job": {"namespace": "b", "name": "few", "uid": "b", "run": 1},
        "task": task,
        "data": {"store": {"uri": f"file://{folder}/data{suffix}"}, "blockBytes": 32 << 10},
        "evaluation": {"split": 0.0},
        "checkpoint": {"intervalSeconds": 3600, "keep": 1},
        "workers": 1,
        "storage": {"uri": f"file://{folder}/storage"},
        "masterHost": "127.0.0.1",
        **more,
    }
    with LocalRun(folder / "run", JobFile.model_validate(job)) as run:
        outcome = run.start().outcome(SECONDS)
    if outcome.result != "Complete" or outcome.artifact is None:
        raise SystemExit(f"{outcome}")
    return outcome.artifact


def vectors(folder: Path, given: list[Review]) -> ArtifactRef:
    text = "".join(review["text"].replace("\n", " ") + "\n" for review in given)
    return trained(folder, {"wordEmbedding": WORDS}, text, ".txt", optimizer={"learningRate": 0.025, "epochs": 10})


def accuracy(folder: Path, given: list[Review], asked: list[Review], start: ArtifactRef | None, seed: int) -> float:
    """Of a classifier that has learnt from `given`, on `asked`."""
    lines = "".join(json.dumps(review) + "\n" for review in given)
    optimizer = {"name": "AdamW", "learningRate": 0.003, "globalBatchSize": 16, "epochs": 30, "seed": seed}
    more: dict[str, Any] = {"optimizer": optimizer}
    if start is not None:
        more["pretrained"] = {"store": {"uri": start.uri}, "digest": start.digest, "method": "Head"}
    found = trained(folder, {"textClassification": TEXT}, lines, ".jsonl", **more)
    served = pipelines.open(Path(found.uri.removeprefix("file://")))
    texts = np.array([[review["text"].encode()] for review in asked], np.object_)
    said = served.answer({"TEXT": texts})["LABELS"][:, 0]
    right = sum(one.decode() == review["label"] for one, review in zip(said, asked, strict=True))
    return float(right) / len(asked)


def main() -> int:
    os.environ["OMP_NUM_THREADS"] = "1"
    many, asked = reviews("train"), reviews("test")
    means: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory(prefix="mms-few-") as scratch:
        words = vectors(Path(scratch) / "words", many)
        say("labels   with vectors        without")
        for count in LABELS:
            sides: tuple[list[float], list[float]] = ([], [])
            for seed in SEEDS:
                few = random.Random(seed).sample(many, count)
                for side, start in zip(sides, (words, None), strict=True):
                    folder = Path(scratch) / f"{count}-{seed}-{start is not None}"
                    side.append(accuracy(folder, few, asked, start, seed))
            said = "   ".join(f"{statistics.mean(s):.3f} ({min(s):.3f} to {max(s):.3f})" for s in sides)
            say(f"{count:6}   {said}")
            means.append((statistics.mean(sides[0]), statistics.mean(sides[1])))
    ours, without = means[0]
    say(f"RESULT few-labels {ours:.3f} accuracy vs {without:.3f} accuracy: {ours / without:.2f}x")
    return 0


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
