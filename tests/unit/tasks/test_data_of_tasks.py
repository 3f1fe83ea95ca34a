"""Tasks on data that is encrypted, and augmented, as real processes."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

import pytest

from mms_workloads.contract import Store
from mms_workloads.data import encrypting
from mms_workloads.media import images as media
from tests.unit.tasks import datasets, examples
from tests.unit.tasks.test_task_runs import PICTURE, SECONDS, artifact, job, metrics, run, served_as_published
from tests.unit.train.quick import QuickRun

if TYPE_CHECKING:
    from pathlib import Path

KEY = b"k" * 32
TASK = {"imageClassification": PICTURE}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> str:
    return datasets.image_folder(tmp_path_factory.mktemp("digits"))


def test_a_task_learns_from_encrypted_records(tmp_path: Path, digits: str) -> None:
    target = Store(uri=f"file://{tmp_path}/sealed")
    encrypting.encrypt(Store(uri=digits), target, KEY, block_bytes=8 << 10)
    (tmp_path / "key").write_text(KEY.hex())
    data = {"store": target, "encryption": {"keyFile": str(tmp_path / "key")}}
    outcome = run(tmp_path, job(tmp_path, TASK, target.uri, data=data))
    assert metrics(outcome)["accuracy"] > 0.9
    served_as_published(tmp_path, "imageClassification")
    images, _ = datasets.digits()
    files = {datasets.png(image) for image in images[:200]}
    kept = [path for folder in ("run", "storage", "sealed") for path in (tmp_path / folder).rglob("*")]
    written = [path.read_bytes() for path in kept if path.is_file()]
    golden = json.loads((artifact(tmp_path) / "golden.json").read_text())
    assert golden["cases"]
    assert not [data for data in written if any(file in data for file in files)]
    asked = [base64.b64decode(case["tensors"]["IMAGE"]["raw"])[4:] for case in golden["cases"] + golden["comparisons"]]
    pixels = {image.tobytes() for image in images}
    assert not [one for one in asked if media.decode(one, 1).tobytes() in pixels], "nothing of the data is published"


@pytest.mark.parametrize("name", ["augmented", "encrypted"])
def test_the_examples_train(tmp_path: Path, digits: str, name: str) -> None:
    uri = digits
    if name == "encrypted":
        uri = f"file://{tmp_path}/sealed"
        encrypting.encrypt(Store(uri=digits), Store(uri=uri), KEY, block_bytes=8 << 10)
        (tmp_path / "key").write_text(KEY.hex())
    outcome = run(tmp_path, examples.job_of(f"data/{name}", tmp_path, uri))
    assert metrics(outcome)["accuracy"] > 0.9


def test_augmentation_is_part_of_a_run(tmp_path: Path, digits: str) -> None:
    """It learns as well, from other samples: the losses differ, the accuracy hardly."""
    data = {"augmentation": {"transforms": ["Identity", "Crop", "Rotate", "Noise"]}, "blockSizes": "Varied"}
    losses = {}
    for name, more in (("plain", {}), ("augmented", data)):
        folder = tmp_path / name
        folder.mkdir()
        with QuickRun(folder / "run", job(folder, TASK, digits, data=more, optimizer={"epochs": 6})) as started:
            outcome = started.start().outcome(SECONDS)
        assert metrics(outcome)["accuracy"] > 0.9
        losses[name] = metrics(outcome)
    assert losses["plain"] != losses["augmented"]
