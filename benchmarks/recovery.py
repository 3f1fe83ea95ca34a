"""Seconds from a death to the next step, on real pods: ours against torchrun elastic with a checkpoint to reload.

Both train the same small transformer with two workers in two pods, each capped at half a core by its cgroup, so that a
survivor cannot take the dead one's share. What dies, as often as KILLS says ("process=30 pod=30 ..."):

- process: a worker's process by SIGKILL, of the two in turn.
- pod, pod-standby: a worker's pod, deleted without grace; and the same where a third pod stands by.
- node, node-standby: the second of two nodes with a worker on it, at once and without a word (a cluster of our own
  only).
- master: the master's pod. No peer: torchrun's job ends with the pod that has its rendezvous.
- shard: a parameter shard's process; its rows and optimizer state come from the replica on the other shard, and are
  compared with it, so that a difference would be an incident.
- operator: both replicas of the operator. The figure is the rate of steps while they are away and come back, as a part
  of the rate before.

survivors: until a worker that was not killed has finished a step again. all: until both have, together. With torchrun
every worker is started anew and loads its last checkpoint (one every ten seconds), so both are the same there; a pod
that was deleted or was on the lost node is made again at once, as a Job would at best; a third agent is its spare.

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
    AWAY,
    HOME,
    NAMESPACE,
    RESULTS,
    delete_pod,
    events,
    inside,
    kill_process,
    kubectl,
    machine,
    only,
    pod,
    prepare,
    ready,
    status,
    step,
    stepping,
    train,
    until,
)
from mms_cluster import install

Samples = dict[str, list[float]]

FILE = RESULTS / "recovery.json"
WORKERS = ("process", "pod", "node", "pod-standby", "node-standby")
KILLS = {**dict.fromkeys(WORKERS, 30), "master": 30, "shard": 30, "operator": 5}
SAVE_SECONDS = 10.0
REST_SECONDS = (1.5, 3.0)  # between a recovery and the next kill, at random: no kill meets the same moment of a step
OPERATOR_SECONDS = 30.0
SPARE_SECONDS = 20.0  # in which torchrun's spare, which says nothing, has started at half a core
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
    for standby in (0, 1):
        kinds = [kind for kind in WORKERS if kills.get(kind) and kind.endswith("standby") == bool(standby)]
        if not kinds and standby:
            return
        train("ring", standby)
        for kind in kinds:
            for turn in range(kills[kind]):
                alone, together = workers_die(kind, turn, standby)
                keep(samples, f"{kind}-survivors", alone)
                keep(samples, f"{kind}-all", together)
        if not standby:
            others(samples, kills)
        kubectl("delete", "mt/ring")


def workers_die(kind: str, turn: int, standby: int) -> tuple[float, float]:
    of_node = kind.startswith("node")
    if of_node:
        move_away(standby)
    until("all pods", lambda: ready("ring") == (2, standby) and len(inside("ring")) == 2)
    rest()
    ranks = sorted(inside("ring"))
    victim = ranks[turn % 2]
    if of_node:
        victim = next(rank for rank in ranks if node(pod("ring", "worker", rank)) == AWAY)
    (survivor,) = set(ranks) - {victim}
    lost, survivor_pod, before = pod("ring", "worker", victim), pod("ring", "worker", survivor), step("ring")
    found = recovered(survivor_pod, before, kill(kind, lost))
    if of_node:
        boot()
    return found


def others(samples: Samples, kills: dict[str, int]) -> None:
    for _ in range(kills.get("master", 0)):
        rest()
        survivor, before = pod("ring", "worker"), step("ring")
        keep(samples, "master", recovered(survivor, before, delete_pod(pod("ring", "master")))[1])
    for _ in range(kills.get("operator", 0)):
        keep(samples, "operator", without_operator(), "of the rate before")


def kill(kind: str, name: str) -> float:
    if kind == "process":
        return kill_process(name)
    if kind.startswith("pod"):
        return delete_pod(name)
    at = time.time()
    machine("kill", AWAY)
    return at


def node(name: str) -> str:
    return kubectl("get", "pod", name, "-o", "jsonpath={.spec.nodeName}")


def move_away(standby: int) -> None:
    """One of the two that train to the other node. One that stands by is moved, then takes another's place."""
    victims = sorted(inside("ring"))
    only(AWAY)
    replace((set(range(3)) - set(victims)).pop() if standby else victims[1])
    only(HOME)
    if standby:
        replace(victims[1])


def replace(rank: int) -> None:
    """Waits until the successor is there, and trains or stands by."""
    at = delete_pod(pod("ring", "worker", rank))
    master = pod("ring", "master")
    until("its successor", lambda: [e for t, e in events(master, "worker joined") if t > at and e["rank"] == rank])
    until("all that train", lambda: len(inside("ring")) == 2)


def boot() -> None:
    machine("up")
    kubectl("wait", "--for=condition=Ready", "--timeout=120s", f"node/{AWAY}")


def without_operator() -> float:
    began, first = time.monotonic(), step("ring")
    time.sleep(OPERATOR_SECONDS)
    rate, epoch = (step("ring") - first) / (time.monotonic() - began), status("ring")["workers"]["epoch"]
    began, first = time.monotonic(), step("ring")
    of_operator = ("-n", install.NAMESPACE, "-l", "app.kubernetes.io/component=operator")
    subprocess.run(["kubectl", "delete", "pod", "--grace-period=0", "--force", *of_operator], check=True)
    time.sleep(OPERATOR_SECONDS)
    until("the operator", lambda: step("ring") > first)  # it writes the status
    during = (step("ring") - first) / (time.monotonic() - began)
    if status("ring")["workers"]["epoch"] != epoch:
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
    for kind in WORKERS:
        if kind.endswith("standby") and kills.get(kind):
            torchrun.make_pod(image, 2, SAVE_SECONDS)
            time.sleep(SPARE_SECONDS)
        for turn in range(kills.get(kind, 0)):
            keep(samples, f"torchrun-{kind}", peers_die(kind, turn, image))


def peers_die(kind: str, turn: int, image: str) -> float:
    of_node, spare = kind.startswith("node"), kind.endswith("standby")
    if of_node:
        rank = 3 - torchrun.trains() if spare else 1
        only(AWAY)
        moved = torchrun.replace_pod(image, SAVE_SECONDS, rank)
        if spare:
            time.sleep(SPARE_SECONDS)
        only(HOME)
        if spare:
            moved = torchrun.replace_pod(image, SAVE_SECONDS, 3 - rank)
        torchrun.both_stepping(moved)
    elif spare:
        time.sleep(SPARE_SECONDS)
    rest()
    if kind == "process":
        killed = torchrun.kill_worker(turn % 2)
    elif of_node:
        victim = torchrun.trains() if spare else 1
        killed = kill("node", "")
        torchrun.replace_pod(image, SAVE_SECONDS, victim)
    else:
        killed = torchrun.replace_pod(image, SAVE_SECONDS, torchrun.trains() if spare else 1)
    took = torchrun.both_stepping(killed) - killed
    if of_node:
        boot()
    return took


def quantile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(part * (len(ordered) - 1)))]


def lines(samples: Samples) -> list[str]:
    """The RESULT lines, from the raw samples alone."""
    said = []
    for kind in WORKERS:
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
    two = bool(kills.get("node") or kills.get("node-standby"))
    image, text = prepare(nodes=2 if two else 1)
    samples: Samples = {}
    try:
        ring(samples, kills)
        shards(samples, kills)
        peer(samples, kills, image, text)
    finally:
        kubectl("delete", "namespace", NAMESPACE, "--wait=false", check=False)
        if two:
            boot()  # what is on a lost node cannot be deleted
            kubectl("uncordon", HOME, AWAY, check=False)
    for line in lines(samples):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
