"""How the members of one membership epoch find each other's listeners: keys with values, kept by the master."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Rendezvous:
    """One for each epoch: what another epoch's members published is not seen."""

    values: dict[str, bytes] = field(default_factory=dict)
    waiting: dict[str, list[int]] = field(default_factory=dict)  # key -> ranks that asked before it was there

    def put(self, key: str, value: bytes) -> list[int]:
        """The ranks that wait for the key and must be told."""
        self.values[key] = value
        return self.waiting.pop(key, [])

    def get(self, key: str, rank: int) -> bytes | None:
        """None: the rank is told when the key is put."""
        if key not in self.values:
            self.waiting.setdefault(key, []).append(rank)
        return self.values.get(key)

    def forget(self, rank: int) -> None:
        self.waiting = {key: [r for r in ranks if r != rank] for key, ranks in self.waiting.items()}
