"""Film reviews: what they say is learnt, of few labels more with word vectors, as benchmarks/few_labels.py has it."""

from __future__ import annotations

import json
import lzma
import os
import random
import statistics
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from mms_workloads.contract import Store, TextClassification, WordEmbedding
from mms_workloads.embedding import local
from mms_workloads.tasks import starting, texts
from mms_workloads.tasks.starting import Start
from mms_workloads.tasks.text_classification import TextClassifier
from mms_workloads.train.learner import decayed
from tests.unit.tasks.test_task_runs import job, metrics, run, served_as_published

if TYPE_CHECKING:
    from collections.abc import Sequence

DATA = Path(os.environ.get("MMS_REVIEWS") or Path(__file__).parents[4] / "shared" / "data")
LABELS, SEEDS, EPOCHS, BATCH, RATE = 50, (1, 2, 3), 30, 16, 0.003
MARGIN = 0.05
TOLD = 0.75
BESIDE = pytest.mark.skipif(not DATA.exists(), reason="there are no film reviews beside the repository")


def reviews(part: str) -> list[dict[str, Any]]:
    with lzma.open(DATA / f"reviews-{part}.jsonl.xz", "rt") as lines:
        found = [json.loads(line) for line in lines]
    return [{"input": r["text"].replace("<br />", " "), "label": str(r["label"])} for r in found]


def accuracy(few: Sequence[dict[str, Any]], asked: Sequence[dict[str, Any]], start: Start, seed: int) -> float:
    spec = TextClassification(dimensions=100, layers=0, maxLength=256)
    words = Counter(word for review in few for word in review["input"].lower().split())
    task = TextClassifier(spec, ["0", "1"], start, texts.words(words, spec, start))
    network, batch = task.build(seed).train(), task.prepare(few)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=RATE, weight_decay=0)
    order = torch.Generator().manual_seed(seed)
    for epoch in range(EPOCHS):
        for chosen in torch.randperm(len(few), generator=order).split(BATCH):
            optimizer.param_groups[0]["lr"] = decayed(RATE, epoch / EPOCHS)
            optimizer.zero_grad()
            loss = task.loss(network, {name: tensor[chosen] for name, tensor in batch.items()}, order) / len(chosen)
            loss.backward()
            optimizer.step()
    network.eval()
    with torch.no_grad():
        return task.measure(network, [task.prepare(asked)])["accuracy"]


@BESIDE
def test_what_reviews_say_is_learnt(tmp_path: Path) -> None:
    """By two workers: of 1,000 other reviews what is served tells three in four."""
    lines = [json.dumps({"text": one["input"], "label": one["label"]}) for one in reviews("train")]
    (tmp_path / "reviews.jsonl").write_text("\n".join(lines) + "\n")
    task = {"textClassification": {"dimensions": 32, "layers": 0, "maxLength": 256}}
    uri, optimizer = f"file://{tmp_path}/reviews.jsonl", {"epochs": 4, "learningRate": 0.005}
    outcome = run(tmp_path, job(tmp_path, task, uri, data={"blockBytes": 64 << 10}, optimizer=optimizer))
    assert metrics(outcome)["accuracy"] > TOLD
    asked = reviews("test")
    texts = np.array([[one["input"].encode()] for one in asked], np.object_)
    said = served_as_published(tmp_path, "textClassification").answer({"TEXT": texts})["LABELS"][:, 0].tolist()
    assert statistics.mean(one.decode() == own["label"] for one, own in zip(said, asked, strict=True)) > TOLD


@BESIDE
@pytest.mark.slow
def test_vectors_of_unlabelled_reviews_help_with_few_labels(tmp_path: Path) -> None:
    many, asked = reviews("train"), reviews("test")
    (tmp_path / "reviews.txt").write_text("".join(review["input"].replace("\n", " ") + "\n" for review in many))
    settings = local.Settings(
        Store(uri=f"file://{tmp_path}/reviews.txt"), WordEmbedding(minCount=3), epochs=10, learning_rate=0.025, seed=1,
        threads=1,
    )  # fmt: skip
    local.embed(settings, tmp_path / "vectors", tmp_path / "scratch", lambda _: None)
    start = Start(tmp_path / "vectors", "u", "wordEmbedding", "Head")
    gains = []
    for seed in SEEDS:
        few = random.Random(seed).sample(many, LABELS)
        gains.append(accuracy(few, asked, start, seed) - accuracy(few, asked, starting.NOTHING, seed))
    assert statistics.mean(gains) > MARGIN, gains
