"""The artifacts that a model's process holds, as the file of generations says. numpy only: this runs inside Triton.

A thread watches the file. What is to be held is mapped beside what is there, in the background; then one assignment
makes another generation serve. A batch takes one look at the shelf, so that a request is answered by one generation.
"""

from __future__ import annotations

import fcntl
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mms_workloads.serve import generations, memory
from mms_workloads.serve.generations import Report

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mms_workloads.serve.generations import Generation, Generations

WATCH_SECONDS = 0.02  # between two looks at the file: a stat, 2 us


class NotHeldError(LookupError):
    """The artifact that a request names is not held; the message says why."""


@dataclass(frozen=True)
class Held:
    """A generation whose files are mapped."""

    digest: str
    version: int
    content: Any


@dataclass(frozen=True)
class View:
    """What a batch sees."""

    serving: Held
    held: Mapping[str, Held] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)  # why what should be held is not, by digest

    def pick(self, pin: str | None) -> Held:
        """What answers a request. Raises NotHeldError."""
        if pin is None:
            return self.serving
        if pin in self.held:
            return self.held[pin]
        raise NotHeldError(self.refused.get(pin, f"artifact {pin} is not held by this pod"))


class Shelf:
    """`load` maps an artifact's folder; `instance` is who reports. triton: the version of the model that this is.

    What serves in another version is not held here: `apart` is the folder of what answers here then, as soon as Triton
    has this version. Raises what `load` raises, and NoRoomError, OSError, ValueError, if that cannot be held.
    """

    def __init__(self, path: Path, instance: str, load: Callable[[Path], Any], triton: int = 1) -> None:
        self.key = (path.parent / "control-key").read_text().strip()
        self._path, self._triton = path, triton
        self._report = generations.report_of(path, instance, triton)
        self._load = load
        self._seen: tuple[int, int] | None = None
        wanted = generations.read(path)
        serving, mine = wanted.of(wanted.serving), self._mine(wanted)
        if serving is None or not mine:
            raise ValueError(f"{path}: {wanted.serving} serves and is not held, or nothing in version {triton}")
        first = serving if serving in mine else mine[0]
        self.apart: Path | None = None
        if first is not serving:
            self.apart = Path(first.folder)
        # What serves from the start was asked for, whatever it takes.
        apart = [one.folder for one in wanted.held if one.triton != triton] if self.apart else None
        self.view = View(self._hold(first, apart))
        self.refresh()
        self._stop = threading.Event()
        self._watch = threading.Thread(target=self._follow, name="generations", daemon=True)
        self._watch.start()

    def close(self) -> None:
        self._stop.set()
        self._watch.join()

    def refresh(self) -> None:
        """Looks at the file, and makes the shelf be as it says, as far as that can be."""
        try:
            found = self._path.stat()
            if (found.st_ino, found.st_mtime_ns) == self._seen:
                return
            wanted = generations.read(self._path)
        except (OSError, ValueError):
            return  # what is held serves on; the agent sees by its questions that nothing has changed
        self._seen = (found.st_ino, found.st_mtime_ns)
        before = self.view
        mine = self._mine(wanted)
        held = {one.digest: before.held[one.digest] for one in mine if one.digest in before.held}
        held.setdefault(before.serving.digest, before.serving)
        refused: dict[str, str] = {}
        for one in mine:
            if one.digest in held:
                continue
            try:
                there = [kept.folder for kept in wanted.held if kept.digest in held or kept not in mine]
                held[one.digest] = self._hold(one, there)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with it, what serves goes on
                refused[one.digest] = f"{type(error).__name__}: {error}"
        serving = held.get(wanted.serving, before.serving)
        wants = {one.digest for one in mine} | {serving.digest}
        self.view = View(serving, {digest: one for digest, one in held.items() if digest in wants}, refused)
        report = Report(serving=serving.digest, held=sorted(self.view.held), refused=refused)
        try:
            generations.write(self._report, report, durable=False)
        except OSError as error:  # the agent waits for the report and says that none came
            print(f"{self._report}: {error}", flush=True)  # noqa: T201 - Triton's log

    def _mine(self, wanted: Generations) -> list[Generation]:
        return [one for one in wanted.held if one.triton == self._triton]

    def _hold(self, one: Generation, beside: Sequence[str] | None) -> Held:
        """beside: what is mapped already, with which there must be room for it; None: nobody asks.

        Most runtimes read a network into memory of the process's own. So the processes take turns: each looks for room
        when those before it have taken theirs.
        """
        if beside is None:
            return Held(one.digest, one.version, self._load(Path(one.folder)))
        with (self._path.parent / "turn").open("ab") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            memory.admit(one.folder, beside)
            return Held(one.digest, one.version, self._load(Path(one.folder)))

    def _follow(self) -> None:
        while not self._stop.wait(WATCH_SECONDS):
            self.refresh()
