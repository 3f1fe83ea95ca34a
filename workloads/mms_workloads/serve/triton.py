"""The server container's process: becomes tritonserver with the flags that a serving pod needs.

    python -m mms_workloads.serve.triton [more tritonserver flags]

MMS_SUMMARIES=true makes it count how long requests take, by quantiles of the last minute.
MMS_EXIT_TIMEOUT_SECONDS is how long Triton waits for clients to end their connections after SIGTERM (30): the pod's
terminationGracePeriodSeconds must be at least preStop + this + 10. Whether the models are ready
the agent says.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mms_workloads import contract, pod
from mms_workloads.contract import Outcome, Reason
from mms_workloads.serve import load
from mms_workloads.serve.layout import CONTROL_HEADER, Layout, read_layout

if TYPE_CHECKING:
    from collections.abc import Mapping

EXIT_TIMEOUT_SECONDS = 30
CHANNEL_SECONDS = 10  # that a gRPC channel lives, give or take a tenth
# Loading a model is running code, shared memory is the pod's, and the others change the server: the agent's only.
RESTRICTED = "model-repository,shared-memory,trace,logging"
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the backend's own place


def main(arguments: list[str], environment: Mapping[str, str] = os.environ) -> int:
    """Returns only when the server cannot be started."""
    layout = read_layout(environment)
    try:
        key = layout.control_key.read_text().strip()
    except OSError as error:
        message = f"{layout.control_key}: {error}: the fetch container must run first, on the same volume"
        pod.write_outcome(
            pod.termination_log(environment), Outcome(result="Failed", reason=Reason.MODEL_LOAD_FAILED, message=message)
        )
        print(message, file=sys.stderr)  # noqa: T201 - the pod's log
        return contract.EXIT_PERMANENT
    remove_stale_regions(SHARED_MEMORY, region_prefix(layout))
    exit_timeout = int(environment.get("MMS_EXIT_TIMEOUT_SECONDS", EXIT_TIMEOUT_SECONDS))
    binary = environment.get("MMS_TRITONSERVER", "tritonserver")
    counted = load.summaries() if environment.get("MMS_SUMMARIES") == "true" else []
    command = [binary, *flags(layout, key, exit_timeout), *counted, *arguments]
    # This process becomes the server, which gets the kubelet's signals itself.
    return os.execvpe(binary, command, server_environment(environment, sys.executable))  # noqa: S606


def flags(layout: Layout, key: str, exit_timeout_seconds: int) -> list[str]:
    """The flags of tritonserver, each with its reason."""
    return [
        f"--model-repository={layout.repository}",
        # The agent loads the models, so that it knows what was loaded when, and why it failed.
        "--model-control-mode=explicit",
        f"--http-restricted-api={RESTRICTED}:{CONTROL_HEADER}={key}",
        f"--grpc-restricted-protocol={RESTRICTED}:{CONTROL_HEADER}={key}",
        # Else one failed load makes the server not ready for good, although the models before it still answer.
        "--strict-readiness=false",
        # The configurations are complete; completing them would start each model's process twice.
        "--disable-auto-complete-config",
        f"--exit-timeout-secs={exit_timeout_seconds}",
        # A channel is told to leave, finishes what it has begun and comes back through the Service: so channels spread
        # over new pods, and those of a pod that leaves are gone before it does.
        f"--grpc-max-connection-age={1000 * CHANNEL_SECONDS}",
        f"--grpc-max-connection-age-grace={1000 * exit_timeout_seconds}",
        f"--http-port={layout.http_port}",
        f"--grpc-port={layout.grpc_port}",
        f"--metrics-port={layout.metrics_port}",
        "--allow-gpu-metrics=false",
        "--pinned-memory-pool-byte-size=0",  # is for copies to GPUs
        f"--backend-config=python,shm-region-prefix-name={region_prefix(layout)}",
        "--log-format=ISO8601",
    ]


def server_environment(environment: Mapping[str, str], python: str) -> dict[str, str]:
    """Triton's environment, which the processes of its models inherit."""
    return {
        # A batch is one matrix product: more threads than one would fight over the container's CPU quota.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        **environment,
        # The models' process embeds Python with an isolated configuration: it ignores PYTHONPATH and finds the packages
        # of the first python3 in PATH.
        "PATH": f"{Path(python).parent}:{environment.get('PATH', '/usr/local/bin:/usr/bin:/bin')}",
    }


def region_prefix(layout: Layout) -> str:
    """Names this server's shared memory regions apart from those of another that sees the same /dev/shm."""
    return f"mms_triton_{layout.http_port}_"


def remove_stale_regions(folder: Path, prefix: str) -> list[str]:
    """Removes the regions that a killed server left: /dev/shm is the pod's and outlives its containers."""
    stale = sorted(folder.glob(f"{prefix}*"))
    for region in stale:
        region.unlink(missing_ok=True)
    return [region.name for region in stale]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
