"""Requests a second within the objective: the way of batching that a pod finds, ours untuned, and Triton's default.

`make bench-autotune`. A serving pod is processes on this machine; word vectors of 30,000 words and 100 numbers, ten
neighbours of one word in a request. Each way is loaded in turn, ROUNDS times, and measured as a pod measures itself: so
many requests at a time, more and more, from one process beside Triton. Its rate is that of the best point within the
objective. Triton's default is without dynamic batching, and with one process for each model.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

from mms_workloads.contract import Batching, Golden, Measured
from mms_workloads.serve import surveying, tuning
from mms_workloads.serve.control import Triton
from mms_workloads.serve.layout import Layout
from tests.unit.serve.serving_pod import ServingPod, wait
from tests.unit.serve.triton_home import triton_home

ROUNDS = int(os.environ.get("MMS_BENCH_ROUNDS", "5"))
OBJECTIVE = 0.05  # seconds, of 99 in 100
LIMIT_SECONDS = 110.0
WORDS, DIMENSIONS = 30_000, 100
FILE = Path(os.environ.get("MMS_RESULTS", "benchmarks/results")) / "autotune.json"


async def without_batching(layout: Layout, triton: Triton) -> None:
    await surveying.run(Batching(), layout, triton)
    for config in layout.repository.glob("*/config.pbtxt"):
        config.write_text(re.sub(r"dynamic_batching \{.*\}\n", "", config.read_text()))
    await triton.load()


async def measured(triton: Triton, cases: Golden) -> Measured:
    found = await triton.measure(cases, 30.0)
    if found.error:
        raise RuntimeError(found.error)
    return found


async def work(layout: Layout, cases: Golden) -> dict[str, list[float]]:
    triton = Triton(f"http://127.0.0.1:{layout.http_port}", layout.control_key.read_text().strip())

    async def run(batching: Batching) -> Measured:
        await surveying.run(batching, layout, triton)
        found = await triton.measure(cases, 30.0)
        print(f"{batching.model_dump()}: {tuning.rate(found.curve, OBJECTIVE):.0f} requests/s", flush=True)
        return found

    try:
        began = time.monotonic()
        found, tried = await tuning.search(
            Batching(), run, OBJECTIVE, lambda: began + LIMIT_SECONDS - time.monotonic()
        )  # fmt: skip
        best = found.batching or Batching()
        print(f"found in {time.monotonic() - began:.0f} s of {tried}: {best.model_dump()}", flush=True)
        rates: dict[str, list[float]] = {"tuned": [], "untuned": [], "without batching": []}
        for _ in range(ROUNDS):
            for way, values in rates.items():
                if way == "without batching":
                    await without_batching(layout, triton)
                else:
                    await surveying.run(best if way == "tuned" else Batching(), layout, triton)
                values.append(tuning.rate((await measured(triton, cases)).curve, OBJECTIVE))
            print({way: round(values[-1]) for way, values in rates.items()}, flush=True)
    finally:
        await triton.close()
    return rates


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        pod = ServingPod(Path(folder), triton_home(), size=WORDS, dimensions=DIMENSIONS)
        try:
            if pod.start("fetch").wait(120):
                raise RuntimeError("fetch failed")
            pod.start_triton()
            pod.start("agent")
            wait(lambda: pod.readyz()[0] == 200, 120)
            pod.processes.pop("agent").kill()  # it would load the models again
            layout = Layout(pod.root / "models", *pod.ports)
            cases = Golden.model_validate_json((pod.built.folder / "golden.json").read_bytes())
            asked = [case for case in cases.cases if case.model == "neighbours"]
            rates = asyncio.run(work(layout, cases.model_copy(update={"cases": asked})))
        finally:
            pod.stop()
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(json.dumps(rates), encoding="utf-8")
    tuned = statistics.median(rates["tuned"])
    for name, way in (("autotune-untuned", "untuned"), ("autotune", "without batching")):
        ratio = statistics.median(a / b for a, b in zip(rates["tuned"], rates[way], strict=True))
        other = statistics.median(rates[way])
        print(f"RESULT {name} {tuned:.0f} requests/s vs {way.replace(' ', '-')} {other:.0f} requests/s: {ratio:.2f}x")
    return 0


if __name__ == "__main__":
    sys.exit(main())
