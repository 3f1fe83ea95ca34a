"""What a user says of a service's rollout, and how far it is: by the annotation that the operator reads."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from mms_operator.api import names
from mms_operator.api.service_status import ServiceStatus
from mms_operator.cli import kubectl
from mms_operator.plan.service.saying import called

if TYPE_CHECKING:
    from mms_operator.api.service_status import ServedVersion


class RolloutError(Exception):
    """kubectl's words."""


@dataclass(frozen=True)
class Service:
    name: str
    namespace: str


def say(service: Service, command: str) -> None:
    """Writes the annotation. The time makes it another one than the last. Raises RolloutError."""
    text = f"{command} @{datetime.now(UTC).isoformat(timespec='milliseconds')}"
    _kubectl("annotate", "--overwrite", names.SERVICES, service.name, f"{names.ANNOTATION_ROLLOUT}={text}", on=service)


def status(service: Service) -> Group:
    """How far the rollout is, and what was served. Raises RolloutError."""
    cr = json.loads(_kubectl("get", names.SERVICES, service.name, "-o", "json", on=service))
    try:
        found = ServiceStatus.model_validate(cr.get("status") or {})
    except ValidationError as error:
        raise RolloutError(
            f"the status of {service.name} says what this mms does not know ({error.errors()[0]['msg']}): take the mms "
            "of the operator's version"
        ) from error
    return shown(found)


def shown(found: ServiceStatus) -> Group:
    versions = Table("", "version", "pods that answer", box=None, header_style="bold")
    for role, version in (
        ("stable", found.versions.stable), ("next", found.versions.next), ("previous", found.versions.previous)
    ):  # fmt: skip
        if version:
            versions.add_row(role, _named(version), str(version.replicas))
    parts: list[Any] = [versions]
    if found.rollout:
        parts.append(
            f"[bold]{found.rollout.strategy}[/]: {found.rollout.phase}, step {found.rollout.step} "
            f"of {found.rollout.steps + 1}, {found.rollout.percent} % of the pods"
        )
    if found.live:
        parts.append(
            f"[bold]LiveSync[/]: {found.live.phase}, run {found.live.run}, step {found.live.step}, age p50 "
            f"{found.live.ageP50Milliseconds} ms, p99 {found.live.ageP99Milliseconds} ms"
        )
    parts += [escape(one.message) for one in found.conditions if one.type == names.Condition.READY]
    if found.history:
        past = Table("when", "version", "what became of it", box=None, header_style="bold")
        for entry in found.history:
            past.add_row(entry.time, _named(entry), entry.outcome)
        parts += ["", past]
    return Group(*parts)


def _named(version: ServedVersion) -> str:
    return escape(called(version))


def _kubectl(*arguments: str, on: Service) -> str:
    command = ["kubectl", "--namespace", on.namespace, *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise RolloutError("kubectl is not on PATH: install it") from None
    if answer.returncode:
        raise RolloutError(kubectl.words(answer.stderr))
    return answer.stdout
