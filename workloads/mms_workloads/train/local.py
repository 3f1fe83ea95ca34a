"""Runs a training as processes of this machine: a master and n workers on loopback. For tests and development.

python -m mms_workloads.train.local --data 'file:///corpus/*.txt' --storage file:///tmp/run --workers 2
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from mms_workloads import contract
from mms_workloads.contract import Desired, JobFile, Outcome, StatusReport

if TYPE_CHECKING:
    from collections.abc import Callable

POLL_SECONDS = 0.05
# After its master's end a process that has not met it looks for it: an operator would delete the pod.
HEARD_SECONDS = 20.0


class Process(Protocol):
    """What is used of a subprocess.Popen."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, number: int, /) -> None: ...


class LocalRun:
    """One run in `folder`. Use as a context manager: its processes end with it."""

    def __init__(self, folder: Path, job: JobFile, *, attempt: int = 1) -> None:
        self.folder, self.job, self.attempt = folder, job, attempt
        self.master_port, self.health_port = _free_port(), _free_port()
        self.processes: dict[str, Process] = {}
        self._incarnations: dict[str, int] = {}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "job.json").write_text(job.model_dump_json(exclude_none=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            # The worker of a supervisor that has ended may still be there: its group has the supervisor's number.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def start(self) -> Self:
        self.start_master()
        for rank in range(self.job.parameterServer.shards if self.job.parameterServer else 0):
            self.start_shard(rank)
        for rank in range(self.job.workers):
            self.start_worker(rank)
        return self

    def start_master(self) -> None:
        self._spawn("master", "master", 0, "mms_workloads.sync.master")

    def start_worker(self, rank: int, *, incarnation: int | None = None) -> Process:
        """A pod for the rank: of the next incarnation unless one is given."""
        return self._spawn(f"worker-{rank}", "worker", rank, "mms_workloads.train.supervisor", incarnation)

    def start_shard(self, rank: int, *, incarnation: int | None = None) -> Process:
        return self._spawn(f"shard-{rank}", "shard", rank, "mms_workloads.train.supervisor", incarnation)

    def kill(self, name: str) -> None:
        """The pod vanishes: the supervisor and its worker die by SIGKILL."""
        process = self.processes[name]
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def status(self) -> StatusReport | None:
        """None while the master does not answer."""
        try:
            with urllib.request.urlopen(f"{self._url()}/v1/status", timeout=5) as answer:  # noqa: S310 - loopback
                return StatusReport.model_validate_json(answer.read())
        except (urllib.error.URLError, OSError):
            return None

    def desire(self, desired: Desired) -> None:
        body = desired.model_dump_json().encode()
        request = urllib.request.Request(f"{self._url()}/v1/desired", data=body, method="PUT")  # noqa: S310 - loopback
        with urllib.request.urlopen(request, timeout=5):  # noqa: S310 - loopback
            pass

    def until(self, ready: Callable[[StatusReport], Any], timeout: float = 60.0) -> StatusReport:
        """Polls the status until `ready`. Raises TimeoutError with the logs' ends."""
        deadline, report = time.monotonic() + timeout, None
        while time.monotonic() < deadline:
            report = self.status()
            if report and ready(report):
                return report
            time.sleep(POLL_SECONDS)
        raise TimeoutError(f"not ready after {timeout} s: {report}\n{self.logs()}")

    def outcome(self, timeout: float = 60.0) -> Outcome:
        """How the run ended, as the master's status said or its termination log; waits for the processes, too."""
        deadline = time.monotonic() + timeout
        while self.processes["master"].poll() is None and time.monotonic() < deadline:
            self.status()  # a master stays until somebody has read its outcome
            time.sleep(POLL_SECONDS)
        heard = min(deadline, time.monotonic() + HEARD_SECONDS)
        for name, process in self.processes.items():
            try:
                if name != "master" and not self._ended(process, heard):
                    process.send_signal(signal.SIGTERM)
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired as error:
                raise TimeoutError(f"{name} has not ended after {timeout} s: {self.status()}\n{self.logs()}") from error
        return self.termination("master")

    def _ended(self, process: Process, deadline: float) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        return process.poll() is not None

    def termination(self, name: str) -> Outcome:
        return Outcome.model_validate_json((self.folder / name / "termination-log").read_bytes())

    def logs(self, last: int = 3000) -> str:
        return "\n".join(f"--- {p.parent.name}\n{p.read_text()[-last:]}" for p in sorted(self.folder.glob("*/log")))

    def _url(self) -> str:
        return f"http://127.0.0.1:{self.master_port}"

    def _spawn(self, name: str, role: str, rank: int, module: str, incarnation: int | None = None) -> Process:
        if incarnation is None:
            incarnation = self._incarnations.get(name, -1) + 1
        self._incarnations[name] = max(incarnation, self._incarnations.get(name, -1))
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        (folder / "termination-log").touch()
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            contract.ENV_ROLE: role,
            contract.ENV_RANK: str(rank),
            contract.ENV_INCARNATION: str(incarnation),
            contract.ENV_ATTEMPT: str(self.attempt),
            contract.ENV_POD_IP: "127.0.0.1",
            "MMS_JOB_FILE": str(self.folder / "job.json"),
            "MMS_SCRATCH_DIR": str(folder / f"scratch-{incarnation}"),
            "MMS_TERMINATION_LOG": str(folder / "termination-log"),
            "MMS_CREDENTIALS_DIR": str(self.folder / "credentials"),
            "MMS_MASTER_PORT": str(self.master_port),
            "MMS_HEALTH_PORT": str(self.health_port),
            "MMS_PARAMETERS_PORT": "0",  # any: the workers share an address
        }
        process = self._launch(module, environment, folder / "log")
        before = self.processes.get(name)
        self.processes[f"{name}-{incarnation}" if before and before.poll() is None else name] = process
        return process

    def _launch(self, module: str, environment: dict[str, str], log: Path) -> Process:
        """A process in a session of its own, with its output appended to `log`."""
        with log.open("ab") as out:
            return subprocess.Popen(
                [sys.executable, "-m", module, "--plain-http"],
                env=environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--storage", required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--set", default="{}", help='parts of the job file as JSON, e.g. {"optimizer": {"epochs": 20}}')
    arguments = parser.parse_args()
    job: dict[str, Any] = {
        "job": {"namespace": "local", "name": "local", "uid": "local", "run": 1},
        "task": {"wordEmbedding": {}},
        "data": {"store": {"uri": arguments.data}},
        "workers": arguments.workers,
        "storage": {"uri": arguments.storage},
        "masterHost": "127.0.0.1",
        **json.loads(arguments.set),
    }
    folder = Path(arguments.storage.removeprefix("file://") + ".local")
    with LocalRun(folder, JobFile.model_validate(job)) as run:
        started = time.monotonic()
        run.start()
        while True:
            report = run.until(lambda _: True)
            sys.stdout.write(
                f"{time.monotonic() - started:6.1f} s {report.activity} {report.percent}% "
                f"loss {report.loss} {report.samplesPerSecond} words/s\n"
            )
            if report.outcome:
                sys.stdout.write(report.outcome.model_dump_json(indent=1) + "\n")
                return 0 if run.outcome().result == "Complete" else 1
            time.sleep(1)


if __name__ == "__main__":
    sys.exit(main())
