"""Blocks of records that there is nothing to learn from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from mms_workloads.tasks.learner import FEW
from tests.unit.tasks import datasets, taught
from tests.unit.tasks.test_task_runs import PICTURE, job

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

Batch = dict[str, "Tensor"]


def alike(batch: Batch) -> Batch:
    return {name: tensor[:1].expand_as(tensor) for name, tensor in batch.items()}


def alike_but_for(name: str) -> Callable[[Batch], Batch]:
    return lambda batch: {**alike(batch), name: batch[name]}


class Case(NamedTuple):
    task: dict[str, Any]
    data: Callable[[Path], str]
    change: Callable[[Batch], Batch]
    dead: bool


IMAGES = {"imageClassification": PICTURE}
DETECTION = {"objectDetection": {"height": 24, "width": 24, "channels": 1}}


def scenes(folder: Path) -> str:
    return datasets.tar_of(folder, datasets.scenes(60, size=24))


def images(folder: Path) -> str:
    return datasets.image_folder(folder, 200)


CASES = {
    "as they are": Case(IMAGES, images, lambda batch: batch, dead=False),
    "the same": Case(IMAGES, images, alike, dead=True),
    "the same image of several labels": Case(
        {"imageClassification": PICTURE}, images, alike_but_for("label"), dead=True
    ),
    "images of one label": Case(IMAGES, images, alike_but_for("pixels"), dead=False),
    "few": Case(
        {"imageClassification": PICTURE}, images, lambda b: {n: t[: FEW - 1] for n, t in alike(b).items()}, dead=False
    ),
    "scenes": Case(DETECTION, scenes, lambda batch: batch, dead=False),
    "the same scene with other boxes": Case(DETECTION, scenes, alike_but_for("boxes"), dead=True),
}


@pytest.mark.parametrize("name", CASES)
def test_dead(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    uri = case.data(tmp_path / "data")
    one = taught.learner(job(tmp_path, case.task, uri, data={"blockBytes": 64 << 10}), tmp_path / "scratch")
    changed = case.change(dict(one.prepared(0)))
    assert next(iter(changed.values())).shape[0] >= FEW - 1
    monkeypatch.setattr(type(one), "prepared", lambda *_: changed)
    assert (one.dead(0) is not None) == case.dead
