"""A container's limits, and the supervisor: what it does with a worker that dies or hangs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mms_workloads import control_group
from mms_workloads.contract import Outcome
from mms_workloads.train import cpu, process, supervising
from mms_workloads.train.pulse import LEARNED, Pulse
from tests.unit.train import quick


@pytest.mark.parametrize(
    ("content", "expected"),
    [("max 100000", 1), ("400000 100000", 4), ("250000 100000", 2), ("50000 100000", 1), ("x", 1), (None, 1)],
    ids=["no limit", "four", "two and a half", "half", "nonsense", "no file"],
)
def test_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, expected: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    if content is not None:
        (tmp_path / "cpu.max").write_text(content)
    assert cpu.limit(tmp_path) == expected
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert cpu.limit(tmp_path) == 1


def _stop_and_wait(**_: object) -> int:
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(20)
    return 5


def _serve_and_die(log: str, pulse: Pulse) -> int:
    """A shard that applies some updates and is killed, more often than one that gets nowhere may be."""
    lives = Path(log).with_suffix(".lives")
    with lives.open("a") as file:
        file.write("x")
    if lives.stat().st_size > 2 * supervising.RESTARTS:
        return 3
    pulse.made(LEARNED)
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def _make_rounds_and_die(pulse: Pulse) -> int:
    pulse.made(LEARNED)
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def _supervise(how: str, log: str) -> None:
    os.environ["MMS_TERMINATION_LOG"] = log
    if how == "killed":
        process.run = lambda **_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment, return-value]
    elif how == "out of memory":
        kills = iter(range(100))
        control_group.memory_kills = lambda *_: next(kills)  # type: ignore[assignment]
        process.run = lambda **_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment, return-value]
    elif how == "bug":
        process.run = lambda **_: 1 // 0  # type: ignore[assignment]
    elif how == "killed while it serves":
        process.run = lambda *, pulse, **_: _serve_and_die(log, pulse)
    elif how == "killed again and again":
        supervising.OFTEN = 3 * supervising.RESTARTS
        process.run = lambda *, pulse, **_: _make_rounds_and_die(pulse)
    elif how == "told to stop":
        process.run = _stop_and_wait
    else:
        process.run = lambda **_: 3  # type: ignore[assignment]
    os._exit(supervising.supervise(plain=True))


@pytest.mark.parametrize(
    ("how", "code", "reason"),
    [
        ("killed", 128 + 9, "WorkerCrashed"),
        ("out of memory", 128 + 9, "OutOfMemory"),
        ("bug", 70, "InternalError"),
        ("told to stop", 128 + 15, None),
        ("killed while it serves", 3, None),
        ("killed again and again", 128 + 9, "WorkerCrashed"),
        ("exit", 3, None),
    ],
)
def test_supervisor(tmp_path: Path, how: str, code: int, reason: str | None) -> None:
    log = tmp_path / "log"
    started = quick._context.Process(target=_supervise, args=(how, str(log)))
    started.start()
    started.join(60)
    assert started.exitcode == code
    if reason is None:
        assert not log.exists()
    else:
        outcome = Outcome.model_validate(json.loads(log.read_bytes()))
        assert (outcome.result, outcome.reason, outcome.retryable) == ("Failed", reason, True)
        assert outcome.message


def test_it_can_be_told_to_stop_while_it_imports(tmp_path: Path) -> None:
    """As PID 1 it would not end by the default action of the signal."""
    (tmp_path / "torch.py").write_text("import threading\nprint('imports', flush=True)\nthreading.Event().wait()\n")
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    with subprocess.Popen(
        [sys.executable, "-m", "mms_workloads.train.supervisor"],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        text=True,
    ) as started:
        assert started.stdout
        assert started.stdout.readline() == "imports\n"
        started.send_signal(signal.SIGTERM)
        assert started.wait(60) == 128 + signal.SIGTERM


_STOPPED_IN_ITS_WORK = """
import faulthandler, signal, threading
faulthandler.register(signal.SIGUSR2, all_threads=False)
faulthandler.register(signal.SIGUSR1, chain=True)
def runs():
    while True:
        sorted(range(9))
for _ in range(3):
    threading.Thread(target=runs, daemon=True).start()
def works():
    print("works", flush=True)
    while True:
        pass
works()
"""


def test_stacks_of_a_stopped_worker() -> None:
    """Its first thread's come first, from where it was stopped: writing those of others that run may end in a fault."""
    for _ in range(20):
        with subprocess.Popen(
            [sys.executable, "-c", _STOPPED_IN_ITS_WORK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout
            assert child.stderr
            assert child.stdout.readline() == "works\n"
            os.kill(child.pid, signal.SIGSTOP)
            os.waitid(os.P_PID, child.pid, os.WSTOPPED)
            supervising._end_hung(child.pid, "no sign of life")
            stacks = child.stderr.read()
        assert child.returncode < 0
        first = stacks[: stacks.index("Thread 0x")]
        assert "in works" in first
