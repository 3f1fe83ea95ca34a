"""The model that Triton runs for an artifact with a pipeline."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from mms_workloads.serve import pipelines
from mms_workloads.serve.layout import MODELS_FILE
from mms_workloads.serve.repository import Model, Models, Tensor

if TYPE_CHECKING:
    from pathlib import Path

    from mms_workloads.contract import Pipeline, ServeFile
    from mms_workloads.serve.pipelines import Served, Signature
    from mms_workloads.serve.pipelines.tensors import Steps

CODE = ("mms_workloads.serve.triton_pipelines", "Pipeline")


def of(folder: Path, serve: ServeFile) -> Models:
    """Raises ValueError: files that do not fit together, a network that cannot be run; OSError."""
    try:
        served = pipelines.open(folder)
    except (OSError, ValueError):
        raise
    except Exception as error:  # a runtime raises what it likes
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return models_of(served.steps, serve, program(served.pipeline, folder))


def open(folder: Path) -> Served:  # noqa: A001 - as pipelines.open
    """As its artifact's models say. Raises what pipelines.open raises."""
    (model,) = Models.model_validate_json((folder / MODELS_FILE).read_bytes()).models
    anomalies: Any = model.parameters["anomalies"]
    return pipelines.open(folder, anomalies=anomalies, trusted=model.parameters["trusted"] == "True")


def program(pipeline: Pipeline, folder: Path) -> str:
    """The runtime; of Python models with the digest of all of their modules, which a process imports once.

    TorchScript and TorchExport keep the code of each file apart, so that of them it is the runtime alone.
    """
    if pipeline.runtime != "Python":
        return pipeline.runtime
    digest = hashlib.sha256()
    for file in sorted((folder / pipeline.network).parent.rglob("*.py")):
        digest.update(f"{file.relative_to(folder)}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    return f"{pipeline.runtime} {digest.hexdigest()[:12]}"


def models_of(steps: Steps, serve: ServeFile, runs: str) -> Models:
    """runs: its program."""
    trusted = serve.pretrained is not None and serve.pretrained.trusted
    model = Model(
        name=steps.model,
        code=CODE,
        program=runs,
        inputs=[_tensor(one) for one in steps.inputs],
        outputs=[_tensor(one) for one in steps.outputs],
        rows=steps.rows,
        parameters={"anomalies": serve.anomalies, "trusted": str(trusted)},
    )
    return Models(models=[model])


def _tensor(one: Signature) -> Tensor:
    """An artifact of another size may follow: Triton hears the number of dimensions, the pipeline looks at the rest."""
    shape = list(one.shape) if one.shape == (1,) else [-1] * len(one.shape)
    return Tensor(name=one.name, datatype=one.datatype, shape=shape, optional=one.optional)
