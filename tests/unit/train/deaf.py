"""A control connection without a master."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mms_workloads.sync import wire
from mms_workloads.sync.control import Control, file
from mms_workloads.sync.wire import Message

if TYPE_CHECKING:
    from collections.abc import Callable

    from mms_workloads.pod import Pod
    from mms_workloads.sync.control import Inbox


class Deaf(Control):
    """A control connection whose master is this test: `answers` arrive as soon as anything is sent."""

    def __init__(self, pod: Pod, *answers: Message) -> None:
        super().__init__(pod, "127.0.0.1:1", lambda: (0, None), plain=True)
        self.answers, self.sent = answers, list[Message]()

    def wait(self, ready: Callable[[Inbox], Any], timeout: float | None = None) -> Any:
        value = super().wait(ready, 5 if timeout is None else timeout)
        assert value or timeout is not None, "it would wait for ever"
        return value

    def report(self, epoch: int, fields: dict[str, Any], *, at_once: bool = False) -> None:
        del at_once
        self.send(wire.PROGRESS, epoch=epoch, rounds=[fields])

    def send(self, kind: str, data: bytes = b"", **fields: Any) -> None:
        self.sent.append(Message(kind, fields, data))
        for answer in self.answers:
            with self.changing() as box:
                file(box, answer)
