"""Networks: arrays in, arrays out, by the runtime that pipeline.json names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mms_workloads.contract import Pipeline
    from mms_workloads.serve.pipelines.tensors import Arrays, Steps


class NetworkError(ValueError):
    """A network that cannot be run as pipeline.json says; the message names the file and the remedy."""


class Network(Protocol):
    """What a network does."""

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Feeds and results by the names of contract/pipeline.py, the same number of rows in each."""


def load(pipeline: Pipeline, folder: Path, steps: Steps, threads: int) -> Network:
    """Raises NetworkError, and what the runtime raises for a file that it cannot read."""
    if pipeline.runtime == "ONNX":
        return Onnx(pipeline, folder / pipeline.network, steps, threads)
    raise NetworkError(f"pipeline.json: runtime {pipeline.runtime} is not served")


class Onnx:
    """ONNX Runtime on processors. Only what the task needs is computed."""

    def __init__(self, pipeline: Pipeline, path: Path, steps: Steps, threads: int) -> None:
        import onnxruntime  # noqa: PLC0415 - word vectors do without

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        self._names = named(pipeline, path.name, steps.feeds, [one.name for one in inputs], "input")
        self._types = {one.name: _TYPES.get(one.type) for one in inputs}
        known = named(pipeline, path.name, steps.results, [one.name for one in outputs], "output")
        self._results = list(known.items())

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        given = {
            there: np.ascontiguousarray(feeds[ours]).astype(self._types[there] or feeds[ours].dtype, copy=False)
            for ours, there in self._names.items()
        }
        found = self._session.run([there for _, there in self._results], given)
        return {ours: array for (ours, _), array in zip(self._results, found, strict=True)}


_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


def named(pipeline: Pipeline, file: str, ours: Sequence[str], there: Sequence[str], what: str) -> dict[str, str]:
    """Of each of the task's tensors the network's name. Where there is one on each side they need not have the same.

    An input that the network does not have is left out, such as the mask of one that finds out by itself. Raises
    NetworkError.
    """
    found = {name: pipeline.tensors.get(name, name) for name in ours}
    if len(ours) == len(there) == 1:
        return {ours[0]: there[0]}
    if what == "input":
        found = {name: other for name, other in found.items() if other in there}
    missing = [other for other in found.values() if other not in there]
    strange = [other for other in there if what == "input" and other not in found.values()]
    if missing or strange or not found:
        raise NetworkError(
            f"{file}: its {what}s are {', '.join(there)}, and task {pipeline.task} has {', '.join(ours)}: name them in "
            "pipeline.json's tensors, or export the network again"
        )
    return found
