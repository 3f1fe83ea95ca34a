"""The model that Triton runs for an artifact with a pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mms_workloads.serve import pipelines
from mms_workloads.serve.repository import Model, Models, Tensor

if TYPE_CHECKING:
    from pathlib import Path

    from mms_workloads.contract import ServeFile
    from mms_workloads.serve.pipelines import Signature
    from mms_workloads.serve.pipelines.tensors import Steps

CODE = ("mms_workloads.serve.triton_pipelines", "Pipeline")


def of(folder: Path, serve: ServeFile) -> Models:
    """Raises ValueError: files that do not fit together, a network that cannot be run; OSError."""
    try:
        steps = pipelines.open(folder).steps
    except (OSError, ValueError):
        raise
    except Exception as error:  # a runtime raises what it likes
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return models_of(steps, serve)


def models_of(steps: Steps, serve: ServeFile) -> Models:
    trusted = serve.pretrained is not None and serve.pretrained.trusted
    model = Model(
        name=steps.model,
        code=CODE,
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
