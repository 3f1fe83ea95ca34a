"""The learner of a job whose task is of this package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mms_workloads.contract import Reason
from mms_workloads.data.records import RecordCorpus
from mms_workloads.store import JobError
from mms_workloads.tasks import starting
from mms_workloads.tasks.learner import TaskLearner

if TYPE_CHECKING:
    from pathlib import Path

    from mms_workloads.contract import JobFile, Statistics
    from mms_workloads.data.schema import Schema
    from mms_workloads.sync.plan import Plan
    from mms_workloads.tasks.task import Task

_INPUTS = {
    "imageClassification": ("image", "images"),
    "objectDetection": ("image", "images"),
    "imageGeneration": ("image", "images"),
    "videoUnderstanding": ("image", "animated images, or arrays of frames as .npy"),
    "textClassification": ("text", "texts"),
    "tokenClassification": ("words", "lists of words"),
    "textMatching": ("pair", "pairs of texts"),
    "speechRecognition": ("audio", "WAV files"),
}
_LABELS = {"objectDetection": ("boxes",), "tokenClassification": ("tags",), "speechRecognition": ("string",)}


def make(job: JobFile, plan: Plan, cache: Path) -> TaskLearner:
    """Raises JobError: the data set is not what the task learns from, what it starts from is of another kind."""
    corpus = RecordCorpus(job.data.store, plan, job.data, cache)
    kind = str(job.task.kind)
    _fit(kind, corpus.schema)
    start = starting.fetch(job.pretrained, cache.parent)
    # What images are like is told by no noise.
    statistics = corpus.schema.images.statistics if corpus.schema.images and not job.privacy else None
    return TaskLearner.of(job, _task(kind, getattr(job.task, kind), corpus, start, statistics), corpus)


def _fit(kind: str, schema: Schema) -> None:
    wanted, called = _INPUTS[kind]
    if schema.input != wanted:
        raise JobError(
            Reason.DATA_INVALID,
            f"task {kind} learns from {called}, and the records' input is {schema.input}: set data.fields.input or "
            "data.uri to what the task learns from",
        )
    classes = kind not in {"speechRecognition", "textMatching"}
    if classes and len(schema.classes) < (1 if kind == "objectDetection" else 2):
        raise JobError(
            Reason.DATA_INVALID,
            f"task {kind} needs labels, and the records have {len(schema.classes)} different ones (they are of kind "
            f"{schema.label}): set data.fields.label",
        )
    if kind in _LABELS and schema.label not in _LABELS[kind]:
        raise JobError(
            Reason.DATA_INVALID,
            f"task {kind} learns from labels of kind {' or '.join(_LABELS[kind])}, and the records' are "
            f"{schema.label}: add them, or say by data.fields.label where they are",
        )


def _task(kind: str, spec: Any, corpus: RecordCorpus, start: starting.Start, statistics: Statistics | None) -> Task:
    """Each task brings libraries that the others need not load."""
    classes = sorted(corpus.schema.classes)
    match kind:
        case "imageClassification":
            from mms_workloads.tasks.image_classification import ImageClassifier  # noqa: PLC0415

            return ImageClassifier(spec, classes, start, statistics)
        case "objectDetection":
            from mms_workloads.tasks.object_detection import ObjectDetector  # noqa: PLC0415

            return ObjectDetector(spec, classes, start, statistics)
        case "imageGeneration":
            from mms_workloads.tasks.image_generation import ImageGenerator  # noqa: PLC0415

            return ImageGenerator(spec, classes, start)
        case "videoUnderstanding":
            from mms_workloads.tasks.video_understanding import VideoLabeller  # noqa: PLC0415

            return VideoLabeller(spec, classes, start, statistics)
        case "speechRecognition":
            from mms_workloads.tasks.speech_recognition import SpeechRecogniser  # noqa: PLC0415

            return SpeechRecogniser(spec, start)
        case "textClassification":
            from mms_workloads.tasks import texts  # noqa: PLC0415
            from mms_workloads.tasks.text_classification import TextClassifier  # noqa: PLC0415

            return TextClassifier(spec, classes, start, texts.words(corpus.schema.words, spec, start))
        case "textMatching":
            from mms_workloads.tasks import text_matching, texts  # noqa: PLC0415

            goal = text_matching.goal(corpus.schema)
            return text_matching.TextMatcher(spec, goal, start, texts.words(corpus.schema.words, spec, start))
        case _:
            from mms_workloads.tasks import texts  # noqa: PLC0415
            from mms_workloads.tasks.token_classification import TokenTagger  # noqa: PLC0415

            return TokenTagger(spec, classes, start, texts.words(corpus.schema.words, spec, start))
