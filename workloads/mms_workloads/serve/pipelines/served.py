"""A pipeline with its network: requests in, answers out, several at a time where they fit together."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mms_workloads import golden_tensors
from mms_workloads.contract import PIPELINE, Contract, GoldenCase, Pipeline
from mms_workloads.serve.pipelines import networks, tasks
from mms_workloads.serve.pipelines.tensors import FailedError, Prepared, RequestError, checked

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mms_workloads.serve.pipelines.networks import Network
    from mms_workloads.serve.pipelines.tensors import Arrays, Steps

    Answer = dict[str, NDArray[Any]]

Anomalies = Literal["Refuse", "Count", "Off"]
FILES = ("IMAGE", "VIDEO", "AUDIO")  # outputs that are files: the tensors beside them say the same

log = logging.getLogger(__name__)  # in Triton's process there is no other

VARIANT = "variant.json"  # of an artifact's folder in a pod, beside pipeline.json


class Variant(Contract):
    """In which precision the network runs, and its file where that is another one."""

    precision: Literal["FP32", "BF16", "INT8"] = "FP32"
    network: str | None = None


class Served:
    """anomalies: what becomes of rows that are no valid input. Refuse: the request's error says why; Count: they are
    answered, and `odd` is how many there were; Off: nobody looks.
    """

    def __init__(self, pipeline: Pipeline, steps: Steps, network: Network, anomalies: Anomalies = "Refuse") -> None:
        self.pipeline, self.steps, self.network = pipeline, steps, network
        self.anomalies: Anomalies = anomalies
        self.trusted = False
        self.odd = 0

    @property
    def model(self) -> str:
        """Its name in Triton."""
        return self.steps.model

    def answer(self, inputs: Arrays) -> Answer:
        """The outputs, by name. Raises RequestError, and whatever the model fails with."""
        ((_, found),) = self._together([(0, self._prepared(inputs))])
        return found

    def answers(self, requests: Sequence[Arrays]) -> list[Answer | RequestError | FailedError]:
        """Of each request. The network runs once for those that fit together; one at which it fails spoils no other."""
        found: dict[int, Answer | RequestError | FailedError] = {}
        groups: dict[Any, list[tuple[int, Prepared]]] = {}
        for place, inputs in enumerate(requests):
            try:
                one = self._prepared(inputs)
            except RequestError as error:
                found[place] = error
            except Exception as error:  # noqa: BLE001 - files are read by libraries, which others depend on, too
                found[place] = self._failed(error)
            else:
                groups.setdefault(self._fits(one), []).append((place, one))
        for group in groups.values():
            found |= self._apart(group)
        return [found[place] for place in range(len(requests))]

    def _apart(self, group: Sequence[tuple[int, Prepared]]) -> dict[int, Answer | RequestError | FailedError]:
        """The group's answers: together, or one by one where that fails, so that only the cause has an error."""
        try:
            return dict(self._together(group))
        except Exception as error:  # noqa: BLE001 - as above
            if group[1:]:
                return {place: answer for one in group for place, answer in self._apart([one]).items()}
            return {group[0][0]: error if isinstance(error, RequestError) else self._failed(error)}

    def _failed(self, error: Exception) -> FailedError:
        log.error("model %s: a request failed", self.model, exc_info=error)
        return FailedError(
            f"model {self.model} failed at this request ({type(error).__name__}): look at what it sends. The log of "
            "the service's pod says more"
        )

    def _prepared(self, inputs: Arrays) -> Prepared:
        """Raises RequestError."""
        found = self.steps.prepare(checked(inputs, self.steps.inputs))
        if found.odd and self.anomalies == "Refuse":
            row, why = min(found.odd.items())
            raise RequestError(f"row {row} is no valid input of this model: {why}")
        if self.anomalies == "Count":
            self.odd += len(found.odd)
        return found

    def _fits(self, one: Prepared) -> Any:
        """Requests of the same are run together: of the same shapes, or of about the same length where it is filled."""
        return tuple(
            (name, values.shape[1].bit_length(), values.shape[2:])
            if name in self.steps.padded
            else (name, values.shape[1:])
            for name, values in sorted(one.feeds.items())
        )

    def _together(self, group: Sequence[tuple[int, Prepared]]) -> list[tuple[int, Answer]]:
        feeds = {name: self._joined(name, [one.feeds[name] for _, one in group]) for name in group[0][1].feeds}
        rows = sum(one.rows for _, one in group)
        parts = [
            self.network.run({name: values[start : start + self.steps.rows] for name, values in feeds.items()})
            for start in range(0, rows, self.steps.rows)
        ]
        results = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts[1:] else parts[0]
        found: list[tuple[int, Answer]] = []
        longest = max((feeds[name].shape[1] for name in self.steps.padded if name in feeds), default=0)
        start = 0
        for place, one in group:
            own = {name: values[start : start + one.rows] for name, values in results.items()}
            start += one.rows
            found.append((place, self.steps.finish(own, replace(one, longest=longest))))
        return found

    def _joined(self, name: str, values: Sequence[NDArray[Any]]) -> NDArray[Any]:
        if not values[1:]:
            return values[0]
        if name not in self.steps.padded:
            return np.concatenate(values)
        length, fill = max(one.shape[1] for one in values), self.steps.padded[name]
        rest = [[(0, 0), (0, length - one.shape[1]), *[(0, 0)] * (one.ndim - 2)] for one in values]
        return np.concatenate(
            [np.pad(one, width, constant_values=fill) for one, width in zip(values, rest, strict=True)]
        )


def open(  # noqa: A001 - as gzip.open
    folder: Path, *, threads: int = 1, anomalies: Anomalies = "Refuse", trusted: bool = False
) -> Served:
    """The pipeline of an artifact's folder. threads: of the network. trusted: whether its files may be programs.

    Raises ValueError (NetworkError, pydantic's) for files that do not fit together, OSError.
    """
    pipeline = Pipeline.model_validate_json((folder / PIPELINE).read_bytes())
    if pipeline.runtime in networks.CODE and not trusted:
        raise networks.NetworkError(f"runtime {pipeline.runtime} runs code of the files, and they are not trusted")
    variant = _variant(folder / VARIANT)
    pipeline = pipeline.model_copy(update={"network": variant.network or pipeline.network})
    steps = tasks.steps_of(pipeline, folder)
    network = networks.load(pipeline, folder, steps, threads, half=variant.precision == "BF16")
    served = Served(pipeline, steps, network, anomalies)
    served.trusted = trusted
    return served


def _variant(path: Path) -> Variant:
    return Variant.model_validate_json(path.read_bytes()) if path.exists() else Variant()


def valid(served: Served, questions: Sequence[Arrays]) -> list[Arrays]:
    """Those that a service which refuses anomalies answers. Raises RequestError."""
    return [one for one in questions if not served.steps.prepare(checked(one, served.steps.inputs)).odd]


def golden_case(served: Served, inputs: Arrays) -> GoldenCase:
    """A request and its answer. Outputs that are files are left out. Raises RequestError."""
    answer = served.answer(inputs)
    return GoldenCase(
        model=served.model,
        tensors=golden_tensors.tensors(inputs),
        outputs={name: _flat(values) for name, values in answer.items() if name not in FILES},
    )


def _flat(values: NDArray[Any]) -> list[Any]:
    items = values.ravel().tolist()
    return [one.decode() if isinstance(one, bytes) else one for one in items]
