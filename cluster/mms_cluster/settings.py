"""What a cluster is made of: ports, folders, names. Kept in the state folder, so that every command agrees on it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from mms_cluster.errors import ClusterError
from mms_cluster.paths import write

if TYPE_CHECKING:
    from pathlib import Path

LINK = "mms0"
GATEWAY = "10.244.0.1"


@dataclass(frozen=True)
class Settings:
    """Ports of the control plane."""

    secure_port: int = 6443
    etcd_port: int = 2379
    etcd_peer_port: int = 2380


@dataclass(frozen=True)
class Node:
    """One node: containerd, kubelet and kube-proxy, in the network namespace `netns` or, if None, in that of the host.

    Other nodes' pods reach its own by a route for `pod_cidr` through `ip`. Node 0 is on the host, where its pods'
    gateway is also its address.
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
    """The cluster's nodes."""
    return [
        Node(
            index=0,
            name="mms-node-0",
            ip=GATEWAY,
            pod_cidr="10.244.0.0/24",
            netns=None,
            folder=layout.state / "node-0",
            cgroup=f"{layout.label}-node-0",
        )
    ]


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
