"""What a checkpoint tells of the data set: no more than the run makes use of."""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, Any

import pytest

from mms_workloads import store as stores
from mms_workloads.sync import plan as plans
from mms_workloads.sync.dispatcher import Dispatcher
from tests.unit.tasks import datasets, plain
from tests.unit.tasks.test_task_runs import PICTURE, job

if TYPE_CHECKING:
    from pathlib import Path

    from mms_workloads.contract import JobFile

SMALL = {"textClassification": {}}
PRETRAINED = {"textClassification": {"architecture": "Pretrained"}}
FROM = {"pretrained": {"store": {"uri": "file:///models/bert"}}}
PRIVATE = {"privacy": {"epsilon": 8, "delta": 1e-5}}
SEALED = {"data": {"encryption": {"keyFile": "/key"}}}
SECRET = "x17 secretive"


def packed(training: JobFile, scratch: Path) -> bytes:
    """The plan of a run that has counted its data, which goes into its checkpoints."""
    made = Dispatcher.start(training, stores.glob(training.data.store), None)
    counting = made.counting
    assert counting is not None
    plain.count(counting, training, scratch)
    assert made.count([])
    assert made.plan is not None
    return made.plan


def opinions(folder: Path) -> str:
    """With a record that is none: its label is a list of what its input says."""
    uri = datasets.opinions(folder, 200)
    with (folder / "opinions.jsonl").open("a") as file:
        file.write(json.dumps({"text": "a film", "label": [{"label": SECRET, "box": [SECRET, 0, 1, 1]}]}) + "\n")
    return uri


@pytest.mark.parametrize(
    ("task", "more", "words"),
    [
        (SMALL, {}, True),
        (SMALL, SEALED, True),
        (PRETRAINED, FROM, False),
        (SMALL, FROM, False),
        (PRETRAINED, {**FROM, **SEALED}, False),
        (PRETRAINED, {**FROM, **PRIVATE}, False),
    ],
    ids=["from scratch", "encrypted", "a folder", "an artifact", "encrypted, a folder", "private"],
)
def test_words_are_in_the_plan_of_a_network_that_knows_none(
    tmp_path: Path, task: dict[str, Any], more: dict[str, Any], words: bool
) -> None:
    private, secret = "privacy" in more, "privacy" in more or "data" in more
    data = {"quality": {"maxBadRecords": 5}, **more.get("data", {})}
    training = job(tmp_path, task, opinions(tmp_path / "data"), **{**more, "data": data})
    found = packed(training, tmp_path)
    schema = plans.unpack(found).schema
    assert schema is not None
    assert ("wonderful" in schema.words) == words
    assert (b"wonderful" in zlib.decompress(found)) == words
    assert list(schema.classes) == ["bad", "good"]
    assert (sum(schema.classes.values()) > 0) == (not private)
    (bad,) = schema.bad
    assert bad.offset > 0, "where it is, so that all workers leave it out"
    assert (SECRET in bad.reason) == (not secret)
    assert (SECRET.encode() in zlib.decompress(found)) == (not secret)
    assert (schema.lengths is None) == secret


def test_the_number_of_workers_is_that_of_the_beginning(tmp_path: Path) -> None:
    training = job(tmp_path, SMALL, opinions(tmp_path / "data"), workers=3, data={"quality": {"maxBadRecords": 5}})
    assert plans.unpack(packed(training, tmp_path)).workers == 3


def test_images_of_a_private_run_have_no_statistics(tmp_path: Path) -> None:
    uri = datasets.image_folder(tmp_path / "digits", 60)
    for more in ({}, PRIVATE):
        schema = plans.unpack(packed(job(tmp_path, {"imageClassification": PICTURE}, uri, **more), tmp_path)).schema
        assert schema is not None
        assert (schema.images is None) == bool(more)
        assert schema.records == 60
        assert list(schema.classes) == list("0123456789")
