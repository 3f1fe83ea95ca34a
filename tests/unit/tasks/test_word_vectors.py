"""Word vectors of a training are the input of named entities: names that no labelled sentence has are found."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from tests.unit.tasks import datasets
from tests.unit.tasks.test_task_runs import job, metrics, run, served_as_published
from tests.unit.train import runs

if TYPE_CHECKING:
    from pathlib import Path

UNLABELLED = {"Kiel", "Oslo", "Lima"}


def test_named_entities_from_much_text_without_labels(tmp_path: Path) -> None:
    datasets.sentences(tmp_path / "all", 3000)
    sentences = (tmp_path / "all" / "sentences.jsonl").read_text().splitlines()
    words = [json.loads(sentence)["tokens"] for sentence in sentences]
    (first := tmp_path / "first").joinpath("corpus").mkdir(parents=True)
    (first / "corpus" / "a.txt").write_text("\n".join(map(" ".join, words)))
    made = runs.run_to_the_end(first, runs.job(first, optimizer={"epochs": 10})).artifact
    assert made is not None
    labelled = [one for one, names in zip(sentences, words, strict=True) if not UNLABELLED & set(names)][:400]
    (second := tmp_path / "second").joinpath("data").mkdir(parents=True)
    (second / "data" / "few.jsonl").write_text("\n".join(labelled))
    training = job(
        second,
        {"tokenClassification": {"dimensions": 32, "maxLength": 16}},
        f"file://{second}/data/few.jsonl",
        pretrained={"store": {"uri": made.uri}, "digest": made.digest, "method": "Head"},
        optimizer={"epochs": 12},
    )
    assert metrics(run(second, training))["entityF1"] > 0.9
    served = served_as_published(second, "tokenClassification")
    asked = [f"Anna met Boris in {place}".encode() for place in sorted(UNLABELLED)]
    told = served.answer({"TEXT": np.array([[one] for one in asked], np.object_)})["TAGS"]
    assert [row[4] for row in told.tolist()] == [b"B-LOC"] * len(UNLABELLED)
