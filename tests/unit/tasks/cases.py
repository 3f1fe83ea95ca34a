"""Tasks with small data that runs of workers learn as a plain loop does: tests hold both to be equal, and
benchmarks/tasks.py measures how fast they are.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.unit.tasks import datasets
from tests.unit.tasks.test_task_runs import PICTURE, job

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mms_workloads.contract import JobFile


class Case(NamedTuple):
    data: Callable[[Path], str]  # makes the data set in a folder, and tells its URI
    task: dict[str, Any]
    metric: str
    margin: float  # of the mean over three seeds, of some hundred held-out samples each
    optimizer: dict[str, Any]
    less: bool = False  # is better
    block: int = 8 << 10  # bytes
    # Of the loss at the start, between the means of three seeds in each part of a run: batches of samples in another
    # order differ by noise.
    curve: float = 0.05


def scenes(folder: Path) -> str:
    return datasets.tar_of(folder, datasets.scenes(900, size=24))


def videos(folder: Path) -> str:
    """Shuffled: their labels come in turn, so that a block, and a batch of blocks, would have as many of each, which a
    plain loop's batches have not: it would learn later.
    """
    made = list(datasets.videos(1200))
    random.Random(0).shuffle(made)
    return datasets.tar_of(folder, iter(made))


def opinions(folder: Path) -> str:
    return datasets.opinions(folder, 4000)


SPEECH = {"alphabet": "abcd", "sampleRate": 8000, "maxSeconds": 2, "dimensions": 48, "layers": 1, "dropout": 0}

CASES = {
    "image-classification": Case(
        datasets.image_folder,
        {"imageClassification": PICTURE},
        "accuracy",
        0.02,
        {"epochs": 8, "globalBatchSize": 64},
    ),
    "object-detection": Case(
        scenes,
        {"objectDetection": {"height": 24, "width": 24, "channels": 1}},
        "meanAveragePrecision",
        0.1,  # of runs in another order it differs by 0.036
        {"epochs": 6, "globalBatchSize": 16, "learningRate": 0.002},
        curve=0.15,  # and the loss by 0.051 of the one at the start
    ),
    "image-generation": Case(
        datasets.image_folder,
        {"imageGeneration": {**PICTURE, "hidden": 16, "steps": 8}},
        "flowLoss",
        0.03,
        {"epochs": 6, "globalBatchSize": 32},
        less=True,
    ),
    "video-understanding": Case(
        videos,
        {"videoUnderstanding": {"height": 20, "width": 20, "channels": 1, "frames": datasets.FRAMES}},
        "accuracy",
        0.02,
        {"epochs": 4, "globalBatchSize": 16, "learningRate": 0.0005},
        block=16 << 10,
        curve=0.1,  # it sets in all at once, when is chance: of runs in another order by 0.035 of the loss at the start
    ),
    "text-classification": Case(
        opinions,
        {"textClassification": {"dimensions": 64, "maxLength": 32}},
        "accuracy",
        0.02,
        {"epochs": 3, "globalBatchSize": 32},
    ),
    "token-classification": Case(
        datasets.sentences,
        {"tokenClassification": {"dimensions": 32, "maxLength": 16}},
        "entityF1",
        0.03,
        {"epochs": 8, "globalBatchSize": 32},
    ),
    "text-matching": Case(
        datasets.opinion_pairs,  # of labels: which pairs a worker has beside others does not matter to their loss
        {"textMatching": {"dimensions": 32, "layers": 0, "maxLength": 32}},
        "accuracy",
        0.03,
        {"epochs": 6, "globalBatchSize": 32, "learningRate": 0.005},
        curve=0.08,  # it sets in all at once: of runs in another order by 0.032 of the loss at the start
    ),
    "speech-recognition": Case(
        datasets.melodies,
        {"speechRecognition": SPEECH},
        "characterErrorRate",
        0.05,
        {"epochs": 12, "globalBatchSize": 16, "learningRate": 0.004},
        less=True,
        block=64 << 10,
    ),
    "language-model": Case(
        datasets.manual,
        {"languageModel": {"dimensions": 64, "layers": 2, "heads": 4, "contextLength": 64}},
        "bitsPerByte",
        0.25,  # of runs in another order it differs by 0.1
        {"epochs": 2, "globalBatchSize": 32},
        less=True,
        block=4 << 10,
        curve=0.08,
    ),
}


def training(name: str, folder: Path, uri: str, *, seed: int, **changes: Any) -> JobFile:
    case = CASES[name]
    return job(
        folder,
        case.task,
        uri,
        job={"namespace": "default", "name": name, "uid": "u", "run": 1},
        data={"blockBytes": case.block},
        optimizer={**case.optimizer, "seed": seed},
        **changes,
    )
