"""The server of a parameter shard: a thread accepts connections, and each one has a thread of its own.

Peers greet with the membership epoch that they are of. Those of an epoch that this pod has not heard of yet wait until
it has; those of an epoch before are refused. What comes is received straight into the tensors that it belongs in, and a
message that breaks off has no effect: parts that are being filled note only whole messages.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

import structlog

from mms_workloads.sync.layout import Fetch, pieces
from mms_workloads.sync.shard_client import ShardClient, Unreached
from mms_workloads.sync.shard_connection import Connection
from mms_workloads.transport.channel import Abort, Fence, Greeting, PeerLost, Refused, connect

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mms_workloads.sync.leases import Progress
    from mms_workloads.sync.shard import Shard
    from mms_workloads.sync.shard_parts import Member, Part, Standing
    from mms_workloads.sync.shard_state import Update
    from mms_workloads.transport.channel import Channel, Listener, Pending, Security

Address = tuple[str, int]

CONNECT_SECONDS = 30.0  # to a shard that lives and has heard of the epoch; it may hear of it a little later
FETCH_BYTES = 64 << 20  # that one message brings when rows move between shards
MAX_EARLY = 1024  # peers of an epoch that this pod has not heard of yet

log = structlog.get_logger()


class ShardServer:
    """`shard` is for the rest of the master's word: settle, prepare, snapshots."""

    def __init__(self, shard: Shard, listener: Listener, security: Security, rank: int, incarnation: int) -> None:
        """rank: of this pod among the shards. Starts to accept; peers wait until `expect`."""
        self.shard, self.port = shard, listener.port
        self._listener, self._security = listener, security
        self._rank, self._incarnation = rank, incarnation
        self._abort = Abort()
        self._lock = threading.Lock()
        self._expected: Fence | None = None
        self._early: list[tuple[Pending, Greeting]] = []
        self._connections: set[Connection] = set()
        self._acceptor = threading.Thread(target=self._accept, name="accept", daemon=True)
        self._acceptor.start()

    # ------------------------------------------------------------------ the master's word

    def end_epoch(self, why: str) -> Standing:
        """Workers that wait for an answer are told; all other connections are closed."""
        standing = self.shard.end_epoch(why)
        with self._lock:
            idle = [c for c in self._connections if not c.answering]
        for connection in idle:
            connection.close()
        return standing

    def expect(self, fence: Fence) -> None:
        """Peers of this epoch are let in from now on: to fill parts, and to read what this shard holds."""
        with self._lock:
            self._expected = fence
            early, self._early = self._early, []
            stale = [c for c in self._connections if c.fence != fence]
        for connection in stale:
            connection.close()
        for pending, greeting in early:
            self._receive(pending, greeting)

    def fetch(self, part: Part, plan: Sequence[Fetch], addresses: Mapping[int, Address], abort: Abort) -> None:
        """Fills a part that was prepared, from this shard's own memory and from others.

        addresses: of the shards in the plan, by rank. abort: a peer that is cut off says nothing, and is waited for.
        Raises PeerLost, Refused, ValueError; then it can be tried again.
        """
        for source, group in groupby(plan, key=lambda fetch: fetch.source):
            if source == self._rank:
                self._copy(part, list(group))
                continue
            client = ShardClient(self.reach(source, addresses[source], "fetch", abort))
            try:
                self._fetch(part, list(group), client)
            finally:
                client.channel.close()

    def begin_epoch(
        self,
        fence: Fence,
        members: Sequence[Member],
        *,
        step: int | None = None,
        progress: Progress | None = None,
        replica: tuple[int, Address] | None = None,
    ) -> None:
        """As Shard.begin_epoch. replica: the rank of the holder of this shard's replica, and where it listens.

        Raises ValueError.
        """
        forward = ForwardChannel(self, *replica) if replica else None
        self.shard.begin_epoch(fence, members, step=step, progress=progress, forward=forward)
        self.expect(fence)

    def close(self) -> None:
        self.shard.close()
        self._abort.set()
        self._acceptor.join()
        with self._lock:
            connections, early = list(self._connections), self._early
            self._early = []
        for pending, _ in early:
            pending.refuse("the shard has ended")
        for connection in connections:
            connection.close()
        for connection in connections:
            connection.join()
        self._listener.close()

    # ------------------------------------------------------------------ peers that come

    def _accept(self) -> None:
        while not self._abort.is_set():
            try:
                pending, greeting = self._listener.accept(self._abort, None)
            except PeerLost:
                continue
            self._receive(pending, greeting)

    def _receive(self, pending: Pending, greeting: Greeting) -> None:
        with self._lock:
            expected = self._expected
            if expected is None or expected.older(greeting.fence):
                self._early.append((pending, greeting))
                dismissed = self._early.pop(0) if len(self._early) > MAX_EARLY else None
            else:
                dismissed = None
        if dismissed:
            dismissed[0].refuse("too many peers wait for an epoch that the shard has not heard of")
        if expected is None or expected.older(greeting.fence):
            return
        if greeting.fence != expected:
            pending.refuse(f"shard {self._rank} is of another epoch: {greeting.fence.difference(expected)}")
            return
        try:
            channel = pending.admit()
        except (PeerLost, Refused):
            return
        connection = Connection(self.shard, channel, greeting, self._gone)
        with self._lock:
            self._connections.add(connection)
        connection.start()

    def _gone(self, connection: Connection) -> None:
        with self._lock:
            self._connections.discard(connection)

    # ------------------------------------------------------------------ peers that are asked

    def connect(self, address: Address, purpose: str, abort: Abort) -> Channel:
        """To a shard of the expected epoch. Raises PeerLost, Refused, ValueError."""
        with self._lock:
            fence = self._expected
        if fence is None:
            raise ValueError("no epoch is expected yet")
        greeting = Greeting(fence, "shard", self._rank, self._incarnation, purpose)
        return connect(*address, self._security, greeting, abort, CONNECT_SECONDS)

    def reach(self, rank: int, address: Address, purpose: str, abort: Abort) -> Channel:
        """As connect, to the shard of this rank. Raises Unreached, Refused, ValueError."""
        try:
            return self.connect(address, purpose, abort)
        except PeerLost as error:
            raise Unreached(str(error), () if abort.is_set() else (rank,)) from error

    def _copy(self, part: Part, plan: Sequence[Fetch]) -> None:
        standing = self.shard.standing()
        for fetch in plan:
            origin = _origin(fetch, standing)
            for start, stop in pieces(fetch, self._piece(part, fetch)):
                _, lent = self.shard.get("replica" if fetch.replica else "state", fetch.table, start, stop)
                for slot, place in self.shard.room(part, fetch.table, start, stop).items():
                    place.copy_(lent.tensors[slot])
                self.shard.release([lent])
                self.shard.filled(part, fetch.table, start, stop, origin)

    def _fetch(self, part: Part, plan: Sequence[Fetch], client: ShardClient) -> None:
        standing = client.standing()
        for fetch in plan:
            origin = _origin(fetch, standing)
            for start, stop in pieces(fetch, self._piece(part, fetch)):
                room = self.shard.room(part, fetch.table, start, stop)
                source: Part = "replica" if fetch.replica else "state"
                step, _ = client.get(source, fetch.table, start, stop, slots=list(room), into=room)
                if step != origin[0]:
                    raise ValueError(
                        f"shard {fetch.source} went on from step {origin[0]} to {step}: end its epoch first"
                    )
                self.shard.filled(part, fetch.table, start, stop, origin)

    def _piece(self, part: Part, fetch: Fetch) -> int:
        """Rows that one message brings."""
        room = self.shard.room(part, fetch.table, fetch.start, fetch.stop)
        columns = next(iter(room.values())).shape[1]
        return max(1, FETCH_BYTES // (4 * columns * len(room)))


@dataclass(slots=True)
class ForwardChannel:
    """To the holder of the replica; connects with the first update."""

    server: ShardServer
    rank: int
    address: Address
    abort: Abort = field(default_factory=Abort)
    client: ShardClient | None = None

    def send(self, update: Update) -> None:
        if self.client is None:
            self.client = ShardClient(self.server.reach(self.rank, self.address, "forward", self.abort))
        self.client.forward(update)

    def close(self) -> None:
        self.abort.set()
        if self.client:
            self.client.channel.close()


def _origin(fetch: Fetch, standing: Standing) -> tuple[int, Progress]:
    if fetch.replica:
        return standing.replica_step, standing.replica_progress
    return standing.step, standing.progress
