"""How much of its undisturbed rate a training keeps while its workers die: ours against torchrun elastic.

Goodput is the steps that are part of the parameters at the end, over those that the same two workers would have made
undisturbed in the same time. Machines drift within such a time by more than what is measured, so the undisturbed rate
is taken all along: of ours in the half of each interval that ends with the next kill. torchrun is not back by then;
its rate is that before and after, and ours by that measure is told as well. The pods of both train the same model and
are capped at half a core each.
For SECONDS_DISTURBED a worker's process is killed every 30 s, and every two minutes a worker's pod is deleted instead.
Ours has a third pod that stands by. torchrun has none, but its pod is made again at once: while a node more than it
needs waits for it, it starts its workers again and again, and makes no step between two kills.

SIDES=torchrun measures one side again, and takes the other from goodput.json.

torchrun loses what it has done since its last checkpoint, so its interval is tuned: by Young's formula (1974), the
square root of twice the cost of a save (some ten milliseconds here) times the time between two failures, it is about a
second.
"""

from __future__ import annotations

import contextlib
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
    inside,
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
SIDES = os.environ.get("SIDES", "ours,torchrun").split(",")
EVERY = 30.0
POD_EVERY = 4  # kills
SAVE_SECONDS = 1.0
FILE = RESULTS / "goodput.json"


def goodput(step: Callable[[], int], kill: Callable[[int], None], *, along: bool) -> dict[str, float]:
    """along: it is undisturbed again in half of the time between two kills."""
    before = undisturbed(step)
    began, first = time.monotonic(), step()
    turn = 1
    quiet_steps, quiet_seconds = 0, 0.0
    while began + SECONDS > time.monotonic():
        rest(began + (turn - 0.5) * EVERY, began + SECONDS)
        at, there = time.monotonic(), step()
        rest(began + turn * EVERY, began + SECONDS)
        if along:
            quiet_steps, quiet_seconds = quiet_steps + step() - there, quiet_seconds + time.monotonic() - at
        if turn * EVERY < SECONDS and time.monotonic() >= began + turn * EVERY:
            kill(turn)
            turn += 1
            print(f"{time.monotonic() - began:.0f} s: step {step()}", flush=True)
    took = time.monotonic() - began
    done = step() - first
    rate = (before + undisturbed(step)) / 2
    found = {"rate": rate, "steps": done, "seconds": took, "kills": turn - 1, "goodput": done / (rate * took)}
    if quiet_seconds:
        rate = quiet_steps / quiet_seconds
        found |= {"rate_along": rate, "goodput_along": done / (rate * took)}
    return found


def rest(moment: float, end: float) -> None:
    time.sleep(max(0.0, min(moment, end) - time.monotonic()))


def undisturbed(step: Callable[[], int]) -> float:
    """Steps per second."""
    began, first = time.monotonic(), step()
    time.sleep(QUIET_SECONDS)
    return (step() - first) / (time.monotonic() - began)


def kill_ours(turn: int) -> None:
    rank = sorted(inside("words"))[turn % 2]
    name = until("a pod", partial(pod, "words", "worker", rank))
    (kill_process if turn % POD_EVERY else delete_pod)(name)


def kill_theirs(image: str, turn: int) -> None:
    if turn % POD_EVERY:
        with contextlib.suppress(RuntimeError):  # its container is just being started again: nothing is left to kill
            torchrun.kill_worker(turn % 2)
    else:
        torchrun.replace_pod(image, SAVE_SECONDS)


def main() -> int:
    image, text = prepare()
    found: dict[str, dict[str, float]] = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    try:
        if "ours" in SIDES:
            train("words", standby=1)
            found["ours"] = goodput(partial(step, "words"), kill_ours, along=True)
            kubectl("delete", "mt/words")
        if "torchrun" in SIDES:
            torchrun.start(image, text, SAVE_SECONDS)
            found["torchrun"] = goodput(torchrun.step, partial(kill_theirs, image), along=False)
    finally:
        FILE.parent.mkdir(parents=True, exist_ok=True)
        FILE.write_text(json.dumps(found), encoding="utf-8")
        kubectl("delete", "namespace", NAMESPACE, "--wait=false", check=False)
    print(json.dumps(found, indent=1))
    print(f"ours, by the rate before and after: {found['ours']['goodput']:.3f}")
    ours, theirs = found["ours"]["goodput_along"], found["torchrun"]["goodput"]
    print(f"RESULT goodput {ours:.3f} of undisturbed vs torchrun {theirs:.3f} of undisturbed: {ours / theirs:.2f}x")
    return 0


if __name__ == "__main__":
    sys.exit(main())
