"""Augmented samples per second: ours on batches, against torchvision on one process. `make bench-augmentation`.

Ours is data.augmentation: a block as a batch, in groups with parameters of their own, on one thread and on two reader
threads with a block each. torchvision is its transforms v2 in the way of their documentation: one image after the other
with the same kind of transform. Both on images that are decoded. Sides take turns; figures are medians over the rounds.

`worker busy` is the part of the time of a training step (the small built-in network's size of work: a convolutional
network on 32 x 32, forward and backward) that it need not wait for samples, with two reader threads ahead of it.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.others import Others, quiet, words
from mms_workloads.data import augmentation, dealing

from torchvision.transforms import v2  # isort: skip

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = int(os.environ.get("MMS_BENCH_ROUNDS", "7"))
BLOCKS = int(os.environ.get("MMS_BENCH_BLOCKS", "8"))
SHAPES = {"digits": (256, 1, 32, 32), "photographs": (64, 3, 224, 224)}
NAMES = ("Flip", "Crop", "Rotate", "Colour", "Noise")
BUSY = 0.95


def peer(name: str, size: list[int]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The transform that torchvision has under that name."""
    share, colour = augmentation.LEAST_SIDE**2, augmentation.COLOUR
    return {
        "Flip": v2.RandomHorizontalFlip(1.0),
        "Crop": v2.RandomResizedCrop(size, scale=(share, 1.0), antialias=False),
        "Rotate": v2.RandomRotation(augmentation.DEGREES, interpolation=v2.InterpolationMode.BILINEAR),
        "Colour": v2.ColorJitter(colour, colour, colour),
        "Noise": v2.Compose(
            [
                v2.ToDtype(torch.float32, scale=True),
                v2.GaussianNoise(0.0, augmentation.NOISE),
                v2.ToDtype(torch.uint8, scale=True),
            ]
        ),
    }[name]


def main() -> int:
    torch.set_num_threads(1)
    samples: dict[str, Any] = {"rates": {}, "busy": busy()}
    for data, shape in SHAPES.items():
        block = torch.randint(0, 256, shape, dtype=torch.uint8)
        samples["rates"][data] = {name: rates(name, block) for name in NAMES}
    file = Path(os.environ.get("MMS_RESULTS", "benchmarks/results")) / "augmentation.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(samples))
    return report(samples)


def rates(name: str, block: torch.Tensor) -> list[dict[str, Any]]:
    """Rounds: samples per second, by side."""
    single = peer(name, list(block.shape[-2:]))

    def ours(seed: int) -> None:
        augmentation.apply_images(name, block, torch.Generator().manual_seed(seed))

    def two() -> None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(ours, range(BLOCKS)))

    sides: dict[str, tuple[Callable[[], object], int]] = {
        "ours": (lambda: list(map(ours, range(BLOCKS))), BLOCKS),
        "two threads": (two, BLOCKS),
        "torchvision": (lambda: torch.stack([single(image) for image in block]), 1),
    }
    rounds = []
    clocks = {"two threads": time.perf_counter}  # of one thread the processor's time counts: others disturb it less
    for _ in range(ROUNDS):
        others, figures = Others(), {}
        for side, (work, blocks) in sides.items():
            clock = clocks.get(side, time.thread_time)
            began = clock()
            work()
            figures[side] = blocks * block.shape[0] / (clock() - began)
        rounds.append({**figures, "others": others.cores()})
    return rounds


def busy() -> list[dict[str, Any]]:
    """Rounds: the part of each data epoch's time that the step takes, with two threads that read ahead."""
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 32, 3, 1, 1), torch.nn.ReLU(), torch.nn.Conv2d(32, 64, 3, 2, 1), torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(1024, 10),
    )  # fmt: skip
    block = torch.randint(0, 256, SHAPES["digits"], dtype=torch.uint8)
    labels = torch.randint(0, 10, (block.shape[0],))

    def made(number: int, epoch: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(number)
        return augmentation.apply_images(dealing.chosen(("Identity", *NAMES), number, epoch), block, generator)

    found = []
    for epoch in range(ROUNDS):
        others, waited, began = Others(), 0.0, time.perf_counter()
        with ThreadPoolExecutor(2) as readers:
            ahead = [readers.submit(made, number, epoch) for number in range(BLOCKS)]
            for one in ahead:
                asked = time.perf_counter()
                pixels = one.result()
                waited += time.perf_counter() - asked
                for part, told in zip(pixels.split(64), labels.split(64), strict=True):
                    torch.nn.functional.cross_entropy(network(part.float() / 255), told).backward()
        found.append({"busy": 1 - waited / (time.perf_counter() - began), "others": others.cores()})
    return found


def report(samples: dict[str, Any]) -> int:
    print(words([one for by_name in samples["rates"].values() for rounds in by_name.values() for one in rounds]))
    ratios = []
    for data, by_name in samples["rates"].items():
        for name, all_rounds in by_name.items():
            rounds = quiet(all_rounds)
            middle = {side: statistics.median(one[side] for one in rounds) for side in rounds[0] if side != "others"}
            ratios.append(statistics.median(one["ours"] / one["torchvision"] for one in rounds))
            said = ", ".join(f"{side} {rate:,.0f}/s" for side, rate in middle.items())
            print(f"{data:12} {name:7} {said}: {ratios[-1]:.2f}x")
    part = statistics.median(one["busy"] for one in quiet(samples["busy"]))
    print(
        f"RESULT augmentation {statistics.geometric_mean(ratios):.2f}x torchvision on one thread (lowest "
        f"{min(ratios):.2f}x), worker busy {part:.1%}: goal {'reached' if part >= BUSY else 'missed'}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
