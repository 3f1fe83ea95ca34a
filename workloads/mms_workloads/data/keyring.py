"""The block keys that a worker was given: with a lease, with a counting task, or for the evaluation."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from mms_workloads.contract import Reason
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Keyring:
    """For any thread. Keys are in memory only."""

    def __init__(self) -> None:
        self._keys: dict[int, bytes] = {}
        self._changing = threading.Lock()
        self.ask: Callable[[int], bytes | None] | None = None  # the master, for the key of a block that is not here

    def put(self, block: int, key: bytes) -> None:
        with self._changing:
            self._keys[block] = key

    def forget(self, blocks: Iterable[int]) -> None:
        """Of a counting task that is done."""
        with self._changing:
            for block in blocks:
                self._keys.pop(block, None)

    def holds(self, block: int) -> bool:
        with self._changing:
            return block in self._keys

    def key(self, block: int) -> bytes:
        """Raises JobError where the master has given none and gives none."""
        with self._changing:
            found, ask = self._keys.get(block), self.ask
        if found is None and ask is not None:
            found = ask(block)
            if found is not None:
                self.put(block, found)
        if found is None:
            raise JobError(
                Reason.DATA_UNREADABLE,
                f"block {block} is encrypted, and this worker has no lease of it",
                retryable=True,
            )
        return found


HELD = Keyring()  # a worker's process works for one run and one master
