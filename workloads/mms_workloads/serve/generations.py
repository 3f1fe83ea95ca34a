"""Which artifacts the models of a pod hold, and which one answers: a file that the agent writes and the models watch.

Artifacts of the same program are held by the same processes, one of another by those of another version of the models
in Triton (versions.py). A request names no artifact and is answered by the one that serves; or it names one that is
held, by the request parameter PIN, and is answered by that one or refused. So the agent proves an artifact before it
serves, in the very processes that will answer, and goes back to the one before by a write. Only the agent can, with the
pod's key.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pydantic import PositiveInt  # noqa: TC002 - pydantic evaluates annotations

from mms_workloads.contract import Contract

if TYPE_CHECKING:
    from pathlib import Path

PIN = "mms_pin"  # request parameter: <control key> <digest of the artifact that is to answer>


class RefusedError(Exception):
    """A model's process cannot hold an artifact; the message says why."""


class Generation(Contract):
    """An artifact, as fetch left it in the pod."""

    digest: str
    version: PositiveInt  # the run that made it
    folder: str
    triton: PositiveInt = 1  # version of the models in Triton whose processes hold it


class Report(Contract):
    """What a process of a model holds: written beside the file, for the agent."""

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


def report_of(path: Path, instance: str, triton: int) -> Path:
    """Where a process of a model's version in Triton reports; it is called as the model, an underscore and numbers."""
    return path.with_name(f"held-{instance}.{triton}.json")


def read_reports(path: Path, model: str, triton: int) -> list[Report]:
    """Of the processes of a model's version, as far as they can be read."""
    found = []
    for file in path.parent.glob(f"held-{model}_*.{triton}.json"):
        try:
            found.append(Report.model_validate_json(file.read_bytes()))
        except (OSError, ValueError):
            continue
    return found


def forget_reports(path: Path, triton: int | None = None) -> None:
    """Before models are loaded, or after: what processes (of one version) said that have ended counts no more."""
    for file in path.parent.glob(f"held-*.{'*' if triton is None else triton}.json"):
        file.unlink(missing_ok=True)


def stands(path: Path, model: str, instances: int, digest: str, *, serving: bool, triton: int = 1) -> bool:
    """Whether all processes of the model's version hold an artifact, or serve it. Raises RefusedError."""
    reports = read_reports(path, model, triton)
    for report in reports:
        if digest in report.refused:
            raise RefusedError(f"model {model} cannot hold artifact {digest}: {report.refused[digest]}")
    there = [report.serving == digest if serving else digest in report.held for report in reports]
    return len(there) >= instances and all(there)


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
