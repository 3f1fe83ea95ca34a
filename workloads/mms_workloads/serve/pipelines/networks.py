"""Networks: arrays in, arrays out, by the runtime that pipeline.json names."""

from __future__ import annotations

import runpy
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from onnxruntime import InferenceSession

    from mms_workloads.contract import Pipeline
    from mms_workloads.serve.pipelines.tensors import Arrays, Steps


CODE = {"TorchScript", "TorchExport", "Python"}  # runtimes whose files are programs
LOAD = "load"  # the function of a Python model


class NetworkError(ValueError):
    """A network that cannot be run as pipeline.json says; the message names the file and the remedy."""


class Network(Protocol):
    """What a network does."""

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Feeds and results by the names of contract/pipeline.py, the same number of rows in each."""


def load(pipeline: Pipeline, folder: Path, steps: Steps, threads: int, *, half: bool = False) -> Network:
    """half: in BF16, of those that PyTorch runs.

    Raises NetworkError, and what the runtime raises for a file that it cannot read.
    """
    if pipeline.runtime == "ONNX":
        session = open_session(folder / pipeline.network, threads)
        if pipeline.task == "voiceActivity" and {one.name for one in session.get_inputs()} == _SILERO:
            return SileroSequence(pipeline, session)
        if pipeline.flow is not None:
            from mms_workloads.serve.pipelines.flows import EulerFlow  # noqa: PLC0415 - it stands on this module

            return EulerFlow.of(pipeline, pipeline.flow, session)
        found = Onnx(pipeline, pipeline.network, session, steps)
        if pipeline.task == "languageModel" and pipeline.text is not None:
            from mms_workloads.serve.pipelines import completing  # noqa: PLC0415 - as above

            return completing.model(found, pipeline.text, folder)
        return found
    if pipeline.runtime == "Python":
        return Code(folder / pipeline.network, steps)
    from mms_workloads.serve.pipelines import torch_networks  # noqa: PLC0415 - only who needs PyTorch waits for it

    return torch_networks.load(pipeline, folder, steps, threads, half=half)


def open_session(path: Path, threads: int) -> InferenceSession:
    """Of ONNX Runtime, on processors. Raises what the runtime raises for a file that it cannot read."""
    import onnxruntime  # noqa: PLC0415 - word vectors do without

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Onnx:
    """ONNX Runtime on processors. Only what the task needs is computed."""

    def __init__(self, pipeline: Pipeline, file: str, session: InferenceSession, steps: Steps) -> None:
        self._session = session
        inputs, outputs = session.get_inputs(), session.get_outputs()
        self.names = named(pipeline, file, steps.feeds, [one.name for one in inputs], "input")
        self._types = {one.name: _TYPES.get(one.type) for one in inputs}
        known = named(pipeline, file, steps.results, [one.name for one in outputs], "output")
        self._results = list(known.items())

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        (given,) = self.given(feeds)
        found = self._session.run([there for _, there in self._results], given)
        return {ours: array for (ours, _), array in zip(self._results, found, strict=True)}

    def given(self, feeds: Arrays) -> list[dict[str, NDArray[Any]]]:
        """What the session is asked."""
        return [
            {
                there: np.ascontiguousarray(feeds[ours]).astype(self._types[there] or feeds[ours].dtype, copy=False)
                for ours, there in self.names.items()
            }
        ]


class Code:
    """A Python model: `load(folder)` of its file gives what takes and gives arrays by name."""

    def __init__(self, path: Path, steps: Steps) -> None:
        defined = runpy.run_path(str(path))
        if LOAD not in defined:
            raise NetworkError(f"{path.name}: it defines no function {LOAD}(folder)")
        self._answer, self._steps, self._name = defined[LOAD](path.parent), steps, path.name

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        found = self._answer(dict(feeds))
        if not isinstance(found, dict) or (missing := [name for name in self._steps.results if name not in found]):
            wanted = ", ".join(missing if isinstance(found, dict) else self._steps.results)
            raise NetworkError(f"{self._name}: its answer has no {wanted}")
        return {name: np.asarray(found[name]) for name in self._steps.results}


class SileroSequence:
    """silero-vad's network of many frames in one call: each is a chunk with the samples before it, rows of one sound.

    Source: silero_vad/sequence_vad.py.
    """

    def __init__(self, pipeline: Pipeline, session: InferenceSession) -> None:
        sound = pipeline.audio
        if sound is None or sound.chunk is None or not sound.context:
            raise NetworkError("pipeline.json: this network needs audio.chunk and audio.context")
        self._session, self._chunk, self._context = session, sound.chunk, sound.context

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        return {"probability": np.stack([self._one(samples) for samples in feeds["audio"]])}

    def _one(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        chunks = samples.reshape(-1, self._chunk)
        before = np.zeros((len(chunks), self._context), np.float32)
        before[1:] = chunks[:-1, -self._context :]
        state = np.zeros((1, 1, 128), np.float32)
        given = {"input": np.concatenate([before, chunks], axis=1), "h": state, "c": state}
        found: NDArray[np.float32] = self._session.run(["speech_probs"], given)[0]
        return found.reshape(-1)


_SILERO = {"input", "h", "c"}
_TYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(double)": np.float64,
    "tensor(bool)": np.bool_,
    **{f"tensor({kind}{bits})": np.dtype(f"{kind}{bits}") for kind in ("int", "uint") for bits in (8, 16)},
    **{f"tensor(uint{bits})": np.dtype(f"uint{bits}") for bits in (32, 64)},
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
