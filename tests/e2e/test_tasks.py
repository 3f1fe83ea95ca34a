"""Every task of examples/tasks as it is: trained by two workers, published, served, asked."""

from __future__ import annotations

import itertools
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml
from tests.unit.tasks import datasets
from tritonclient.http import InferenceServerClient, InferInput

from mms_cluster import install
from mms_operator.cli import cluster_store
from mms_operator.cli.forward import port_forward

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.conftest import Corpora
    from tests.e2e.kube import Kube

pytestmark = pytest.mark.e2e

EXAMPLES = install.CHART.parents[1] / "examples" / "tasks"
SECONDS = 600.0  # for all of them at once, on two processors


@dataclass(frozen=True)
class Expected:
    """model: in Triton. bound: of the metric, from below where it is better the greater it is."""

    name: str
    model: str
    metric: str
    bound: float
    greater: bool = True


TASKS = {
    "image-classification": Expected("digits", "classify", "accuracy", 0.93),
    "object-detection": Expected("scenes", "detect", "meanAveragePrecision", 0.05),
    "image-generation": Expected("drawings", "generate", "flowLoss", 0.55, greater=False),
    "video-understanding": Expected("moves", "classify", "accuracy", 0.9),
    "text-classification": Expected("opinions", "classify", "accuracy", 0.95),
    "token-classification": Expected("names", "tag", "entityF1", 0.9),
    "text-matching": Expected("paraphrases", "match", "recallAt1", 0.7),
    "speech-recognition": Expected("speech", "transcribe", "characterErrorRate", 0.4, greater=False),
}


NEAR_AND_FAR = b"a departure in Egypt", b"a call in Peru"


@pytest.fixture(scope="module")
def uploaded(corpora: Corpora, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data sets, in the installation's store; the folder that they were made in."""
    folder = tmp_path_factory.mktemp("tasks")
    datasets.image_folder(folder / "digits")
    datasets.tar_of(folder / "scenes", datasets.scenes(600))
    datasets.tar_of(folder / "moves", datasets.videos(240))
    datasets.opinions(folder / "opinions")
    datasets.sentences(folder / "names")
    datasets.paraphrases(folder / "paraphrases")
    datasets.melodies(folder / "speech")
    place = {"namespace": install.NAMESPACE, "release": install.RELEASE}
    for data in sorted(folder.iterdir()):
        for parent in sorted({file.parent for file in data.rglob("*") if file.is_file()}):
            files = sorted(file for file in parent.iterdir() if file.is_file())
            cluster_store.put(files, f"s3://corpora/{parent.relative_to(folder)}/", **place)
    return folder


def test_tasks(kube: Kube, uploaded: Path) -> None:
    for name in TASKS:
        kube.apply(*yaml.safe_load_all((EXAMPLES / f"{name}.yaml").read_text()))
    for expected in TASKS.values():
        done = kube.wait_phase(expected.name, "Complete", SECONDS)
        measured = float(done["status"]["artifact"]["metrics"][expected.metric])
        assert measured > expected.bound if expected.greater else measured < expected.bound, (expected, measured)
    for expected in TASKS.values():
        kube.wait_condition("modelservice", expected.name, "Ready", "True", seconds=180)
    right = {"digits": 0, "scenes": 0, "moves": 0, "opinions": 0, "names": 0}
    with asked(kube, "digits") as ask:
        images, labels = datasets.digits()
        for image, label in zip(images[:20], labels[:20], strict=True):
            right["digits"] += ask("classify", IMAGE=datasets.png(image))["LABELS"][0, 0] == label.encode()
        three = min((uploaded / "digits" / "3").iterdir())
        answer = ask("classify", IMAGE=three.read_bytes())["LABELS"]
    assert f"LABELS [[{answer[0, 0]!r}, " in told(kube, "digits", "classify", f"IMAGE={three}", "K=2")
    with asked(kube, "scenes") as ask, tarfile.open(uploaded / "scenes" / "data.tar") as tar:
        scene = tar.extractfile("00000.png")
        assert scene is not None
        found = ask("detect", IMAGE=scene.read())
        assert found["BOXES"].shape[-1] == 4
    with asked(kube, "drawings") as ask:
        drawn = [ask("generate", LABEL=b"3", SEED=seed)["IMAGE"][0, 0] for seed in (1, 1, 2)]
        assert drawn[0] == drawn[1] != drawn[2]
        assert drawn[0].startswith(b"\x89PNG")
    with asked(kube, "moves") as ask:
        for sample in itertools.islice(datasets.videos(8), 8):
            right["moves"] += ask("classify", VIDEO=sample["npy"])["LABELS"][0, 0] == sample["cls"]
    with asked(kube, "opinions") as ask:
        right["opinions"] = ask("classify", TEXT=b"a superb and moving film")["LABELS"][0, 0] == b"good"
    with asked(kube, "names") as ask:
        tags = ask("tag", TEXT=b"Anna Cohen met Boris in Oslo")
        right["names"] = b"B-LOC" in tags["TAGS"][0].tolist()
    with asked(kube, "paraphrases") as ask:
        pair = [ask("match", TEXT=b"Olga left Paul in Cairo", OTHER=other)["SCORES"][0, 0] for other in NEAR_AND_FAR]
        assert pair[0] > pair[1]
        assert ask("match", TEXT=b"Olga left Paul in Cairo")["TEXTS"].shape == (1, 1)
    with asked(kube, "speech") as ask:
        heard = ask("transcribe", AUDIO=(uploaded / "speech" / "0000.wav").read_bytes())["TEXT"][0, 0]
        assert set(heard.decode()) <= set("abcd")
    assert right["digits"] >= 17
    assert right["moves"] >= 7
    assert right["opinions"]
    assert right["names"]


def told(kube: Kube, service: str, *given: str) -> str:
    """What the client of the examples prints."""
    with port_forward(kube.namespace, f"svc/{service}", 8000) as address:
        command = [sys.executable, str(EXAMPLES / "ask.py"), *given, f"--url={address}"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


class asked:  # noqa: N801 - a context manager
    """A function that asks the service: name=value, files and texts as bytes, whole numbers as they are."""

    def __init__(self, kube: Kube, service: str) -> None:
        self._forward = port_forward(kube.namespace, f"svc/{service}", 8000)

    def __enter__(self) -> Any:
        client = InferenceServerClient(self._forward.__enter__())

        def ask(model: str, **values: bytes | int) -> dict[str, np.ndarray]:
            inputs = []
            for name, value in values.items():
                number = isinstance(value, int)
                array = np.array([[value]], np.int64 if number else np.object_)
                inputs.append(InferInput(name, array.shape, "INT64" if number else "BYTES"))
                inputs[-1].set_data_from_numpy(array)
            answer = client.infer(model, inputs)
            return {one["name"]: answer.as_numpy(one["name"]) for one in answer.get_response()["outputs"]}

        return ask

    def __exit__(self, *error: object) -> None:
        self._forward.__exit__(*error)
