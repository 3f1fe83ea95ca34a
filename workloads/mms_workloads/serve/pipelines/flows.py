"""Images from noise, along the velocities that a network tells (Lipman et al., 2023). numpy only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mms_workloads.serve.pipelines.networks import NetworkError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnxruntime import InferenceSession

    from mms_workloads.contract import Flow, Pipeline
    from mms_workloads.serve.pipelines.tensors import Arrays

_INPUTS = {"x", "time", "label"}


class _Recorded:
    """A session, and what it was given."""

    def __init__(self, session: InferenceSession) -> None:
        self.given: list[dict[str, NDArray[Any]]] = []
        self._session = session

    def run(self, outputs: None, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        self.given.append(feeds)
        found: list[NDArray[Any]] = self._session.run(outputs, feeds)
        return found


@dataclass(frozen=True, slots=True)
class EulerFlow:
    """noise float32 [n, C, H, W], label int64 [n] -> pixels float32 [n, C, H, W], 0 to 1."""

    flow: Flow
    labels: int
    session: InferenceSession | _Recorded

    @classmethod
    def of(cls, pipeline: Pipeline, flow: Flow, session: InferenceSession) -> EulerFlow:
        """Raises NetworkError."""
        there = {one.name for one in session.get_inputs()}
        if there != _INPUTS:
            raise NetworkError(
                f"{pipeline.network}: its inputs are {', '.join(sorted(there))}, and a flow's are x, time and label"
            )
        return cls(flow, len(pipeline.labels), session)

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        x = np.asarray(feeds["noise"], np.float32)
        label = np.asarray(feeds["label"], np.int64)
        for step in range(self.flow.steps):
            x = x + self._velocity(x, step / self.flow.steps, label) / np.float32(self.flow.steps)
        return {"pixels": np.clip(x * np.float32(0.5) + np.float32(0.5), 0, 1)}

    def given(self, feeds: Arrays) -> list[dict[str, NDArray[Any]]]:
        """What the session is asked on the way."""
        session = _Recorded(self.session)
        replace(self, session=session).run(feeds)
        return session.given

    def _velocity(self, x: NDArray[np.float32], time: float, label: NDArray[np.int64]) -> NDArray[np.float32]:
        """With and without the label in one call."""
        count = len(x)
        if self.flow.guidance == 1:
            return self._told(x, np.full(count, time, np.float32), label)
        both = np.concatenate([np.full(count, self.labels, np.int64), label])
        told = self._told(np.concatenate([x, x]), np.full(2 * count, time, np.float32), both)
        free, led = told[:count], told[count:]
        return free + np.float32(self.flow.guidance) * (led - free)

    def _told(self, x: NDArray[np.float32], time: NDArray[np.float32], label: NDArray[np.int64]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self.session.run(None, {"x": x, "time": time, "label": label})[0]
        return found
