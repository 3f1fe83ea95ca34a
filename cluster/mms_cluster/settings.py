"""What a cluster is made of: ports, nodes, folders, names. Kept in the state folder: every command agrees on it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from mms_cluster.errors import ClusterError
from mms_cluster.paths import write

if TYPE_CHECKING:
    from pathlib import Path

LINK = "mms0"
GATEWAY = "10.244.0.1"
MOST_NODES = 256  # each has one of the /24 in the /16 of pods


@dataclass(frozen=True)
class Settings:
    """Ports of the control plane, and how many nodes there are."""

    secure_port: int = 6443
    etcd_port: int = 2379
    etcd_peer_port: int = 2380
    nodes: int = 1


@dataclass(frozen=True)
class Node:
    """One node: containerd, kubelet and kube-proxy, in the network namespace `netns` or, if None, in that of the host.

    Other nodes' pods reach its own by a route for `pod_cidr` through `ip`, which is also its pods' gateway. Node 0 is
    on the host, together with the control plane.
    """

    index: int
    name: str
    ip: str
    pod_cidr: str
    netns: str | None
    folder: Path
    cgroup: str

    @property
    def socket(self) -> Path:
        """Where containerd listens."""
        return self.folder / "containerd.sock"

    @property
    def uplink(self) -> str:
        """The host's end of the link to the node's namespace."""
        return f"mms{self.index}"

    @property
    def daemons(self) -> tuple[str, ...]:
        """The names of its processes. The kubelet is first: it starts others again, and reports on them."""
        return tuple(f"{name}-{self.index}" for name in ("kubelet", "containerd", "kube-proxy"))

    def inside(self, argv: list[str]) -> list[str]:
        """`argv` in this node's network. All nodes share mounts: containerd and kubelet need the same ones."""
        return argv if self.netns is None else ["nsenter", f"--net=/run/netns/{self.netns}", "--", *argv]


@dataclass(frozen=True)
class Layout:
    """Where a cluster keeps things, below its state folder."""

    state: Path

    @property
    def bin(self) -> Path:
        return self.state / "bin"

    @property
    def run(self) -> Path:
        return self.state / "run"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    @property
    def kubeconfig(self) -> Path:
        return self.state / "kubeconfig"

    @property
    def lock(self) -> Path:
        return self.state / "lock"

    @property
    def settings(self) -> Path:
        return self.state / "settings.json"

    @property
    def sysctls(self) -> Path:
        return self.state / "sysctls.json"

    @property
    def label(self) -> str:
        """Tells this cluster's control groups and networks from those of another state folder."""
        return "mms-" + hashlib.sha256(str(self.state).encode()).hexdigest()[:8]

    def record(self, name: str) -> Path:
        return self.run / f"{name}.pid"

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"


def nodes(layout: Layout) -> list[Node]:
    """The nodes that the cluster is to have."""
    return [node(layout, index) for index in range((load(layout) or Settings()).nodes)]


def superfluous(layout: Layout) -> list[Node]:
    """The nodes that there are beyond those: a node's folder is made before all else of it, and is the last to go."""
    wanted = {node.index for node in nodes(layout)}
    return [node for node in present(layout) if node.index not in wanted]


def present(layout: Layout) -> list[Node]:
    """Node 0, and all others that have a folder: whatever the settings say, and when they cannot be read."""
    found = {int(folder.name.removeprefix("node-")) for folder in layout.state.glob("node-*") if _is_node(folder)}
    return [node(layout, index) for index in sorted({0, *found})]


def find(layout: Layout, name: str) -> Node:
    """Raises ClusterError when there is no cluster, or no node of that name in it."""
    if load(layout) is None:
        raise ClusterError(f"There is no cluster in {layout.state}: run `python -m mms_cluster up` first.")
    known = {node.name: node for node in nodes(layout)}
    if name not in known:
        raise ClusterError(f"No node is called {name}: choose of {', '.join(known)}; `up --nodes N` makes more.")
    return known[name]


def node(layout: Layout, index: int) -> Node:
    return Node(
        index=index,
        name=f"mms-node-{index}",
        ip=GATEWAY if index == 0 else f"10.244.{index}.1",
        pod_cidr=f"10.244.{index}.0/24",
        netns=None if index == 0 else f"{layout.label}-node-{index}",
        folder=layout.state / f"node-{index}",
        cgroup=f"{layout.label}-node-{index}",
    )


def _is_node(folder: Path) -> bool:
    return re.fullmatch(r"node-(0|[1-9]\d*)", folder.name) is not None and int(folder.name[5:]) < MOST_NODES


def load(layout: Layout) -> Settings | None:
    """The settings that the cluster was brought up with; None when there is no cluster."""
    try:
        return Settings(**json.loads(layout.settings.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise ClusterError(f"{layout.settings} cannot be read ({error}): delete it and run `up` again.") from None


def save(layout: Layout, settings: Settings) -> None:
    write(layout.settings, json.dumps(asdict(settings)).encode())
