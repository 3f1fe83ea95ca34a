"""Progress: a line for each step, with the seconds since the start."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterator

BEAT_SECONDS = 15.0


class Reporter:
    """Writes to standard error, so that standard output carries only what a command was asked for."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stderr
        self._start = time.monotonic()

    def line(self, text: str) -> None:
        print(f"[{time.monotonic() - self._start:6.1f} s] {text}", file=self._out, flush=True)

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Say `text`, say every 15 s that the step is alive, and how long it took if it was longer than that."""
        self.line(text)
        began = time.monotonic()
        done = threading.Event()

        def beat() -> None:
            while not done.wait(BEAT_SECONDS):
                self.line(f"{text} ... {time.monotonic() - began:.0f} s")

        beater = threading.Thread(target=beat, daemon=True)
        beater.start()
        try:
            yield
        finally:
            done.set()
            beater.join()
        if time.monotonic() - began >= BEAT_SECONDS:
            self.line(f"{text} ... done after {time.monotonic() - began:.0f} s")
