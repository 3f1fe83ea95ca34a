"""The edge's process: nginx before Triton, with the certificate and the API keys that are mounted now.

    python -m mms_workloads.serve.edge

    GET /healthz  200 while nginx lives
    GET /metrics  for Prometheus

What is mounted is looked at once a second. Something else is laid into a folder of its own, tested by nginx, and taken
by a reload: requests that have begun end as they began. What nginx refuses, such as a certificate with another key, is
said in the log and by the metric mms_edge_current, and what serves serves on. SIGTERM is nginx's graceful end: HTTP
connections are told to close and gRPC channels to leave, and what has begun is finished.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from mms_workloads import contract, logs, pod
from mms_workloads.contract import Outcome, Reason
from mms_workloads.serve import edge_files, edge_status

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mms_workloads.serve.edge_files import Inputs

LOOK_SECONDS = 1.0
TEST_SECONDS = 30.0

log = structlog.get_logger()


class RefusedError(Exception):
    """nginx does not take what is mounted; the message says why."""


class Edge:
    """nginx, and what it was given. `mounted` and `keys` are read; `run` is written: a folder of the container's own.

    <run>/current is a link to the folder that nginx reads. It outlives the container, so that a restart finds what
    served before when what is mounted is no good.
    """

    def __init__(self, nginx: str, mounted: Path, keys: Path, run: Path) -> None:
        self.nginx, self.mounted, self.keys, self.run = nginx, mounted, keys, run
        self.process: subprocess.Popen[str] | None = None
        self.refusals: Counter[tuple[int, str]] = Counter()  # by HTTP status and client's name
        self.reloads = 0
        self.failures = 0
        self.current = False  # whether nginx serves what is mounted
        self._told: Counter[tuple[int, str]] = Counter()  # refusals that the log has
        self._looked_at: Inputs | None = None
        self._problem = ""  # that the log has
        self._reader: threading.Thread | None = None

    @property
    def lives(self) -> bool:
        # A log that nobody reads fills up, and nginx waits for it.
        reads = self._reader is not None and self._reader.is_alive()
        return self.process is not None and self.process.poll() is None and reads

    def start(self) -> None:
        """Raises RefusedError when there is nothing that nginx takes."""
        for left in self.run.glob("next-*"):
            shutil.rmtree(left)
        try:
            self._take()
        except RefusedError as error:
            if not (self.run / "current").exists():
                raise
            self._fail(error)
        self.process = subprocess.Popen(
            [*self._command("current"), "-g", "daemon off;"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",  # a path may have any bytes, and the line is JSON
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def look(self) -> None:
        """Takes what is mounted where it is not what was looked at last, and tells the log of refusals."""
        try:
            if self._take():
                self._signal(signal.SIGHUP)
                self.reloads += 1
                log.info("reloaded")
        except RefusedError as error:
            self._fail(error)
        now = self.refusals.copy()
        for (code, client), count in (now - self._told).items():
            log.warning("refused", code=code, client=client, count=count)
        self._told = now

    def end(self) -> int:
        """Lets nginx end gracefully; its exit status."""
        self._signal(signal.SIGQUIT)
        return self.process.wait() if self.process else 0

    def _take(self) -> bool:
        """Whether there was something else, which nginx is to read now."""
        try:
            inputs = edge_files.read(self.mounted, self.keys)
        except OSError as error:
            raise RefusedError(f"what is mounted cannot be read: {error}") from error
        if inputs == self._looked_at:
            return False
        self._looked_at = inputs
        following = self.run / f"next-{secrets.token_hex(4)}"
        try:
            following.mkdir(mode=0o700)
            problems = edge_files.lay(inputs, following, secrets.token_hex(32))
            self._test(following.name)
            self._point(following)
        except RefusedError:
            shutil.rmtree(following)
            raise
        except OSError as error:  # such as a volume that is full: the next look tries again
            self._looked_at = None
            shutil.rmtree(following, ignore_errors=True)
            raise RefusedError(f"what nginx is to read cannot be written: {error}") from error
        for problem in problems:
            log.error("API key", problem=problem)
        self.current, self._problem = True, ""
        return True

    def _test(self, name: str) -> None:
        try:
            done = subprocess.run(
                [*self._command(name), "-t", "-q"], capture_output=True, text=True, timeout=TEST_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            self._looked_at = None  # it says nothing of what is mounted: the next look tries again
            raise RefusedError(f"nginx cannot be started: {error}") from error
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if "[emerg]" in line] or done.stderr.splitlines()
            raise RefusedError(f"nginx refuses what is mounted: {' '.join(said)}")

    def _point(self, folder: Path) -> None:
        """The link changes in one step; the folder that it led to goes."""
        link = self.run / "current"
        before = link.resolve() if link.exists() else None
        part = self.run / "link"
        part.unlink(missing_ok=True)
        folder = folder.rename(folder.with_name(f"is-{folder.name.removeprefix('next-')}"))
        part.symlink_to(folder.name)
        part.replace(link)
        if before is not None:
            shutil.rmtree(before, ignore_errors=True)

    def _fail(self, error: RefusedError) -> None:
        self.current = False
        if self._problem != (problem := str(error)):
            self._problem = problem
            self.failures += 1
            log.error("not taken: what served before serves on", problem=problem)

    def _command(self, name: str) -> list[str]:
        return [self.nginx, "-p", f"{self.run}/", "-e", "stderr", "-c", str(self.run / name / contract.EDGE_CONFIG)]

    def _signal(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def _read(self) -> None:
        """The log of nginx: a line of JSON for each request that it refused, its own words otherwise."""
        assert self.process is not None  # noqa: S101 - it was just started
        assert self.process.stdout is not None  # noqa: S101 - it was asked for
        for line in self.process.stdout:
            refused = _refused(line)
            if refused is None:
                log.warning("nginx", said=line.strip())
            else:
                self.refusals[refused] += 1


def _refused(line: str) -> tuple[int, str] | None:
    """The status and the client's name."""
    if not line.startswith('{"event":"refused"'):
        return None
    try:
        found = json.loads(line)
        return int(found["code"]), str(found["client"])
    except (ValueError, KeyError):
        return None


def main(environment: Mapping[str, str] = os.environ) -> int:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    edge = Edge(
        environment.get("MMS_NGINX", "nginx"),
        Path(environment.get("MMS_EDGE_DIR", contract.EDGE_DIR)),
        Path(environment.get("MMS_EDGE_KEYS_DIR", contract.EDGE_KEYS_DIR)),
        Path(environment.get("MMS_EDGE_RUN_DIR", contract.EDGE_RUN_DIR)),
    )
    try:
        edge.start()
    except RefusedError as error:
        log.error("not serving", problem=str(error))  # noqa: TRY400 - the message is for people
        outcome = Outcome(result="Failed", reason=Reason.EDGE_INVALID, message=str(error), retryable=True)
        pod.write_outcome(pod.termination_log(environment), outcome)
        return contract.EXIT_RETRY
    server = edge_status.serve(edge, int(environment.get("MMS_EDGE_PORT", contract.EDGE_PORT)))
    while not stop.wait(LOOK_SECONDS):
        if not edge.lives:
            log.error("nginx has ended")
            return contract.EXIT_RETRY
        edge.look()
    log.info("ending")
    status = edge.end()
    server.shutdown()
    return status


if __name__ == "__main__":
    logs.configure()
    sys.exit(main())
