"""A client that does not retry, run in a pod: it asks at fixed times, whatever became of what it asked before.

    python open_loop.py HOST RATE

Each of three ways asks RATE times a second: `close` (HTTP, a connection for each request), `keep` (HTTP, connections
are kept), `grpc` (one channel). A file `key` beside this one is the API key that it sends, `ca.crt` the authority that
it trusts: it asks over TLS then. `question.json`: the model and its inputs, as HTTP has them; absent, the neighbours of
a word. SIGTERM ends it; a line of JSON says what became of each way's requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import ssl
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import numpy as np
import tritonclient.grpc.aio as triton

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

TIMEOUT = 20.0
CONNECTED_WITHIN = 10.0  # seconds
HTTP, GRPC = 8000, 8001
KEY, CA, QUESTION = (Path(__file__).with_name(name) for name in ("key", "ca.crt", "question.json"))
HEADERS = {"authorization": f"Bearer {KEY.read_text()}"} if KEY.exists() else {}
SCHEME = "https" if CA.exists() else "http"
WORD: dict[str, Any] = {
    "model": "neighbours",
    "inputs": [
        {"name": "WORDS", "datatype": "BYTES", "shape": [1, 1], "data": ["congress"]},
        {"name": "K", "datatype": "INT32", "shape": [1, 1], "data": [3]},
    ],
}
ASKED = json.loads(QUESTION.read_text()) if QUESTION.exists() else WORD
MODEL, INPUTS = ASKED["model"], ASKED["inputs"]
OUTPUTS = ["VERSION"]  # of each model
TYPES: dict[str, Any] = {"BYTES": object, "INT32": np.int32, "FP32": np.float32}


class Way:
    """What became of the requests of one way of asking."""

    def __init__(self, ask: Callable[[], Awaitable[str]]) -> None:
        self.ask = ask
        self.sent = 0
        self.versions: Counter[str] = Counter()
        self.failed: list[tuple[float, str]] = []  # seconds after the way's beginning, what
        self.seconds: list[float] = []
        self.began = time.monotonic()

    async def one(self) -> None:
        self.sent += 1
        began = time.monotonic()
        try:
            self.versions[await self.ask()] += 1
        except Exception as error:  # noqa: BLE001 - whatever a client sees counts
            self.failed.append((round(began - self.began, 2), f"{type(error).__name__}: {error}"[:200]))
        self.seconds.append(time.monotonic() - began)

    def summary(self) -> dict[str, Any]:
        slowest = sorted(self.seconds)
        p99 = slowest[int(0.99 * (len(slowest) - 1))] if slowest else 0.0
        times = [when for when, _ in self.failed]
        return {"sent": self.sent, "failed": self.failed[:20], "failures": len(self.failed),
                "failed_for": round(max(times) - min(times), 2) if times else 0.0,
                "versions": dict(self.versions), "p99": round(p99, 3)}  # fmt: skip


async def connected(host: str, port: int) -> None:
    """The node's rules for the service are there. Asks nothing, so that what sleeps goes on sleeping."""
    deadline = time.monotonic() + CONNECTED_WITHIN
    while True:
        try:
            _, writer = await asyncio.open_connection(host, port)
        except OSError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return


async def main(host: str, rate: float) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await asyncio.gather(connected(host, HTTP), connected(host, GRPC))
    timeout = aiohttp.ClientTimeout(total=TIMEOUT)
    trusted = ssl.create_default_context(cafile=CA) if CA.exists() else True
    async with (
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True, ssl=trusted), timeout=timeout, headers=HEADERS
        ) as closing,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusted), timeout=timeout, headers=HEADERS) as keeping,
    ):
        tls = {"ssl": True, "root_certificates": str(CA)} if CA.exists() else {}
        channel = triton.InferenceServerClient(f"{host}:{GRPC}", **tls)
        ways = {
            "close": Way(lambda: over_http(closing, host)),
            "keep": Way(lambda: over_http(keeping, host)),
            "grpc": Way(lambda: over_grpc(channel)),
        }
        asked: set[asyncio.Task[None]] = set()
        number, began = 0, time.monotonic()
        print("asking", flush=True)  # noqa: T201 - the pod's log
        while not stop.is_set():
            for way in ways.values():
                task = asyncio.create_task(way.one())
                asked.add(task)
                task.add_done_callback(asked.discard)
            number += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), max(0.0, began + number / rate - time.monotonic()))
        if asked:
            await asyncio.wait(asked)
        await channel.close()
    print(json.dumps({name: way.summary() for name, way in ways.items()}), flush=True)  # noqa: T201 - as above


async def over_http(session: aiohttp.ClientSession, host: str) -> str:
    body = {"inputs": INPUTS, "outputs": [{"name": name} for name in OUTPUTS]}
    async with session.post(f"{SCHEME}://{host}:{HTTP}/v2/models/{MODEL}/infer", json=body) as answer:
        found = await answer.json()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status} {found}")
        return str(next(one["data"][0] for one in found["outputs"] if one["name"] == "VERSION"))


async def over_grpc(channel: triton.InferenceServerClient) -> str:
    answer = await channel.infer(MODEL, [tensor(one) for one in INPUTS], client_timeout=TIMEOUT, headers=HEADERS)
    return str(answer.as_numpy("VERSION").flat[0])


def tensor(said: dict[str, Any]) -> triton.InferInput:
    made = triton.InferInput(said["name"], said["shape"], said["datatype"])
    values = [one.encode() if isinstance(one, str) else one for one in said["data"]]
    made.set_data_from_numpy(np.array(values, dtype=TYPES[said["datatype"]]).reshape(said["shape"]))
    return made


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))
