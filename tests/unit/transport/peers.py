"""Two peers and more in one process: certificates, channels, rings."""

from __future__ import annotations

import threading
from base64 import b64decode
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from mms_operator.engine.certificates import secrets
from mms_operator.plan.types import Certificates
from mms_workloads.transport.channel import Abort, Channel, Fence, Greeting, Listener, Security, connect
from mms_workloads.transport.ring import RingTransport
from tests.unit.engine.fake_api import training

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HOST = "127.0.0.1"
SECONDS = 60.0  # that nothing takes unless it hangs
FENCE = Fence("uid", 1, 1, 7)
GREETING = Greeting(FENCE, "worker", 3, 2, "test")
_T = TypeVar("_T")


def folders(parent: Path, job: str = "words", now: datetime | None = None) -> dict[str, Path]:
    """The folders of a job's pods by role, with certificates as the operator makes them."""
    made = secrets(
        Certificates(training(job), {}, ("master",), 30, ("master", "worker", "shard")), now or datetime.now(UTC)
    )
    found = {}
    for secret in made[1:]:
        name = secret["metadata"]["name"]
        folder = parent / name
        folder.mkdir(parents=True)
        for file, text in secret["data"].items():
            (folder / file).write_bytes(b64decode(text))
        found[name.removeprefix(f"{job}-").removesuffix("-tls")] = folder
    return found


def long_ago() -> datetime:
    return datetime.now(UTC) - timedelta(days=40)


class Beside:
    """Runs something in a thread; `result` waits for it and raises what it raised."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._error: BaseException | None = None
        self._value: Any = None
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def result(self) -> Any:
        self._thread.join(SECONDS)
        assert not self._thread.is_alive(), "it hangs"
        if self._error:
            raise self._error
        return self._value

    def runs(self) -> bool:
        return self._thread.is_alive()

    def _run(self, work: Callable[[], Any]) -> None:
        try:
            self._value = work()
        except BaseException as error:  # noqa: BLE001 - raised again by `result`
            self._error = error


@contextmanager
def pair(security: Security, abort: Abort | None = None) -> Iterator[tuple[Channel, Channel]]:
    """(the side that connected, the side that accepted)."""
    with ExitStack() as stack:
        listener = Listener(HOST, security)
        stack.callback(listener.close)
        far = Abort()
        accepted = Beside(lambda: listener.accept(far, SECONDS)[0].admit())  # noqa: PLW0108 - all of it in the thread
        near = connect(HOST, listener.port, security, GREETING, abort or Abort(), SECONDS)
        stack.callback(near.close)
        channel = accepted.result()
        stack.callback(channel.close)
        yield near, channel


def ring(
    size: int,
    work: Callable[[RingTransport], _T],
    security: Security | None = None,
    fences: dict[int, Fence] | None = None,
) -> list[_T]:
    """What `work` gives in each member of a ring, by position."""
    security = security or Security.plain()
    listeners = [Listener(HOST, security) for _ in range(size)]

    def member(position: int) -> _T:
        formed = form(position, listeners, security, (fences or {}).get(position, FENCE))
        try:
            return work(formed)
        finally:
            formed.close()

    threads = [Beside(lambda position=position: member(position)) for position in range(size)]
    try:
        return [thread.result() for thread in threads]
    finally:
        for listener in listeners:
            listener.close()


def form(
    position: int, listeners: list[Listener], security: Security, fence: Fence = FENCE, abort: Abort | None = None
) -> RingTransport:
    return RingTransport.form(
        position,
        [(HOST, listener.port) for listener in listeners],
        listeners[position],
        security,
        fence,
        rank=position,
        incarnation=0,
        abort=abort or Abort(),
        timeout=SECONDS,
    )
