"""Models that were not trained here, from the store to a client's answer, by the manifests of examples/pretrained."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_sample_images
from typer.testing import CliRunner

from mms_operator.cli import app
from mms_operator.cli.forward import port_forward
from tests.e2e.kube import condition, installation_store
from tests.unit.models import folders
from tests.unit.models.home import importable

if TYPE_CHECKING:
    from tests.e2e.kube import Kube

pytestmark = pytest.mark.e2e

EXAMPLES = Path(__file__).parents[2] / "examples" / "pretrained"
SHOUTING = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        found = []
        for request in requests:
            text = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy()
            loud = np.array([[one[0].upper()] for one in text], np.object_)
            found.append(pb_utils.InferenceResponse([pb_utils.Tensor("LOUD", loud)]))
        return found
"""
CONFIG = """
backend: "python"
max_batch_size: 4
input [{ name: "TEXT" data_type: TYPE_STRING dims: [1] }]
output [{ name: "LOUD" data_type: TYPE_STRING dims: [1] }]
"""


def repository(folder: Path) -> Path:
    """Of Triton, with a model that has nothing to do with ours."""
    (folder / "shout" / "1").mkdir(parents=True)
    (folder / "shout" / "config.pbtxt").write_text(CONFIG)
    (folder / "shout" / "1" / "model.py").write_text(SHOUTING)
    return folder


MADE = {
    "efficientnet": folders.efficientnet,
    "nudenet": folders.nudenet,
    "rapidocr": folders.rapidocr,
    "minilm": folders.minilm,
    "silero": folders.silero,
    "whisper": folders.whisper,
    "repository": repository,
}


def test_pretrained_models_are_served(kube: Kube, tmp_path: Path) -> None:
    with installation_store() as store:
        for name, make in MADE.items():
            (tmp_path / name).mkdir()
            store.put(f"{make(tmp_path / name)}/", f"models/{name}/", recursive=True)
    names = ("images", "detection", "reading", "sentences", "voice", "speech", "repository")
    manifests = [yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text()) for name in names]
    kube.apply(*manifests)
    for name in names:
        kube.wait_condition("modelservice", name, "Ready", "True", seconds=180)
    files = [kube.get("modelservice", name)["status"]["versions"]["stable"]["pretrained"]["files"] for name in names]
    assert len(set(files)) == len(names)
    assert all(one.startswith("sha256:") for one in files)

    Image.fromarray(load_sample_images().images[1]).save(tmp_path / "flower.jpg")
    portrait = importable() / "matplotlib" / "mpl-data" / "sample_data" / "grace_hopper.jpg"
    (tmp_path / "sentence.txt").write_text("The film was surprisingly good.")
    (sound,) = [file for file in folders.sounds() if file.stem == "conf-lockednow"]
    assert "daisy" in ask(kube, "images", "classify", "IMAGE", tmp_path / "flower.jpg")
    typed = ["ask", "images", f"IMAGE=@{tmp_path / 'flower.jpg'}", "K=2", "--namespace", kube.namespace]
    assert "LABELS  daisy  hen-of-the-woods" in CliRunner().invoke(app, typed).output
    assert "FACE_FEMALE" in ask(kube, "detection", "detect", "IMAGE", portrait)
    printed(tmp_path / "line.png", "invoice 2026")
    assert "TEXT [[b'invoice 2026']]" in ask(kube, "reading", "recognise", "IMAGE", tmp_path / "line.png")
    assert ask(kube, "sentences", "embed", "TEXT", tmp_path / "sentence.txt").count(",") == 383
    assert "COUNT [[1]]" in ask(kube, "voice", "activity", "AUDIO", sound)
    heard = ask(kube, "speech", "transcribe", "AUDIO", sound).lower()
    assert "conference" in heard, heard
    assert "LOUD [[b'THE FILM WAS" in ask(kube, "repository", "shout", "TEXT", tmp_path / "sentence.txt")

    # Another file at the address: no pod serves it under a version that began with the one before.
    with installation_store() as store:
        store.pipe_file("models/silero/silero_vad_16k_sequence.onnx", b"something else")
    kube.run("scale", "modelservice", "voice", "--replicas=2")
    kube.wait(
        "modelservice", "voice", lambda found: condition(found, "Ready")["reason"] == "ArtifactCorrupt", 60, "refused"
    )
    assert "COUNT [[1]]" in ask(kube, "voice", "activity", "AUDIO", sound)


def printed(file: Path, text: str) -> None:
    """A line of text, dark on light."""
    font = ImageFont.load_default(32)
    left, top, right, bottom = font.getbbox(text)
    image = Image.new("RGB", (int(right - left) + 24, int(bottom - top) + 20), (250, 250, 245))
    ImageDraw.Draw(image).text((12 - left, 10 - top), text, (20, 20, 60), font)
    image.save(file)


def ask(kube: Kube, service: str, model: str, tensor: str, file: Path) -> str:
    """What the example's client prints."""
    with port_forward(kube.namespace, f"svc/{service}", 8001) as address:
        command = [sys.executable, str(EXAMPLES / "client.py"), address, model, tensor, str(file)]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
