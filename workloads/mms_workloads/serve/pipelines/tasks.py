"""Which steps a task has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mms_workloads.serve.pipelines.classifying import Classify
from mms_workloads.serve.pipelines.completing import Complete
from mms_workloads.serve.pipelines.detecting import Detect
from mms_workloads.serve.pipelines.embedding import Embed
from mms_workloads.serve.pipelines.generating import Generate
from mms_workloads.serve.pipelines.listening import Activity, Transcribe
from mms_workloads.serve.pipelines.matching import Match
from mms_workloads.serve.pipelines.predicting import Predict
from mms_workloads.serve.pipelines.reading import Recognise
from mms_workloads.serve.pipelines.tagging import Tag

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mms_workloads.contract import ModelTask, Pipeline
    from mms_workloads.serve.pipelines.tensors import Steps

    Kind = type[
        Classify | Complete | Detect | Embed | Generate | Activity | Transcribe | Recognise | Tag | Match | Predict
    ]

_STEPS: Mapping[ModelTask, Kind] = {
    "imageClassification": Classify,
    "videoUnderstanding": Classify,
    "textClassification": Classify,
    "objectDetection": Detect,
    "imageGeneration": Generate,
    "tokenClassification": Tag,
    "textMatching": Match,
    "textEmbedding": Embed,
    "speechRecognition": Transcribe,
    "voiceActivity": Activity,
    "textRecognition": Recognise,
    "languageModel": Complete,
    "tensors": Predict,
}


def steps_of(pipeline: Pipeline, folder: Path) -> Steps:
    """Raises ValueError: the pipeline lacks what its task needs, or its task is not served; OSError."""
    if pipeline.task not in _STEPS:
        raise ValueError(f"pipeline.json: task {pipeline.task} is not served")
    found: Steps = _STEPS[pipeline.task](pipeline, folder)
    return found


def models() -> list[str]:
    """The names that models have, whatever their tasks."""
    return sorted({kind.model for kind in _STEPS.values()})
