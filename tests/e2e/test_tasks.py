"""Every task of examples/tasks as it is: trained by two workers, published, served, asked."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml
from tritonclient.http import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from mms_cluster import install
from mms_operator.cli.forward import port_forward
from mms_workloads.serve.pipelines.detecting import overlaps
from mms_workloads.tasks.labels import edits
from tests.e2e.conftest import namespace, upload
from tests.e2e.kube import service
from tests.unit.tasks import datasets

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mms_cluster import provider
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
    "object-detection": Expected("scenes", "detect", "meanAveragePrecision", 0.12),
    "image-generation": Expected("drawings", "generate", "flowLoss", 0.5, greater=False),
    "video-understanding": Expected("moves", "classify", "accuracy", 0.9),
    "text-classification": Expected("opinions", "classify", "accuracy", 0.95),
    "token-classification": Expected("names", "tag", "entityF1", 0.95),
    "text-matching": Expected("paraphrases", "match", "recallAt1", 0.9),
    "speech-recognition": Expected("speech", "transcribe", "characterErrorRate", 0.1, greater=False),
}


SCENE = 40  # pixels to each side
NEAR_AND_FAR = b"a departure in Egypt", b"a call in Peru"


@pytest.fixture(scope="module")
def uploaded(digits: Path) -> Path:
    """The data sets, in the installation's store; the folder that they were made in."""
    folder = digits.parent
    datasets.tar_of(folder / "scenes", datasets.scenes(600))
    datasets.tar_of(folder / "moves", datasets.videos(240))
    datasets.opinions(folder / "opinions")
    datasets.sentences(folder / "names")
    datasets.paraphrases(folder / "paraphrases")
    datasets.melodies(folder / "speech")
    for data in sorted(set(folder.iterdir()) - {digits}):
        upload(data)
    return folder


STEPS = [{"percent": 50, "seconds": 1, "approval": True}]
CANARY = service("digits-canary", trainingRef={"name": "digits"})
CANARY["spec"]["rollout"] = {"strategy": "Canary", "canary": {"steps": STEPS}}


@pytest.fixture(scope="module")
def kube(installed: provider.Provider, uploaded: Path) -> Iterator[Kube]:
    """A namespace where all of them train."""
    with namespace("tasks") as found:
        for name in TASKS:
            found.apply(*yaml.safe_load_all((EXAMPLES / f"{name}.yaml").read_text()))
        found.apply(*yaml.safe_load_all((EXAMPLES.parent / "precision" / "service.yaml").read_text()), CANARY)
        yield found


def test_tasks(kube: Kube, uploaded: Path) -> None:
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
    with asked(kube, "scenes") as ask:
        for scene in itertools.islice(datasets.scenes(600), 60):
            found = ask("detect", IMAGE=scene["png"])
            right["scenes"] += sum(told_of(known, found) for known in json.loads(scene["json"]))
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
        sounds = sorted((uploaded / "speech").glob("*.wav"))[:20]
        said = [sound.with_suffix(".txt").read_text() for sound in sounds]
        heard = [ask("transcribe", AUDIO=sound.read_bytes())["TEXT"][0, 0].decode() for sound in sounds]
        wrong = sum(edits(one, other) for one, other in zip(said, heard, strict=True))
        assert wrong < 0.15 * len("".join(said)), (said, heard)
    assert right["digits"] >= 17
    assert right["scenes"] >= 8, "of 95 objects; a third of them where the metric is 0.3"
    assert right["moves"] >= 7
    assert right["opinions"]
    assert right["names"]


def told_of(known: dict[str, Any], found: dict[str, np.ndarray]) -> bool:
    """Whether a box of the object's label covers half of what either covers."""
    own = np.array(known["box"], np.float32) / SCENE
    places = zip(found["LABELS"][0], found["BOXES"][0], strict=True)
    return any(label == known["label"].encode() and overlaps(own, box[None])[0] > 0.5 for label, box in places)


@pytest.mark.parametrize("name", ["opinions-quick", "digits-quick"])
def test_precision_is_chosen_by_what_the_pod_measures(kube: Kube, name: str) -> None:
    kube.wait_condition("modelservice", name, "Ready", "True", seconds=SECONDS)
    found = kube.get("modelservice", name)["status"]["versions"]["stable"]["precision"]
    assert found["questions"] >= 20
    assert float(found["speedUp"]) > 0
    if found["chosen"] == "INT8":
        assert float(found["loss"]) <= 0.05
        assert float(found["speedUp"]) >= 1.1
    else:
        assert found["message"] in {"INT8 loses more than is allowed", "INT8 is hardly faster here"}


def test_requests_that_are_no_valid_input(kube: Kube) -> None:
    """An image that is nothing like the digits: refused by default, answered and counted where that is asked for."""
    for name in ("digits", "digits-quick"):
        kube.wait_condition("modelservice", name, "Ready", "True", seconds=SECONDS)
    white = datasets.png(np.full((8, 8), 255, np.uint8))
    with asked(kube, "digits") as ask, pytest.raises(InferenceServerException, match="row 0 is no valid input"):
        ask("classify", IMAGE=white)
    with asked(kube, "digits-quick") as ask:
        for image in (white, white, datasets.png(datasets.digits()[0][0])):
            assert ask("classify", IMAGE=image)["LABELS"].size
    with port_forward(kube.namespace, "svc/digits-quick", 8002) as address:
        lines = urllib.request.urlopen(f"http://{address}/metrics", timeout=30).read().decode().splitlines()
    (counted,) = [line for line in lines if line.startswith("mms_anomalous_rows{")]
    assert 'model="classify"' in counted
    assert float(counted.rpartition(" ")[2]) == 2


@pytest.mark.slow  # of word vectors it is tested in test_rollout.py
def test_a_classifier_takes_the_place_of_another(kube: Kube) -> None:
    """By a hot swap, in the same pods, and by a canary."""
    names = ("digits-quick", "digits-canary")
    for name in names:
        kube.wait_condition("modelservice", name, "Ready", "True", seconds=SECONDS)
        assert version(kube, name) == 1
    pods = {pod["metadata"]["uid"] for pod in kube.list("pods", "mms.dev/service=digits-quick")}
    kube.patch("modeltraining", "digits", {"runPolicy": {"run": 2}})
    kube.wait_condition("modelservice", "digits-canary", "Ready", "False", "AwaitingPromotion", seconds=SECONDS)
    assert version(kube, "digits-canary-next") == 2
    kube.run("annotate", "modelservice", "digits-canary", "mms.dev/rollout=promote")
    for name in names:
        kube.wait("modelservice", name, lambda s: s["status"]["versions"]["stable"]["version"] == 2, 120, "replaced")
        kube.wait_condition("modelservice", name, "Ready", "True", seconds=120)
        assert version(kube, name) == 2
    assert {pod["metadata"]["uid"] for pod in kube.list("pods", "mms.dev/service=digits-quick")} == pods
    assert kube.get("modelservice", "digits-quick")["status"]["versions"]["stable"]["precision"]["questions"] >= 20


def version(kube: Kube, name: str) -> int:
    """The run that made what answers; the answer is right."""
    image, label = (found[0] for found in datasets.digits())
    with asked(kube, name) as ask:
        found = ask("classify", IMAGE=datasets.png(image))
    assert found["LABELS"][0, 0] == label.encode()
    return int(found["VERSION"].item())


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
