"""Push of gradients to a server and pull of parameters: our channels against others. `make bench-sync-ps`.

An exchange sends the gradients, then receives the parameters; a figure is the bytes of both directions over the time
that it took, the optimizer outside. Server and workers are processes on this machine, and the server has a thread for
each worker. With several workers, all start together and the last one's end counts.

The limit is benchmarks/c_stream.c, which moves the same bytes between buffers of the same sizes by blocking calls of
256 KiB; "C-stream tuned" is the same program with the sizes that our channel takes (calls of 1 MiB, and a receiver that
is woken for 512 KiB). A round takes each way once, in fresh processes; a sample is the median of its exchanges, and a
ratio the median of the ratios within the rounds.

The raw samples are in sync_ps.json; `python benchmarks/sync_ps.py --results FILE` computes the lines again from it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from base64 import b64decode
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.sync_ps_ways import SERVE, WORKER, Scenario
from mms_operator.engine.certificates import secrets
from mms_operator.plan.types import Certificates

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = int(os.environ.get("MMS_BENCH_ROUNDS", "5"))
SAMPLED_MEGABYTES = 512  # of both directions in a sample, in at least three exchanges after two that warm up
STREAM = {"C-stream": {}, "C-stream tuned": {"CALL": str(1 << 20), "LOW_WATER": str(1 << 19)}}
WAYS = (*STREAM, *SERVE)
LIMIT_SECONDS = 300.0
MEGABYTE = 1 << 20
GOAL_MEGABYTES = (64, 16, 256, 1)  # the first is the last line

_context = multiprocessing.get_context("fork")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, help="print the lines of this file instead of measuring")
    arguments = parser.parse_args()
    if arguments.results:
        report(json.loads(arguments.results.read_text()))
        return
    torch.set_num_threads(1)  # a process that has run torch's threads cannot be forked
    with tempfile.TemporaryDirectory() as folder:
        program = compiled(Path(folder))
        scenarios = wanted(certificates(Path(folder)))
        samples: dict[str, Any] = {
            "cores": os.cpu_count(),
            "openssl": openssl(),
            "scenarios": {one.name: {way: [] for way in WAYS} for one in scenarios},
        }
        for number in range(ROUNDS):
            print(f"round {number + 1} of {ROUNDS}", file=sys.stderr)
            for scenario in scenarios:
                for way in WAYS:
                    rate = sample(way, scenario, program)
                    samples["scenarios"][scenario.name][way].append(rate)
    file = Path(os.environ.get("MMS_RESULTS", "benchmarks/results")) / "sync_ps.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(samples, indent=1))
    print(f"samples: {file}")
    report(samples)


def wanted(folder: Path) -> list[Scenario]:
    def dense(megabytes: int, workers: int = 1) -> Scenario:
        specs = ((torch.float32, (megabytes * MEGABYTE // 4,)),)
        return Scenario(label(megabytes, workers), specs, specs, workers, folder)

    rows = (torch.float32, (50_000, 100))
    sparse = Scenario("rows", ((torch.int64, rows[1][:1]), rows), (rows,), 1, folder)
    several = [dense(megabytes, workers) for workers in (2, 4) for megabytes in (16, 64)]
    all_of_them = [*(dense(megabytes) for megabytes in (1, 16, 64, 256)), sparse, *several]
    chosen = os.environ.get("MMS_BENCH_SCENARIOS")
    return [one for one in all_of_them if not chosen or one.name in chosen.split(",")]


def label(megabytes: int, workers: int = 1) -> str:
    return f"{megabytes}MB" if workers == 1 else f"{megabytes}MB-{workers}-workers"


def report(samples: dict[str, Any]) -> None:
    """The lines, from the raw samples alone."""
    scenarios = samples["scenarios"]
    print(f"{samples['cores']} cores, not capped, loopback; {samples['openssl']}; GB/s of both directions together")
    for name, rates in scenarios.items():
        print(f"{name:<16} " + "  ".join(f"{way} {statistics.median(rates[way]):.2f}" for way in rates))
    order = [name for name in scenarios if name not in {label(size) for size in GOAL_MEGABYTES}]
    order += [label(size) for size in reversed(GOAL_MEGABYTES) if label(size) in scenarios]
    for name in order:
        for peer in ("gloo", "torch RPC", "ZeroMQ", "C-stream tuned"):
            line(name, scenarios[name], "ours", peer)
        print_tls(name, scenarios[name])
        line(name, scenarios[name], "ours", "gRPC")
        line(name, scenarios[name], "ours", "C-stream")


def line(name: str, rates: dict[str, list[float]], own: str, peer: str) -> None:
    suffix = "" if peer == "C-stream" else f"-vs-{peer.replace(' ', '-')}"
    text = f"{statistics.median(rates[own]):.2f} GB/s vs {peer} {statistics.median(rates[peer]):.2f} GB/s"
    print(f"RESULT ps-push-pull-{name}{suffix} {text}: {ratio(rates, own, peer):.2f}x")


def print_tls(name: str, rates: dict[str, list[float]]) -> None:
    for peer in ("C-stream", "ours"):
        text = f"{statistics.median(rates['ours TLS']):.2f} GB/s vs {'plain' if peer == 'ours' else peer}"
        value = f"{statistics.median(rates[peer]):.2f} GB/s: {ratio(rates, 'ours TLS', peer):.2f}x"
        print(f"RESULT ps-push-pull-tls-{name}{'' if peer == 'ours' else '-vs-C-stream'} {text} {value}")


def ratio(rates: dict[str, list[float]], own: str, peer: str) -> float:
    return statistics.median(one / other for one, other in zip(rates[own], rates[peer], strict=True))


# ---- samples


def sample(way: str, scenario: Scenario, program: Path) -> float:
    """GB/s."""
    moved = (scenario.bytes_up + scenario.bytes_down) * scenario.workers
    repeats = max(3, SAMPLED_MEGABYTES * MEGABYTE // moved)
    seconds = (stream(way, scenario, program, repeats + 2) if way in STREAM else processes(way, scenario, repeats + 2))[
        2:
    ]
    return moved / statistics.median(seconds) / 1e9


def stream(way: str, scenario: Scenario, program: Path, repeats: int) -> list[float]:
    port = free_port()
    numbers = [str(n) for n in (port, scenario.workers, scenario.bytes_up, scenario.bytes_down, repeats)]
    environment = {**os.environ, **STREAM[way]}
    with subprocess.Popen([program, "server", *numbers], stdout=subprocess.PIPE, env=environment) as server:
        assert server.stdout
        server.stdout.readline()  # it listens
        try:
            command = [str(program), "client", *numbers]
            text = subprocess.check_output(command, env=environment, timeout=LIMIT_SECONDS, text=True)
        finally:
            server.kill()
    return [float(seconds) for seconds in text.split()]


def processes(way: str, scenario: Scenario, repeats: int) -> list[float]:
    """Seconds of each repeat, from the first worker's beginning to the last one's end."""
    ports, results = _context.SimpleQueue(), _context.SimpleQueue()
    barrier = _context.Barrier(scenario.workers)
    server = start(SERVE[way], scenario, repeats, ports.put)
    port = ports.get()
    workers = [
        start(work, way, scenario, port, number, repeats, barrier, results) for number in range(scenario.workers)
    ]
    times = [result_of(results, workers, way) for _ in workers]
    for process in (*workers, server):
        process.join(LIMIT_SECONDS)
        assert process.exitcode == 0, f"{way}: a process ended with {process.exitcode}"
    return [max(end for _, end in turn) - min(begin for begin, _ in turn) for turn in zip(*times, strict=True)]


def result_of(results: Any, workers: list[Any], way: str) -> list[tuple[float, float]]:
    """The next one; not waited for when a worker has died."""
    while results.empty():
        assert not any(worker.exitcode for worker in workers), f"{way}: a worker died"
        time.sleep(0.05)
    found: list[tuple[float, float]] = results.get()
    return found


def work(  # noqa: PLR0917 - the arguments of a process
    way: str, scenario: Scenario, port: int, number: int, repeats: int, barrier: Any, results: Any
) -> None:
    exchange = WORKER[way](scenario, port, number)
    times = []
    for _ in range(repeats):
        barrier.wait()
        began = time.monotonic()  # the same clock in all processes
        exchange()
        times.append((began, time.monotonic()))
    results.put(times)
    getattr(exchange, "close", lambda: None)()


def start(function: Callable[..., None], *arguments: Any) -> Any:
    def run() -> None:
        torch.set_num_threads(1)
        function(*arguments)

    process = _context.Process(target=run, daemon=True)
    process.start()
    return process


# ---- what it needs


def compiled(folder: Path) -> Path:
    """c_stream, by the compiler that the native library is made with."""
    program = folder / "c_stream"
    source = Path(__file__).with_name("c_stream.c")
    command = [sys.executable, "-m", "ziglang", "cc", "-O3", "-pthread", "-fno-sanitize=undefined"]
    subprocess.run([*command, str(source), "-o", str(program)], check=True)
    return program


def certificates(folder: Path) -> Path:
    """A worker's folder, as the operator makes it."""
    owner = {"metadata": {"name": "bench", "namespace": "bench", "uid": "bench"}}
    made = secrets(Certificates(owner, {}, ("master",), 1, ("worker",)), datetime.now(UTC))
    home = folder / "worker"
    home.mkdir()
    for file, text in made[-1]["data"].items():
        (home / file).write_bytes(b64decode(text))
    return home


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def openssl() -> str:
    return ssl.OPENSSL_VERSION


if __name__ == "__main__":
    main()
