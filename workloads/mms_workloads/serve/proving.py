"""A model's process answers an artifact's golden inferences itself, before Triton has any client ask it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mms_workloads.contract import Golden, Reason
from mms_workloads.serve import golden
from mms_workloads.serve.precision import inputs_of

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from mms_workloads.serve.pipelines import Served


def prove(served: Served, folder: Path) -> None:
    """Raises ValueError where an answer is a wrong one, OSError."""
    cases = Golden.model_validate_json((folder / "golden.json").read_bytes())
    for number, case in enumerate(cases.cases):
        try:
            answer = served.answer(inputs_of(case))
            found = {name: _tensor(answer[name]) for name in case.outputs if name in answer}
            wrong = golden.difference(case, found, cases.absoluteTolerance)
        except ValueError as error:
            wrong = str(error)
        if wrong is not None:
            raise ValueError(f"{Reason.GOLDEN_MISMATCH}: golden case {number} ({case.model}): {wrong}")


def _tensor(values: NDArray[Any]) -> golden.Tensor:
    data = [one.decode() if isinstance(one, bytes) else one for one in values.ravel().tolist()]
    return {"data": data, "shape": list(values.shape), "datatype": "FP32" if values.dtype.kind == "f" else "other"}
