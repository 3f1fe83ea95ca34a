"""What the agent of a serving pod and the activators take while nobody asks. `make bench-idle`.

On the cluster: a service of word vectors with an objective, so that its agent is asked every two seconds, and the
installation's activators. Memory (the working set) and processor time are the kubelet's figures, of SECONDS.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from typing import Any

from benchmarks import on_cluster
from benchmarks.on_cluster import NAMESPACE, RESULTS, apply, kubectl, prepare, words
from mms_cluster import install

SECONDS = float(os.environ.get("MMS_BENCH_SECONDS", "60"))
MOST_MIB, MOST_PERCENT = 60, 1.0
MEMORY, PROCESSOR = "container_memory_working_set_bytes", "container_cpu_usage_seconds_total"
SAMPLE = re.compile(rf"^({MEMORY}|{PROCESSOR}){{(.*)}} (\S+) (\d+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')
KEPT = {"agent": NAMESPACE, "activator": install.NAMESPACE}  # containers, and where they are


def service() -> dict[str, Any]:
    return {
        "apiVersion": "mms.dev/v1alpha1", "kind": "ModelService", "metadata": {"name": "words"},
        "spec": {"model": {"trainingRef": {"name": "words"}}, "objective": {"latencyP99Milliseconds": 100},
                 "autoscaling": {"mode": "Objective", "minReplicas": 1, "maxReplicas": 1}},
    }  # fmt: skip


def used() -> dict[tuple[str, str], dict[str, tuple[float, float]]]:
    """Of each container, by its name and pod: bytes and seconds of processors, each with when that was (seconds)."""
    found: dict[tuple[str, str], dict[str, tuple[float, float]]] = {}
    for node in json.loads(kubectl("get", "nodes", "-o", "json"))["items"]:
        text = kubectl("get", "--raw", f"/api/v1/nodes/{node['metadata']['name']}/proxy/metrics/resource")
        for metric, labels, value, milliseconds in SAMPLE.findall(text):
            of = dict(LABEL.findall(labels))
            if KEPT.get(of["container"]) == of["namespace"]:
                one = found.setdefault((of["container"], of["pod"]), {})
                one[metric] = float(value), float(milliseconds) / 1000
    return found


def percent_of(before: tuple[float, float], after: tuple[float, float]) -> float:
    """Of a processor."""
    return 100 * (after[0] - before[0]) / (after[1] - before[1])


def main() -> int:
    prepare()
    try:
        apply(words(), service())
        on_cluster.until("a service", lambda: "True" in kubectl("get", "ms/words", check=False), 300)
        time.sleep(SECONDS / 2)  # the pods' start is over
        before = used()
        time.sleep(SECONDS)
        after = used()
    finally:
        kubectl("delete", "namespace", NAMESPACE, "--wait=false", check=False)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "idle.json").write_text(json.dumps([list(one.items()) for one in (before, after)]), encoding="utf-8")
    kept = True
    for name in KEPT:
        mine = [key for key in after if key[0] == name]
        memory = max(after[key][MEMORY][0] for key in mine) / (1 << 20)
        percent = max(percent_of(before[key][PROCESSOR], after[key][PROCESSOR]) for key in mine)
        kept &= memory <= MOST_MIB and percent <= MOST_PERCENT
        print(f"RESULT {name}-memory {memory:.0f} MiB vs goal {MOST_MIB} MiB: {memory / MOST_MIB:.2f}x")
        print(f"RESULT {name}-idle {percent:.2f} % vs goal {MOST_PERCENT:g} % of a processor: {percent:.2f}x")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
