"""A pipeline's model as Triton's python backend calls it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils

from mms_workloads.serve import pipeline_models, pipelines, proving
from mms_workloads.serve.triton_models import Served

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


class Pipeline(Served):
    """One model, whatever its task. Requests that are no valid input are refused, or counted in Triton's metrics."""

    def initialize(self, args: dict[str, str]) -> None:
        family = pb_utils.MetricFamily(
            name="mms_anomalous_rows",
            description="Rows of requests that are no valid input of the model and were answered all the same.",
            kind=pb_utils.MetricFamily.COUNTER,
        )
        self.family, self.odd = family, family.Metric(labels={"model": args["model_name"]})
        super().initialize(args)
        if self.shelf.apart is not None:  # clients ask as soon as Triton has this version
            proving.prove(self.shelf.view.serving.content, self.shelf.apart)

    def load(self, folder: Path) -> pipelines.Served:
        return pipeline_models.open(folder)

    def question(self, request: Any) -> dict[str, NDArray[Any]]:
        return {one.name(): one.as_numpy() for one in request.inputs()}

    def answer(self, held: pipelines.Served, asked: list[dict[str, NDArray[Any]]]) -> list[Any]:
        before = held.odd
        found = held.answers(asked)
        if held.odd > before:
            self.odd.increment(held.odd - before)
        return found

    def outputs(self, answer: dict[str, NDArray[Any]], held: pipelines.Served) -> dict[str, NDArray[Any]]:  # noqa: ARG002
        return {name: np.ascontiguousarray(values) for name, values in answer.items()}
