"""Processes: children that die with us, daemons that outlive us and are found again.

A daemon writes its own record before it becomes the program, so that there is no moment in which it runs unrecorded.
The record names process id, start time and boot: a process id that was used again is not mistaken for ours.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mms_cluster.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

POLL_SECONDS = 0.1

# $0 is the record, $1 the digest of the command. `read` is of the shell itself: /proc/self is this process until exec
# and after it.
_RECORD_AND_EXEC = """
read -r stat < /proc/self/stat && read -r boot < /proc/sys/kernel/random/boot_id || exit 125
printf '%s\\n' "$stat" "$boot" "$1" > "$0.partial" && mv "$0.partial" "$0" || exit 125
shift; exec "$@"
"""


@dataclass(frozen=True)
class Record:
    """A daemon as it was started. `start` is in clock ticks since boot, `digest` of its command and configuration."""

    pid: int
    start: int
    boot: str
    digest: str


def child(argv: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a process that is killed when the thread that started it ends, however that comes about."""
    with log.open("ab") as out:
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *argv],
            stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip


def stop_child(process: subprocess.Popen[bytes]) -> None:
    """Kill and reap. What our children hold is thrown away, so there is nothing for them to save."""
    process.kill()
    process.wait()


def daemon(record: Path, argv: Sequence[str], log: Path, digest: str) -> Record:
    """Start a process of its own session; its record is at `record`."""
    record.unlink(missing_ok=True)
    mode = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    pid = os.posix_spawn(
        "/bin/sh",
        ["sh", "-c", _RECORD_AND_EXEC, str(record), digest, *argv],
        os.environ,
        setsid=True,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), mode, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
    )
    deadline = time.monotonic() + 10
    while (found := read_record(record)) is None:
        if time.monotonic() > deadline or os.waitpid(pid, os.WNOHANG) != (0, 0):
            raise ClusterError(f"{argv[0]} could not be started; {log} may say why.\n{tail(log)}")
        time.sleep(0.005)
    return found


def read_record(path: Path) -> Record | None:
    """None if there is no record or not a whole one."""
    try:
        lines = path.read_text().splitlines()
        pid, start = parse_stat(lines[0])[:2]
        return Record(pid, start, lines[1], lines[2])
    except (OSError, IndexError, ValueError):
        return None


def parse_stat(line: str) -> tuple[int, int, str]:
    """(process id, start time in ticks, state) of a line of /proc/PID/stat; the name may hold spaces and brackets."""
    head, _, rest = line.rpartition(")")
    fields = rest.split()
    return int(head.split(maxsplit=1)[0]), int(fields[19]), fields[0]


def alive(record: Record | None) -> bool:
    """Whether the very process of the record runs; a zombie does not."""
    if record is None or record.boot != boot_id():
        return False
    try:
        _, start, state = parse_stat(Path(f"/proc/{record.pid}/stat").read_text())
    except (OSError, ValueError):
        return False
    if start != record.start:
        return False
    if state in "ZX":
        _reap(record.pid)
        return False
    return True


def stop(record: Path, grace: float) -> None:
    """End the daemon of `record`, by SIGTERM and after `grace` seconds by SIGKILL, and forget it.

    Without grace there is no SIGTERM either: the daemon gets to know nothing.
    """
    found = read_record(record)
    for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 10.0)):
        if number == signal.SIGTERM and not grace:
            continue
        if found is None or not alive(found):
            break
        _signal(found.pid, number)
        wait_gone(lambda: not alive(found), patience)
    else:
        if alive(found):
            raise ClusterError(f"process {found and found.pid} of {record.stem} does not die: see `ps` and dmesg.")
    record.unlink(missing_ok=True)


def wait_gone(gone: Callable[[], bool], seconds: float) -> bool:
    """Wait up to `seconds` until `gone` is true."""
    deadline = time.monotonic() + seconds
    while not gone():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS / 2)
    return True


def wait_until(what: str, missing: Callable[[], str], seconds: float, runs: Callable[[], bool], log: Path) -> None:
    """Wait until `missing` says "", which else says what is not there yet.

    Raises ClusterError with the end of `log` when `runs` turns false or `seconds` have passed.
    """
    deadline = time.monotonic() + seconds
    while state := missing():
        if not runs():
            raise ClusterError(f"{what}: the process ended. The end of {log}:\n{tail(log)}")
        if time.monotonic() > deadline:
            raise ClusterError(f"{what}: not after {seconds:.0f} s ({state}). The end of {log}:\n{tail(log)}")
        time.sleep(POLL_SECONDS)


def digest_of(argv: Sequence[str], *files: Path) -> str:
    """Changes with the command and with the content of the files it reads."""
    digest = hashlib.sha256("\0".join(argv).encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def tail(log: Path, lines: int = 12) -> str:
    """The last lines of a log, or "" when there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 16_384))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return
