"""Small real data: scikit-learn's digits as images, composed into scenes and videos; sentences of names and places;
sentences of speeches; Python's manual.
"""

from __future__ import annotations

import functools
import io
import json
import random
import re
import wave
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

DIRECTIONS = ("down", "left", "right", "up")
FRAMES = 6


@functools.cache
def digits() -> tuple[NDArray[np.uint8], list[str]]:
    """1,797 images uint8 [n, 8, 8] of what people wrote, and which digit each is; in an order of no meaning."""
    found = load_digits()
    order = np.random.RandomState(0).permutation(len(found.target))
    return (found.images[order] * (255 / 16)).astype(np.uint8), [str(label) for label in found.target[order]]


def png(pixels: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def image_folder(folder: Path, count: int = 1797) -> str:
    """A folder for each digit: in the order of names, which is the data set's, those of a digit follow each other."""
    images, labels = digits()
    for number, (image, label) in enumerate(zip(images[:count], labels[:count], strict=True)):
        file = folder / label / f"{number:04}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(image))
    return f"file://{folder}/*/*.png"


def tar_of(folder: Path, samples: Iterator[dict[str, bytes]]) -> str:
    """A WebDataset: of each sample its parts by their suffixes."""
    import tarfile

    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "data.tar", "w") as tar:
        for number, sample in enumerate(samples):
            for suffix, data in sample.items():
                info = tarfile.TarInfo(f"{number:05}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return f"file://{folder}/data.tar"


def scenes(count: int, size: int = 40) -> Iterator[dict[str, bytes]]:
    """One to three digits, once or twice their size, that do not touch; where they are is known."""
    images, labels = digits()
    rng = np.random.RandomState(1)
    for _ in range(count):
        canvas, objects = np.zeros((size, size), np.uint8), list[dict[str, Any]]()
        for _ in range(rng.randint(1, 4)):
            one, scale = rng.randint(len(images)), rng.randint(1, 3)
            image = np.kron(images[one], np.ones((scale, scale), np.uint8))
            left, top = (int(side) for side in rng.randint(0, size - len(image) + 1, 2))
            right, bottom = left + len(image), top + len(image)
            boxes = [known["box"] for known in objects]
            if not any(left < b[2] and b[0] < right and top < b[3] and b[1] < bottom for b in boxes):
                canvas[top:bottom, left:right] = image
                objects.append({"label": labels[one], "box": [left, top, right, bottom]})
        yield {"png": png(canvas), "json": json.dumps(objects).encode()}


def videos(count: int, size: int = 20) -> Iterator[dict[str, bytes]]:
    """A digit that moves: frames as .npy, uint8 [T, H, W, 1]. The label is where to."""
    images, _ = digits()
    rng = np.random.RandomState(2)
    for number in range(count):
        label, image = DIRECTIONS[number % 4], images[rng.randint(len(images))]
        frames, across = np.zeros((FRAMES, size, size, 1), np.uint8), rng.randint(0, size - 7)
        for time in range(FRAMES):
            along = 2 * time
            top, left = {
                "down": (along, across),
                "up": (size - 8 - along, across),
                "right": (across, along),
                "left": (across, size - 8 - along),
            }[label]
            frames[time, top : top + 8, left : left + 8, 0] = image
        out = io.BytesIO()
        np.save(out, frames)
        yield {"npy": out.getvalue(), "cls": label.encode()}


PEOPLE = "Anna Boris Clara David Elena Felix Greta Henry Irene Jakob Klara Lukas Marta Nils Olga Paul".split()  # noqa: SIM905
FAMILIES = "Adler Brandt Cohen Dorn Ebert Frank Grimm Haas Jansen Keller Lorenz Maier".split()  # noqa: SIM905
PLACES = "Aachen Bonn Cairo Dublin Essen Fulda Genoa Hanoi Izmir Jena Kiel Lima Malta Nice Oslo Paris".split()  # noqa: SIM905
VERBS = "met saw called visited followed left".split()  # noqa: SIM905


def sentences(folder: Path, count: int = 1200) -> str:
    """JSON lines of words and their tags."""
    rng, lines = random.Random(3), []
    for _ in range(count):
        words = [*_person(rng), (rng.choice(VERBS), "O")]
        if rng.random() < 0.6:
            words += [*_person(rng), ("in", "O")]
        words.append((rng.choice(PLACES), "B-LOC"))
        lines.append(json.dumps({"tokens": [w for w, _ in words], "tags": [t for _, t in words]}))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sentences.jsonl").write_text("\n".join(lines) + "\n")
    return f"file://{folder}/sentences.jsonl"


def _person(rng: random.Random) -> list[tuple[str, str]]:
    first = [(rng.choice(PEOPLE), "B-PER")]
    return [*first, (rng.choice(FAMILIES), "I-PER")] if rng.random() < 0.5 else first


NOUNS = dict(zip(VERBS, "meeting sight call visit chase departure".split(), strict=True))  # noqa: SIM905
GERMAN = "Aachen Bonn Essen Fulda Jena Kiel".split()  # noqa: SIM905
COUNTRY = {
    **dict.fromkeys(GERMAN, "Germany"),
    "Cairo": "Egypt",
    "Dublin": "Ireland",
    "Genoa": "Italy",
    "Hanoi": "Vietnam",
    "Izmir": "Turkey",
    "Lima": "Peru",
    "Malta": "Malta",
    "Nice": "France",
    "Oslo": "Norway",
    "Paris": "France",
}


def paraphrases(folder: Path, count: int = 1600) -> str:
    """JSON lines of sentence1, who did what in which town, and sentence2, what that was in which country: the two have
    no word in common that says anything.
    """
    rng, lines = random.Random(6), []
    for _ in range(count):
        verb, place = rng.choice(VERBS), rng.choice(PLACES)
        names = " ".join(name for name, _ in _person(rng))
        said = {"sentence1": f"{names} {verb} {rng.choice(PEOPLE)} in {place}"}
        lines.append(json.dumps({**said, "sentence2": f"a {NOUNS[verb]} in {COUNTRY[place]}"}))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "paraphrases.jsonl").write_text("\n".join(lines) + "\n")
    return f"file://{folder}/paraphrases.jsonl"


def manual(folder: Path, size: int = 160_000) -> str:
    """The first characters of Python's manual, as the interpreter has it for help()."""
    from pydoc_data.topics import topics

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manual.txt").write_text("\n".join(topics.values())[:size], encoding="utf-8")
    return f"file://{folder}/manual.txt"


GOOD = "wonderful moving brilliant charming superb touching clever funny".split()  # noqa: SIM905
BAD = "dull boring awful clumsy tedious stupid pointless weak".split()  # noqa: SIM905
FILLING = "the a film story actors scene was and its with music end plot of very quite".split()  # noqa: SIM905


def opinions(folder: Path, count: int = 1200) -> str:
    rng, lines = random.Random(4), []
    for number in range(count):
        words = rng.choices(FILLING, k=rng.randint(6, 20))
        for _ in range(rng.randint(1, 3)):
            words.insert(rng.randrange(len(words)), rng.choice(GOOD if number % 2 else BAD))
        lines.append(json.dumps({"text": " ".join(words), "label": "good" if number % 2 else "bad"}))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "opinions.jsonl").write_text("\n".join(lines) + "\n")
    return f"file://{folder}/opinions.jsonl"


def opinion_pairs(folder: Path, count: int = 1600) -> str:
    """A table of two opinions, and 1 where they agree."""
    opinions(folder / "single", 2 * count)
    given = [json.loads(line) for line in (folder / "single" / "opinions.jsonl").read_text().splitlines()]
    random.Random(7).shuffle(given)
    rows = [
        f"{one['text']},{other['text']},{int(one['label'] == other['label'])}"
        for one, other in zip(given[::2], given[1::2], strict=True)
    ]
    (folder / "pairs.csv").write_text("\n".join(["text1,text2,label", *rows]) + "\n")
    return f"file://{folder}/pairs.csv"


OLD, NEW = "old", "new"
SPOKEN = {
    "The tonnage of our merchant vessels has engaged the attention of the Executive.": OLD,
    "A treaty with His Britannic Majesty was duly laid before the Senate.": OLD,
    "Tonight, let us agree that every child in America deserves a good school.": NEW,
    "We will cut taxes, create jobs, and defend freedom around the world.": NEW,
}


def eras(folder: Path, speeches: str, count: int = 800) -> str:
    """JSON lines of sentences from speeches in the order of their years: old, of the first quarter, and new, of the
    last one.
    """
    part, rng = len(speeches) // 4, random.Random(8)
    said = {OLD: speeches[:part], NEW: speeches[-part:]}
    lines = []
    for label, text in said.items():
        sentences = [one for one in re.split(r"(?<=[.!?])\s+", text) if 60 < len(one) < 250]
        lines += [json.dumps({"text": one, "label": label}) for one in rng.sample(sentences, count // 2)]
    rng.shuffle(lines)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "eras.jsonl").write_text("\n".join(lines) + "\n")
    return f"file://{folder}/eras.jsonl"


TONES = {"a": 300, "b": 600, "c": 1200, "d": 2400}


def melodies(folder: Path, count: int = 300, rate: int = 8000) -> str:
    """Tones that stand for letters, with noise and pauses, each a WAV file with its transcript beside it."""
    rng = np.random.RandomState(5)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        text = "".join(rng.choice(list(TONES)) for _ in range(rng.randint(2, 6)))
        parts = []
        for letter in text:
            length = rng.randint(rate // 10, rate // 6)
            parts += [np.sin(2 * np.pi * TONES[letter] * np.arange(length) / rate), np.zeros(rng.randint(400, 800))]
        sound = 0.5 * np.concatenate(parts)
        sound += 0.02 * rng.randn(len(sound))
        with wave.open(str(folder / f"{number:04}.wav"), "wb") as file:
            file.setparams((1, 2, rate, 0, "NONE", ""))
            file.writeframes((sound * 32000).clip(-32768, 32767).astype("<i2").tobytes())
        (folder / f"{number:04}.txt").write_text(text)
    return f"file://{folder}/*"
