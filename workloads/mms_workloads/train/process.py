"""The process that a pod's supervisor forks, from the environment to the exit code: a worker, or a parameter shard."""

from __future__ import annotations

import faulthandler
import shutil
import signal
import threading
from typing import TYPE_CHECKING

import structlog
import torch

from mms_workloads import logs
from mms_workloads import store as stores
from mms_workloads.contract import EXIT_DONE, EXIT_PERMANENT, EXIT_RETRY, Outcome, Reason
from mms_workloads.pod import Stopped, failed, read_pod, termination_log, write_outcome
from mms_workloads.store import JobError
from mms_workloads.sync.shard_pod import ShardPod
from mms_workloads.train import cpu
from mms_workloads.train.worker import Worker

if TYPE_CHECKING:
    from pathlib import Path

    from mms_workloads.train.pulse import Pulse


def run(*, pulse: Pulse, plain: bool = False) -> int:
    faulthandler.enable()
    logs.configure()
    log = termination_log()
    try:
        pod = read_pod()
        names = {"job": f"{pod.job.job.namespace}/{pod.job.job.name}", "role": pod.role, "rank": pod.rank}
        structlog.contextvars.bind_contextvars(**names)
        tidy(pod.scratch)
        torch.set_num_threads(cpu.limit())
        made = ShardPod if pod.role == "shard" else Worker
        it = made(pod, pulse, plain=plain)
        # The handler only notes it; a thread tells, since the interrupted one may hold the inbox's lock.
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=it.stop, daemon=True).start())
        outcome = it.run().model_copy(update={"heard": True})
    except Stopped:
        return 128 + signal.SIGTERM
    except JobError as error:
        outcome = failed(error)
    except MemoryError:
        outcome = Outcome(result="Failed", reason=Reason.OUT_OF_MEMORY, message=cpu.MEMORY_REMEDY, retryable=True)
    logs.logger().info("process ends", result=outcome.result, reason=outcome.reason, message=outcome.message)
    write_outcome(log, outcome)
    if outcome.result != "Failed":
        return EXIT_DONE
    return EXIT_RETRY if outcome.retryable else EXIT_PERMANENT


def tidy(scratch: Path) -> None:
    """Makes the folder, without what a process of this pod that was killed had on its way."""
    scratch.mkdir(parents=True, exist_ok=True)
    for folder in scratch.glob(f"{stores.ON_ITS_WAY}*"):
        shutil.rmtree(folder, ignore_errors=True)
