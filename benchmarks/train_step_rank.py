"""One rank of train_step.py, started by torchrun: it trains a model of each side, in turn, and rank 0 prints the times.

All ranks make a block of steps with one side, then with the next, between barriers, so that both sides have the same
machine at the same time. Each side has a model, an optimizer and connections of its own, and goes on where it stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from benchmarks.others import Others, enough
from benchmarks.train_step_models import workload
from mms_workloads.sync.leases import Progress, Slice
from mms_workloads.train.communicator import Contribution, Stats
from mms_workloads.train.flat import FlatState
from mms_workloads.train.ring import Ring
from mms_workloads.train.state import agree
from mms_workloads.transport.channel import Abort, Fence, Listener, Security
from mms_workloads.transport.ring import RingTransport

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.train_step_models import Workload
    from mms_workloads.train.ring import Wire

HOST = "127.0.0.1"
LIMIT = timedelta(minutes=5)
DDP_BUCKET_MB = 4  # ours; torch's default of 25 would put these models' gradients into one or two buckets
SO_MAX_PACING_RATE = 47  # not among Python's names
UNPACED = (1 << 64) - 1
SAMPLES_PER_RANK = 1 << 40  # of the one block that a rank goes through: it never ends
REPEATS = 9  # of an all-reduce on its own
CALL_BYTES = 256 << 10  # of the plain stream's calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload")
    parser.add_argument("--rounds", type=int, required=True, help="quiet ones, on each link")
    parser.add_argument("--steps", type=int, required=True, help="of a side, in a round")
    parser.add_argument("--links", required=True, help="bits per second of a connection, 0: loopback as it is")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", timeout=LIMIT)
    rank, size = distributed.get_rank(), distributed.get_world_size()
    work = workload(arguments.workload)
    links = [int(float(link)) for link in arguments.links.split(",")]
    with contextlib.ExitStack() as stack:
        sides = _sides(work, stack)
        samples = {
            "rounds": _train(sides, arguments.rounds, arguments.steps, links),
            "losses": {side.name: side.losses() for side in sides},
            "parameters": sum(p.numel() for p in work.make().parameters()),
            "all_reduce": _all_reduce(stack, sum(p.numel() for p in work.make().parameters())),
            "identical": _identical(sides),
        }
        if rank == 0:
            arguments.out.write_text(json.dumps(samples | {"ranks": size}))
        distributed.barrier()
    distributed.destroy_process_group()


@dataclass
class Side:
    name: str
    step: Callable[[int], float]  # number -> mean loss of this rank's samples
    parameters: Callable[[], torch.Tensor]
    own: list[float] = field(default_factory=list)

    def losses(self) -> list[float]:
        """Of each step, the mean over all ranks."""
        mean = torch.tensor(self.own, dtype=torch.float64)
        distributed.all_reduce(mean)
        return [float(x) for x in mean / distributed.get_world_size()]


def _sides(work: Workload, stack: contextlib.ExitStack) -> list[Side]:
    rings: tuple[tuple[str, Wire], ...] = (("fp32", "None"), ("bf16", "BF16"), ("int8", "Int8"))
    return [
        _ddp(work, "ddp"),
        *(_ring(work, name, wire, _transport(stack), stack) for name, wire in rings),
        _ddp(work, "ddp-fp16", default_hooks.fp16_compress_hook),
        _ring(work, "free", "None", RingTransport(0, 1, Fence("bench", 1, 1, 1), None), stack),
    ]


def _ddp(work: Workload, name: str, hook: Any = None) -> Side:
    rank, size = distributed.get_rank(), distributed.get_world_size()
    module = DistributedDataParallel(
        work.make(), bucket_cap_mb=DDP_BUCKET_MB, gradient_as_bucket_view=True, static_graph=True
    )
    if hook:
        module.register_comm_hook(None, hook)
    options = work.optimizer
    rule = torch.optim.AdamW(module.parameters(), options.learningRate, weight_decay=options.weightDecay, fused=True)

    def step(number: int) -> float:
        numbers = work.share(number, rank, size)
        rule.zero_grad()
        loss = work.loss(module, numbers) / len(numbers)
        loss.backward()
        rule.step()
        return loss.item()

    return Side(name, step, lambda: torch.cat([p.detach().reshape(-1) for p in module.parameters()]))


def _ring(work: Workload, name: str, wire: Wire, transport: RingTransport, stack: contextlib.ExitStack) -> Side:
    """The state and the communicator of a worker; what its master would say is known here."""
    rank, size = distributed.get_rank(), distributed.get_world_size()
    state = FlatState(work.make(), work.optimizer)
    agree(state, 0, "bench", Progress.none(size))
    ring = Ring(transport, wire)
    ring.attach(state)
    stack.callback(ring.close)
    rate, taken = work.optimizer.learningRate, work.global_batch // size

    def step(number: int) -> float:
        numbers = work.share(number, rank, size)
        loss = work.loss(state.module, numbers)
        loss.backward()
        stats = Stats(taken, float(taken), loss.item() / taken)
        mine = Slice(0, rank, number * taken, (number + 1) * taken, SAMPLES_PER_RANK)
        ring.exchange(state, Contribution((mine,), stats), rate, lambda: None)
        return stats.loss

    return Side(name, step, lambda: state.parameters)


def _transport(stack: contextlib.ExitStack) -> RingTransport:
    rank, size = distributed.get_rank(), distributed.get_world_size()
    listener = Listener(HOST, Security.plain())
    stack.callback(listener.close)
    ports: list[int] = [0] * size
    distributed.all_gather_object(ports, listener.port)
    return RingTransport.form(
        rank,
        [(HOST, port) for port in ports],
        listener,
        Security.plain(),
        Fence("bench", 1, 1, 1),
        rank=rank,
        incarnation=0,
        abort=Abort(),
        timeout=LIMIT.total_seconds(),
    )


def _train(sides: list[Side], rounds: int, steps: int, links: list[int]) -> dict[str, list[dict[str, float]]]:
    """By link: of each round but the first, which warms up, the seconds of each side's steps, and what others used."""
    found: dict[str, list[dict[str, float]]] = {str(link): [] for link in links}
    number = done = 0
    while not all(enough(each, rounds) for each in found.values()):
        for link in links:
            one = {"others": 0.0}
            for i in range(len(sides)):
                side = sides[(i + number) % len(sides)]
                _pace(link)
                distributed.barrier()
                others, began = Others(), time.perf_counter()
                side.own.extend(side.step(done + step) for step in range(steps))
                distributed.barrier()
                one[side.name] = time.perf_counter() - began
                one["others"] = max(one["others"], others.cores())
            done += steps
            if number:
                found[str(link)].append(one)
        number += 1
    _pace(0)
    return found


def _pace(link: int) -> None:
    """Every connection of this process sends at most so many bits per second; 0: as many as it can."""
    rate = (link // 8 if link else UNPACED).to_bytes(8, sys.byteorder)
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if entry.readlink().name.startswith("socket:"):
                with socket.socket(fileno=os.dup(int(entry.name))) as one:
                    if one.family in {socket.AF_INET, socket.AF_INET6}:
                        one.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, rate)


def _all_reduce(stack: contextlib.ExitStack, values: int) -> dict[str, float]:
    """Median seconds of one all-reduce of the whole gradient, when nothing is computed beside it, and of the stream."""
    ring, tensor = _transport(stack), torch.zeros(values)
    stream = _Stream(values * 4)
    stack.callback(stream.close)
    ways: dict[str, Callable[[], Any]] = {
        "fp32": lambda: ring.all_reduce(tensor),
        "bf16": lambda: ring.all_reduce(tensor, "BF16"),
        "int8": lambda: ring.all_reduce(tensor, "Int8"),
        "gloo": lambda: distributed.all_reduce(tensor),
        "stream": stream.turn,
    }
    stack.callback(ring.close)
    samples: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(REPEATS + 1):
        for way, call in ways.items():
            distributed.barrier()
            began = time.perf_counter()
            call()
            distributed.barrier()
            samples[way].append(time.perf_counter() - began)
    return {way: statistics.median(times[1:]) for way, times in samples.items()}


class _Stream:
    """As many bytes as a ring's all-reduce of `size` bytes moves, from each rank to the next, and nothing else."""

    def __init__(self, size: int) -> None:
        rank, ranks = distributed.get_rank(), distributed.get_world_size()
        self.bytes = 2 * (ranks - 1) * size // ranks
        ports: list[int] = [0] * ranks
        with socket.create_server((HOST, 0)) as server:
            distributed.all_gather_object(ports, server.getsockname()[1])
            self.next = socket.create_connection((HOST, ports[(rank + 1) % ranks]))
            self.previous = server.accept()[0]

    def turn(self) -> None:
        sender = threading.Thread(target=self._send)
        sender.start()
        left, buffer = self.bytes, bytearray(CALL_BYTES)
        while left:
            left -= self.previous.recv_into(buffer, min(left, CALL_BYTES))
        sender.join()

    def _send(self) -> None:
        left, buffer = self.bytes, memoryview(bytes(CALL_BYTES))
        while left:
            left -= self.next.send(buffer[: min(left, CALL_BYTES)])

    def close(self) -> None:
        self.next.close()
        self.previous.close()


def _identical(sides: list[Side]) -> dict[str, bool]:
    """Whether all ranks of a side hold the same parameters to the bit."""
    found = {}
    for side in sides:
        first = side.parameters().clone()
        distributed.broadcast(first, 0)
        equal = torch.tensor(float(torch.equal(first, side.parameters())))
        distributed.all_reduce(equal, distributed.ReduceOp.MIN)
        found[side.name] = bool(equal)
    return found


if __name__ == "__main__":
    main()
