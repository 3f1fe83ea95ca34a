"""LocalRun with pods that are forked from a process which has imported torch: that takes most of a pod's start."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from mms_cluster.ports import free_ports
from mms_workloads.train import learner
from mms_workloads.train.local import LocalRun
from tests import faults

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess
    from pathlib import Path

    from mms_workloads.contract import JobFile
    from mms_workloads.train.local import Process

LEARNER = "TEST_LEARNER"  # the module whose `make` takes the place of learner.make

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["mms_workloads.sync.master", "mms_workloads.train.supervising"])


class QuickRun(LocalRun):
    def __init__(self, folder: Path, job: JobFile, *, attempt: int = 1) -> None:
        super().__init__(folder, job, attempt=attempt)
        self.master_port, self.health_port = free_ports(2)

    def _launch(self, module: str, environment: dict[str, str], log: Path) -> Process:
        process = _context.Process(target=_become, args=(module, environment, str(log)))
        process.start()
        forked = _Forked(process)
        while forked.poll() is None and os.getpgid(forked.pid) != forked.pid:
            time.sleep(0.001)  # until the pod is a group of its own, which can be killed
        return forked


class _Forked:
    """With the methods of subprocess.Popen."""

    def __init__(self, process: ForkServerProcess) -> None:
        self._process = process
        assert process.pid
        self.pid: int = process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: int, /) -> None:
        os.kill(self.pid, number)


def _become(module: str, environment: dict[str, str], log: str) -> None:
    os.setsid()
    out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(out, stream)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, "--plain-http"]
    code = 1
    if LEARNER in environment:
        learner.make = importlib.import_module(environment[LEARNER]).make
    faults.install()
    try:
        code = importlib.import_module(module).main()
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else 1
    finally:
        sys.stdout.flush()
        os._exit(code)
