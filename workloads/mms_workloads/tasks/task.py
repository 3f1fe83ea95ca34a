"""What a task is to the learner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from mms_workloads.contract import ModelTask, Pipeline

Record = dict[str, Any]  # "input", "label" and what else the data set has
Batch = dict[str, "Tensor"]  # the first dimension of each is the samples


class Task(Protocol):
    kind: ModelTask
    metric: str  # the one that says most
    compared: int  # records that another version's answers are compared on; 0: numbers alone tell nothing

    def build(self, seed: int) -> nn.Module:
        """The network with its first parameters, the same in every process; those that are trained require a gradient.

        Raises JobError: what it starts from is not there, or of another kind.
        """

    def prepare(self, records: Sequence[Mapping[str, Any]]) -> Batch:
        """The samples of all records, on the CPU. Raises JobError."""

    def augment(self, batch: Batch, transform: str, generator: torch.Generator) -> Batch:
        """Another batch of the same samples. transform: one of data/augmentation.py."""

    def loss(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        """The sum over the samples, on the network's device. generator: of what is drawn at random, on the CPU."""

    def measure(self, network: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Metrics by their names in the API. The network is in evaluation mode; batches: at least one, none empty."""

    def exported(self, network: nn.Module) -> tuple[nn.Module, Batch, Mapping[str, Sequence[str]]]:
        """What is written as ONNX: a module whose arguments are the batch's tensors in their order, two samples of
        them, and for each the names of the dimensions that vary; "" for one that does not.
        """

    def outputs(self) -> Sequence[str]:
        """The names of what the exported module returns."""

    def pipeline(self, folder: Path) -> Pipeline:
        """How the artifact is served; files that it needs beside the network are written to the folder."""

    def questions(self, records: Sequence[Mapping[str, Any]]) -> list[dict[str, NDArray[np.generic]]]:
        """What clients may ask of the served pipeline: its inputs, one row for each record that is used."""


@runtime_checkable
class Keeping(Protocol):
    """A task whose artifact holds records of the data set."""

    def keep(self, network: nn.Module, records: Iterable[Mapping[str, Any]], folder: Path) -> None:
        """Writes them. network: on the CPU, in evaluation mode."""
