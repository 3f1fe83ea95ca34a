"""Small files, read some at a time before they are asked for: a store answers many requests as soon as one."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from mms_workloads.store import AT_ONCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SMALL_BYTES = 1 << 20


class Ahead:
    """For one thread, which asks for files in the order in which they are given.

    At most 2 * AT_ONCE of them are held. What fails is left to whoever asks: the file is then not here.
    """

    def __init__(self, files: Iterable[int], load: Callable[[int], bytes | None]) -> None:
        """load: all of a file, by its number; None where it is not small. In any thread."""
        self._rest, self._load = iter(files), load
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="ahead")
        self._coming: dict[int, Future[bytes | None]] = {}
        self._current: tuple[int, bytes | None] = (-1, None)
        for _ in range(2 * AT_ONCE):
            self._begin_next()

    def get(self, file: int) -> bytes | None:
        """Waited for; None where it is not among the next ones."""
        if file != self._current[0] and (future := self._coming.pop(file, None)):
            self._begin_next()
            self._current = file, None if future.exception() else future.result()
        return self._current[1] if file == self._current[0] else None

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _begin_next(self) -> None:
        if (file := next(self._rest, None)) is not None:
            self._coming[file] = self._pool.submit(self._load, file)
