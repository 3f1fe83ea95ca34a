"""Requests a second within the objective: the way of batching that a pod finds, ours untuned, and Triton's default.

`make bench-autotune`. A serving pod is processes on this machine. Three models: ten neighbours of a word among 30,000
of 100 numbers; digits of 8x8 pixels by a convolutional network, from PNG files; opinions by a transformer, from texts;
the latter two as trainings publish them. Each way is loaded in turn, ROUNDS times, and measured as a pod measures
itself: so many golden questions at a time, more and more, from one process beside Triton. Its rate is that of the best
point within the objective. Triton's default is without dynamic batching, and with one process for a model.
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
from typing import TYPE_CHECKING, Any

import numpy as np

from mms_workloads.contract import Batching, Golden, JobFile, Measured
from mms_workloads.serve import surveying, tuning
from mms_workloads.serve.control import Triton
from mms_workloads.serve.layout import Layout, read_models
from mms_workloads.train.local import LocalRun
from tests.unit.serve import artifacts
from tests.unit.serve.serving_pod import ServingPod, wait
from tests.unit.serve.triton_home import triton_home
from tests.unit.tasks import datasets

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = int(os.environ.get("MMS_BENCH_ROUNDS", "5"))
MODELS = os.environ.get("MMS_BENCH_MODELS", "neighbours,images,texts").split(",")
OBJECTIVE = 0.05  # seconds, of 99 in 100
LIMIT_SECONDS = 110.0
TRAINING_SECONDS = 300.0
WORDS, DIMENSIONS = 30_000, 100
FILE = Path(os.environ.get("MMS_RESULTS", "benchmarks/results")) / "autotune.json"


def neighbours(folder: Path) -> artifacts.Built:
    return artifacts.build(folder, size=WORDS, dimensions=DIMENSIONS)


def images(folder: Path) -> artifacts.Built:
    uri = datasets.image_folder(folder / "digits")
    return published(folder, {"imageClassification": {"height": 8, "width": 8, "channels": 1}}, uri)


def texts(folder: Path) -> artifacts.Built:
    uri = datasets.opinions(folder / "opinions", 2000)
    return published(folder, {"textClassification": {"dimensions": 64, "maxLength": 128}}, uri)


def job(folder: Path, task: dict[str, Any], uri: str) -> JobFile:
    return JobFile.model_validate(
        {
            "job": {"namespace": "b", "name": "b", "uid": "b", "run": 1},
            "task": task,
            "data": {"store": {"uri": uri}, "blockBytes": 16 << 10},
            "optimizer": {"name": "AdamW", "learningRate": 0.002, "globalBatchSize": 64, "epochs": 2},
            "evaluation": {"split": 0.2},
            "workers": 1,
            "storage": {"uri": f"file://{folder}/storage"},
            "masterHost": "127.0.0.1",
        }
    )


def published(folder: Path, task: dict[str, Any], uri: str) -> artifacts.Built:
    """What a short training makes of a small data set."""
    with LocalRun(folder / "run", job(folder, task, uri)) as run:
        run.start()
        outcome = run.outcome(TRAINING_SECONDS)
    if outcome.artifact is None:
        raise SystemExit(f"{outcome}")
    place = Path(outcome.artifact.uri.removeprefix("file://"))
    return artifacts.Built(place, outcome.artifact.digest, [], np.zeros(0))


SUBJECTS: dict[str, tuple[Callable[[Path], artifacts.Built], str]] = {
    "neighbours": (neighbours, "neighbours"), "images": (images, "classify"), "texts": (texts, "classify"),
}  # fmt: skip


async def without_batching(layout: Layout, triton: Triton) -> None:
    await surveying.run(Batching(), layout, triton)
    for config in layout.repository.glob("*/config.pbtxt"):
        config.write_text(re.sub(r"dynamic_batching \{.*\}\n", "", config.read_text()))
    await triton.load()


async def measured(triton: Triton, cases: Golden) -> Measured:
    found = await triton.measure(cases, 30.0, OBJECTIVE)
    if found.error:
        raise RuntimeError(found.error)
    return found


async def work(layout: Layout, cases: Golden) -> dict[str, list[float]]:
    names = read_models(layout.running).names
    triton = Triton(f"http://127.0.0.1:{layout.http_port}", layout.control_key.read_text().strip(), names)

    async def run(batching: Batching) -> Measured:
        await surveying.run(batching, layout, triton)
        found = await triton.measure(cases, 30.0, OBJECTIVE)
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
    found = {}
    for name in MODELS:
        print(name, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            build, model = SUBJECTS[name]
            found[name] = compared(Path(folder), build(Path(folder) / "made"), model)
        told(name, found[name])
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(json.dumps(found), encoding="utf-8")
    return 0


def compared(folder: Path, built: artifacts.Built, model: str) -> dict[str, list[float]]:
    """Requests a second of each way, in each round."""
    pod = ServingPod(folder / "pod", triton_home(), built=built)
    try:
        if pod.start("fetch").wait(120):
            raise RuntimeError("fetch failed")
        pod.start_triton()
        pod.start("agent")
        wait(lambda: pod.readyz()[0] == 200, 120)
        pod.processes.pop("agent").kill()  # it would load the models again
        layout = Layout(pod.root / "models", *pod.ports)
        cases = Golden.model_validate_json((built.folder / "golden.json").read_bytes())
        asked = [case for case in cases.cases if case.model == model]
        return asyncio.run(work(layout, cases.model_copy(update={"cases": asked})))
    finally:
        pod.stop()


def told(name: str, rates: dict[str, list[float]]) -> None:
    tuned = statistics.median(rates["tuned"])
    for which, way in ((f"autotune-untuned-{name}", "untuned"), (f"autotune-{name}", "without batching")):
        ratio = statistics.median(a / b for a, b in zip(rates["tuned"], rates[way], strict=True))
        other = statistics.median(rates[way])
        print(
            f"RESULT {which} {tuned:.0f} requests/s vs {way.replace(' ', '-')} {other:.0f} requests/s: {ratio:.2f}x",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
