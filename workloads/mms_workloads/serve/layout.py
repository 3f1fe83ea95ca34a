"""Where the containers of a serving pod find things, and the service's file that they all read.

The three containers (fetch, Triton, agent) share one volume, MODELS_DIR:

    /models/artifact-<12 hex digits>/   the artifact's files, and what is made from them
    /models/repository/                 Triton's model repository
    /models/batching.json               how many processes a model has, and the like
    /models/served.json                 which models there are
    /models/generations.json            which artifacts the models hold, and which one answers
    /models/control-key                 the secret of Triton's model control, new in each pod
    /models/live.json                   of a pod that follows a training: what it says of it

The MMS_* variables place things elsewhere when there is no pod: in tests and in a local run.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from mms_workloads import contract
from mms_workloads.contract import Batching, LiveOrders, LiveReport, LiveSource, Reason, ServeFile
from mms_workloads.serve import repository
from mms_workloads.serve.repository import Models
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from collections.abc import Mapping

SERVE_FILE = "/etc/mms/serve.json"
PROBE_FILE = "/etc/mms/probe"  # a number or empty: the pod's annotation mms.dev/probe
ORDERS_FILE = "/etc/mms/live"  # LiveOrders, or empty: the pod's annotation mms.dev/live
WANTED_FILE = "/etc/mms/wanted"  # a ServeFile too, or empty: the pod's annotation mms.dev/serve
MODELS_DIR = "/models"
MODELS_FILE = "served.json"  # Models: in the pod's volume those that run, in an artifact's folder those that it wants
PROBES = 100.0  # a second, at most
CONTROL_HEADER = "mms-control-key"  # over gRPC Triton wants it with the prefix triton-grpc-protocol-


_KNOWN: dict[str, tuple[tuple[int, int, int], ServeFile]] = {}  # what was read last


@dataclass(frozen=True, slots=True)
class Layout:
    """The folders of the shared volume and the ports of the pod."""

    models: Path
    http_port: int = contract.TRITON_HTTP_PORT
    grpc_port: int = contract.TRITON_GRPC_PORT
    metrics_port: int = contract.TRITON_METRICS_PORT
    agent_port: int = contract.AGENT_PORT

    @property
    def repository(self) -> Path:
        return self.models / "repository"

    @property
    def generations(self) -> Path:
        return self.models / "generations.json"

    @property
    def batching(self) -> Path:
        """How the models run, as the repository says it."""
        return self.models / "batching.json"

    @property
    def running(self) -> Path:
        """Which models the pod's Triton runs."""
        return self.models / MODELS_FILE

    @property
    def control_key(self) -> Path:
        return self.models / "control-key"

    def artifact(self, digest: str) -> Path:
        """The folder of an artifact; `digest` is sha256:<hex> or live:<uid>:<run>."""
        return self.models / f"artifact-{contract.short(digest)}"

    @property
    def live_report(self) -> Path:
        return self.models / "live.json"


def read_layout(environment: Mapping[str, str] = os.environ) -> Layout:
    return Layout(
        models=Path(environment.get("MMS_MODELS_DIR", MODELS_DIR)),
        http_port=int(environment.get("MMS_TRITON_HTTP_PORT", contract.TRITON_HTTP_PORT)),
        grpc_port=int(environment.get("MMS_TRITON_GRPC_PORT", contract.TRITON_GRPC_PORT)),
        metrics_port=int(environment.get("MMS_TRITON_METRICS_PORT", contract.TRITON_METRICS_PORT)),
        agent_port=int(environment.get("MMS_AGENT_PORT", contract.AGENT_PORT)),
    )


def read_serve_file(environment: Mapping[str, str] = os.environ) -> ServeFile:
    """Raises JobError JobFileInvalid when the file cannot be read."""
    path = environment.get("MMS_SERVE_FILE", SERVE_FILE)
    try:
        return _parsed(path)
    except (OSError, ValidationError) as error:
        raise JobError(Reason.JOB_FILE_INVALID, f"{path}: {error}") from error


def read_wanted(environment: Mapping[str, str] = os.environ) -> ServeFile | None:
    """What the pod is told to serve in place of what it began with. None where nothing, or nothing clear, is said."""
    path = environment.get("MMS_WANTED_FILE", WANTED_FILE)
    try:
        return _parsed(path) if os.stat(path).st_size else None  # noqa: PTH116 - a Path costs more than the question
    except (OSError, ValidationError):
        return None


def _parsed(path: str) -> ServeFile:
    """Of a file that is looked at many times a second, and is another one when it says something else.

    Raises OSError, ValidationError.
    """
    found = os.stat(path)  # noqa: PTH116 - see above
    stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
    known = _KNOWN.get(path)
    if known is None or known[0] != stamp:
        known = _KNOWN[path] = stamp, ServeFile.model_validate_json(Path(path).read_bytes())
    return known[1]


def live_source(digest: str, environment: Mapping[str, str] = os.environ) -> LiveSource | None:
    """The run that a digest of live parameters stands for, as one of the pod's files says."""
    files = [read_wanted(environment)]
    with contextlib.suppress(JobError):
        files.append(read_serve_file(environment))
    return next((one.live for one in files if one and one.live and one.artifact.digest == digest), None)


def read_orders(environment: Mapping[str, str] = os.environ) -> LiveOrders | None:
    """How the pod is to follow a training, where its annotation says so."""
    path = Path(environment.get("MMS_ORDERS_FILE", ORDERS_FILE))
    try:
        return LiveOrders.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def read_probe(environment: Mapping[str, str] = os.environ) -> float:
    """How many of its own golden cases the agent is to ask a second, so that there is something to measure."""
    path = Path(environment.get("MMS_PROBE_FILE", PROBE_FILE))
    try:
        return min(PROBES, max(0.0, float(path.read_text().strip() or 0)))
    except (OSError, ValueError):
        return 0.0


def read_batching(layout: Layout) -> Batching:
    """How the pod's models run."""
    try:
        return Batching.model_validate_json(layout.batching.read_bytes())
    except (OSError, ValueError):
        return Batching()


def read_models(file: Path) -> Models:
    """Of word vectors where there is no file: what was written before there were others."""
    try:
        return Models.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return repository.word_models()
    except (OSError, ValueError) as error:
        raise JobError(Reason.MODEL_LOAD_FAILED, f"{file}: {error}: the fetch container must run first") from error


def read_live_report(layout: Layout) -> LiveReport | None:
    """What the pod's follower has said last. None where there is none."""
    try:
        return LiveReport.model_validate_json(layout.live_report.read_bytes())
    except (OSError, ValueError):
        return None
