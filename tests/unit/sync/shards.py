"""Shards on loopback, what the master tells them, and workers as threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import torch

from mms_workloads.contract import Optimizer, ParameterServer
from mms_workloads.sync import optimizers
from mms_workloads.sync.layout import Layout, Lost, Table, fetches, replica_holder, replica_of
from mms_workloads.sync.leases import Progress
from mms_workloads.sync.push import Push
from mms_workloads.sync.shard import Shard
from mms_workloads.sync.shard_client import ShardClient
from mms_workloads.sync.shard_server import ShardServer
from mms_workloads.transport.channel import Abort, Fence, Greeting, Listener, Security, connect

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

HOST, SECONDS = "127.0.0.1", 30.0


@dataclass
class Pods:
    """The shards of a job, and its master. The changes of epochs are those that the module shard describes."""

    tables: tuple[Table, ...]
    shards: int = 1
    optimizer: Optimizer = field(default_factory=Optimizer)
    mode: ParameterServer = field(default_factory=ParameterServer)
    blocks: int = 100
    options: dict[str, Any] = field(default_factory=dict)  # of Shard

    def __post_init__(self) -> None:
        self.layout = Layout(self.tables, self.shards)
        self.fence = Fence("uid", 1, 1, 0)
        self.members: tuple[tuple[int, int], ...] = ()
        self.lost: list[tuple[str, tuple[int, ...]]] = []  # why, and shards that were not reached
        self.incarnation = 0
        self.servers = [self.pod(rank) for rank in range(self.shards)]
        self.workers: list[Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.close()
        for server in self.servers:
            server.close()

    def pod(self, rank: int) -> ShardServer:
        rule = optimizers.of(self.optimizer)
        shard = Shard(rule, self.mode, **{"on_lost": lambda *said: self.lost.append(said), **self.options})
        self.incarnation += 1
        return ShardServer(shard, Listener(HOST, Security.plain()), Security.plain(), rank, self.incarnation)

    @property
    def addresses(self) -> dict[int, tuple[str, int]]:
        return {rank: (HOST, server.port) for rank, server in enumerate(self.servers)}

    def replace(self, rank: int) -> None:
        """The pod is gone; another one takes its place."""
        die(self.servers[rank])
        self.servers[rank].close()
        self.servers[rank] = self.pod(rank)

    # ------------------------------------------------------------------ epochs

    def start(self, workers: int, initial: Mapping[str, torch.Tensor]) -> None:
        """The first epoch: one worker puts the parameters."""
        self.fence = Fence("uid", 1, 1, self.fence.epoch + 1)
        for server in self.servers:
            server.expect(self.fence)
        source = Worker(self, 0)
        for rank, server in enumerate(self.servers):
            parts = [("state", rank)]
            if self.replicated:
                parts.append(("replica", replica_of(rank, self.shards)))
            for part, owner in parts:
                server.shard.prepare(self.layout, owner, part)
                for table in self.tables:
                    begin, end = self.layout.bounds(table.name, owner)
                    rows = initial[table.name].view(table.rows, table.columns)[begin:end].contiguous()
                    source.clients[rank].put(part, table.name, begin, {"parameters": rows})
        source.close()
        self._begin(workers, step=0, progress=Progress.none(self.blocks))

    def change(self, workers: int, shards: int | None = None) -> None:
        """The next epoch, after workers or shards were lost, came, or are to be others."""
        before, was = self.layout, len(self.servers)
        standing = [server.end_epoch("the members change") for server in self.servers]
        alive = {rank for rank in range(was) if standing[rank].step >= 0}
        # Of each shard's rows, wherever they are: the step.
        steps = [standing[r].step if r in alive else standing[(r + 1) % was].replica_step for r in range(was)]
        step = min(steps) if self.synchronous else None
        if step is not None:
            for server in self.servers:
                server.shard.settle(step)
            standing, steps = [server.shard.standing() for server in self.servers], [step] * was
        replicas = {h for h in range(was) if standing[h].replica_step == steps[h - 1]} if self.replicated else set()
        self.fence = Fence("uid", 1, 1, self.fence.epoch + 1)
        self.layout = Layout(self.tables, shards or was)
        for rank in range(was, self.layout.shards):
            self.servers.append(self.pod(rank))
        for server in self.servers:
            server.expect(self.fence)
        for rank in range(self.layout.shards):
            if rank not in alive or before != self.layout:
                self._fetch(rank, "state", rank, before, alive, replicas)
            owner = replica_of(rank, self.layout.shards)
            if self.replicated and owner is not None and (rank not in replicas or before != self.layout):
                self._fetch(rank, "replica", owner, before, alive, replicas)
        for server in self.servers[self.layout.shards :]:
            server.close()
        self.servers = self.servers[: self.layout.shards]
        self._begin(workers, step=step)

    def _fetch(self, rank: int, part: Any, owner: int, before: Layout, states: set[int], replicas: set[int]) -> None:  # noqa: PLR0917
        plan = fetches(before, self.layout, owner, states=states, replicas=replicas, near=rank)
        assert not isinstance(plan, Lost), str(plan)
        self.servers[rank].shard.prepare(self.layout, owner, part)
        self.servers[rank].fetch(part, plan, self.addresses, Abort())

    def _begin(self, workers: int, **state: Any) -> None:
        self.members = tuple((rank, 0) for rank in range(workers))
        for rank, server in enumerate(self.servers):
            holder = replica_holder(rank, len(self.servers)) if self.replicated else None
            replica = None if holder is None else (holder, self.addresses[holder])
            server.begin_epoch(self.fence, self.members, replica=replica, **state)

    @property
    def replicated(self) -> bool:
        return self.mode.replicas == 2

    @property
    def synchronous(self) -> bool:
        return self.mode.consistency == "Synchronous"

    # ------------------------------------------------------------------ what they hold

    def contents(self, part: str = "state") -> dict[str, torch.Tensor]:
        """All rows of all slots, put together. part "replica": from the replicas."""
        whole = {}
        for table in self.tables:
            slots: dict[str, list[torch.Tensor]] = {}
            for owner in range(len(self.servers)):
                at = owner if part == "state" else replica_holder(owner, len(self.servers))
                _, lent = self.servers[at].shard.get(part, table.name, *self.layout.bounds(table.name, owner))
                for slot, tensor in lent.tensors.items():
                    slots.setdefault(slot, []).append(tensor.clone())
                self.servers[at].shard.release([lent])
            whole |= {f"{table.name}.{slot}": torch.cat(parts) for slot, parts in slots.items()}
        return whole

    def parameters(self, table: str = "dense") -> torch.Tensor:
        return self.contents()[f"{table}.parameters"].squeeze(1)

    def steps(self) -> list[int]:
        return [server.shard.standing().step for server in self.servers]


def die(server: ShardServer) -> None:
    """As if its process were killed: nothing more is heard of it, and nothing is said."""
    server._abort.set()
    for connection in list(server._connections):
        connection.close()


class Worker:
    """Connected to all shards for one epoch."""

    def __init__(self, pods: Pods, rank: int, incarnation: int = 0, fence: Fence | None = None) -> None:
        self.pods, self.rank = pods, rank
        self.abort = Abort()
        greeting = Greeting(fence or pods.fence, "worker", rank, incarnation, "push")
        self.clients = [
            ShardClient(connect(*address, Security.plain(), greeting, self.abort, SECONDS))
            for address in pods.addresses.values()
        ]
        self.steps = (
            [server.shard.standing().step for server in pods.servers] if pods.synchronous else [0] * len(pods.servers)
        )
        pods.workers.append(self)

    def close(self) -> None:
        for client in self.clients:
            client.channel.close()

    def exchange(self, push_of: Callable[[int], Push]) -> list[Any]:
        """Pushes to all shards, then hears all. push_of: by shard."""
        for shard, client in enumerate(self.clients):
            client.send_push(push_of(shard))
        return [client.receive_answer() for client in self.clients]

    def dense(self, total: torch.Tensor, samples: float, rate: float, **more: Any) -> list[Any]:
        """total [P]: the gradient's sum. Returns the new parameters [P] and the answers."""
        encode = more.pop("encode", lambda _, part: [part])

        def push_of(shard: int) -> Push:
            window = slice(*self.pods.layout.bounds("dense", shard))
            gradients = {"dense": encode(shard, total[window])} if samples else {}
            return Push(self.steps[shard], rate, samples, gradients=gradients, **more)

        answers = self.exchange(push_of)
        for shard, (answer, _) in enumerate(answers):
            self.steps[shard] = answer.step if self.pods.synchronous else self.steps[shard] + 1
        return [torch.cat([tensors["dense"].view(-1) for _, tensors in answers]), [answer for answer, _ in answers]]

    def parameters(self) -> torch.Tensor:
        parts = [
            client.get("state", "dense", *self.pods.layout.bounds("dense", shard), slots=["parameters"])[1][
                "parameters"
            ]
            for shard, client in enumerate(self.clients)
        ]
        return torch.cat(parts).view(-1)


def together(tasks: Sequence[Callable[[], Any]]) -> list[Any]:
    """Runs them at the same time, each in a thread."""
    with ThreadPoolExecutor(max_workers=max(1, len(tasks))) as pool:
        futures = [pool.submit(task) for task in tasks]
        return [future.result(timeout=120) for future in futures]


# ---------------------------------------------------------------------- the jobs of most tests

SIZE = 1000
DENSE = (Table("dense", SIZE),)
MIXED = (Table("dense", 300), Table("vectors", 50, 4, sparse=True))
ADAMW = Optimizer(name="AdamW", weightDecay=0.01)


def initial(tables=DENSE, seed=7):
    rng = torch.Generator().manual_seed(seed)
    return {t.name: torch.randn(t.rows, t.columns, generator=rng) for t in tables}


def gradient(step, rank, size=SIZE):
    return torch.randn(size, generator=torch.Generator().manual_seed(1000 * step + rank))


def mode(name="Synchronous", shards=1, replicas=1, staleness=4):
    return ParameterServer(shards=shards, replicas=replicas, consistency=name, staleness=staleness)


def pods(
    shards: int = 1,
    workers: int = 1,
    *,
    tables: tuple[Table, ...] = DENSE,
    optimizer: Optimizer = ADAMW,
    start: bool = True,
    how: ParameterServer | None = None,
    **options: Any,
) -> Pods:
    made = Pods(tables, shards, optimizer, how or mode(shards=shards), options=options)
    if start:
        made.start(workers, initial(tables))
    return made


def round_of(workers, step, **more):
    """A synchronous step: every worker brings its gradient of this step."""
    size = workers[0].pods.layout.table("dense").rows
    return together([lambda w=w: w.dense(gradient(step, w.rank, size), 2.0, 0.1, **more) for w in workers])


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
