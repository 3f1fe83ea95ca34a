"""How much of its undisturbed rate a training keeps while its workers die: ours against torchrun elastic.

Goodput is the steps that are part of the parameters at the end, over those that the same two workers would have made
undisturbed in the same time. The undisturbed rate is the mean of that before and after, since machines drift; the pods
of both train the same model and are capped at half a core each.
For SECONDS a worker's process is killed every 30 s, and every two minutes a worker's pod is deleted instead.

torchrun loses what it has done since its last checkpoint, so its interval is tuned: by Young's formula (1974), the
square root of twice the cost of a save (some ten milliseconds here) times the time between two failures, it is about a
second.
"""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

from benchmarks import torchrun
from benchmarks.on_cluster import (
    NAMESPACE,
    RESULTS,
    delete_pod,
    kill_process,
    kubectl,
    pod,
    prepare,
    step,
    train,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = float(os.environ.get("SECONDS_DISTURBED", "900"))
QUIET_SECONDS = float(os.environ.get("SECONDS_QUIET", "120"))
EVERY = 30.0
POD_EVERY = 4  # kills
SAVE_SECONDS = 1.0
FILE = RESULTS / "goodput.json"


def goodput(step: Callable[[], int], kill: Callable[[int], None]) -> dict[str, float]:
    before = undisturbed(step)
    began, first = time.monotonic(), step()
    turn = 1
    while (left := began + SECONDS - time.monotonic()) > 0:
        time.sleep(min(left, max(0.0, began + turn * EVERY - time.monotonic())))
        if turn * EVERY < SECONDS and time.monotonic() >= began + turn * EVERY:
            kill(turn)
            turn += 1
            print(f"{time.monotonic() - began:.0f} s: step {step()}", flush=True)
    took = time.monotonic() - began
    done = step() - first
    rate = (before + undisturbed(step)) / 2
    return {"rate": rate, "steps": done, "seconds": took, "kills": turn - 1, "goodput": done / (rate * took)}


def undisturbed(step: Callable[[], int]) -> float:
    """Steps per second."""
    began, first = time.monotonic(), step()
    time.sleep(QUIET_SECONDS)
    return (step() - first) / (time.monotonic() - began)


def kill_ours(turn: int) -> None:
    name = until("a pod", partial(pod, "words", "worker", turn % 2))
    (kill_process if turn % POD_EVERY else delete_pod)(name)


def kill_theirs(image: str, turn: int) -> None:
    if turn % POD_EVERY:
        torchrun.kill_worker(turn % 2)
    else:
        torchrun.replace_pod(image, SAVE_SECONDS)


def main() -> int:
    image, text = prepare()
    found: dict[str, dict[str, float]] = {}
    try:
        train("words")
        found["ours"] = goodput(partial(step, "words"), kill_ours)
        kubectl("delete", "mt/words")
        torchrun.start(image, text, SAVE_SECONDS)
        found["torchrun"] = goodput(torchrun.step, partial(kill_theirs, image))
    finally:
        FILE.parent.mkdir(parents=True, exist_ok=True)
        FILE.write_text(json.dumps(found), encoding="utf-8")
        kubectl("delete", "namespace", NAMESPACE, "--wait=false", check=False)
    print(json.dumps(found, indent=1))
    ours, theirs = (found[name]["goodput"] for name in ("ours", "torchrun"))
    print(f"RESULT goodput {ours:.3f} of undisturbed vs torchrun {theirs:.3f} of undisturbed: {ours / theirs:.2f}x")
    return 0


if __name__ == "__main__":
    sys.exit(main())
