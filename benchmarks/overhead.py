"""Requests a second through a service, without and with an edge, against Triton alone. `make bench-overhead`.

On the cluster. A training makes word vectors; two services serve them, one of them with nginx beside Triton, and are
asked through their Service. The peer is a pod with the first one's Triton, its model and its flags, and nothing else:
no agent, no Service, no probe; it is asked at its own address. The clients are in a pod, too (overhead_client.py), and
the three take turns, over HTTP and gRPC, so that what else the machine does meets all.

Printed: requests a second, p50 and p99 of each; then both protocols together, as many seconds of each.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import on_cluster
from benchmarks.on_cluster import RESULTS, apply, kubectl, until

ROUNDS = int(os.environ.get("MMS_BENCH_ROUNDS", "6"))
SECONDS = float(os.environ.get("MMS_BENCH_SECONDS", "8"))
NAMESPACE = "bench-overhead"
CLIENT = Path(__file__).with_name("overhead_client.py")
BARE, PLAIN, EDGE = "bare-triton", "plain", "edge"
MODELS = ("vectors", "neighbours", "analogies", "similarity")


def training() -> dict[str, Any]:
    return {
        "apiVersion": "mms.dev/v1alpha1", "kind": "ModelTraining", "metadata": {"name": "words"},
        "spec": {
            "task": {"wordEmbedding": {"dimensions": 100, "minCount": 2}},
            "data": {"uri": on_cluster.CORPUS}, "optimizer": {"epochs": 1}, "workers": {"replicas": 1},
        },
    }  # fmt: skip


def service(name: str, edge: str) -> dict[str, Any]:
    return {
        "apiVersion": "mms.dev/v1alpha1", "kind": "ModelService", "metadata": {"name": name},
        "spec": {"model": {"trainingRef": {"name": "words"}}, "traffic": {"edge": edge}},
    }  # fmt: skip


def of(service: str) -> dict[str, Any]:
    """Its pod."""
    found = json.loads(kubectl("get", "pods", "-l", f"mms.dev/service={service}", "-o", "json"))["items"]
    return dict(found[0])


def bare(deployment: dict[str, Any]) -> dict[str, Any]:
    """Triton of that Deployment's pods, alone: it loads the models itself."""
    spec = deployment["spec"]["template"]["spec"]
    (triton,) = spec["containers"]
    kept = {key: value for key, value in triton.items() if not key.endswith("Probe") and key != "lifecycle"}
    loads = [f"--load-model={model}" for model in MODELS]
    fetch = [one for one in spec["initContainers"] if one["name"] == "fetch"]
    return {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": BARE},
        "spec": {
            **spec, "initContainers": fetch, "containers": [{**kept, "command": [*triton["command"], *loads]}],
            "restartPolicy": "Never", "terminationGracePeriodSeconds": 1,
        },
    }  # fmt: skip


def asking(image: str, hosts: dict[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    script = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "client"},
              "data": {CLIENT.name: CLIENT.read_text()}}  # fmt: skip
    command = [on_cluster.PYTHON, f"/script/{CLIENT.name}", str(ROUNDS), str(SECONDS)]
    container = {
        "name": "client", "image": image, "command": [*command, *(f"{name}={host}" for name, host in hosts.items())],
        "volumeMounts": [{"name": "script", "mountPath": "/script"}],
    }  # fmt: skip
    return script, {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "client"},
        "spec": {
            "restartPolicy": "Never", "containers": [container],
            "volumes": [{"name": "script", "configMap": {"name": "client"}}],
        },
    }  # fmt: skip


def serve() -> tuple[str, dict[str, str]]:
    """All three; the image of their pods, and where each is asked."""
    apply(training())
    until("a training", lambda: on_cluster.status("words").get("phase") == "Complete", 300)
    apply(service(PLAIN, "None"), service(EDGE, "Sidecar"))
    for name in (PLAIN, EDGE):
        kubectl("wait", f"ms/{name}", "--for=condition=Ready", "--timeout=180s")
    (deployment,) = json.loads(kubectl("get", "deployments", "-l", f"mms.dev/service={PLAIN}", "-o", "json"))["items"]
    apply(bare(deployment))
    kubectl("wait", f"pod/{BARE}", "--for=jsonpath={.status.phase}=Running", "--timeout=60s")
    address = json.loads(kubectl("get", "pod", BARE, "-o", "json"))["status"]["podIP"]
    until("bare Triton", lambda: "Started HTTPService at 0.0.0.0" in kubectl("logs", BARE, check=False), 120)
    hosts = {name: f"{name}.{NAMESPACE}.svc.cluster.local" for name in (PLAIN, EDGE)}
    return of(PLAIN)["spec"]["containers"][0]["image"], {BARE: address, **hosts}


def measure(image: str, hosts: dict[str, str]) -> dict[str, list[float]]:
    apply(*asking(image, hosts))
    limit = 60 + 2 * len(hosts) * (ROUNDS + 1) * (SECONDS + 2)
    phase = until("the clients' end", lambda: _ended("client"), limit)
    if phase != "Succeeded":
        raise RuntimeError(kubectl("logs", "client"))
    found: dict[str, list[float]] = json.loads(kubectl("logs", "client").splitlines()[-1])
    return found


def _ended(pod: str) -> str | None:
    phase = str(json.loads(kubectl("get", "pod", pod, "-o", "json"))["status"].get("phase"))
    return phase if phase in {"Succeeded", "Failed"} else None


def report(found: dict[str, list[float]]) -> None:
    seconds = ROUNDS * SECONDS
    for way in ("http", "grpc"):
        for name in (BARE, PLAIN, EDGE):
            took = found[f"{name} {way}"]
            p50, p99 = (1e3 * float(np.percentile(took, q)) for q in (50, 99))
            print(f"{way}  {name:<11} {len(took) / seconds:7.0f} requests/s, p50 {p50:6.2f} ms, p99 {p99:6.2f} ms")
    rate = {
        name: sum(len(found[f"{name} {way}"]) for way in ("http", "grpc")) / seconds / 2 for name in (BARE, PLAIN, EDGE)
    }
    for name, result in ((PLAIN, "overhead"), (EDGE, "overhead-edge")):
        ratio = rate[name] / rate[BARE]
        print(f"RESULT {result} {rate[name]:.0f} requests/s vs {BARE} {rate[BARE]:.0f} requests/s: {ratio:.2f}x")


def main() -> int:
    on_cluster.NAMESPACE = NAMESPACE
    on_cluster.prepare()
    try:
        image, hosts = serve()
        time.sleep(5)  # the pods' start is over
        found = measure(image, hosts)
    finally:
        kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found")
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "overhead.json").write_text(json.dumps(found), encoding="utf-8")
    report(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
