"""When a worker writes checkpoints: asynchronously while it trains, and once more before it is suspended."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from mms_workloads.logs import logger
from mms_workloads.store import JobError
from mms_workloads.sync import wire
from mms_workloads.train import checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from mms_workloads.contract import JobFile
    from mms_workloads.train.control import Control
    from mms_workloads.train.state import State


class Checkpointer:
    def __init__(self, job: JobFile, control: Control, scratch: Path) -> None:
        self._job, self._control, self._scratch = job, control, scratch
        self._thread: threading.Thread | None = None

    def save_if_asked(self, state: State) -> None:
        """Copies the state and writes the copy in a thread, so that training goes on; one at a time."""
        if not self._control.inbox.checkpoint or (self._thread and self._thread.is_alive()):
            return
        with self._control.changing() as box:
            box.checkpoint = False
        self._thread = threading.Thread(target=self._save_logged, args=(state.copy(),), name="checkpoint", daemon=True)
        self._thread.start()

    def save_last(self, state: State) -> None:
        """Raises JobError."""
        if self._thread:
            self._thread.join()
        self._save(state, final=True)

    def _save_logged(self, state: State) -> None:
        try:
            self._save(state, final=False)
        except JobError as error:  # the one before it is still valid; the master asks again after the interval
            logger().warning("checkpoint failed", step=state.step, reason=error.reason, message=error.message)
            self._control.send(wire.FAILED, reason=error.reason, message=error.message, retryable=True)

    def _save(self, state: State, *, final: bool) -> None:
        job, plan = self._job, self._control.inbox.plan or b""
        ref = checkpoint.save(job.storage, state, plan, self._scratch, job.checkpoint.keep)
        logger().info("checkpoint", step=ref.step, uri=ref.uri)
        self._control.send(
            wire.CHECKPOINTED, checkpoint=ref.model_dump(mode="json"), applied=state.applied, final=final
        )
