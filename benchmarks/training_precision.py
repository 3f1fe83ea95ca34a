"""What products in BF16 do for training on this CPU: speed and accuracy. `make bench-training-precision`.

Networks of layers as wide as usual ones, each trained as optimizer.precision Auto has it, in FP32, and by a plain loop
of PyTorch in float32 (tests/unit/tasks/plain.py), on the same samples, for as many steps, with one thread each; the
three take turns. Speeds are medians and ratios medians of the rounds' ratios; the metric, of the same held-out blocks,
is the mean over the seeds, and Auto's must not be worse than FP32's by more than the case's margin.

Before that the rule by which Auto chooses: of transformers of several widths the operations of a product by byte
(train.precision.intensity), and how much faster a step is in BF16. On a CPU without instructions for it Auto is FP32.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from benchmarks import tasks
from mms_workloads.contract import LanguageModel
from mms_workloads.language.learner import cross_entropy
from mms_workloads.language.transformer import SYMBOLS, Transformer
from mms_workloads.train import precision
from tests.unit.tasks import datasets
from tests.unit.tasks.test_task_runs import job

if TYPE_CHECKING:
    from collections.abc import Callable

    from mms_workloads.contract import JobFile

ROUNDS = int(os.environ.get("MMS_BENCH_ROUNDS", "3"))
ONLY = os.environ.get("MMS_BENCH_TASKS", "")
WIDTHS = (64, 128, 192, 256, 384, 512)
STEPS = 5


class Case(NamedTuple):
    data: Callable[[Path], str]
    task: dict[str, Any]
    metric: str
    margin: float
    optimizer: dict[str, Any]
    less: bool = False  # is better


CASES = {
    "language-model": Case(
        lambda folder: datasets.manual(folder, 200_000),
        {"languageModel": {"dimensions": 384, "layers": 2, "heads": 6, "contextLength": 64}},
        "bitsPerByte",
        0.05,
        {"epochs": 1, "globalBatchSize": 16},
        less=True,
    ),
    "image-classification": Case(
        datasets.image_folder,
        {"imageClassification": {"architecture": "timm/vit_tiny_patch16_224", "height": 32, "width": 32}},
        "accuracy",
        0.03,
        {"epochs": 6, "globalBatchSize": 32},
    ),
    "text-classification": Case(
        lambda folder: datasets.opinions(folder, 4000),
        {"textClassification": {"dimensions": 256, "maxLength": 32}},
        "accuracy",
        0.02,
        {"epochs": 3, "globalBatchSize": 32},
    ),
}


def main() -> int:
    torch.set_num_threads(1)
    print(f"instructions for BF16: {precision.supported()}")
    for width in WIDTHS:
        by_byte, gain = rule(width)
        print(f"transformer of {width} dimensions: {by_byte:.0f} operations a byte, a step in BF16 {gain:.2f}x as fast")
    failed = False
    for name, case in CASES.items():
        if not ONLY or name in ONLY.split(","):
            failed |= not compared(name, case)
    return int(failed)


def rule(width: int) -> tuple[float, float]:
    """Operations by byte; how much faster a step is, by the processor's time."""
    network = Transformer(LanguageModel(dimensions=width, layers=2, heads=8, contextLength=128), 1)
    batch = torch.randint(SYMBOLS, (8, 129))
    seconds: dict[str, list[float]] = {"FP32": [], "BF16": []}
    for number in range(STEPS + 1):
        for name, taken in seconds.items():
            began = time.thread_time()
            with torch.autocast("cpu", torch.bfloat16) if name == "BF16" else nullcontext():
                loss = cross_entropy(network, batch)
            loss.backward()
            if number:  # the first warms up
                taken.append(time.thread_time() - began)
    by_byte = precision.intensity(network, lambda given: given(batch[:, :-1]))
    return by_byte, min(seconds["FP32"]) / min(seconds["BF16"])


def compared(name: str, case: Case) -> bool:
    """Prints the results; whether Auto's metric is as good."""
    rates: dict[str, list[float]] = {"Auto": [], "FP32": [], "plain": []}
    scores: dict[str, list[float]] = {"Auto": [], "FP32": [], "plain": []}
    for number in range(ROUNDS):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            uri = case.data(folder / "data")
            for wanted in ("Auto", "FP32"):
                training = of(case, folder / wanted, uri, wanted, seed=number + 1)
                rate, metrics = tasks.ours(training, folder / wanted)
                rates[wanted].append(rate)
                scores[wanted].append(metrics[case.metric])
            (folder / "job.json").write_text(training.model_dump_json(exclude_none=True))
            (loop,) = tasks.beside(folder, 1)
            rates["plain"].append(loop["rate"])
            scores["plain"].append(loop["metrics"][case.metric])
        print(
            f"{name}: " + ", ".join(f"{way} {rates[way][-1]:.0f}/s {scores[way][-1]:.3f}" for way in rates), flush=True
        )
    means = {way: statistics.mean(values) for way, values in scores.items()}
    print(f"  {case.metric}: " + ", ".join(f"{way} {mean:.4f}" for way, mean in means.items()))
    mine = statistics.median(rates["Auto"])
    for way, said in (("FP32", "ours in FP32"), ("plain", "plain PyTorch")):
        ratio = statistics.median(a / b for a, b in zip(rates["Auto"], rates[way], strict=True))
        suffix = "-vs-fp32" if way == "FP32" else ""
        other = statistics.median(rates[way])
        print(f"RESULT bf16-{name}{suffix} {mine:.0f} samples/s vs {said} {other:.0f} samples/s: {ratio:.2f}x")
    worse = means["Auto"] - means["FP32"]
    return (worse if case.less else -worse) <= case.margin


def of(case: Case, folder: Path, uri: str, wanted: str, *, seed: int) -> JobFile:
    folder.mkdir()
    optimizer = {**case.optimizer, "seed": seed, "precision": wanted}
    more = {"data": {"blockBytes": 16 << 10}, "checkpoint": tasks.CHECKPOINT}
    return job(folder, case.task, uri, workers=1, optimizer=optimizer, **more)


if __name__ == "__main__":
    sys.exit(main())
