"""When a worker writes its part of a checkpoint: asynchronously while it trains, and once more before it stops."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from mms_workloads import store as stores
from mms_workloads.logs import logger
from mms_workloads.store import JobError
from mms_workloads.sync import again, checkpoints, wire
from mms_workloads.train import checkpoint
from mms_workloads.train.state import part

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mms_workloads.contract import JobFile
    from mms_workloads.sync.control import Control
    from mms_workloads.train.learner import Place
    from mms_workloads.train.state import Agreement, State, Tables


class Checkpointer:
    def __init__(self, job: JobFile, control: Control, scratch: Path) -> None:
        self._job, self._control, self._scratch = job, control, scratch
        self._thread: threading.Thread | None = None
        self._copy: Tables = {}  # of the part as it was saved last; its memory is kept for the next time

    def save(self, state: State, place: Place) -> None:
        """Copies this rank's part and writes the copy in a thread, so that training goes on; one at a time.

        All ranks do so at the same round boundary. Where one is still writing, the checkpoint stays without its part
        and never becomes valid; the master asks for the next.
        """
        if self._thread and self._thread.is_alive():
            return
        arguments = (self._part(state, place), state.agreement.copy(), place)
        self._thread = threading.Thread(target=self._write_logged, args=arguments, name="checkpoint", daemon=True)
        self._thread.start()

    def save_last(self, state: State, place: Place, over: Callable[[], object]) -> bool:
        """Tries while the store is away, until `over`: the master wants something else. Whether the part is durable.

        Raises JobError.
        """
        if self._thread:
            self._thread.join()
        tables = self._part(state, place)
        tries = 0
        while True:
            try:
                self._write(tables, state.agreement, place, final=True)
            except JobError as error:
                if not error.retryable:
                    raise
                if not tries:  # once: it is an incident of the run
                    self._failed(state.agreement.step, error)
            else:
                return True
            if self._control.wait(lambda _: over(), again.pause(tries)):
                return False
            tries += 1

    def forget(self) -> None:
        """Gives the copy's memory back, where nothing is written."""
        if not (self._thread and self._thread.is_alive()):
            self._copy = {}

    def _part(self, state: State, place: Place) -> Tables:
        """Only while nothing is written: the copy before is gone with it."""
        self._copy = part(state.tables(), place.position, place.members, self._copy)
        return self._copy

    def _write_logged(self, tables: Tables, agreement: Agreement, place: Place) -> None:
        try:
            self._write(tables, agreement, place, final=False)
        except JobError as error:  # the one before it is still valid; the master asks again after the interval
            self._failed(agreement.step, error)

    def _failed(self, step: int, error: JobError) -> None:
        logger().warning("checkpoint failed", step=step, reason=error.reason, message=error.message)
        self._control.send(wire.FAILED, reason=error.reason, message=error.message, retryable=True)

    def _write(self, tables: Tables, agreement: Agreement, place: Place, *, final: bool) -> None:
        name = checkpoints.folder(agreement.step, agreement.lineage)
        target = stores.child(self._job.storage, f"checkpoints/{name}")
        others = {}
        if place.position == 0:
            others = {
                checkpoints.PROGRESS: checkpoint.progress_file(agreement.step, agreement.progress),
                checkpoints.PLAN: self._control.inbox.plan or b"",
            }
        entries = checkpoint.write_part(target, tables, place, others, self._scratch)
        logger().info("checkpoint part", folder=name, part=place.position, parts=place.members)
        self._control.send(
            wire.CHECKPOINTED,
            folder=name,
            step=agreement.step,
            parts=place.members,
            part=place.position,
            files={file: entry.model_dump() for file, entry in entries.items()},
            final=final,
        )
