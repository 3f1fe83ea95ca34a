"""Failures of nodes, for tests: a network that is partitioned, a machine that is lost."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mms_cluster import containers, network, nodenet, process, settings
from mms_cluster.errors import ClusterError
from mms_cluster.paths import locked

if TYPE_CHECKING:
    from collections.abc import Callable

    from mms_cluster.report import Reporter
    from mms_cluster.settings import Layout, Node

    Fault = Callable[[Layout, str, Reporter], None]


def partition(layout: Layout, name: str, report: Reporter) -> None:
    """Cut a node off: what is on it goes on running, reaches nobody else, and is reached by nobody.

    Nobody is told: a connection stalls, one that is opened fails after seconds. The API server notices after 40 s.
    """
    with locked(layout.lock, report):
        nodenet.cut(_linked(layout, name))
    report.line(f"{name} is cut off: `heal {name}` or `up` mends it")


def heal(layout: Layout, name: str, report: Reporter) -> None:
    """End a partition; nothing to do when there is none."""
    with locked(layout.lock, report):
        nodenet.ensure(_linked(layout, name))
    report.line(f"{name} is linked")


def kill(layout: Layout, name: str, report: Reporter) -> None:
    """Lose a node: its kubelet, containerd, kube-proxy and containers, all at once. `up` boots it again.

    Its link is cut before: processes that are killed close their connections, and a machine that is lost does not.
    Node 0 can be lost too. What is lost then are its pods: the control plane is not in any, and lives on.
    """
    with locked(layout.lock, report):
        node = settings.find(layout, name)
        _require_root()
        if node.netns is None:
            network.cut_pods(layout.state)
        elif nodenet.exists(node):
            nodenet.cut(node)
        for daemon in node.daemons:
            process.stop(layout.record(daemon), grace=0)
        (node.folder / "boot").unlink(missing_ok=True)
        containers.forget(node)
        nodenet.remove(node)
    report.line(f"{name} is lost: `up` boots it again")


def _linked(layout: Layout, name: str) -> Node:
    """The node, if it has a link that can be cut and mended."""
    node = settings.find(layout, name)
    _require_root()
    if node.netns is None:
        raise ClusterError(
            f"{name} is on this machine itself, as the control plane is, and there is no link between them to cut: "
            f"partition another node (`up --nodes 2` makes one), or lose its pods by `kill {name}`."
        )
    if not nodenet.exists(node):
        raise ClusterError(f"{name} does not run: `up` boots it.")
    return node


def _require_root() -> None:
    if os.geteuid() != 0:
        raise ClusterError("This takes root, as bringing the cluster up did: run it with sudo.")
