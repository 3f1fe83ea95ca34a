"""An hour of a real trace in five minutes, on the cluster: ours, the HPA, and static fleets. `make bench-replay-live`.

The arrivals of Azure's conversation service (2023), twelve times as fast, and as many that they take LOAD pods in the
mean, by the capacity that the first pod has measured. Pods have a fifth of a processor each. A client in a pod asks
without waiting for answers; pods are counted every second from when they are made until they are gone. The HPA (with
its own periods and behaviour) is given metrics-server's figures of Triton's processor time, 70 % of the limit as its
target. Static fleets are tried from one pod on until one keeps WITHIN of the requests within the objective.

What nobody compresses is the start of a pod: some seconds here are minutes of the trace.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.on_cluster import NAMESPACE, RESULTS, apply, kubectl, listed, prepare, until, words
from benchmarks.replay import TRACES
from mms_cluster import extras, provider
from mms_operator.lab import trace

FILE = RESULTS / "replay_live.json"
SECONDS = float(os.environ.get("MMS_BENCH_SECONDS", "300"))
OBJECTIVE_MS, WITHIN = 400, 0.99
LOAD, MOST = 1.5, 5
LIMITS = {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"cpu": "200m"}}
CLIENT = Path(__file__).with_name("replay_live_client.py")
QUANTILES = 2001
HPA_TARGET = 280  # percent of the request: 70 % of the limit
PAUSE_SECONDS = 20.0  # between two ways, so that pods of the one before are gone


def main() -> int:
    prepare()
    cluster = provider.choose()
    try:
        capacity = start()
        count = round(LOAD * capacity * SECONDS)
        print(f"{count} requests in {SECONDS:g} s; a pod answers {capacity:g} a second", flush=True)
        extras.metrics(cluster)
        found = {"ours": run("ours", count, {"mode": "Objective", "minReplicas": 1, "maxReplicas": MOST})}
        found["HPA"] = run("HPA", count, {"mode": "External"}, hpa=True)
        for pods in range(1, MOST + 1):
            name = f"static {pods}"
            found[name] = run(name, count, {"mode": "Off"}, replicas=pods)
            if found[name]["kept"] >= WITHIN:
                break
    finally:
        extras.remove(cluster, "metrics")
        kubectl("delete", "namespace", NAMESPACE, "--wait=false", check=False)
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return report(found)


def report(found: dict[str, dict[str, Any]]) -> int:
    for name, one in found.items():
        print(f"{name:10} {one['pod-hours']:.4f} pod-hours, {one['kept']:.2%} within {OBJECTIVE_MS} ms, "
              f"{one['failed']} failed, p99 {one['p99']:.2f} s")  # fmt: skip
    ours = found.pop("ours")
    keeping = {name: one for name, one in found.items() if one["kept"] >= WITHIN}
    if not keeping:
        print("RESULT replay-live nobody else keeps the objective", file=sys.stderr)
        return 1
    peer, theirs = min(keeping.items(), key=lambda item: item[1]["pod-hours"])
    ratio = f"{theirs['pod-hours'] / ours['pod-hours']:.2f}x" if ours["kept"] >= WITHIN else f"ours misses {WITHIN:.0%}"
    print(
        f"RESULT replay-live {ours['pod-hours']:.4f} pod-hours vs {peer} {theirs['pod-hours']:.4f} pod-hours: {ratio}"
    )
    return 0


def service(autoscaling: dict[str, Any], replicas: int | None = None) -> dict[str, Any]:
    spec = {
        "model": {"trainingRef": {"name": "words"}}, "server": {"resources": LIMITS},
        "objective": {"latencyP99Milliseconds": OBJECTIVE_MS}, "autoscaling": autoscaling,
    }  # fmt: skip
    spec |= {"replicas": replicas} if replicas is not None else {}
    return {"apiVersion": "mms.dev/v1alpha1", "kind": "ModelService", "metadata": {"name": "words"}, "spec": spec}


def start() -> float:
    """A trained artifact and the times; requests a second of a pod, as the first one has measured."""
    arrivals = np.asarray(trace.read(TRACES / "AzureLLMInferenceTrace_conv.csv"))
    whole = arrivals[-1] - arrivals[0]
    times = np.quantile(arrivals - arrivals[0], np.linspace(0, 1, QUANTILES)) / whole * SECONDS * 1000
    files = {CLIENT.name: CLIENT.read_text(), "times.json": json.dumps(times.round(1).tolist())}
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "client"}, "data": files}
    apply(words(), service({"mode": "Objective", "minReplicas": 1, "maxReplicas": MOST}), config)
    (capacity,) = until("a measured pod", lambda: status().get("autoscaling", {}).get("capacity"), 600)
    deployment = listed("deployments", "mms.dev/service=words")[0]
    image = deployment["spec"]["template"]["spec"]["containers"][0]["image"]
    apply({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "client"},
        "spec": {
            "containers": [{"name": "client", "image": image, "command": ["sleep", "infinity"],
                            "volumeMounts": [{"name": "client", "mountPath": "/client"}]}],
            "volumes": [{"name": "client", "configMap": {"name": "client"}}],
        },
    })  # fmt: skip
    until("the client", lambda: '"Running"' in kubectl("get", "pod", "client", "-o", "json"))
    return float(capacity["requestsPerSecond"])


def run(name: str, count: int, autoscaling: dict[str, Any], *, replicas: int = 1, hpa: bool = False) -> dict[str, Any]:
    """One way, from as many pods as it begins with."""
    apply(service(autoscaling, replicas))
    if autoscaling["mode"] == "Objective":  # what the way before has set is nobody's decision
        kubectl("scale", "modelservice", "words", "--replicas=1")
    until(f"{name}: {replicas} pods", lambda: standing() == (replicas, replicas), 300)
    if hpa:
        apply(autoscaler())
    time.sleep(PAUSE_SECONDS)
    stop, counts = threading.Event(), []

    def count_pods() -> None:
        while not stop.is_set():
            counts.append((time.monotonic(), len(listed("pods", "mms.dev/service=words"))))
            stop.wait(1.0)

    counting = threading.Thread(target=count_pods)
    counting.start()
    ask = ("python", f"/client/{CLIENT.name}", "words", str(OBJECTIVE_MS), str(count), "/client/times.json")
    said = json.loads(kubectl("exec", "client", "--", *ask).splitlines()[-1])
    stop.set()
    counting.join()
    if hpa:
        kubectl("delete", "hpa", "words")
    pairs = itertools.pairwise(counts)
    hours = sum(pods * (later - at) for (at, pods), (later, _) in pairs) / 3600
    found = {**said, "kept": said["within"] / said["sent"], "pod-hours": hours, "pods": [pods for _, pods in counts]}
    print(name, json.dumps({key: value for key, value in found.items() if key != "pods"}), flush=True)
    return found


def autoscaler() -> dict[str, Any]:
    target = {"type": "Utilization", "averageUtilization": HPA_TARGET}
    metric = {"name": "cpu", "container": "triton", "target": target}
    return {
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "words"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "mms.dev/v1alpha1", "kind": "ModelService", "name": "words"},
            "minReplicas": 1, "maxReplicas": MOST,
            "metrics": [{"type": "ContainerResource", "containerResource": metric}],
        },
    }  # fmt: skip


def status() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(kubectl("get", "ms/words", "-o", "json")).get("status", {})
    return found


def standing() -> tuple[int, int]:
    """Pods that are ready, and all that there are."""
    return status().get("readyReplicas", 0), len(listed("pods", "mms.dev/service=words"))


if __name__ == "__main__":
    sys.exit(main())
