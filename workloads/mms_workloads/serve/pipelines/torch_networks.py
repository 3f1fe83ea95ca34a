"""Networks that PyTorch runs: files that hold their own code, and Transformers' folders by that library's classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mms_workloads.serve.pipelines.networks import NetworkError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from mms_workloads.contract import Pipeline
    from mms_workloads.serve.pipelines.networks import Network
    from mms_workloads.serve.pipelines.tensors import Arrays, Steps


def load(pipeline: Pipeline, folder: Path, steps: Steps, threads: int, *, half: bool = False) -> Network:
    """Raises NetworkError."""
    torch.set_num_threads(threads)
    path = folder / pipeline.network
    if pipeline.runtime == "Transformers":
        from mms_workloads.serve.pipelines import transformers_networks  # noqa: PLC0415 - it takes seconds

        return transformers_networks.load(pipeline, path, half=half)
    if pipeline.runtime == "TorchScript":
        return Module(torch.jit.load(str(path), map_location="cpu").eval(), steps)  # type: ignore[no-untyped-call]
    return Module(torch.export.load(str(path)).module(), steps)


class Module:
    """A module that takes the task's tensors in their order and gives a tensor, a tuple or a mapping."""

    def __init__(self, module: Callable[..., Any], steps: Steps) -> None:
        self._module, self._steps = module, steps

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        with torch.inference_mode():
            found = self._module(*(torch.from_numpy(np.ascontiguousarray(feeds[name])) for name in self._steps.feeds))
        return results(found, self._steps)


def results(found: Any, steps: Steps) -> dict[str, NDArray[Any]]:
    """By the task's names. Raises NetworkError for fewer than there should be."""
    values: list[Any]
    if isinstance(found, dict):
        values = [found.get(name) for name in steps.results]
    else:
        values = list(found) if isinstance(found, tuple | list) else [found]
    if len(values) < len(steps.results) or any(value is None for value in values[: len(steps.results)]):
        raise NetworkError(f"the network gives {len(values)} results, and the task has {', '.join(steps.results)}")
    return {name: _array(value) for name, value in zip(steps.results, values, strict=False)}


def _array(value: torch.Tensor) -> NDArray[Any]:
    found: NDArray[Any] = (value.float() if value.is_floating_point() else value).detach().numpy()
    return found
