"""What PID 1 of a worker's or shard's pod does.

It imports torch and what the store's client needs once, and forks the worker, so that a crash costs a fork instead of a
container start. It runs no torch operation itself: a process that has used torch's threads cannot be forked safely. It
passes SIGTERM on, reaps orphans, kills a worker that hangs after its stacks are in the log, and says in the termination
log what a worker that died by a signal could not.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import os
import signal
import sys
import time
import traceback
from collections import deque
from contextlib import suppress
from pathlib import Path

from mms_workloads import control_group, logs, store
from mms_workloads.contract import Outcome, Reason
from mms_workloads.pod import read_pod, termination_log, write_outcome
from mms_workloads.store import JobError
from mms_workloads.train import cpu, process
from mms_workloads.train.pulse import BEAT_SECONDS, LEARNED, Pulse

STACKS_SECONDS = 2.0  # that a hung worker has to write its stacks: it may be starved rather than stuck
# In place, one after another, of a process that got nowhere: it is then a matter for the restart budget of the job. One
# that has made rounds, or has lived for a while, did get somewhere.
RESTARTS = 3
LIVED_SECONDS = 60.0
# What gets somewhere and dies again and again, such as of one record, is a matter for that budget, too.
OFTEN, OFTEN_SECONDS = 40, 600.0
# On these faulthandler writes the stacks of a worker's first thread, and of all; without the interpreter's lock, which
# the one that hangs may have. Of two that wait the kernel takes the higher number last and lets it run first.
_FIRST, _ALL = signal.SIGUSR2, signal.SIGUSR1
_FORWARDED = {signal.SIGTERM, signal.SIGINT}
# Held back and taken one by one: a signal that came between two steps of a handler's process could be lost or too late.
_WATCHED = {*_FORWARDED, signal.SIGCHLD}


def supervise(*, plain: bool) -> int:
    """Runs the worker until it exits by itself, is told to stop, or crashes too often; its exit code."""
    log = logs.logger(role="supervisor")
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    left, deaths = RESTARTS, deque[float](maxlen=OFTEN)
    while True:
        kills, pulse, born = control_group.memory_kills(), Pulse(), time.monotonic()
        child = os.fork()
        if child == 0:
            _become_worker(pulse, plain=plain)
        code, told = _wait(child, pulse)
        if code >= 0:
            return code
        starved = control_group.memory_kills() > kills
        if pulse.signs().count >= LEARNED or time.monotonic() - born > LIVED_SECONDS:
            left = RESTARTS
        if len(deaths) == OFTEN and time.monotonic() - deaths[0] < OFTEN_SECONDS:
            left = 0
        deaths.append(time.monotonic())
        log.warning("worker died", signal=-code, restarts_left=left, out_of_memory=starved)
        if told or not left:
            _explain(-code, starved=starved)
            return 128 - code
        left -= 1


def _become_worker(pulse: Pulse, *, plain: bool) -> None:
    """Never returns."""
    code = 70  # EX_SOFTWARE: a bug of ours, said by the traceback
    try:
        for number in _FORWARDED:
            signal.signal(number, lambda n, _: os._exit(128 + n))  # until the worker has its own handler
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
        # The others may run while they are written, which can end in a fault: that of the first is written before.
        faulthandler.register(_FIRST, all_threads=False)
        faulthandler.register(_ALL, chain=True)  # and then its default action, which ends the process
        code = process.run(plain=plain, pulse=pulse)
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else 1
    except BaseException as error:  # noqa: BLE001 - the process ends here, whatever it was
        traceback.print_exc()
        message = f"{type(error).__name__}: {error}: see the pod's log"
        write_outcome(
            termination_log(), Outcome(result="Failed", reason=Reason.INTERNAL, message=message, retryable=True)
        )
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # groups that were left still have threads: their destructors would wait for peers


def _wait(child: int, pulse: Pulse) -> tuple[int, bool]:
    """Passes signals on and reaps whatever ends, as PID 1 must, until the child does.

    Its exit code, or minus its signal; and whether it had been told to stop.
    """
    told = False
    while True:
        arrived = signal.sigtimedwait(_WATCHED, BEAT_SECONDS)
        if arrived and arrived.si_signo in _FORWARDED:
            told = True
            os.kill(child, arrived.si_signo)
        pid = -1
        while pid:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == child:
                return os.waitstatus_to_exitcode(status), told
        if arrived is None and (why := pulse.signs().verdict(time.monotonic())):
            _end_hung(child, why)


def _end_hung(child: int, why: str) -> None:
    """Lets the worker write all its stacks to the log, then kills it."""
    waits = {}
    for task in Path(f"/proc/{child}/task").iterdir():
        try:
            waits[task.name] = f"{(task / 'comm').read_text().strip()}: {(task / 'wchan').read_text()}"
        except OSError:  # it has ended meanwhile, or the kernel does not say
            continue
    logs.logger(role="supervisor").error("worker hangs and is killed", why=why, threads=waits)
    sys.stdout.flush()
    for number in (_ALL, _FIRST):
        _signal_first_thread(child, number)
    os.kill(child, signal.SIGCONT)  # a stopped process cannot
    deadline = time.monotonic() + STACKS_SECONDS
    while time.monotonic() < deadline:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT | os.WNOHANG):
            return
        signal.sigtimedwait({signal.SIGCHLD}, BEAT_SECONDS / 5)  # its going on is one as well
    os.kill(child, signal.SIGKILL)


def _signal_first_thread(child: int, number: int) -> None:
    """A stopped process may take a signal in any thread when it goes on, while the first leaves where it hung."""
    library = ctypes.CDLL(None)
    if hasattr(library, "tgkill"):
        library.tgkill(child, child, number)
    else:  # glibc before 2.30
        os.kill(child, number)


def _explain(number: int, *, starved: bool) -> None:
    name = signal.Signals(number).name
    outcome = Outcome(
        result="Failed", reason=Reason.WORKER_CRASHED, message=f"the worker died by {name}", retryable=True
    )
    if starved:
        outcome = outcome.model_copy(update={"reason": Reason.OUT_OF_MEMORY, "message": cpu.MEMORY_REMEDY})
    write_outcome(termination_log(), outcome)


def main() -> int:
    parser = argparse.ArgumentParser(prog="mms_workloads.train.supervisor", description=__doc__)
    parser.add_argument("--plain-http", action="store_true", help="no TLS to the master: for tests only")
    arguments = parser.parse_args()
    faulthandler.enable()
    logs.configure()
    with suppress(JobError):  # the process says what is wrong with the job file
        job = read_pod().job
        for one in (job.data.store, job.storage):
            store.warm(one)
    return supervise(plain=arguments.plain_http)
