"""A pod of a training as it sees itself: its environment, its job file and its places on disk.

The MMS_*_DIR, _FILE, _LOG and _PORT variables place things elsewhere when there is no pod: in tests and in a local run.
"""

from __future__ import annotations

import bisect
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mms_workloads import contract
from mms_workloads.contract import JobFile, Outcome, Reason
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from collections.abc import Mapping

TERMINATION_LOG_BYTES = 4096  # the kubelet keeps no more


@dataclass(frozen=True, slots=True)
class Pod:
    role: str
    rank: int
    incarnation: int
    attempt: int
    ip: str
    job: JobFile
    job_digest: str  # sha256:<hex> of the job file's bytes
    tls_dir: Path
    scratch: Path
    termination_log: Path
    master_port: int
    health_port: int
    parameters_port: int = contract.PARAMETERS_PORT


class Stopped(Exception):  # noqa: N818 - an event in the life of a pod, not an error
    """The pod was told to stop."""


def read_pod(environment: Mapping[str, str] = os.environ) -> Pod:
    """Raises JobError JobFileInvalid when the job file cannot be read."""
    path = Path(environment.get("MMS_JOB_FILE", contract.JOB_FILE))
    try:
        data = path.read_bytes()
        job = JobFile.model_validate_json(data)
        rank, incarnation, attempt = (
            int(environment.get(name, default))
            for name, default in (
                (contract.ENV_RANK, "0"),
                (contract.ENV_INCARNATION, "0"),
                (contract.ENV_ATTEMPT, "1"),
            )
        )
    except (OSError, ValueError) as error:  # pydantic's errors are ValueErrors
        raise JobError(Reason.JOB_FILE_INVALID, f"{path}: {error}") from error
    if job.task.kind is None:
        raise JobError(
            Reason.JOB_FILE_INVALID,
            f"{path}: task has no arm that this release knows: set {', '.join(contract.Task.model_fields)}",
        )
    if (job.syncMode == "ParameterServer") != (job.parameterServer is not None):
        raise JobError(
            Reason.JOB_FILE_INVALID, f"{path}: parameterServer is set in that mode and no other, this is {job.syncMode}"
        )
    return Pod(
        role=environment.get(contract.ENV_ROLE, "worker"),
        rank=rank,
        incarnation=incarnation,
        attempt=attempt,
        ip=environment.get(contract.ENV_POD_IP, "127.0.0.1"),
        job=job,
        job_digest="sha256:" + hashlib.sha256(data).hexdigest(),
        tls_dir=Path(environment.get("MMS_TLS_DIR", contract.TLS_DIR)),
        scratch=Path(environment.get("MMS_SCRATCH_DIR", contract.SCRATCH_DIR)),
        termination_log=termination_log(environment),
        master_port=int(environment.get("MMS_MASTER_PORT", contract.MASTER_PORT)),
        health_port=int(environment.get("MMS_HEALTH_PORT", contract.MASTER_HEALTH_PORT)),
        parameters_port=int(environment.get("MMS_PARAMETERS_PORT", contract.PARAMETERS_PORT)),
    )


def termination_log(environment: Mapping[str, str] = os.environ) -> Path:
    return Path(environment.get("MMS_TERMINATION_LOG", contract.TERMINATION_LOG))


def write_outcome(path: Path, outcome: Outcome) -> None:
    """Writes the termination log: the message is cut so that it fits. A log that cannot be written is no failure."""
    data = _encode(outcome, len(outcome.message))
    if len(data) > TERMINATION_LOG_BYTES:
        # The longest beginning of the message that fits; a character takes 1 to 6 bytes.
        sizes = range(len(outcome.message))
        fits = bisect.bisect_right(sizes, TERMINATION_LOG_BYTES, key=lambda kept: len(_encode(outcome, kept)))
        data = _encode(outcome, max(0, fits - 1))
    try:
        path.write_bytes(data)
    except OSError as error:
        print(f"cannot write {path}: {error}: {data.decode()}", flush=True)  # noqa: T201 - the last resort: the pod's log


def _encode(outcome: Outcome, kept: int) -> bytes:
    """With the first `kept` characters of the message."""
    if kept < len(outcome.message):
        outcome = outcome.model_copy(update={"message": outcome.message[:kept] + "..."})
    return outcome.model_dump_json(exclude_none=True).encode()


def failed(error: JobError, step: int = 0) -> Outcome:
    return Outcome(result="Failed", reason=error.reason, message=error.message, retryable=error.retryable, step=step)
