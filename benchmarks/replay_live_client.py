"""The client of replay_live.py, run in a pod: asks at given times, whatever became of what it asked before.

    python replay_live_client.py HOST MILLISECONDS COUNT TIMES

TIMES: a file of milliseconds from the beginning, in hundredths that COUNT requests are spread over evenly. Each request
has a connection of its own. The last line is JSON: how many were sent, answered within MILLISECONDS, and failed, and
the latency of the answers in seconds.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

import aiohttp
import numpy as np

BODY = json.dumps(
    {"inputs": [{"name": "WORDS", "datatype": "BYTES", "shape": [1, 1], "data": ["congress"]}]},
).encode()
TIMEOUT = 20.0


def arrivals(quantiles: list[float], count: int) -> list[float]:
    """Seconds of so many requests that are distributed as the quantiles say, milliseconds."""
    at = (np.arange(count) + 0.5) / count
    found: list[float] = (np.interp(at, np.linspace(0, 1, len(quantiles)), quantiles) / 1000).tolist()
    return found


async def main(host: str, within: float, times: list[float]) -> None:
    taken: list[float] = []
    failed: list[str] = []

    async def one(session: aiohttp.ClientSession) -> None:
        began = time.monotonic()
        try:
            async with session.post(f"http://{host}:8000/v2/models/neighbours/infer", data=BODY) as answer:
                await answer.read()
                answer.raise_for_status()
        except Exception as error:  # noqa: BLE001 - whatever a client sees counts
            failed.append(f"{type(error).__name__}: {error}"[:200])
        else:
            taken.append(time.monotonic() - began)

    connector = aiohttp.TCPConnector(force_close=True, limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=TIMEOUT)) as session:
        began, asked = time.monotonic(), []
        for at in times:
            await asyncio.sleep(max(0.0, began + at - time.monotonic()))
            asked.append(asyncio.create_task(one(session)))
        await asyncio.gather(*asked)
    good = sum(seconds <= within for seconds in taken)
    p50, p99 = np.percentile(taken, [50, 99]).tolist() if taken else (0.0, 0.0)
    said = {"sent": len(times), "within": good, "failed": len(failed), "errors": failed[:5], "p50": p50, "p99": p99}
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    host, milliseconds, count, file = sys.argv[1:]
    asyncio.run(main(host, float(milliseconds) / 1000, arrivals(json.loads(Path(file).read_text()), int(count))))
