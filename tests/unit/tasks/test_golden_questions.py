"""The golden set of an artifact is answered by a service that refuses anomalies, whatever the data is like, and asks
enough for a precision to be chosen.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mms_workloads.contract import LEAST_QUESTIONS, Golden, JobFile, PrecisionOrder, Statistics
from mms_workloads.media import video
from mms_workloads.serve import pipelines, precision, proving
from mms_workloads.serve.pipelines import RequestError
from mms_workloads.serve.precision import inputs_of
from tests.unit.serve.networks import request
from tests.unit.serve.test_likeness import drawings
from tests.unit.tasks import datasets, taught
from tests.unit.tasks.test_task_runs import job

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"imageClassification": {"height": 8, "width": 8, "channels": 1}}
WHITE = np.full((192, 192), 255, np.uint8)


def folder_of(folder: Path, files: list[bytes]) -> str:
    for number, data in enumerate(files):
        file = folder / "ab"[number % 2] / f"{number:04}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return f"file://{folder}/*/*.png"


def published(folder: Path, training: JobFile, statistics: Statistics | None = None) -> pipelines.Served:
    """As a pod serves it that refuses anomalies. statistics: in the place of those that were found."""
    one = taught.learner(training, folder / "scratch")
    if statistics is not None:
        one.task.statistics = statistics  # type: ignore[attr-defined]
    state, artifact = one.start(), folder / "artifact"
    artifact.mkdir()
    made = one.write(state, one.evaluate(state), artifact)
    (artifact / "golden.json").write_text(made.model_dump_json())
    served = pipelines.open(artifact)
    proving.prove(served, artifact)
    return served


def asked(folder: Path) -> list[bytes]:
    found = Golden.model_validate_json((folder / "artifact" / "golden.json").read_bytes())
    assert len(found.cases) == 4
    return [inputs_of(case)["IMAGE"][0, 0] for case in (*found.cases, *found.comparisons)]


def test_fine_drawings(tmp_path: Path) -> None:
    files = drawings()
    served = published(tmp_path, job(tmp_path, SMALL, folder_of(tmp_path / "data", files)))
    assert served.answer({"IMAGE": request(*files)})["LABELS"].shape == (len(files), 1)
    with pytest.raises(RequestError, match=r"row 0 is no valid input.*brightness.*set server\.anomalies"):
        served.answer({"IMAGE": request(datasets.png(WHITE))})


def test_an_anomaly_of_the_data_is_no_question(tmp_path: Path) -> None:
    odd = datasets.png(WHITE)
    files = [odd, *drawings(100)]
    training = job(tmp_path, SMALL, folder_of(tmp_path / "data", files), evaluation={"split": 0})
    served = published(tmp_path, training)
    with pytest.raises(RequestError, match="no valid input"):
        served.answer({"IMAGE": request(odd)})
    questions = asked(tmp_path)
    assert odd not in questions, "it is the first record of the data set"
    assert set(questions) <= set(files)


def test_statistics_that_no_record_fits_are_left_out(tmp_path: Path) -> None:
    dark = {"mean": [0.0], "std": [0.0], "imageMean": [0.0], "imageMeanStd": [0.0]}
    statistics = Statistics(**dark, imageStd=[0.0], imageStdStd=[0.0])
    served = published(tmp_path, job(tmp_path, SMALL, folder_of(tmp_path / "data", drawings())), statistics)
    assert served.pipeline.statistics is None
    assert len(set(asked(tmp_path))) > 1


def test_a_video_unlike_the_others(tmp_path: Path) -> None:
    task: dict[str, Any] = {"videoUnderstanding": {"height": 20, "width": 20, "channels": 1, "frames": 6}}
    served = published(tmp_path, job(tmp_path, task, datasets.tar_of(tmp_path / "data", datasets.videos(40))))
    sent = [sample["npy"] for sample in datasets.videos(40)]
    assert served.answer({"VIDEO": request(*sent)})["LABELS"].shape == (40, 1)
    white = video.encoded(np.full((6, 20, 20, 1), 255, np.uint8))
    with pytest.raises(RequestError, match=r"row 1 is no valid input.*brightness"):
        served.answer({"VIDEO": request(sent[0], white)})


def scored(folder: Path) -> str:
    """Pairs of opinions, and a number that says how much they agree."""
    datasets.opinion_pairs(folder, 400)
    rows = [line.split(",") for line in (folder / "pairs.csv").read_text().splitlines()[1:]]
    lines = [json.dumps({"text1": a, "text2": b, "label": 1 + 3.5 * int(alike)}) for a, b, alike in rows]
    (folder / "scored.jsonl").write_text("\n".join(lines))
    return f"file://{folder}/scored.jsonl"


TEXTS = {"textMatching": {"dimensions": 16, "layers": 1, "heads": 2, "maxLength": 32}}
NUMBERS: dict[str, tuple[dict[str, Any], Callable[[Path], str]]] = {
    "an image": ({"imageGeneration": {**SMALL["imageClassification"], "hidden": 8, "steps": 4}}, datasets.image_folder),
    "how near two texts are": (TEXTS, datasets.paraphrases),
    "a score": (TEXTS, scored),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_answers_of_numbers_alone_choose_a_precision(tmp_path: Path, name: str) -> None:
    """By held-out records; another version is not compared on them."""
    task, data = NUMBERS[name]
    training = job(tmp_path, task, data(tmp_path / "data"))
    published(tmp_path, training)
    artifact = tmp_path / "artifact"
    golden = Golden.model_validate_json((artifact / "golden.json").read_bytes())
    needed = precision.questions_needed(artifact, pipelines.open(artifact).pipeline)
    assert needed == (2 if name == "an image" else 1) * LEAST_QUESTIONS, "it has convolutions"
    assert (len(golden.cases), len(golden.comparisons), len(golden.questions)) == (4, 0, needed - 4)
    if "textMatching" in task:
        one = taught.learner(training, tmp_path / "again")
        held_out = {tuple(map(str, record["input"])) for b in one.held_out for record in one.corpus.records(b)}
        pairs = [[given[place][0, 0].decode() for place in ("TEXT", "OTHER")] for given in precision.asked(golden)]
        assert held_out >= {tuple(pair) for pair in pairs}
    found = precision.apply(artifact, PrecisionOrder(wanted="Auto", maxLoss=0.05), trusted=False)
    assert found.questions == LEAST_QUESTIONS
    assert found.chosen == "INT8" or found.message in {f"INT8 {why}" for why in (precision.LOSES, precision.NO_FASTER)}
    if found.chosen == "INT8":
        proving.prove(pipelines.open(artifact), artifact)
