"""One peer's connection to a shard, and the thread that serves it: request, answer, request, ..."""

from __future__ import annotations

import threading
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import structlog

from mms_workloads.sync import shard_messages as messages
from mms_workloads.sync.cursors import Refusal
from mms_workloads.sync.shard_messages import Malformed
from mms_workloads.sync.shard_parts import Answered, Over
from mms_workloads.transport.channel import PeerLost, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from mms_workloads.sync.shard import Shard
    from mms_workloads.sync.shard_parts import Part
    from mms_workloads.transport.channel import Channel, Greeting, Spec

log = structlog.get_logger()


class Connection:
    def __init__(self, shard: Shard, channel: Channel, greeting: Greeting, gone: Callable[[Connection], None]) -> None:
        """gone: called when the connection has ended."""
        self.fence = greeting.fence
        self.answering = False  # a push is complete and its answer is due
        self._shard, self._channel, self._greeting, self._gone = shard, channel, greeting, gone
        # A worker pushes the same shapes every time: its messages are received into the same memory.
        self._buffers: dict[tuple[str, int], Tensor] = {}
        self._no_room: Exception | None = None  # why the rows of a request cannot be put where they say
        name = f"{greeting.role}-{greeting.rank}-{greeting.purpose}"
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Safe in any thread."""
        self._channel.close()

    def join(self) -> None:
        self._thread.join()

    def _serve(self) -> None:
        peer = {"role": self._greeting.role, "rank": self._greeting.rank, "epoch": self.fence.epoch}
        try:
            while self._exchange():
                pass
        except PeerLost as error:
            log.debug("connection ended", why=str(error), **peer)
        except Refused as error:
            log.warning("connection refused", why=str(error), **peer)
        except Exception:  # a peer's nonsense must not end the shard
            log.exception("connection failed", **peer)
        finally:
            self._channel.close()
            if self._greeting.role == "worker":
                self._shard.left(self.fence, (self._greeting.rank, self._greeting.incarnation))
            self._gone(self)

    def _exchange(self) -> bool:
        """A request and its answer; whether another one may follow."""
        try:
            header, tensors = self._channel.receive_message(self._places)
            if self._no_room:
                raise self._no_room
            return self._answer(header, tensors)
        except (Malformed, KeyError, IndexError, TypeError, ValueError) as error:
            return self._say(Refusal(str(error)))

    def _answer(self, header: dict[str, Any], tensors: list[Tensor]) -> bool:
        shard, member = self._shard, (self._greeting.rank, self._greeting.incarnation)
        match header.get("message"):
            case messages.PUSH:
                return self._push(header, tensors)
            case messages.PULL:
                pulled = shard.pull(self.fence, member, header["table"], tensors[0])
                if isinstance(pulled, (Refusal, Over)):
                    return self._say(pulled)
                self._ok({"step": pulled[0], "names": ["rows"]}, pulled[1])
            case messages.GET:
                self._get(header)
            case messages.PUT:
                shard.filled(header["part"], header["table"], header["start"], header["stop"])
                self._ok({})
            case messages.CURSORS:
                self._ok({"cursors": shard.cursors(header["blocks"])})
            case messages.STANDING:
                standing = shard.standing()
                progress = {"progress": standing.progress.document()}
                progress["replica_progress"] = standing.replica_progress.document()
                self._ok({"standing": asdict(standing) | progress})
            case messages.FORWARD if self._greeting.role == "shard":
                said = shard.apply_forwarded(self.fence, messages.read_update(header, tensors))
                if said:
                    return self._say(said)
                self._ok({})
            case other:
                return self._say(Refusal(f"a {self._greeting.role} cannot ask a shard for {other!r}"))
        return True

    def _push(self, header: dict[str, Any], tensors: list[Tensor]) -> bool:
        push = messages.read_push(header, tensors)
        member = (self._greeting.rank, self._greeting.incarnation)
        if self._greeting.role != "worker":
            return self._say(Refusal(f"a {self._greeting.role} cannot push"))
        self.answering = True
        said = self._shard.push(self.fence, member, push)
        if not isinstance(said, Answered):
            return self._say(said)
        self.answering = False
        try:
            parameters = [lent.tensors["parameters"] for lent in said.parameters.values()]
            self._channel.send_message(messages.write_answer(said.answer, said.parameters), *parameters)
        finally:
            self._shard.release(said.parameters.values())
        return True

    def _get(self, header: dict[str, Any]) -> None:
        part: Part = header["part"]
        step, lent = self._shard.get(part, header["table"], header["start"], header["stop"], header["slots"])
        try:
            self._ok({"step": step, "slots": list(lent.tensors)}, *lent.tensors.values())
        finally:
            self._shard.release([lent])

    def _places(self, header: dict[str, Any], specs: list[Spec]) -> Sequence[Tensor]:
        """Where a request's tensors are received."""
        message = str(header.get("message"))
        if message == messages.PUT:
            try:
                return self._room(header, specs)
            except (Malformed, KeyError, TypeError, ValueError) as error:
                self._no_room = error  # told when all of the message is read: else the peer would not hear it
                return [spec.empty() for spec in specs]
        places = []
        for number, spec in enumerate(specs):
            known = self._buffers.get((message, number))
            if known is None or (known.dtype, known.shape) != (spec.dtype, spec.shape):
                known = self._buffers[message, number] = spec.empty()
            places.append(known)
        return places

    def _room(self, header: dict[str, Any], specs: list[Spec]) -> list[Tensor]:
        room = self._shard.room(header["part"], header["table"], header["start"], header["stop"])
        places = [room[slot] for slot in header["slots"]]
        wanted = [(place.dtype, tuple(place.shape)) for place in places]
        if wanted != [(spec.dtype, spec.shape) for spec in specs]:
            raise Malformed(
                f"the rows {header['start']} to {header['stop']} of {header['table']} are {wanted}, not {specs}"
            )
        return places

    def _ok(self, header: dict[str, Any], *tensors: Tensor) -> None:
        self._channel.send_message({"answer": messages.OK, **header}, *tensors)

    def _say(self, said: Refusal | Over) -> bool:
        """The last word: what follows a refused message in the connection may be the rest of it."""
        answer = messages.REFUSED if isinstance(said, Refusal) else messages.OVER
        why = said.message if isinstance(said, Refusal) else said.why
        if isinstance(said, Refusal):
            log.warning("request refused", why=why, role=self._greeting.role, rank=self._greeting.rank)
        self._channel.send_message({"answer": answer, "why": why})
        return False
