"""Records that a task cannot learn from are left out like bad ones: counted, and named with the reason."""

from __future__ import annotations

import io
import json
import wave
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from mms_workloads.contract import Reason, Task
from mms_workloads.store import JobError
from mms_workloads.tasks import unfit
from mms_workloads.tasks.learner import joined
from tests.unit.tasks import datasets, plain, taught
from tests.unit.tasks.test_task_runs import PICTURE, job

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mms_workloads.data.schema import Schema

RATE = 8000
SPEECH = {"alphabet": " abcd", "sampleRate": RATE, "maxSeconds": 2, "dimensions": 8, "layers": 1, "heads": 2}
VIDEO = {**PICTURE, "frames": 2}


def schema(task: dict[str, Any], uri: str, scratch: Path) -> Schema:
    found = plain.counted(job(scratch, task, uri), scratch / "counted").schema
    assert found
    return found


def sounds(folder: Path, said: Mapping[str, tuple[float, str | None]]) -> str:
    """Of each name a WAV file of so many seconds, and its transcript if there is one."""
    folder.mkdir()
    for name, (seconds, text) in said.items():
        with wave.open(str(folder / f"{name}.wav"), "wb") as file:
            file.setparams((1, 2, RATE, 0, "NONE", ""))
            file.writeframes(np.random.RandomState(0).randint(-999, 999, round(RATE * seconds), "<i2").tobytes())
        if text is not None:
            (folder / f"{name}.txt").write_text(text)
    return f"file://{folder}/*"


SOUNDS = {
    "long": ((2.5, "ab"), "it takes 2.5 s, and task.speechRecognition.maxSeconds is 2"),
    "other letters": ((1.0, "xyz 123"), "none of the characters of task.speechRecognition.alphabet"),
    "hurried": ((0.2, "abcdabcd"), "8 letters, more than can be told in 0.2 s"),
    "much": ((1.9, "ab" * 300), "600 letters, and 400 at most"),
    "unlabelled": ((1.0, None), "no transcript: put a .txt of the same name beside it"),
    "empty": ((1.0, " \n"), "its label is empty"),
}


@pytest.mark.parametrize("case", SOUNDS)
def test_sounds_that_nothing_can_be_learnt_from(tmp_path: Path, case: str) -> None:
    given, reason = SOUNDS[case]
    uri = sounds(tmp_path / "data", {"bad": given, "first": (1.0, "a b"), "second": (1.0, "abcd x")})
    found = schema({"speechRecognition": SPEECH}, uri, tmp_path)
    assert found.records == 2
    (bad,) = found.bad
    assert reason in bad.reason


def test_what_is_left_of_transcripts_is_learnt(tmp_path: Path) -> None:
    """Letters of either case, and of an alphabet of either; of words without known letters nothing."""
    uri = sounds(tmp_path / "data", {"a": (1.0, "AB 12 d!"), "b": (1.0, "cc")})
    for alphabet in (" abcd", " ABCD", " aAbBcCdD"):
        one = taught.learner(
            job(tmp_path, {"speechRecognition": {**SPEECH, "alphabet": alphabet}}, uri), tmp_path / alphabet.strip()
        )
        task: Any = one.task
        assert task.classes == ["<blank>", *" abcd"]
        letters = [row for block in one.trained_on for row in one.prepared(block)["letters"].tolist()]
        assert ["".join(task.classes[n] for n in row if n) for row in letters] == ["ab d", "cc"]


@pytest.mark.parametrize("name", ["data.jsonl", "data.tar"])
def test_sounds_without_transcripts_are_refused(tmp_path: Path, name: str) -> None:
    """Whatever the format: none is no word."""
    import base64

    sounds(tmp_path / "made", {"a": (1.0, None), "b": (1.0, None)})
    made = [path.read_bytes() for path in sorted((tmp_path / "made").iterdir())]
    if name == "data.tar":
        uri = datasets.tar_of(tmp_path / "data", iter([{"wav": data} for data in made]))
    else:
        rows = [{"audio": {"base64": base64.b64encode(data).decode()}, "label": None} for data in made]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        uri = f"file://{tmp_path}/{name}"
    with pytest.raises(
        JobError, match=r"of kind string, and the records' are none: add them, .*data\.fields\.label"
    ) as raised:
        taught.learner(job(tmp_path, {"speechRecognition": SPEECH}, uri), tmp_path / "scratch")
    assert raised.value.reason is Reason.DATA_INVALID


def test_a_table_may_leave_out_a_transcript(tmp_path: Path) -> None:
    sounds(tmp_path / "data", {"a": (1.0, None), "b": (1.0, None)})
    (tmp_path / "data" / "all.jsonl").write_text('{"file": "a.wav", "text": null}\n{"file": "b.wav", "text": "a b"}\n')
    found = schema({"speechRecognition": SPEECH}, f"file://{tmp_path}/data/*", tmp_path)
    assert (found.records, [bad.reason for bad in found.bad]) == (1, ["its label is empty"])


def array(*shape: int) -> bytes:
    out = io.BytesIO()
    np.save(out, np.random.RandomState(len(shape)).randint(0, 256, shape).astype(np.uint8))
    return out.getvalue()


ARRAYS = {
    "image": ({"imageClassification": PICTURE}, [(8, 8), (8, 8, 1), (8, 8, 3)], [(5, 8, 8, 3), (8, 8, 7), (0, 8, 3)]),
    "generated": ({"imageGeneration": PICTURE}, [(8, 8)], [(5, 8, 8, 1)]),
    "video": ({"videoUnderstanding": VIDEO}, [(5, 8, 8, 1), (1, 8, 8, 3)], [(8, 8), (8, 8, 3), (5, 8, 8, 2)]),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays_of_another_shape(tmp_path: Path, case: str) -> None:
    task, good, bad = ARRAYS[case]
    for label in "ab":
        (tmp_path / "data" / label).mkdir(parents=True)
        for number, shape in enumerate([*good, *bad]):
            (tmp_path / "data" / label / f"{number}.npy").write_bytes(array(*shape))
    uri = f"file://{tmp_path}/data/*/*.npy"
    found = schema(task, uri, tmp_path)
    assert found.records == 2 * len(good)
    assert all("an array uint8 of shape [" in one.reason for one in found.bad)
    assert len(found.bad) == 2 * len(bad)
    one = taught.learner(job(tmp_path, task, uri), tmp_path / "scratch")
    assert sum(len(one.prepared(block)["label"]) for block in one.trained_on) == 2 * len(good)


def test_a_data_set_of_such_arrays_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "data" / "a").mkdir(parents=True)
    for number in range(120):
        (tmp_path / "data" / "a" / f"{number}.npy").write_bytes(array(2, 4, 4, 1))
    with pytest.raises(JobError, match=r"images are uint8 \[height, width\].*videoUnderstanding") as raised:
        schema({"imageClassification": PICTURE}, f"file://{tmp_path}/data/*/*.npy", tmp_path)
    assert raised.value.reason is Reason.DATA_INVALID


def scene(count: int) -> dict[str, bytes]:
    boxes = [{"label": "a", "box": [0, 0, 4, 4 + i % 4]} for i in range(count)]
    return {"png": datasets.png(np.zeros((8, 8), np.uint8)), "json": json.dumps(boxes).encode()}


def test_all_boxes_are_learnt_and_too_many_are_told(tmp_path: Path) -> None:
    uri = datasets.tar_of(tmp_path / "data", iter([scene(70), scene(2), scene(unfit.OBJECTS + 1)]))
    task = {"objectDetection": PICTURE}
    (bad,) = schema(task, uri, tmp_path).bad
    assert bad.reason.startswith(f"it has {unfit.OBJECTS + 1} boxes, and {unfit.OBJECTS} at most")
    one = taught.learner(job(tmp_path, task, uri, data={"blockBytes": 1 << 20}), tmp_path / "scratch")
    batch = one.prepared(0)
    assert (batch["objects"] >= 0).sum(dim=1).tolist() == [70, 2]
    assert batch["boxes"].shape == (2, 70, 4)


def test_blocks_with_other_numbers_of_boxes_become_one_batch() -> None:
    few = {"pixels": torch.ones(1, 1, 4, 4), "boxes": torch.ones(1, 1, 4), "objects": torch.zeros(1, 1).long()}
    many = {"pixels": torch.ones(2, 1, 4, 4), "boxes": torch.ones(2, 3, 4), "objects": torch.zeros(2, 3).long()}
    batch = joined([few, many])
    assert batch["boxes"].shape == (3, 3, 4)
    assert batch["objects"].tolist() == [[0, -1, -1], [0, 0, 0], [0, 0, 0]]
    assert float(batch["boxes"][0, 1:].sum()) == 0


def test_other_tasks_take_what_is_good() -> None:
    judge = unfit.judge(Task.model_validate({"textClassification": {}}))
    assert judge({"input": "a text", "label": "a"}) == ""
