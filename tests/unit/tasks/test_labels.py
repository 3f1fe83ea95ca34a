"""Labels as numbers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.tasks import taught
from tests.unit.tasks.test_task_runs import job

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", ["data.jsonl", "data.parquet"])
def test_truth_values_are_labels(tmp_path: Path, name: str) -> None:
    made = [{"text": f"film {i}", "label": i % 3 == 0} for i in range(12)]
    if name == "data.jsonl":
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in made))
    else:
        pq.write_table(pa.Table.from_pylist(made), tmp_path / name)
    task = {"textClassification": {"dimensions": 8}}
    one = taught.learner(job(tmp_path, task, f"file://{tmp_path}/{name}"), tmp_path / "scratch")
    assert one.task.classes == ["false", "true"]  # type: ignore[attr-defined]
    assert one.prepared(0)["label"].tolist() == [int(row["label"]) for row in made]


def test_truth_values_are_tags(tmp_path: Path) -> None:
    rows = [{"tokens": ["Ada", "sleeps"], "tags": [True, False]}] * 4
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"tokenClassification": {"dimensions": 8}}
    one = taught.learner(job(tmp_path, task, f"file://{tmp_path}/a.jsonl"), tmp_path / "scratch")
    assert [[tag for tag in row if tag >= 0] for row in one.prepared(0)["tags"].tolist()] == [[1, 0]] * 4
