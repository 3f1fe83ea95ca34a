"""Which artifacts the models of a pod hold, and which one answers: a file that the agent writes and the models watch.

A request names no artifact and is answered by the one that serves; or it names one that is held, by the request
parameter PIN, and is answered by that one or refused. So the agent proves an artifact before it serves, in the very
processes that will answer, and goes back to the one before by a write. Only the agent can, with the pod's key.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pydantic import PositiveInt  # noqa: TC002 - pydantic evaluates annotations

from mms_workloads.contract import Contract

if TYPE_CHECKING:
    from pathlib import Path

PIN = "mms_pin"  # request parameter: <control key> <digest of the artifact that is to answer>


class Generation(Contract):
    """An artifact, as fetch left it in the pod."""

    digest: str
    version: PositiveInt  # the run that made it
    folder: str


class Report(Contract):
    """What a model's process holds: written beside the file, for the agent."""

    serving: str
    held: list[str]
    refused: dict[str, str]  # why what should be held is not, by digest


class Generations(Contract):
    """The file."""

    serving: str  # digest
    held: list[Generation]

    def of(self, digest: str) -> Generation | None:
        return next((one for one in self.held if one.digest == digest), None)


def read(path: Path) -> Generations:
    """Raises OSError, ValueError."""
    return Generations.model_validate_json(path.read_bytes())


def report_of(path: Path, model: str) -> Path:
    """Where a model reports."""
    return path.with_name(f"held-{model}.json")


def read_report(path: Path, model: str) -> Report | None:
    """None while there is none that can be read."""
    try:
        return Report.model_validate_json(report_of(path, model).read_bytes())
    except (OSError, ValueError):
        return None


def write(path: Path, generations: Contract, *, durable: bool = True) -> None:
    """Whole or not at all, for whoever reads it meanwhile. Raises OSError.

    durable: also for who reads it after the node's end, which takes the disk's time.
    """
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.write(generations.model_dump_json().encode())
        if durable:
            file.flush()
            os.fsync(file.fileno())
    part.replace(path)
