"""From no pods to the first answer, in a cluster: through the activator, and as one would do it by hand.

`make bench-coldstart`. Word vectors, images on the node. A client in a pod sends one request to the Service of a
service without pods and waits for the answer; ROUNDS times, each when no pod is left.

By hand: a Deployment of the same image with the same artifact, without agent and golden questions; Triton loads its
repository when it starts, and is ready when /v2/health/ready says so, asked every second. It is scaled from zero to
one in the moment in which the client first asks; the client asks again every 20 ms until it is answered. Whatever
decides to scale (KEDA looks every 30 s) comes on top.

Phases, from the pods' logs and statuses: a status has whole seconds, so that they are means.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from datetime import datetime
from typing import Any

from benchmarks.on_cluster import NAMESPACE, RESULTS, apply, kubectl, listed, prepare, until, words

ROUNDS = int(os.environ.get("MMS_BENCH_ROUNDS", "15"))
FILE = RESULTS / "coldstart.json"
PLAIN = "plain"
_ASK = """
import json, sys, time, urllib.request
body = json.dumps({"inputs": [{"name": "WORDS", "datatype": "BYTES", "shape": [1, 1], "data": ["congress"]}]}).encode()
url = f"http://{sys.argv[1]}:8000/v2/models/neighbours/infer"
print(time.time(), flush=True)
while True:
    try:
        with urllib.request.urlopen(url, body, timeout=60) as answer:
            answer.read()
        break
    except OSError:
        if sys.argv[2] == "once":
            raise
        time.sleep(0.02)
print(time.time())
"""


def main() -> int:
    prepare()
    try:
        image = start()
        ours, theirs, phases = [], [], []
        for number in range(ROUNDS):
            took, found = of_ours()
            ours.append(took)
            phases.append(found)
            theirs.append(by_hand())
            print(f"{number + 1}: {ours[-1]:.2f} s, by hand {theirs[-1]:.2f} s {json.dumps(found)}", flush=True)
    finally:
        kubectl("delete", "namespace", NAMESPACE, "--wait=false", check=False)
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(json.dumps({"image": image, "ours": ours, "by hand": theirs, "phases": phases}), encoding="utf-8")
    return report(ours, theirs, phases)


def report(ours: list[float], theirs: list[float], phases: list[dict[str, float]]) -> int:
    print(f"{'until':28} mean seconds from the first connection")
    for phase in phases[0]:
        print(f"{phase:28} {statistics.mean(one[phase] for one in phases):.2f}")
    worst = [max(ours), max(theirs)]
    print(f"slowest: {worst[0]:.2f} s, by hand {worst[1]:.2f} s")
    a, b = statistics.median(ours), statistics.median(theirs)
    print(f"RESULT coldstart {a:.2f} s vs by-hand {b:.2f} s: {b / a:.2f}x")
    return 0


def start() -> str:
    """A trained artifact, a service that is scaled, a Deployment by hand, and a client; the image of the servers."""
    service = {
        "apiVersion": "mms.dev/v1alpha1", "kind": "ModelService", "metadata": {"name": "words"},
        "spec": {
            "model": {"trainingRef": {"name": "words"}},
            "objective": {"latencyP99Milliseconds": 100},
            "autoscaling": {"mode": "Objective", "scaleToZeroAfterSeconds": 10},
        },
    }  # fmt: skip
    apply(words(), service)
    until("an answer", lambda: '"Ready"' in ready(), 300)
    (deployment,) = listed("deployments", "mms.dev/service=words")
    apply(*plain(deployment))
    pod = deployment["spec"]["template"]["spec"]
    image: str = pod["containers"][0]["image"]
    client = {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "client"},
        "spec": {"containers": [{"name": "client", "image": image, "command": ["sleep", "infinity"]}]},
    }  # fmt: skip
    apply(client)
    until("the client", lambda: '"Running"' in kubectl("get", "pod", "client", "-o", "json"))
    return image


def ready() -> str:
    found = json.loads(kubectl("get", "ms/words", "-o", "json")).get("status", {}).get("conditions", [])
    return json.dumps([one["type"] for one in found if one["status"] == "True"])


def plain(deployment: dict[str, Any]) -> list[dict[str, Any]]:
    """Triton without an agent, of the same pod."""
    pod = json.loads(json.dumps(deployment["spec"]["template"]["spec"]))
    pod["initContainers"] = [one for one in pod["initContainers"] if one["name"] == "fetch"]
    (triton,) = pod["containers"]
    triton["command"] = [
        "tritonserver", "--model-repository=/models/repository", "--disable-auto-complete-config",
        "--allow-gpu-metrics=false", "--pinned-memory-pool-byte-size=0",
    ]  # fmt: skip
    triton["env"] = [{"name": "OMP_NUM_THREADS", "value": "1"}, {"name": "OPENBLAS_NUM_THREADS", "value": "1"}]
    triton["readinessProbe"] = {"httpGet": {"path": "/v2/health/ready", "port": "http"}, "periodSeconds": 1}
    for probe in ("startupProbe", "livenessProbe", "lifecycle"):
        triton.pop(probe, None)
    pod["terminationGracePeriodSeconds"] = 1
    labels = {"app": PLAIN}
    return [
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": PLAIN},
         "spec": {"replicas": 0, "selector": {"matchLabels": labels},
                  "template": {"metadata": {"labels": labels}, "spec": pod}}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": PLAIN},
         "spec": {"selector": labels, "ports": [{"name": "http", "port": 8000, "targetPort": "http"}]}},
    ]  # fmt: skip


def of_ours() -> tuple[float, dict[str, float]]:
    def slept() -> bool:
        slices = listed("endpointslices", "kubernetes.io/service-name=words")
        return not listed("pods", "mms.dev/service=words") and len(slices) > 1

    until("sleep", slept, 120)
    time.sleep(1)
    began, ended = map(float, kubectl("exec", "client", "--", "python", "-c", _ASK, "words", "once").split())
    (pod,) = listed("pods", "mms.dev/service=words")
    return ended - began, {name: at - began for name, at in phases_of(pod).items()} | {"answer": ended - began}


def phases_of(pod: dict[str, Any]) -> dict[str, float]:
    """Seconds since 1970 of what has happened to a pod."""
    name, status = pod["metadata"]["name"], pod["status"]
    fetch = next(one for one in status["initContainerStatuses"] if one["name"] == "fetch")["state"]["terminated"]
    triton = next(one for one in status["containerStatuses"] if one["name"] == "triton")["state"]["running"]
    said = [json.loads(line) for line in kubectl("logs", name, "-c", "agent").splitlines() if line.startswith("{")]
    phases = {one.get("phase", one["event"]): stamp(one["timestamp"]) for one in reversed(said)}
    return {
        "the pod is made": stamp(pod["metadata"]["creationTimestamp"]),
        "the artifact is fetched": stamp(fetch["finishedAt"]),
        "Triton starts": stamp(triton["startedAt"]),
        "the models are loaded": phases["Verifying"],
        "golden answers are right": phases["verified"],
    }


def stamp(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def by_hand() -> float:
    kubectl("scale", f"deployment/{PLAIN}", "--replicas=0")
    until("no pod", lambda: not listed("pods", f"app={PLAIN}"), 60)
    time.sleep(1)
    at = time.time()
    kubectl("scale", f"deployment/{PLAIN}", "--replicas=1")
    _, ended = map(float, kubectl("exec", "client", "--", "python", "-c", _ASK, PLAIN, "again").split())
    kubectl("scale", f"deployment/{PLAIN}", "--replicas=0")
    return ended - at


if __name__ == "__main__":
    sys.exit(main())
