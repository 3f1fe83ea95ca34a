"""Configuration files and command lines of a node's programs. Pure: a node and folders in, text out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mms_cluster.addons import nameservers
from mms_cluster.controlplane import DNS_IP, POD_CIDR
from mms_cluster.pki import Identity

if TYPE_CHECKING:
    from pathlib import Path

    from mms_cluster.settings import Node

PAUSE_IMAGE = "localhost/mms-pause:1"


def identity(node: Node) -> Identity:
    """The node's name is its rights (the Node authorizer); its address is what the API server fetches logs from."""
    return Identity(node.name, f"system:node:{node.name}", "system:nodes", (node.name, node.ip, "127.0.0.1"))


def containerd_toml(node: Node, cni: str) -> str:
    """restrict_oom_score_adj: without CAP_SYS_RESOURCE, runc may not lower a score and no sandbox would start.

    Everything that containerd can be told to keep elsewhere than in the machine's folders is kept in ours.
    """
    folder = node.folder / "containerd"
    return f"""\
version = 2
root = "{folder}/root"
state = "{folder}/state"
[grpc]
  address = "{node.socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        Root = "{folder}/runc"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni}"
    conf_dir = "{node.folder}/cni"
"""


def cni_conflist(node: Node, network: str) -> str:
    """Each pod has a link of its own to the node and no bridge: everything between pods is routed.

    So services and policies work without br_netfilter, in which bridged packets would pass by the rules.
    """
    ptp = {
        "type": "ptp",
        "ipMasq": False,
        "ipam": {
            "type": "host-local",
            "dataDir": str(node.folder / "addresses"),
            "ranges": [[{"subnet": node.pod_cidr}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    return json.dumps({"cniVersion": "1.0.0", "name": network, "plugins": [ptp]}, indent=2) + "\n"


def kubelet_config(node: Node, pki: Path, logs: Path, resolv_conf: str = "/etc/resolv.conf") -> dict[str, Any]:
    """Images are never collected: they came from archives, and there is no registry to fetch them from again.

    The one user of the cluster may use what is on it under any name: by default an image that was pulled from a
    registry is refused to pods that name it as it was loaded from an archive.
    """
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{node.cgroup}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "containerRuntimeEndpoint": f"unix://{node.socket}",
        "clusterDNS": [DNS_IP],
        "clusterDomain": "cluster.local",
        "tlsCertFile": str(pki / f"{node.name}.crt"),
        "tlsPrivateKeyFile": str(pki / f"{node.name}.key"),
        "evictionHard": {"memory.available": "200Mi", "nodefs.available": "1Gi"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "imagePullCredentialsVerificationPolicy": "NeverVerify",
        "localStorageCapacityIsolation": False,
        "makeIPTablesUtilChains": False,
        "maxPods": 250,
        "podLogsDir": str(logs / "pods" / node.name),
        "registryPullQPS": 0,
        "resolvConf": resolv_conf,
        "serializeImagePulls": False,
        "volumePluginDir": str(node.folder / "volume-plugins"),
    }


def resolv_conf(*texts: str) -> str:
    """The first of these texts that names a server which a node's network namespace reaches, with only such servers.

    Its loopback address is not that of the host, and it has IPv4 alone.
    """
    for text in texts:
        lines = [line for line in text.splitlines() if line.split()[:1] != ["nameserver"]]
        if servers := [server for server in nameservers(text) if ":" not in server]:
            return "\n".join([*lines, *(f"nameserver {server}" for server in servers)]) + "\n"
    return ""


def kubelet(kube: Path, node: Node, kubeconfig: Path) -> list[str]:
    return [
        str(kube), "kubelet", f"--config={node.folder / 'kubelet.json'}", f"--kubeconfig={kubeconfig}",
        f"--hostname-override={node.name}", f"--node-ip={node.ip}", f"--root-dir={node.folder / 'kubelet'}",
    ]  # fmt: skip


def proxy_config(node: Node, kubeconfig: Path) -> dict[str, Any]:
    """The limits of connection tracking are the machine's: zero leaves them alone."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clusterCIDR": POD_CIDR,
        "hostnameOverride": node.name,
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }


def proxy(kube: Path, node: Node) -> list[str]:
    return [str(kube), "kube-proxy", f"--config={node.folder / 'proxy.json'}"]
