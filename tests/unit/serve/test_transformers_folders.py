"""Transformers folders as they are served, against the library itself on the same input."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from mms_workloads.contract import PretrainedModel
from mms_workloads.serve import adopting, pipelines
from tests.unit.serve import transformers_folders as folders
from tests.unit.serve.networks import png, request, wav

import transformers  # isort: skip

if TYPE_CHECKING:
    from pathlib import Path

    from mms_workloads.serve.pipelines import Served

TEXTS = ("the film was good", "the film was bad", "Ada was in Paris", "good", "unknown words here")


def adopted(root: Path, **asked: object) -> Served:
    """Of the folder `files` in root."""
    given = PretrainedModel.model_validate(asked)
    names = [file.name for file in (root / adopting.FOLDER).iterdir()]
    pipeline = adopting.pipeline_of(given, adopting.format_of(given, names), root / adopting.FOLDER)
    (root / "pipeline.json").write_text(pipeline.model_dump_json())
    return pipelines.open(root, trusted=given.trusted)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / adopting.FOLDER).mkdir()
    return tmp_path / adopting.FOLDER


def photographs(count: int) -> list[np.ndarray]:
    """Smooth, of several shapes."""
    random = np.random.default_rng(5)
    found = []
    for place in range(count):
        grid = Image.fromarray(random.integers(0, 255, (5, 5, 3), np.uint8))
        found.append(np.asarray(grid.resize((40 + 9 * place, 64), Image.Resampling.BICUBIC)))
    return found


def test_text_classification(files: Path) -> None:
    model = folders.bert(files, transformers.BertForSequenceClassification, id2label={0: "neg", 1: "pos"})
    tokenizer = folders.tokenizer(files)
    served = adopted(files.parent)
    found = served.answer({"TEXT": request(*TEXTS), "K": np.full((len(TEXTS), 1), 2, np.int32)})
    with torch.inference_mode():
        wanted = model(**tokenizer(list(TEXTS), padding=True, return_tensors="pt")).logits.softmax(-1).numpy()
    np.testing.assert_allclose(found["SCORES"], -np.sort(-wanted, axis=1), atol=1e-5)
    assert [one.decode() for one in found["LABELS"][:, 0]] == [("neg", "pos")[place] for place in wanted.argmax(1)]


def test_token_classification(files: Path) -> None:
    model = folders.bert(files, transformers.BertForTokenClassification, id2label={0: "O", 1: "B-PER", 2: "B-LOC"})
    tokenizer = folders.tokenizer(files)
    found = adopted(files.parent).answer({"TEXT": request("Ada was in Paris")})
    with torch.inference_mode():
        wanted = model(**tokenizer("Ada was in Paris", return_tensors="pt")).logits[0, 1:-1].argmax(-1)
    assert found["TAGS"][0].tolist() == [("O", "B-PER", "B-LOC")[place].encode() for place in wanted.tolist()]
    assert found["WORDS"][0].tolist() == [b"Ada", b"was", b"in", b"Paris"]


def test_sentence_vectors(files: Path) -> None:
    model = folders.sentences(files)
    tokenizer = folders.tokenizer(files)
    served = adopted(files.parent)
    assert served.model == "embed"
    found = served.answer({"TEXT": request(*TEXTS)})["VECTORS"]
    for text, vector in zip(TEXTS, found, strict=True):
        with torch.inference_mode():
            mean = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(vector, (mean / mean.norm()).numpy(), atol=1e-5)


@pytest.mark.parametrize("make", [folders.vit, folders.convnext])
def test_image_classification(files: Path, make) -> None:
    model, processor = make(files)
    served = adopted(files.parent)
    labels = len(served.pipeline.labels)
    images = photographs(4)
    asked = {"IMAGE": request(*map(png, images)), "K": np.full((len(images), 1), labels, np.int32)}
    found = served.answer(asked)
    with torch.inference_mode():
        wanted = [model(**processor(Image.fromarray(one), return_tensors="pt")).logits[0].softmax(-1) for one in images]
    for row, likely in enumerate(wanted):
        ordered = likely.sort(descending=True)
        np.testing.assert_allclose(found["SCORES"][row], ordered.values.numpy(), atol=2e-3)


def test_object_detection(files: Path) -> None:
    model, processor = folders.yolos(files)
    served = adopted(files.parent, pipeline={"scoreThreshold": 0.0})
    images = photographs(3)
    found = served.answer({"IMAGE": request(*map(png, images))})
    for row, image in enumerate(images):
        asked = processor(Image.fromarray(image), return_tensors="pt")
        with torch.inference_mode():
            out = model(pixel_values=asked.pixel_values)
        height, width = image.shape[:2]
        (wanted,) = processor.post_process_object_detection(out, threshold=0.0, target_sizes=[(height, width)])
        order = wanted["scores"].argsort(descending=True)
        assert found["COUNT"][row, 0] == len(order)
        np.testing.assert_allclose(found["SCORES"][row], wanted["scores"][order].numpy(), atol=2e-3)
        sides = np.array([width, height, width, height])
        np.testing.assert_allclose(found["BOXES"][row] * sides, wanted["boxes"][order].numpy().clip(0, sides), atol=0.5)


def sounds() -> list[np.ndarray]:
    random = np.random.default_rng(2)
    return [random.normal(0, 0.2, size).clip(-1, 1).astype(np.float32) for size in (4000, 2500, 3300)]


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_speech_by_ctc(files: Path, norm: str) -> None:
    model, tokenizer = folders.wav2vec2(files, norm)
    served = adopted(files.parent)
    together = served.answers([{"SAMPLES": one[None]} for one in sounds()])
    for sound, found in zip(sounds(), together, strict=True):
        normal = (sound - sound.mean()) / np.sqrt(sound.var() + 1e-7)
        with torch.inference_mode():
            ids = model(torch.from_numpy(normal)[None]).logits.argmax(-1)[0]
        wanted = re.sub(
            "<[^>]+>", "", tokenizer.decode(ids)
        )  # left out by the library before it joins, they would join
        assert found["TEXT"][0, 0].decode().strip() == wanted.strip()
    assert any(found["TEXT"][0, 0] for found in together)


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_a_sound_that_is_too_short_for_a_step_is_heard(files: Path, norm: str) -> None:
    folders.wav2vec2(files, norm)
    short, *others = adopted(files.parent).answers([{"SAMPLES": one[None]} for one in (sounds()[0][:40], *sounds())])
    assert short["TEXT"].shape == (1, 1)
    assert all(one["TEXT"].shape == (1, 1) for one in others)


def test_speech_by_whisper(files: Path) -> None:
    model, features, tokenizer = folders.whisper(files)
    served = adopted(files.parent)
    found = served.answer({"AUDIO": request(*(wav(one, 16_000) for one in sounds()))})
    quantised = [(one * 32767).round() / 32768 for one in sounds()]
    asked = features(quantised, sampling_rate=16_000, return_tensors="pt")
    with torch.inference_mode():
        wanted = tokenizer.batch_decode(model.generate(input_features=asked.input_features), skip_special_tokens=True)
    assert [one.decode() for one in found["TEXT"][:, 0]] == [text.strip() for text in wanted]
    assert found["TEXT"][0, 0]
