"""All-reduce of float32 gradients among processes: our ring against gloo. `make bench-sync-ring`.

Every rank is a process with both: a ring of ours (plain transport) and gloo's process group, each with its defaults.
A round takes each way once, in turn, and a sample is one all-reduce between two barriers, as the slowest rank saw it;
tensors are filled anew before each, outside the time. The barrier of all is our ring's all-reduce of one value: some
50 microseconds, where gloo's takes a millisecond. A figure is the median over the rounds, and a ratio the median of
the ratios within the rounds. gloo sums bfloat16 tensors in bfloat16; converting the gradient to and from them is part
of its time, as it is of ours.

The raw samples are in sync_ring.json; `python benchmarks/sync_ring.py --results FILE` computes the lines again from it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

from mms_workloads.transport.channel import Abort, Fence, Listener, Security
from mms_workloads.transport.ring import RingTransport

if TYPE_CHECKING:
    from collections.abc import Callable

    from mms_workloads.transport.ring import Wire

    Call = Callable[[torch.Tensor, str], None]

MEGABYTES = tuple(int(size) for size in os.environ.get("MMS_BENCH_MEGABYTES", "1,16,64,256").split(","))
RANKS = tuple(int(size) for size in os.environ.get("MMS_BENCH_RANKS", "2,3,4").split(","))
ROUNDS = int(os.environ.get("MMS_BENCH_ROUNDS", "9"))
SAMPLED_MEGABYTES = 256  # that each way reduces in a round, at least once
SMALL_BYTES, SMALL_REPEATS = 512, 200
HOST = "127.0.0.1"
LIMIT = timedelta(minutes=10)

OURS: tuple[Wire, ...] = ("None", "BF16", "Int8")
GLOO = ("gloo-float32", "gloo-bfloat16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, help="print the lines of this file instead of measuring")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank is not None:
        print(json.dumps(member(arguments.rank, arguments.size, arguments.port)))
        return
    if arguments.results:
        report(json.loads(arguments.results.read_text()))
        return
    samples = {"capped": capped(), "cores": os.cpu_count(), "ranks": {str(size): measure(size) for size in RANKS}}
    file = Path(os.environ.get("MMS_RESULTS", "benchmarks/results")) / "sync_ring.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(samples, indent=1))
    print(f"samples: {file}")
    report(samples)


def report(samples: dict[str, Any]) -> None:
    """The lines, from the raw samples alone."""
    limit = samples["capped"] or "not capped"
    print(f"ranks are processes on {samples['cores']} cores, {limit}; plain transport, loopback; ms of one all-reduce")
    for size, by_bytes in samples["ranks"].items():
        for megabytes, ways in by_bytes["sizes"].items():
            print(f"{size} ranks {megabytes:>4} MB  " + "  ".join(f"{way} {ms(ways[way]):.2f}" for way in ways))
        print(
            f"{size} ranks {SMALL_BYTES} bytes  "
            + "  ".join(f"{w} {1e3 * ms(t):.0f} us" for w, t in by_bytes["small"].items())
        )
    for size, by_bytes in samples["ranks"].items():
        for megabytes, ways in by_bytes["sizes"].items():
            name = f"{megabytes}MB-{size}"
            line(f"ring-int8-{name}", ways, "Int8", "gloo-float32")
            line(f"ring-bf16-vs-gloo-bf16-{name}", ways, "BF16", "gloo-bfloat16")
            line(f"ring-fp32-{name}", ways, "None", "gloo-float32")
            line(f"ring-{name}", ways, "BF16", "gloo-float32")


def line(name: str, ways: dict[str, list[float]], ours: str, theirs: str) -> None:
    ratio = statistics.median(peer / own for own, peer in zip(ways[ours], ways[theirs], strict=True))
    print(f"RESULT {name} {ms(ways[ours]):.2f} ms vs {theirs} {ms(ways[theirs]):.2f} ms: {ratio:.2f}x")


def ms(seconds: list[float]) -> float:
    return 1e3 * statistics.median(seconds)


def capped() -> str:
    """The processor limit of this process's cgroup, in words; empty: none."""
    group = Path("/proc/self/cgroup").read_text().strip().rpartition(":")[2]
    file = Path("/sys/fs/cgroup") / group.lstrip("/") / "cpu.max"
    quota = file.read_text().split() if file.exists() else ["max"]
    return "" if quota[0] == "max" else f"capped to {int(quota[0]) / int(quota[1]):.2f} cores together"


def measure(size: int) -> dict[str, Any]:
    """Samples of rank 0, whose barriers make them those of the slowest."""
    store = distributed.TCPStore(HOST, 0, is_master=True, wait_for_workers=False, timeout=LIMIT)
    command = [sys.executable, __file__, "--size", str(size), "--port", str(store.port)]
    ranks = [subprocess.Popen([*command, "--rank", str(rank)], stdout=subprocess.PIPE) for rank in range(size)]
    try:
        texts = [rank.communicate(timeout=LIMIT.total_seconds())[0] for rank in ranks]
        assert not any(rank.returncode for rank in ranks), "a rank failed; its words are above"
    finally:
        for rank in ranks:
            rank.kill()
    print(f"{size} ranks measured", file=sys.stderr)
    samples: dict[str, Any] = json.loads(texts[0])
    return samples


def member(rank: int, size: int, port: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    store = distributed.TCPStore(HOST, port, is_master=False, timeout=LIMIT)
    distributed.init_process_group("gloo", store=distributed.PrefixStore("gloo", store), rank=rank, world_size=size)
    listener = Listener(HOST, Security.plain())
    store.set(f"ours/{rank}", str(listener.port))
    ring = RingTransport.form(
        rank,
        [(HOST, int(store.get(f"ours/{other}"))) for other in range(size)],
        listener,
        Security.plain(),
        Fence("bench", 1, 1, 1),
        rank=rank,
        incarnation=0,
        abort=Abort(),
        timeout=LIMIT.total_seconds(),
    )

    def ours(wire: Wire) -> Call:
        return lambda tensor, _: ring.all_reduce(tensor, wire)

    def gloo(tensor: torch.Tensor, way: str) -> None:
        if way == "gloo-float32":
            distributed.all_reduce(tensor)
        else:
            half = tensor.bfloat16()
            distributed.all_reduce(half)
            tensor.copy_(half)

    one = torch.zeros(1)

    def barrier() -> None:
        ring.all_reduce(one)

    calls: dict[str, Call] = {wire: ours(wire) for wire in OURS} | dict.fromkeys(GLOO, gloo)
    sizes = {str(megabytes): rounds(calls, barrier, megabytes, rank, size) for megabytes in MEGABYTES}
    return {"sizes": sizes, "small": small(calls, barrier)}


def rounds(
    calls: dict[str, Call], barrier: Callable[[], None], megabytes: int, rank: int, size: int
) -> dict[str, list[float]]:
    source = torch.randn((megabytes << 20) // 4, generator=torch.Generator().manual_seed(rank))
    tensor = torch.empty_like(source)
    checked = range(0, source.numel(), max(1, source.numel() // 1000))
    expected = source[checked.start :: checked.step].clone()
    distributed.all_reduce(expected)
    samples: dict[str, list[float]] = {way: [] for way in calls}
    for number in range(ROUNDS + 1):
        for way, call in calls.items():
            times = []
            for _ in range(max(1, SAMPLED_MEGABYTES // megabytes // len(calls))):
                tensor.copy_(source)
                barrier()
                began = time.perf_counter()
                call(tensor, way)
                barrier()
                times.append(time.perf_counter() - began)
            error = (tensor[checked.start :: checked.step] - expected).abs().max().item()
            assert error < (1e-4 if way in {"None", "gloo-float32"} else 0.1 * size), (way, error)
            if number:  # the first warms up
                samples[way].append(statistics.mean(times))
    return samples


def small(calls: dict[str, Call], barrier: Callable[[], None]) -> dict[str, list[float]]:
    """The same of a tensor of a few hundred bytes, many times without barriers."""
    tensor = torch.zeros(SMALL_BYTES // 4)
    samples: dict[str, list[float]] = {way: [] for way in calls}
    for number in range(ROUNDS + 1):
        for way, call in calls.items():
            barrier()
            began = time.perf_counter()
            for _ in range(SMALL_REPEATS):
                call(tensor, way)
            if number:
                samples[way].append((time.perf_counter() - began) / SMALL_REPEATS)
    return samples


if __name__ == "__main__":
    main()
