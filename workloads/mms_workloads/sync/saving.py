"""A checkpoint on its way: which parts are durable. It becomes valid by its manifest, which the master writes last."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mms_workloads.contract import FileEntry


@dataclass(slots=True)
class Saving:
    folder: str
    step: int
    parts: int
    final: bool = False
    done: set[int] = field(default_factory=set)
    files: dict[str, FileEntry] = field(default_factory=dict)

    def add(self, part: int, files: dict[str, Any], *, final: bool) -> bool:
        """Whether this was the last part that was missing."""
        if part in self.done:
            return False
        self.done.add(part)
        self.files.update({name: FileEntry.model_validate(entry) for name, entry in files.items()})
        self.final = self.final or final
        return len(self.done) == self.parts
