"""Talking to a shard over a channel: what workers, other shards and loaders of checkpoints do.

All calls raise PeerLost when the shard is gone or the epoch is over, and Refused with the shard's reason when it did
nothing of what was asked. After either the channel is of no use. One thread at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mms_workloads.sync import shard_messages as messages
from mms_workloads.sync.leases import Progress
from mms_workloads.sync.shard_parts import Standing
from mms_workloads.transport.channel import PeerLost, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from mms_workloads.sync.cursors import Cursor
    from mms_workloads.sync.push import Answer, Push
    from mms_workloads.sync.shard_parts import Part
    from mms_workloads.sync.shard_state import Update
    from mms_workloads.transport.channel import Channel, Spec


class Unreached(PeerLost):
    """shards: ranks of those that could not be reached in time."""

    def __init__(self, message: str, shards: tuple[int, ...]) -> None:
        super().__init__(message)
        self.shards = shards


class ShardClient:
    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    # A worker sends to all shards, then hears all: what they do in between, they do at the same time.

    def send_push(self, push: Push) -> None:
        header, tensors = messages.write_push(push)
        self.channel.send_message(header, *tensors)

    def receive_answer(self, into: Mapping[str, Tensor] | None = None) -> tuple[Answer, dict[str, Tensor]]:
        """With the answer come the dense tables' parameters, of the shard's rows.

        into: by table, where to receive them; what is there is worthless when the call fails.
        """
        header, tensors = self._receive(into, "tables")
        return messages.read_answer(header), dict(zip(header["tables"], tensors, strict=True))

    def push(self, push: Push, into: Mapping[str, Tensor] | None = None) -> tuple[Answer, dict[str, Tensor]]:
        self.send_push(push)
        return self.receive_answer(into)

    def send_pull(self, table: str, rows: Tensor) -> None:
        """rows: int64 [n], ascending, numbered in the whole table, all of this shard."""
        self.channel.send_message({"message": messages.PULL, "table": table}, rows)

    def receive_rows(self, into: Tensor | None = None) -> tuple[int, Tensor]:
        """The step and the rows' parameters [n, columns]."""
        header, tensors = self._receive({"rows": into} if into is not None else None, "names")
        return int(header["step"]), tensors[0]

    def pull(self, table: str, rows: Tensor, into: Tensor | None = None) -> tuple[int, Tensor]:
        self.send_pull(table, rows)
        return self.receive_rows(into)

    def cursors(self, blocks: Sequence[int]) -> dict[int, Cursor]:
        """How much of each block is part of this shard's rows."""
        header, _ = self._ask({"message": messages.CURSORS, "blocks": list(blocks)})
        return {block: (int(at[0]), int(at[1])) for block, at in zip(blocks, header["cursors"], strict=True)}

    def standing(self) -> Standing:
        header, _ = self._ask({"message": messages.STANDING})
        fields = header["standing"]
        return Standing(
            fields["epoch"],
            fields["step"],
            fields["can_go_back"],
            Progress.read(fields["progress"]),
            fields["replica_step"],
            Progress.read(fields["replica_progress"]),
            tuple(fields["awaited"]),
        )

    def get(
        self,
        part: Part,
        table: str,
        start: int,
        stop: int,
        *,
        slots: Sequence[str] | None = None,
        into: Mapping[str, Tensor] | None = None,
    ) -> tuple[int, dict[str, Tensor]]:
        """The step and rows [start, stop), numbered in the whole table, of the slots (all of them: None).

        One call gives one step's rows; of several the caller compares the steps.
        """
        request = {"message": messages.GET, "part": part, "table": table, "start": start, "stop": stop, "slots": slots}
        header, tensors = self._ask(request, into=into, names="slots")
        return int(header["step"]), dict(zip(header["slots"], tensors, strict=True))

    def put(self, part: Part, table: str, start: int, slots: Mapping[str, Tensor]) -> None:
        """Rows from `start` on into a shard that is being filled; of slots that nobody gives it keeps zeros."""
        stop = start + next(iter(slots.values())).shape[0]
        request = {"message": messages.PUT, "part": part, "table": table, "start": start, "stop": stop}
        self._ask(request | {"slots": list(slots)}, *slots.values())

    def forward(self, update: Update) -> None:
        """An update for the replica that the peer holds."""
        header, tensors = messages.write_update(update)
        self._ask(header, *tensors)

    def _ask(
        self,
        header: dict[str, Any],
        *tensors: Tensor,
        into: Mapping[str, Tensor] | None = None,
        names: str = "",
    ) -> tuple[dict[str, Any], list[Tensor]]:
        self.channel.send_message(header, *tensors)
        return self._receive(into, names)

    def _receive(self, into: Mapping[str, Tensor] | None, names: str) -> tuple[dict[str, Any], list[Tensor]]:
        """names: the field of the answer that names its tensors."""
        header, tensors = self.channel.receive_message(_places(into, names) if into else None)
        if header.get("answer") == messages.OVER:
            raise PeerLost(f"the epoch is over: {header.get('why')}")
        if header.get("answer") != messages.OK:
            raise Refused(str(header.get("why")))
        return header, tensors


def _places(into: Mapping[str, Tensor], names: str) -> Callable[[dict[str, Any], list[Spec]], list[Tensor]]:
    def places(header: dict[str, Any], specs: list[Spec]) -> list[Tensor]:
        found = header.get(names, [])
        return [into[name] if name in into else spec.empty() for name, spec in zip(found, specs, strict=True)]

    return places
