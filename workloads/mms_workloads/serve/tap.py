"""Where the agent takes inputs of clients from: a model's process gives it one whenever it asks for one.

The agent listens on a Unix socket while it is told to sample, and writes a byte for each input that it wants. The next
request that a client is answered gives one of its rows: at most one at a time is held, in memory; nothing is written
to a file. Without an agent that listens nothing is sampled. numpy only: this runs inside Triton.
"""

from __future__ import annotations

import contextlib
import queue
import random
import select
import socket
import threading
from typing import TYPE_CHECKING, Any

from mms_workloads import golden_tensors
from mms_workloads.contract import GoldenCase
from mms_workloads.serve.frames import INPUT_BYTES, LENGTH

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

RETRY_SECONDS = 1.0


class Tap:
    """`wanted`: whether the next request is to be offered. `model`: its name in Triton."""

    def __init__(self, path: Path, model: str) -> None:
        self.wanted = False
        self._path, self._model = path, model
        self._taken: queue.SimpleQueue[dict[str, NDArray[Any]] | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._agent: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name="inputs", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if (agent := self._agent) is not None:
            with contextlib.suppress(OSError):
                agent.shutdown(socket.SHUT_RDWR)  # what is being sent ends
        self._thread.join()

    def offer(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Takes one row, which is copied. tensors: a request's, [n, ...] each."""
        self.wanted = False
        rows = min(len(values) for values in tensors.values())
        row = random.randrange(rows)  # noqa: S311 - no secret
        found = {name: values[row : row + 1] for name, values in tensors.items()}
        large = sum(map(_bytes, found.values())) > INPUT_BYTES
        self._taken.put(None if large else {name: values.copy() for name, values in found.items()})

    def _run(self) -> None:
        while not self._stop.wait(RETRY_SECONDS):
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
                agent.connect(str(self._path))
                self._agent = agent
                self._give(agent)
            self._agent, self.wanted = None, False

    def _give(self, agent: socket.socket) -> None:
        """Until the agent has gone. Raises OSError."""
        while not self._stop.is_set():
            if not _readable(agent):
                continue
            if not agent.recv(1):
                return
            while not self._taken.empty():  # of an agent before
                self._taken.get()
            self.wanted = True
            while not self._stop.is_set():
                try:
                    found = self._taken.get(timeout=RETRY_SECONDS)
                except queue.Empty:
                    if _readable(agent, 0):  # it asks for one at a time: this is its end
                        return
                    continue
                try:
                    body = b"" if found is None else _encoded(self._model, found)
                except (KeyError, ValueError):  # of a form that no golden case has, as one without any number
                    self.wanted = True
                    continue
                agent.sendall(LENGTH.pack(len(body)) + body)
                break


def _encoded(model: str, tensors: Mapping[str, NDArray[Any]]) -> bytes:
    found = {name: golden_tensors.tensor(values) for name, values in tensors.items()}
    return GoldenCase(model=model, tensors=found, outputs={}).model_dump_json().encode()


def _bytes(values: NDArray[Any]) -> int:
    if values.dtype.kind == "O":
        return sum(len(one) + LENGTH.size for one in values.ravel())
    return values.nbytes


def _readable(agent: socket.socket, seconds: float = RETRY_SECONDS) -> bool:
    return bool(select.select([agent], [], [], seconds)[0])
