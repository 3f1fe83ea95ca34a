"""Command lines of etcd and the control plane. Pure: folders, ports and flags in, argument lists out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mms_cluster.pki import Identity

if TYPE_CHECKING:
    from pathlib import Path

SERVICE_CIDR = "10.96.0.0/16"
SERVICE_IP = "10.96.0.1"
DNS_IP = "10.96.0.10"
POD_CIDR = "10.244.0.0/16"


@dataclass(frozen=True)
class ControlPlane:
    """Where one control plane keeps its files and listens. `advertise` is the address that pods reach it at."""

    kube: Path
    folder: Path
    secure_port: int
    etcd_port: int
    etcd_peer_port: int
    advertise: str = "127.0.0.1"

    @property
    def pki(self) -> Path:
        return self.folder / "pki"

    def kubeconfig(self, identity: str) -> Path:
        return self.pki / f"{identity}.kubeconfig"

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.secure_port}"


def identities(plane: ControlPlane) -> list[Identity]:
    """Everyone of the control plane that needs a certificate."""
    service = [f"kubernetes{suffix}" for suffix in ("", ".default", ".default.svc", ".default.svc.cluster.local")]
    hosts = tuple(dict.fromkeys([*service, "localhost", "127.0.0.1", SERVICE_IP, plane.advertise]))
    return [
        Identity("apiserver", "kube-apiserver", hosts=hosts),
        Identity("admin", "admin", "system:masters"),
        Identity("controller-manager", "system:kube-controller-manager"),
        Identity("scheduler", "system:kube-scheduler"),
        Identity("proxy", "system:kube-proxy"),
        Identity("front-proxy", "front-proxy"),
        Identity("apiserver-kubelet", "kube-apiserver-kubelet", "system:masters"),
    ]


def etcd(plane: ControlPlane) -> list[str]:
    """No fsync: a cluster that a power cut destroys is made again in seconds, and tests write a lot."""
    client, peer = (f"http://127.0.0.1:{port}" for port in (plane.etcd_port, plane.etcd_peer_port))
    return [
        str(plane.kube), "etcd", "--name=mms", f"--data-dir={plane.folder / 'etcd'}", "--unsafe-no-fsync",
        f"--listen-client-urls={client}", f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=mms={peer}",
        "--log-level=warn",
    ]  # fmt: skip


def apiserver(plane: ControlPlane, *, nodes: bool) -> list[str]:
    """Without nodes there is nobody who makes service accounts, and pods are admitted without."""
    pki = plane.pki
    alone = [] if nodes else ["--disable-admission-plugins=ServiceAccount"]
    bind = "0.0.0.0" if nodes else "127.0.0.1"
    return [
        str(plane.kube), "kube-apiserver", f"--etcd-servers=http://127.0.0.1:{plane.etcd_port}",
        f"--bind-address={bind}", f"--secure-port={plane.secure_port}", f"--advertise-address={plane.advertise}",
        f"--service-cluster-ip-range={SERVICE_CIDR}", "--allow-privileged=true", "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction", *alone, "--kubelet-preferred-address-types=InternalIP",
        f"--tls-cert-file={pki}/apiserver.crt", f"--tls-private-key-file={pki}/apiserver.key",
        f"--client-ca-file={pki}/ca.crt", "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={pki}/sa.pub", f"--service-account-signing-key-file={pki}/sa.key",
        f"--kubelet-client-certificate={pki}/apiserver-kubelet.crt",
        f"--kubelet-client-key={pki}/apiserver-kubelet.key",
        f"--requestheader-client-ca-file={pki}/ca.crt", "--requestheader-allowed-names=front-proxy",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-", "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-username-headers=X-Remote-User",
        f"--proxy-client-cert-file={pki}/front-proxy.crt", f"--proxy-client-key-file={pki}/front-proxy.key",
    ]  # fmt: skip


def controller_manager(plane: ControlPlane) -> list[str]:
    pki, kubeconfig = plane.pki, plane.kubeconfig("controller-manager")
    return [
        str(plane.kube), "kube-controller-manager", f"--kubeconfig={kubeconfig}", "--bind-address=127.0.0.1",
        f"--authentication-kubeconfig={kubeconfig}", f"--authorization-kubeconfig={kubeconfig}",
        f"--service-account-private-key-file={pki}/sa.key", f"--root-ca-file={pki}/ca.crt",
        f"--cluster-signing-cert-file={pki}/ca.crt", f"--cluster-signing-key-file={pki}/ca.key",
        "--use-service-account-credentials=true", "--allocate-node-cidrs=false", "--leader-elect=false",
        f"--flex-volume-plugin-dir={plane.folder / 'volume-plugins'}",
    ]  # fmt: skip


def scheduler(plane: ControlPlane) -> list[str]:
    kubeconfig = plane.kubeconfig("scheduler")
    return [
        str(plane.kube), "kube-scheduler", f"--kubeconfig={kubeconfig}", "--bind-address=127.0.0.1",
        f"--authentication-kubeconfig={kubeconfig}", f"--authorization-kubeconfig={kubeconfig}",
        "--leader-elect=false",
    ]  # fmt: skip
