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
import re
import subprocess
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

from benchmarks import recovery
from benchmarks.recovery import KILL_CHILD, KILL_WORKER, NAMESPACE, PYTHON, kubectl, status, until

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = float(os.environ.get("SECONDS_DISTURBED", "900"))
QUIET_SECONDS = float(os.environ.get("SECONDS_QUIET", "120"))
EVERY = 30.0
POD_EVERY = 4  # kills
SAVE_SECONDS = 1.0
RESULTS = recovery.RESULTS.with_name("goodput.json")


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


def process(pod: str, script: str) -> None:
    subprocess.run(["kubectl", "-n", NAMESPACE, "exec", pod, "--", PYTHON, "-c", script], check=False)


def our_step() -> int:
    return int(status()["progress"]["step"])


def kill_ours(turn: int) -> None:
    pod = until("a pod", partial(recovery.worker, turn % 2))
    if turn % POD_EVERY:
        process(pod, KILL_CHILD)
    else:
        kubectl("delete", "pod", pod, "--grace-period=0", "--force", "--wait=false")


def their_step() -> int:
    """What counts is what both have: the lower of the last that each has told."""
    last = []
    for rank in range(2):
        lines = kubectl("logs", f"ddp-{rank}", "--tail=50", check=False)
        last.append([int(m[1]) for m in re.finditer(r"(?:AT|STEPPING) [\d.]+ (\d+)", lines)])
    return min((each[-1] for each in last if each), default=0)


def kill_theirs(image: str, turn: int) -> None:
    """Of pods only that of rank 1: the other one has the rendezvous, and its loss ends the job for good."""
    if turn % POD_EVERY:
        process(f"ddp-{turn % 2}", KILL_WORKER)
        return
    kubectl("delete", "pod", "ddp-1", "--grace-period=0", "--force", "--wait=false")
    until("its end", partial(recovery.gone, "ddp-1"))
    recovery.make_peer(image, 1, SAVE_SECONDS)


def main() -> int:
    image, text = recovery.prepare()
    found: dict[str, dict[str, float]] = {}
    try:
        recovery.train(recovery.CORPUS)
        found["ours"] = goodput(our_step, kill_ours)
        kubectl("delete", "mt/words")
        recovery.torchrun(image, text, SAVE_SECONDS)
        found["torchrun"] = goodput(their_step, partial(kill_theirs, image))
    finally:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(found), encoding="utf-8")
        kubectl("delete", "namespace", NAMESPACE, "--wait=false", check=False)
    print(json.dumps(found, indent=1))
    ours, theirs = (found[name]["goodput"] for name in ("ours", "torchrun"))
    print(f"RESULT goodput {ours:.3f} of undisturbed vs torchrun {theirs:.3f} of undisturbed: {ours / theirs:.2f}x")
    return 0


if __name__ == "__main__":
    sys.exit(main())
