"""An artifact's files from a trained network: ONNX to be served, safetensors to be trained further."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch

from mms_workloads import tensors
from mms_workloads.contract import NETWORK, PIPELINE, JobFile, Reason
from mms_workloads.store import JobError
from mms_workloads.tasks import transformers_library

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from mms_workloads.serve.pipelines import Served
    from mms_workloads.serve.pipelines.tensors import Arrays
    from mms_workloads.tasks.task import Batch, Task

OPSET = 20
TOLERANCE = 2e-3  # between what runs here and there: other processors sum in another order
WEIGHTS = "model.safetensors"
MODEL = "model.json"


def write(task: Task, network: nn.Module, job: JobFile, folder: Path) -> None:
    """network: on the CPU, in evaluation mode. Raises JobError where ONNX Runtime answers otherwise."""
    weights = {name: tensor.detach().numpy() for name, tensor in network.state_dict().items() if tensor.dim()}
    tensors.write(folder / WEIGHTS, {name: np.ascontiguousarray(array, np.float32) for name, array in weights.items()})
    arm = getattr(job.task, task.kind)
    if architecture := getattr(network, "architecture", ""):  # of the folder that it started from
        arm = arm.model_copy(update={"architecture": architecture})
    (folder / MODEL).write_text(arm.model_dump_json(indent=1), encoding="utf-8")
    transformers_library.write_config(network, folder)
    module, example, varying = task.exported(network)
    to_onnx(module, example, varying, task.outputs(), folder / NETWORK)
    pipeline = task.pipeline(folder)
    (folder / PIPELINE).write_text(pipeline.model_dump_json(indent=1, exclude_none=True), encoding="utf-8")


def usual(served: Served, questions: Sequence[Arrays], folder: Path) -> Sequence[Arrays]:
    """The questions that are no anomaly: a service refuses those, and a golden case must be answered.

    Where all are, it is the statistics that are of no use, and the artifact goes without.
    """
    from mms_workloads.serve import pipelines  # noqa: PLC0415 - its libraries are of no use before

    found = pipelines.valid(served, questions)
    if found or not questions:
        return found
    without = served.pipeline.model_copy(update={"statistics": None})
    (folder / PIPELINE).write_text(without.model_dump_json(indent=1, exclude_none=True), encoding="utf-8")
    return questions


def to_onnx(
    module: nn.Module, example: Batch, varying: Mapping[str, Sequence[str]], outputs: Sequence[str], path: Path
) -> None:
    """varying: of each input the names of its dimensions, "" for those that are always as in the example, which has at
    least two of the others. Raises JobError where ONNX Runtime answers otherwise than torch.
    """
    module.eval()
    shapes = {
        name: {axis: torch.export.Dim.DYNAMIC for axis, dimension in enumerate(varying[name]) if dimension}
        for name in example
    }
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # of the exporter's own future
        torch.onnx.export(
            module,
            args=(),
            kwargs=example,
            f=str(path),
            input_names=list(example),
            output_names=list(outputs),
            dynamic_shapes=shapes,
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    _compare(module, example, path)


def _compare(module: nn.Module, example: Batch, path: Path) -> None:
    import onnxruntime  # noqa: PLC0415 - a process that takes a dead one's place does without

    with torch.no_grad():
        found = module(**example)
    wanted = found if isinstance(found, tuple) else (found,)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    given = {one.name: example[one.name].numpy() for one in session.get_inputs()}
    for want, have in zip(wanted, session.run(None, given), strict=True):
        apart = float(np.abs(want.numpy() - have).max(initial=0.0))
        if not apart <= TOLERANCE * max(1.0, float(want.abs().max())):
            raise JobError(
                Reason.INTERNAL,
                f"the network answers otherwise in ONNX Runtime than where it was trained, by {apart:.2g}: it cannot "
                "be served. Another architecture may be",
            )
