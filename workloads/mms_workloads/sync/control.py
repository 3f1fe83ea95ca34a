"""A worker's or shard's connection to the master, in a thread of its own, so that heartbeats go on while it computes.

What the master says is kept in an Inbox; the worker's thread waits on it. The connection is made again, with bounded
backoff, for as long as it takes: a new master finds the worker with all that it holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Self

import aiohttp

from mms_workloads.contract import Outcome, Reason
from mms_workloads.data import keyring
from mms_workloads.data import pages as data_pages
from mms_workloads.logs import logger
from mms_workloads.store import JobError
from mms_workloads.sync import hosts, tls, wire
from mms_workloads.sync import plan as plans
from mms_workloads.sync.membership import HEARTBEAT_SECONDS
from mms_workloads.sync.wire import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mms_workloads.pod import Pod

FIRST_BACKOFF_SECONDS = 0.1
LONGEST_BACKOFF_SECONDS = 2.0  # a new master is found within seconds
CONNECT_SECONDS = 5.0
REPORT_SECONDS = 0.02  # a message for each round would cost short ones more than what they are about
KEY_SECONDS = 30.0  # for the answer to a question for a key; a master that is replaced meanwhile is asked again later


class Superseded(Exception):  # noqa: N818 - an event in the life of an epoch, not an error
    """The membership epoch is over: leave its collectives and meet in the next one."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """A membership epoch as the master announced it. addresses: host:port of its members, oldest first."""

    epoch: int
    ranks: tuple[int, ...]
    addresses: tuple[str, ...]
    urgent: bool
    shards: tuple[str, ...] = ()  # addresses of the parameter shards, in the order of their parts


@dataclass(slots=True)
class Inbox:
    """What has arrived and was not taken. All access under `changed`."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    announcement: Announcement | None = None
    begin: dict[str, Any] | None = None
    leased: deque[dict[str, Any]] = field(default_factory=deque)
    refused_keys: set[int] = field(default_factory=set)  # blocks whose keys the master did not give
    tasks: deque[Message] = field(default_factory=deque)
    plan: bytes | None = None
    suspend: bool = False
    checkpoint: bool = False
    go: int = 0  # the epoch whose shards all have their rows
    bye: Outcome | None = None
    refused: str | None = None
    evicted: JobError | None = None  # why
    stopping: bool = False  # SIGTERM
    overdue: bool = False  # and waits no more for others to take what it holds


class Control:
    """Use as a context manager. `holds()` tells a master what this worker has: (last epoch, step or None)."""

    def __init__(
        self,
        pod: Pod,
        address: str,
        holds: Callable[[], tuple[int, int | None]],
        *,
        beat: Callable[[], None] = lambda: None,
        plain: bool = False,
        pages: str = "",
        parameters: str = "",
        bf16: bool = False,
    ) -> None:
        """address: host:port at which peers find this pod; pages: at which they get what it has read of the data set;
        parameters: at which serving pods find it; bf16: whether it has instructions for products in BF16.

        beat: called while the thread is alive.
        """
        self._pod, self._address, self._holds, self._beat, self._plain = pod, address, holds, beat, plain
        self._parameters, self._pages, self._bf16 = parameters, pages, bf16
        self.inbox = Inbox()
        # Called in the control thread when `urgent` may have become true or the pod may go, and when a lease has come.
        self.on_over: Callable[[], None] = lambda: None
        self.on_leased: Callable[[], None] = lambda: None
        self.layout: Callable[[], int] = lambda: 0  # shards of the layout whose rows this pod holds
        self.session = 0  # another number whenever a connection is made or lost
        self._loop: asyncio.AbstractEventLoop | None = None  # while it is entered
        self._outbox: asyncio.Queue[Message] | None = None
        self._rounds: list[tuple[int, dict[str, Any]]] = []  # and their epochs; of the last REPORT_SECONDS
        self._reporting = threading.RLock()
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self._closing = threading.Event()
        self.master_incarnation = -1  # of the newest master that has welcomed it
        self._log = logger(rank=pod.rank)

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join(CONNECT_SECONDS)

    def send(self, kind: str, data: bytes = b"", **fields: Any) -> None:
        """Queues a message. While there is no connection it is dropped: a master that is met again asks anew."""
        with self._reporting:  # else another thread's message would come between rounds and be taken for their end
            self._call(self._put, *self._reported(), Message(kind, fields, data))

    def report(self, epoch: int, fields: dict[str, Any], *, at_once: bool = False) -> None:
        """Queues what a round has done. Short rounds go together, and before any message that is sent after them.

        at_once: the master's answer to another rank waits for it.
        """
        with self._reporting:
            self._rounds.append((epoch, fields))
            if at_once:
                self._tell_reported()
            elif len(self._rounds) == 1:
                self._call(self._report_soon)

    def wait(self, ready: Callable[[Inbox], Any], timeout: float | None = None) -> Any:
        """Waits till `ready(inbox)` is true and returns its value; its last value after the timeout."""
        with self.inbox.changed:
            self.inbox.changed.wait_for(lambda: ready(self.inbox), timeout)
            return ready(self.inbox)

    @contextlib.contextmanager
    def changing(self) -> Iterator[Inbox]:
        with self.inbox.changed:
            yield self.inbox
            self.inbox.changed.notify_all()

    def ask_key(self, block: int) -> bytes | None:
        """Of an encrypted block, for the evaluation; None where the master gives none, or does not answer."""
        with self.changing() as box:
            box.refused_keys.discard(block)
        self.send(wire.KEY, block=block)
        ring = keyring.HELD
        self.wait(lambda box: ring.holds(block) or block in box.refused_keys or box.bye, KEY_SECONDS)
        return ring.key(block) if ring.holds(block) else None

    def newer(self, epoch: int) -> bool:
        """Whether an epoch after `epoch` was announced."""
        announcement = self.inbox.announcement
        return announcement is not None and announcement.epoch > epoch

    def urgent(self, epoch: int) -> bool:
        """Whether `epoch` is over at once, since a member of it was lost, or the run has ended."""
        box = self.inbox
        return (
            box.bye is not None
            or box.refused is not None
            or box.evicted is not None
            or (box.announcement is not None and box.announcement.epoch > epoch and box.announcement.urgent)
        )

    def _call(self, act: Callable[..., object], *given: object) -> None:
        """In the control thread."""
        if self._loop:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the conversation is over
                self._loop.call_soon_threadsafe(act, *given)

    def _put(self, *messages: Message) -> None:
        for message in messages:
            if self._outbox is not None:
                self._outbox.put_nowait(message)

    def _report_soon(self) -> None:
        asyncio.get_running_loop().call_later(REPORT_SECONDS, self._tell_reported)

    def _tell_reported(self) -> None:
        with self._reporting:  # as in `send`
            self._call(self._put, *self._reported())

    def _reported(self) -> Iterator[Message]:
        """Takes what was reported and is not in the outbox."""
        with self._reporting:
            rounds, self._rounds = self._rounds, []
        for epoch, of_epoch in itertools.groupby(rounds, key=itemgetter(0)):
            yield Message(wire.PROGRESS, {"epoch": epoch, "rounds": [one for _, one in of_epoch]})

    def _run(self) -> None:
        loop = self._loop
        assert loop is not None  # noqa: S101 - the thread is started after it was made
        asyncio.set_event_loop(loop)
        beats = loop.create_task(self._keep_beating())
        try:
            loop.run_until_complete(self._stay_connected())
        finally:
            beats.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                loop.run_until_complete(beats)
            loop.close()

    async def _keep_beating(self) -> None:
        while True:
            self._beat()
            await asyncio.sleep(HEARTBEAT_SECONDS)

    async def _stay_connected(self) -> None:
        context = None if self._plain else tls.client_context(self._pod.tls_dir)
        scheme = "http" if self._plain else "https"
        url = f"{scheme}://{self._pod.job.masterHost}:{self._pod.master_port}/v1/control"
        backoff = FIRST_BACKOFF_SECONDS
        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS)
        # Names are looked up for each connection: a new master has the old one's name and another address.
        connector = aiohttp.TCPConnector(use_dns_cache=False, force_close=True)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            while not self._closing.is_set() and self.inbox.refused is None:
                started = time.monotonic()
                try:
                    async with session.ws_connect(
                        url, ssl=context or False, heartbeat=10, max_msg_size=wire.MAX_FRAME_BYTES, compress=0
                    ) as socket:
                        await self._converse(socket)
                except (aiohttp.ClientError, OSError, TimeoutError) as error:
                    self._log.info("no connection to the master", error=str(error) or type(error).__name__)
                if self.inbox.bye is not None:
                    return
                if time.monotonic() - started > LONGEST_BACKOFF_SECONDS:
                    backoff = FIRST_BACKOFF_SECONDS
                await asyncio.sleep(backoff * random.uniform(0.5, 1))  # noqa: S311 - jitter
                backoff = min(2 * backoff, LONGEST_BACKOFF_SECONDS)

    async def _converse(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        hosts.watch(socket.get_extra_info("socket"))
        await socket.send_bytes(wire.pack(Message(wire.HELLO, self._hello())))
        self._outbox = asyncio.Queue()
        sender = asyncio.create_task(self._send_all(socket, self._outbox))
        try:
            async for frame in socket:
                if frame.type is not aiohttp.WSMsgType.BINARY:
                    return
                if not self._take(wire.unpack(frame.data)):
                    return
        finally:
            self._outbox = None
            self._put(*self._reported())  # to nobody: a master that is met again hears of the step
            self.session += 1
            sender.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError, aiohttp.ClientError):
                await sender

    async def _send_all(self, socket: aiohttp.ClientWebSocketResponse, outbox: asyncio.Queue[Message]) -> None:
        while True:
            try:
                message = await asyncio.wait_for(outbox.get(), HEARTBEAT_SECONDS)
            except TimeoutError:
                message = Message(wire.HEARTBEAT)
                if self._closing.is_set():
                    await socket.close()
                    return
            await socket.send_bytes(wire.pack(message))
            if message.kind == wire.LEAVE:
                await socket.close()
                return

    def _hello(self) -> dict[str, Any]:
        job, pod = self._pod.job.job, self._pod
        epoch, step = self._holds()
        plan = self.inbox.plan
        return {
            "uid": job.uid,
            "run": job.run,
            "attempt": pod.attempt,
            "role": pod.role,
            "rank": pod.rank,
            "incarnation": pod.incarnation,
            "address": self._address,
            "parameters": self._parameters,
            "pages": self._pages,
            "bf16": self._bf16,
            "epoch": epoch,
            "step": step,
            "layout": self.layout(),
            "plan": plans.digest(plan) if plan else None,
        }

    def _take(self, message: Message) -> bool:
        """Files a message; False when the conversation is over."""
        f = message.fields
        if message.kind == wire.WELCOME and f["incarnation"] < self.master_incarnation:
            return False  # a master that has been replaced and does not know yet
        if message.kind == wire.WELCOME:
            self.master_incarnation = f["incarnation"]
            self.session += 1
        if message.kind == wire.SEND_PLAN and self.inbox.plan is not None:
            self._put(Message(wire.PLAN, {}, self.inbox.plan))
        for block, key in f.get("keys", {}).items():
            keyring.HELD.put(int(block), bytes.fromhex(key))
        if holders := f.get("holders"):
            data_pages.HELD.peers.know(f["block"], holders)
        with self.changing() as box:
            file(box, message)
        if message.kind in {wire.EPOCH, wire.EVICT, wire.LEAVE, wire.REFUSED, wire.BYE}:
            self.on_over()
        if message.kind == wire.LEASED:
            self.on_leased()
        return message.kind not in {wire.REFUSED, wire.BYE}


def file(box: Inbox, message: Message) -> None:  # noqa: C901, PLR0912 - one line for each kind
    """Puts a message of the master where the worker looks for it."""
    f = message.fields
    match message.kind:
        case wire.WELCOME:
            box.tasks.clear()
            box.suspend = box.checkpoint = False
        case wire.REFUSED:
            box.refused = f["message"]
        case wire.BYE:
            box.bye = Outcome.model_validate(f["outcome"])
        case wire.COUNT:
            box.tasks.append(message)
        case wire.PLAN:
            box.plan = message.data
        case wire.EPOCH:
            ranks, addresses = tuple(m[0] for m in f["members"]), tuple(m[2] for m in f["members"])
            box.announcement = Announcement(f["epoch"], ranks, addresses, f["urgent"], tuple(f["shards"]))
            box.begin = None
        case wire.BEGIN:
            box.begin = f
        case wire.GO:
            box.go = f["epoch"]
        case wire.LEASED:
            box.leased.append(f)
        case wire.KEYS:
            box.refused_keys |= set(f["refused"])
        case wire.SUSPEND:
            box.suspend = True
        case wire.EVICT:
            box.evicted = JobError(Reason(f["reason"]), f["why"], retryable=True)
        case wire.LEAVE:
            box.overdue = True
        case wire.CHECKPOINT:
            box.checkpoint = True
