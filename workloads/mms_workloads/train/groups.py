"""A gloo process group for one membership epoch, without torch's default group. Torch's private API is used here only.

Rendezvous goes through the control connection to the master, keyed by epoch: no unauthenticated store listens anywhere,
and a peer of another job, attempt or epoch has no way in. What was measured (torch 2.13):

- a member's death fails its neighbours' collectives within milliseconds; others learn of it only when those close their
  connections, so `leave` must follow at once;
- abort(), shutdown() and timeouts of gloo do not wake a stuck thread; shutting the group's sockets down does;
- deleting a group with an operation in flight blocks: `leave` keeps groups for the life of the process.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
import threading
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed import ProcessGroupGloo, Store  # type: ignore[attr-defined]

from mms_workloads.sync import wire
from mms_workloads.train.control import Announcement, Control, Inbox, Superseded

if TYPE_CHECKING:
    import builtins
    from collections.abc import Callable

    from torch import Tensor

# The master notices a lost peer and ends the epoch within seconds. This bounds a group whose master is gone as well.
COLLECTIVE_TIMEOUT = timedelta(minutes=30)
# Two peers that live connect in milliseconds; when one dies meanwhile the master announces the next epoch before this.
FORMING_SECONDS = 30.0

_abandoned: list[object] = []


class PeerLost(Exception):  # noqa: N818 - an event in the life of an epoch, not an error
    """A collective failed: a member is gone. The group is of no use any more."""


class ControlStore(Store):
    """torch's rendezvous interface over the control connection: what gloo needs of it."""

    def __init__(self, control: Control, epoch: int) -> None:
        super().__init__()
        self._control, self._epoch = control, epoch
        self._seen: list[bytes] = []  # apart from the inbox, which the next epoch's announcement clears

    def set(self, key: str, value: bytes) -> None:  # type: ignore[override]
        self._seen.append(bytes(value))
        self._control.send(wire.KV_SET, bytes(value), epoch=self._epoch, key=key)

    def get(self, key: str) -> bytes:
        value = self._wait([key])[0]
        self._seen.append(value)
        return value

    def wait(self, keys: list[str], _timeout: timedelta | None = None) -> None:
        self._wait(keys)

    def listeners(self) -> builtins.set[tuple[str, int]]:
        """The addresses that the members published for each other."""
        return {address for value in self._seen for address in socket_addresses(value)}

    def _wait(self, keys: list[str]) -> list[bytes]:
        places = [(self._epoch, key) for key in keys]

        def found(box: Inbox) -> list[bytes] | None:
            return [box.values[place] for place in places] if all(place in box.values for place in places) else None

        for _, key in (place for place in places if place not in self._control.inbox.values):
            self._control.send(wire.KV_GET, epoch=self._epoch, key=key)
        self._control.wait(lambda box: found(box) or self._control.urgent(self._epoch), FORMING_SECONDS)
        with self._control.changing() as box:
            values = found(box)
        if values is None:
            raise Superseded(f"epoch {self._epoch} ended before its group was formed")
        return values


class Group:
    """The members' collectives; position and size are of the epoch, not the pods' ranks."""

    def __init__(self, gloo: Any, position: int, size: int, listeners: set[tuple[str, int]]) -> None:
        """gloo: a ProcessGroupGloo; None for a group of one."""
        self.position, self.size = position, size
        self._gloo = gloo
        self._listeners = listeners

    def all_reduce(self, tensor: Tensor) -> None:
        """Sums in place; the same bits on all members. Raises PeerLost."""
        if self.size > 1:
            self._finish(lambda: self._gloo.allreduce([tensor]))

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """Each member's tensor, by position. Raises PeerLost."""
        if self.size == 1:
            return [tensor]
        outputs = [torch.empty_like(tensor) for _ in range(self.size)]
        self._finish(lambda: self._gloo.allgather([outputs], [tensor]))
        return outputs

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """In place. Raises PeerLost."""
        if self.size > 1:
            self._finish(lambda: self._gloo.broadcast(tensor, source))

    def break_connections(self) -> None:
        """Wakes a thread that waits in a collective, here and at the peers. May be called from any thread."""
        shut_down_sockets(self._listeners)

    def leave(self) -> None:
        """The group is never used again."""
        if self.size > 1:
            _abandoned.append(self._gloo)
            self.break_connections()

    def _finish(self, start: Callable[[], torch.distributed.Work]) -> None:
        try:
            start().wait()
        except RuntimeError as error:
            raise PeerLost(str(error)) from error


def form(announcement: Announcement, rank: int, control: Control, address: str) -> Group:
    """Connects the epoch's members. Raises Superseded or PeerLost when one is lost meanwhile."""
    position, size = announcement.ranks.index(rank), len(announcement.ranks)
    if size == 1:
        return Group(None, position, size, set())
    store = ControlStore(control, announcement.epoch)
    _abandoned.append(store)  # gloo calls into it as long as it lives
    result: list[ProcessGroupGloo | Exception] = []

    def connect() -> None:
        try:
            options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]  # noqa: SLF001 - the only way
            options._timeout = COLLECTIVE_TIMEOUT  # noqa: SLF001
            options._threads = 1  # noqa: SLF001 - collectives follow one another
            options._devices = [ProcessGroupGloo.create_device(hostname=address)]  # noqa: SLF001
            outcome: ProcessGroupGloo | Exception = ProcessGroupGloo(store, position, size, options)
        except Exception as error:  # noqa: BLE001 - handed to the caller below
            outcome = error
        with control.changing():
            result.append(outcome)

    # In a thread: gloo waits without end for a peer that dies between its publication and its connection.
    threading.Thread(target=connect, name="form", daemon=True).start()
    control.wait(lambda _: result or control.urgent(announcement.epoch), FORMING_SECONDS)
    if control.urgent(announcement.epoch):
        raise Superseded(f"epoch {announcement.epoch} ended before its group was formed")
    if not result:
        raise PeerLost(f"no connection to the other members within {FORMING_SECONDS:.0f} s")
    if isinstance(result[0], Exception):
        raise PeerLost(str(result[0])) from result[0]
    return Group(result[0], position, size, store.listeners())


def socket_addresses(value: bytes) -> set[tuple[str, int]]:
    """The socket addresses (sockaddr_in, sockaddr_in6) inside the bytes that gloo publishes."""
    found = set()
    for match in re.finditer(rb"\x02\x00(..)(....)\x00{8}", value, re.DOTALL):
        found.add((socket.inet_ntop(socket.AF_INET, match[2]), int.from_bytes(match[1], "big")))
    for match in re.finditer(rb"\x0a\x00(..)....(.{16})", value, re.DOTALL):
        found.add((socket.inet_ntop(socket.AF_INET6, match[2]), int.from_bytes(match[1], "big")))
    return {(host, port) for host, port in found if port and not ip_address(host).is_unspecified}


def shut_down_sockets(listeners: set[tuple[str, int]]) -> int:
    """Shuts down this process's connections from or to the listeners; listeners themselves are left alone."""
    count = 0
    for entry in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):
            if not stat.S_ISSOCK(entry.stat().st_mode):
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as connection:
                ends = {connection.getsockname()[:2], connection.getpeername()[:2]}  # OSError: not connected
                if ends & listeners:
                    connection.shutdown(socket.SHUT_RDWR)
                    count += 1
    return count
