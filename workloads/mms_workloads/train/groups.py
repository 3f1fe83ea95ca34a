"""A gloo process group for one membership epoch, without torch's global default group. All private API of torch is here.

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
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributed import ProcessGroupGloo, Store

from mms_workloads.sync import wire
from mms_workloads.train.control import Announcement, Control, Superseded

if TYPE_CHECKING:
    from collections.abc import Callable

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

    def set(self, key: str, value: bytes) -> None:
        self._control.send(wire.KV_SET, bytes(value), epoch=self._epoch, key=key)

    def get(self, key: str) -> bytes:
        self.wait([key])
        return self._control.inbox.values[self._epoch, key]

    def wait(self, keys: list[str], _timeout: timedelta | None = None) -> None:  # type: ignore[override]
        for key in keys:
            if (self._epoch, key) not in self._control.inbox.values:
                self._control.send(wire.KV_GET, epoch=self._epoch, key=key)
        wanted = {(self._epoch, key) for key in keys}
        self._control.wait(
            lambda box: wanted <= box.values.keys() or self._control.urgent(self._epoch), FORMING_SECONDS
        )
        if not wanted <= self._control.inbox.values.keys():
            raise Superseded(f"epoch {self._epoch} ended before its group was formed")

    def listeners(self) -> set[tuple[str, int]]:
        """The addresses that the members published for each other."""
        values = [v for (e, _), v in self._control.inbox.values.items() if e == self._epoch]
        return {address for value in values for address in socket_addresses(value)}


class Group:
    """The members' collectives; position and size are of the epoch, not the pods' ranks."""

    def __init__(self, gloo: ProcessGroupGloo, position: int, size: int, listeners: set[tuple[str, int]]) -> None:
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
    store = ControlStore(control, announcement.epoch)
    result: list[ProcessGroupGloo | Exception] = []
    done = threading.Event()

    def connect() -> None:
        try:
            options = ProcessGroupGloo._Options()  # noqa: SLF001 - the only way to choose the interface
            options._timeout = COLLECTIVE_TIMEOUT  # noqa: SLF001
            options._threads = 1  # noqa: SLF001 - collectives follow one another
            options._devices = [ProcessGroupGloo.create_device(hostname=address)]  # noqa: SLF001
            result.append(ProcessGroupGloo(store, position, size, options))
        except Exception as error:  # noqa: BLE001 - handed to the caller below
            result.append(error)
        done.set()
        with control.changing():
            pass

    # In a thread: gloo waits without end for a peer that dies between its publication and its connection.
    threading.Thread(target=connect, name="form", daemon=True).start()
    control.wait(lambda _: done.is_set() or control.urgent(announcement.epoch), FORMING_SECONDS)
    if not result:
        _abandoned.append(store)
        raise Superseded(f"epoch {announcement.epoch} ended before its group was formed")
    if isinstance(result[0], Exception):
        if control.urgent(announcement.epoch):
            raise Superseded(str(result[0])) from result[0]
        raise PeerLost(str(result[0])) from result[0]
    group = Group(result[0], position, size, store.listeners())
    _abandoned.append(store)  # gloo calls into it as long as it lives
    return group


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
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if not stat.S_ISSOCK(os.stat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as connection:
                ends = {connection.getsockname()[:2], connection.getpeername()[:2]}  # OSError: not connected
                if ends & listeners:
                    connection.shutdown(socket.SHUT_RDWR)
                    count += 1
    return count
