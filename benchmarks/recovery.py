"""Seconds from a death to the next step, on real pods: ours against torchrun elastic with a checkpoint to reload.

Both train the same small transformer with two workers in two pods, each capped at half a core by its cgroup, so that a
survivor cannot take the dead one's share. What dies, as often as KILLS says ("process=30 pod=30 ..."):

- process: a worker's process by SIGKILL, of the two in turn.
- pod: a worker's pod, deleted without grace.
- node: the second of two nodes with a worker on it, at once and without a word (a cluster of our own only).
- master: the master's pod. No peer: torchrun's job ends with the pod that has its rendezvous.
- shard: a parameter shard's process; its rows and optimizer state come from the replica on the other shard, and are
  compared with it, so that a difference would be an incident.
- operator: both replicas of the operator. The figure is the rate of steps while they are away and come back, as a part
  of the rate before.

survivors: until a worker that was not killed has finished a step again. all: until both have, together. With torchrun
every worker is started anew and loads its last checkpoint (one every ten seconds), so both are the same there; a pod
that was deleted or was on the lost node is made again at once, as a Job would at best.

All times are of one machine's clock, read inside the pods and from the time stamps of their logs.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from functools import partial

from benchmarks import torchrun
from benchmarks.on_cluster import (
    NAMESPACE,
    RESULTS,
    delete_pod,
    kill_process,
    kubectl,
    machine,
    pod,
    prepare,
    status,
    step,
    stepping,
    train,
    until,
)

from mms_cluster import install

Samples = dict[str, list[float]]

FILE = RESULTS / "recovery.json"
KILLS = {"process": 30, "pod": 30, "node": 30, "master": 30, "shard": 30, "operator": 5}
SAVE_SECONDS = 10.0
REST_SECONDS = (1.5, 3.0)  # between a recovery and the next kill, at random: no kill meets the same moment of a step
OPERATOR_SECONDS = 30.0
HOME, AWAY = "mms-node-0", "mms-node-1"
SERVED = {"mode": "ParameterServer", "parameterServer": {"shards": 2, "replicas": 2}}


def wanted() -> dict[str, int]:
    """Of KILLS in the environment; all of it where that is not set."""
    if "KILLS" not in os.environ:
        return KILLS
    return {name: int(count) for name, _, count in (one.partition("=") for one in os.environ["KILLS"].split())}


def keep(samples: Samples, name: str, value: float, unit: str = "s") -> None:
    samples.setdefault(name, []).append(value)
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(json.dumps(samples), encoding="utf-8")
    print(f"{name} {len(samples[name])}: {value:.3f} {unit}", flush=True)


def rest() -> None:
    time.sleep(random.uniform(*REST_SECONDS))


def recovered(survivor: str, before: int, killed: float) -> tuple[float, float]:
    """Seconds to the survivor's next step, and to its next one with the other. No finished step may be lost."""
    alone, at = until("a survivor's step", partial(stepping, survivor, killed, 1))
    together, _ = until("all ranks' step", partial(stepping, survivor, killed, 2))
    if at <= before:
        raise AssertionError(f"it was at step {before} and goes on with {at}")
    return alone - killed, together - killed


def ring(samples: Samples, kills: dict[str, int]) -> None:
    train("ring")
    for kind in ("process", "pod", "node"):
        for turn in range(kills.get(kind, 0)):
            victim = 1 if kind == "node" else turn % 2
            if kind == "node":
                move_away(victim)
            rest()
            lost, survivor, before = pod("ring", "worker", victim), pod("ring", "worker", 1 - victim), step("ring")
            alone, together = recovered(survivor, before, kill(kind, lost))
            keep(samples, f"{kind}-survivors", alone)
            keep(samples, f"{kind}-all", together)
            if kind == "node":
                boot()
    for _ in range(kills.get("master", 0)):
        rest()
        survivor, before = pod("ring", "worker"), step("ring")
        keep(samples, "master", recovered(survivor, before, delete_pod(pod("ring", "master")))[1])
    for _ in range(kills.get("operator", 0)):
        keep(samples, "operator", without_operator(), "of the rate before")
    kubectl("delete", "mt/ring")


def kill(kind: str, name: str) -> float:
    if kind == "process":
        return kill_process(name)
    if kind == "pod":
        return delete_pod(name)
    at = time.time()
    machine("kill", AWAY)
    return at


def only(node: str) -> None:
    """New pods go there. All but a worker of the node's loss is on HOME."""
    kubectl("cordon", HOME if node == AWAY else AWAY)
    kubectl("uncordon", node)


def move_away(rank: int) -> None:
    only(AWAY)
    survivor = pod("ring", "worker", 1 - rank)
    until("the worker on its node", partial(stepping, survivor, delete_pod(pod("ring", "worker", rank)), 2))
    only(HOME)


def boot() -> None:
    machine("up")
    kubectl("wait", "--for=condition=Ready", "--timeout=120s", f"node/{AWAY}")


def without_operator() -> float:
    began, first, epoch = time.monotonic(), step("ring"), status("ring")["progress"]["epoch"]
    time.sleep(OPERATOR_SECONDS)
    rate = (step("ring") - first) / (time.monotonic() - began)
    began, first = time.monotonic(), step("ring")
    of_operator = ("-n", install.NAMESPACE, "-l", "app.kubernetes.io/component=operator")
    subprocess.run(["kubectl", "delete", "pod", "--grace-period=0", "--force", *of_operator], check=True)
    time.sleep(OPERATOR_SECONDS)
    until("the operator", lambda: step("ring") > first)  # it writes the status
    during = (step("ring") - first) / (time.monotonic() - began)
    if status("ring")["progress"]["epoch"] != epoch:
        raise AssertionError("the workers have met again")
    return during / rate


def shards(samples: Samples, kills: dict[str, int]) -> None:
    if not kills.get("shard"):
        return
    train("served", sync=SERVED)
    for turn in range(kills["shard"]):
        rest()
        worker, before = pod("served", "worker"), step("served")
        keep(samples, "shard", recovered(worker, before, kill_process(pod("served", "shard", turn % 2)))[1])
    if [one for one in status("served").get("incidents", []) if one["kind"] == "Corruption"]:
        raise AssertionError("a shard and its replica differ")
    kubectl("delete", "mt/served")


def peer(samples: Samples, kills: dict[str, int], image: str, text: bytes) -> None:
    torchrun.start(image, text, SAVE_SECONDS)
    for kind in ("process", "pod", "node"):
        for turn in range(kills.get(kind, 0)):
            if kind == "node":
                only(AWAY)
                torchrun.both_stepping(torchrun.replace_pod(image, SAVE_SECONDS))
                only(HOME)
            rest()
            if kind == "process":
                killed = torchrun.kill_worker(turn % 2)
            elif kind == "pod":
                killed = torchrun.replace_pod(image, SAVE_SECONDS)
            else:
                killed = kill("node", "")
                torchrun.replace_pod(image, SAVE_SECONDS)
            keep(samples, f"torchrun-{kind}", torchrun.both_stepping(killed) - killed)
            if kind == "node":
                boot()


def quantile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(part * (len(ordered) - 1)))]


def lines(samples: Samples) -> list[str]:
    """The RESULT lines, from the raw samples alone."""
    said = []
    for kind in ("process", "pod", "node"):
        theirs = samples.get(f"torchrun-{kind}", [])
        for who in ("all", "survivors"):
            mine = samples.get(f"{kind}-{who}", [])
            for label, part in (("p99", 0.99), ("p50", 0.5)):
                said.append(_line(f"recovery-{kind}-{who}-{label}", mine, theirs, part))
        said.append(_line(f"recovery-{kind}", samples.get(f"{kind}-survivors", []), theirs, 0.5))
    for kind in ("master", "shard"):
        for label, part in (("p99", 0.99), ("p50", 0.5)):
            said.append(_line(f"recovery-{kind}-{label}", samples.get(kind, []), [], part))
    if parts := samples.get("operator"):
        said.append(f"RESULT recovery-operator {quantile(parts, 0.5):.3f} of the rate before")
    return [line for line in said if line]


def _line(name: str, mine: list[float], theirs: list[float], part: float) -> str:
    if not mine:
        return ""
    a = quantile(mine, part)
    if not theirs:
        return f"RESULT {name} {a:.3f} s"
    b = quantile(theirs, part)
    return f"RESULT {name} {a:.3f} s vs torchrun {b:.3f} s: {b / a:.1f}x"


def main() -> int:
    kills = wanted()
    image, text = prepare(nodes=2 if kills.get("node") else 1)
    samples: Samples = {}
    try:
        if kills.get("node"):
            only(HOME)
        ring(samples, kills)
        shards(samples, kills)
        peer(samples, kills, image, text)
    finally:
        kubectl("delete", "namespace", NAMESPACE, "--wait=false", check=False)
        if kills.get("node"):
            kubectl("uncordon", HOME, AWAY, check=False)
    for line in lines(samples):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
