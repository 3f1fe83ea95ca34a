"""Which steps a task has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mms_workloads.serve.pipelines.classifying import Classify
from mms_workloads.serve.pipelines.detecting import Detect

if TYPE_CHECKING:
    from pathlib import Path

    from mms_workloads.contract import ModelTask, Pipeline
    from mms_workloads.serve.pipelines.tensors import Steps

_STEPS: dict[ModelTask, type[Classify | Detect]] = {
    "imageClassification": Classify,
    "videoUnderstanding": Classify,
    "textClassification": Classify,
    "objectDetection": Detect,
}


def steps_of(pipeline: Pipeline, folder: Path) -> Steps:
    """Raises ValueError for a pipeline that lacks what its task needs, OSError for a file that is not there."""
    found: Steps = _STEPS[pipeline.task](pipeline, folder)
    return found


def model_of(task: ModelTask) -> str:
    """The name of the model in Triton."""
    return _STEPS[task].model
