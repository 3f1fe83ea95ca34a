"""The agent's end of the taps (tap.py): asks the models' processes for inputs of clients, so many a second at most."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

from mms_workloads.contract import GoldenCase
from mms_workloads.serve.frames import FRAME_BYTES, LENGTH

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path


class Sampler:
    """`use` is given each input in turn; `large` hears of one that was too large.

    One is used at a time, and so many a second at most; each process of a model holds another one at most.
    """

    def __init__(self, path: Path, use: Callable[[GoldenCase], Awaitable[None]], large: Callable[[], None]) -> None:
        self.per_second = 1.0
        self._path, self._use, self._large = path, use, large
        self._server: asyncio.Server | None = None
        self._taps: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()

    async def start(self) -> None:
        """Raises OSError."""
        if self._server is not None:
            return
        self._path.unlink(missing_ok=True)  # of an agent that was killed
        self._server = await asyncio.start_unix_server(self._serve, str(self._path))
        os.chmod(self._path, 0o600)  # noqa: PTH101 - at once, not by another name

    async def stop(self) -> None:
        """What is held is forgotten."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        for tap in self._taps:
            tap.cancel()
        await asyncio.gather(*self._taps, return_exceptions=True)
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a handler runs in one
        self._taps.add(task)
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, OSError, ValueError):
                while True:
                    await self._ask(reader, writer)
        except asyncio.CancelledError:
            pass  # by `stop`
        finally:
            self._taps.discard(task)
            writer.close()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Raises ValueError for what is no input, OSError, IncompleteReadError."""
        writer.write(b"1")
        await writer.drain()
        (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
        if length > FRAME_BYTES:
            raise ValueError("that is no input")
        async with self._turn:  # until then it stays with the model's process
            if length:
                await self._use(GoldenCase.model_validate_json(await reader.readexactly(length)))
            else:
                self._large()
            await asyncio.sleep(1 / self.per_second)
