"""An open-loop client in a pod of the cluster, so that it asks through the Service as any other pod does."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.e2e.kube import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.kube import Kube

SCRIPT = Path(__file__).with_name("open_loop.py")
NAME = "client"
FILES = {"key": "key", "ca": "ca.crt", "question": "question.json"}


@dataclass
class Asked:
    """What became of the requests, by the way they were asked; known when the client has ended."""

    ways: dict[str, dict[str, Any]] = field(default_factory=dict)

    def failures(self, way: str) -> int:
        return int(self.ways[way]["failures"])

    def told(self, what: str) -> None:
        """Prints what clients saw while that happened, for the end of the run."""
        for way, found in self.ways.items():
            failed = f"{found['failures']} failed for {found['failed_for']:g} s" if found["failures"] else "0 failed"
            print(f"RESULT contract-{what}-{way} {found['sent']} sent, {failed}, p99 {1000 * found['p99']:.0f} ms")  # noqa: T201

    def p99(self, way: str) -> float:
        """Seconds of the answers."""
        return float(self.ways[way]["p99"])

    def versions(self, way: str) -> set[str]:
        return set(self.ways[way]["versions"])


@contextmanager
def asking(kube: Kube, service: str, rate: float = 10, host: str = "", **files: str) -> Iterator[Asked]:
    """Asks while the context is open, at `host` where that is not the service's.

    `files` of the client: its `key`, the `ca` that it trusts, and the `question` that it asks.
    """
    deployment = kube.list("deployments", f"mms.dev/service={service}")[0]
    image = deployment["spec"]["template"]["spec"]["containers"][0]["image"]
    kube.apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME},
         "data": {SCRIPT.name: SCRIPT.read_text(), **{FILES[name]: text for name, text in files.items()}}},
        pod(host or service, rate, image),
    )  # fmt: skip
    asked = Asked()
    kube.wait("pod", NAME, lambda _: "asking" in log(kube), 60, "asking")
    yield asked
    kube.run("exec", NAME, "--", "python", "-c", "import os, signal; os.kill(1, signal.SIGTERM)")
    kube.wait("pod", NAME, lambda found: found["status"]["phase"] == "Succeeded", 60, "finished")
    asked.ways = json.loads(log(kube).splitlines()[-1])
    kube.delete("pod", NAME)


def log(kube: Kube) -> str:
    try:
        return kube.run("logs", NAME)
    except RefusedError:  # it has not started
        return ""


def pod(host: str, rate: float, image: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": NAME},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}
            },
            "containers": [
                {
                    "name": "client",
                    "image": image,
                    "command": ["python", f"/script/{SCRIPT.name}", host, str(rate)],
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                    "volumeMounts": [{"name": "script", "mountPath": "/script"}],
                }
            ],
            "volumes": [{"name": "script", "configMap": {"name": NAME}}],
        },
    }  # fmt: skip
