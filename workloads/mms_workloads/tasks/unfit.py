"""Records that are good as such, and that a job's task cannot learn from: the counting pass leaves them out, so that
all workers do, and they are counted and named with the bad ones.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from mms_workloads.media import audio, video
from mms_workloads.media.images import MediaError
from mms_workloads.tasks import transcripts

if TYPE_CHECKING:
    from mms_workloads.contract import SpeechRecognition, Task
    from mms_workloads.data.items import Record
    from mms_workloads.data.records import Judge

OBJECTS = 500  # of an image: each is compared with each cell of a detector's picture
GREY, COLOUR = 2, 3  # dimensions of an image


def judge(task: Task) -> Judge:
    """Tells of a record why the task cannot learn from it; "" where it can, or where it is of another kind."""
    if task.speechRecognition is not None:
        return partial(_sound, task.speechRecognition)
    match task.kind:
        case "objectDetection":
            return lambda record: _image(record) or _objects(record)
        case "imageClassification" | "imageGeneration":
            return _image
        case "videoUnderstanding":
            return _video
        case _:
            return lambda _: ""


def _image(record: Record) -> str:
    given = record["input"]
    if not isinstance(given, np.ndarray):
        return ""
    flat = given.ndim == GREY or (given.ndim == COLOUR and given.shape[2] in {1, 3})
    if flat and given.dtype == np.uint8 and given.size:
        return ""
    return (
        f"an array {given.dtype} of shape {list(given.shape)}: images are uint8 [height, width] or [height, width, 1 "
        "or 3]; frames of a video are for videoUnderstanding"
    )


def _video(record: Record) -> str:
    given = record["input"]
    return video.no_frames(given) if isinstance(given, np.ndarray) else ""


def _objects(record: Record) -> str:
    boxes = record["label"]
    if not isinstance(boxes, list) or len(boxes) <= OBJECTS:
        return ""
    return f"it has {len(boxes)} boxes, and {OBJECTS} at most: cut the image into parts"


def _sound(spec: SpeechRecognition, record: Record) -> str:
    given, label = record["input"], record["label"]
    if not isinstance(given, bytes) or not isinstance(label, str) or not label.strip():
        return ""
    try:
        sound = audio.parse(given)
    except MediaError:
        return ""
    samples = math.ceil(sound.frames * spec.sampleRate / sound.rate)
    said = transcripts.written(label, spec.alphabet)
    return transcripts.unfit(said, samples, spec, transcripts.STEP * spec.sampleRate)
