"""Networks with fewer bits: how much faster, how much smaller, and how often they answer otherwise, on one core.

    RESULT precision-image ... INT8 of efficientnet-lite0 (ImageNet's weights), parts of real photographs
    RESULT precision-text  ... INT8 and BF16 of all-MiniLM-L6-v2, sentences

The same functions as a pod's with server.precision. size: bytes of the weights, beside those of FP32. loss: part of the
questions whose likeliest label is another one, or whose vector is not within a cosine of 0.99.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from mms_workloads.contract import PretrainedModel
from mms_workloads.serve import adopting, pipelines, precision
from mms_workloads.serve.pipelines.served import VARIANT, Variant
from tests.unit.models import folders
from tests.unit.models.test_real_networks import views

QUESTIONS = 200
SUBJECTS = ("The film", "Her new book", "A small dog", "The weather in Paris", "Our oldest server", "The red car",
            "This song", "A cup of tea", "The last train", "My neighbour")  # fmt: skip
SAID = ("was surprisingly good", "is far too long", "sleeps in the garden", "turns cold in the evening",
        "fails at night", "makes everybody happy", "costs more than last year", "needs some help",
        "was found by accident",
        "has many friends", "was not there", "came back in May", "looks older than it is", "is worth a journey",
        "would not stop", "never arrived", "is on the second page", "can be seen from here", "was sold for little",
        "was a present")  # fmt: skip


Question = dict[str, np.ndarray]


def main() -> int:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        image(Path(scratch, "image"))
        text(Path(scratch, "text"))
    return 0


def image(root: Path) -> None:
    """Calibrated on one half of the questions and measured on the other."""
    plain = adopt(root, folders.efficientnet)
    photographs = [Image.fromarray(one) for one in load_sample_images().images]
    asked = [{"IMAGE": np.array([[data]], np.object_)} for data in views(photographs, 2 * QUESTIONS)]
    network = root / plain.pipeline.network
    feeds = [plain.steps.prepare(one).feeds for one in asked[QUESTIONS:]]
    precision.quantise(network, root / precision.INT8, [{"pixels": one["pixels"]} for one in feeds])
    part = size(root / precision.INT8) / size(network)
    told("image kind=INT8", plain, variant(root, "INT8"), asked[:QUESTIONS], part)


def text(root: Path) -> None:
    plain = adopt(root, folders.minilm)
    sentences = [f"{one} {what}.".encode() for one in SUBJECTS for what in SAID][:QUESTIONS]
    asked = [{"TEXT": np.array([[one]], np.object_)} for one in sentences]
    told("text kind=BF16", plain, variant(root, "BF16"), asked, 1.0)
    exported = root.with_name("exported")
    onnx = adopt(exported, lambda folder: to_onnx(plain, root, folder))
    network = exported / onnx.pipeline.network
    told("text kind=FP32-ONNX", plain, onnx, asked, 1.0)
    precision.quantise(network, exported / precision.INT8, [])
    told("text kind=INT8", onnx, variant(exported, "INT8"), asked, size(exported / precision.INT8) / size(network))


class Sentences(torch.nn.Module):
    """What the served folder does after its tokens."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = self.model(input_ids=tokens, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).float()
        return torch.nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9), dim=1)


def to_onnx(served: pipelines.Served, root: Path, folder: Path) -> Path:
    from mms_workloads.tasks import exporting  # noqa: PLC0415 - it takes seconds

    model = served.network._model  # type: ignore[attr-defined] # noqa: SLF001 - there is no other way to it
    example = {"tokens": torch.randint(5, 900, (2, 12)), "mask": torch.ones(2, 12, dtype=torch.int64)}
    varying = {"tokens": ["n", "L"], "mask": ["n", "L"]}
    exporting.to_onnx(Sentences(model), example, varying, ["vectors"], folder / "model.onnx")
    (folder / "tokenizer.json").write_bytes((root / adopting.FOLDER / "tokenizer.json").read_bytes())
    (folder / "pipeline.json").write_text('{"task": "textEmbedding", "text": {"maxLength": 256}}')
    return folder


def adopt(root: Path, make: object) -> pipelines.Served:
    files = root / adopting.FOLDER
    files.mkdir(parents=True)
    make(files)  # type: ignore[operator]
    asked = PretrainedModel()
    names = [file.name for file in files.iterdir()]
    pipeline = adopting.pipeline_of(asked, adopting.format_of(asked, names), files)
    (root / "pipeline.json").write_text(pipeline.model_dump_json())
    return pipelines.open(root, anomalies="Off")


def variant(root: Path, kind: str) -> pipelines.Served:
    network = precision.INT8 if kind == "INT8" else None
    (root / VARIANT).write_text(Variant.model_validate({"precision": kind, "network": network}).model_dump_json())
    found = pipelines.open(root, anomalies="Off")
    (root / VARIANT).unlink()
    return found


def told(what: str, plain: pipelines.Served, other: pipelines.Served, asked: list[Question], part: float) -> None:
    found = precision.compare(plain, other, asked)
    print(
        f"RESULT precision-{what} speed_up={found.speedUp:.2f} size={part:.2f} loss={found.loss:.4f} "
        f"questions={found.questions} cores=1",
        flush=True,
    )


def size(file: Path) -> int:
    return file.stat().st_size


if __name__ == "__main__":
    sys.exit(main())
