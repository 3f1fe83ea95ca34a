"""Keeps the nodes' nftables rules like the cluster's NetworkPolicies: `python -m mms_cluster.policyd STATE PORT`.

A pod's rules are in place a moment after its address is known, so a pod can send for that moment before it is bound.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from mms_cluster import network, nodenet, policy, settings
from mms_cluster.errors import ClusterError
from mms_cluster.kubeapi import Api
from mms_cluster.settings import Layout, Node

PATHS = ("/apis/networking.k8s.io/v1/networkpolicies", "/api/v1/pods", "/api/v1/namespaces")
SETTLE_SECONDS = 0.05
RETRY_SECONDS = 1.0
LOOK_SECONDS = 0.25

Applied = tuple[tuple[int, int], str]  # which network has which rules


def main(state: Path, port: int) -> None:
    """Runs until killed. An error of nft ends it: `status` says so then, and its log why."""
    layout = Layout(state)
    api = Api(port, layout.state / "pki")
    changed = threading.Event()
    changed.set()
    for path in PATHS:
        threading.Thread(target=follow, args=(api, path, changed), daemon=True).start()
    rules: str | None = None
    applied: dict[str, Applied] = {}
    while True:
        # Nodes come and go without an event of the API's, and one that comes waits for its rules.
        if changed.wait(LOOK_SECONDS):
            time.sleep(SETTLE_SECONDS)
            changed.clear()
            if (found := wanted(api)) is None:
                time.sleep(RETRY_SECONDS)
                changed.set()
            rules = found or rules
        if rules:
            for node in settings.nodes(layout):
                apply(node, rules, applied)


def apply(node: Node, rules: str, applied: dict[str, Applied]) -> None:
    """Give a node the rules, unless its network has them already or there is none at this time."""
    network_now = nodenet.identity(node)
    if network_now is None or applied.get(node.name) == (network_now, rules):
        return
    try:
        network.run(*node.inside(["nft", "-f", "-"]), stdin=rules)
    except ClusterError:
        if nodenet.identity(node) == network_now:
            raise
        return
    applied[node.name] = (network_now, rules)


def wanted(api: Api) -> str | None:
    """The ruleset for what the API server has now; None when it does not answer."""
    found = [api.get(f"{path}?resourceVersion=0") for path in PATHS]
    if any(answer is None for answer in found):
        return None
    policies, pods, namespaces = (answer["items"] for answer in found if answer)
    addressed = sorted((pod for pod in map(policy.pod, pods) if pod), key=lambda pod: pod.ip)
    labels = {item["metadata"]["name"]: item["metadata"].get("labels", {}) for item in namespaces}
    return policy.ruleset(policies, addressed, labels)


def follow(api: Api, path: str, changed: threading.Event) -> None:
    """Set `changed` whenever something at `path` changes."""
    while True:
        found: dict[str, Any] | None = api.get(f"{path}?limit=1&resourceVersion=0")
        changed.set()
        if found is not None:
            version = found["metadata"]["resourceVersion"]
            for line in api.lines(f"{path}?watch=1&timeoutSeconds=240&resourceVersion={version}", timeout=300):
                if json.loads(line).get("type") == "ERROR":
                    break
                changed.set()
        time.sleep(RETRY_SECONDS)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
