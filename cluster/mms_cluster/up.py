"""Brings the cluster up: what runs as it should is left alone, everything else is started or started again."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mms_cluster import (
    addons,
    cgroups,
    containers,
    controlplane,
    gobuild,
    network,
    nodeconfig,
    nodenet,
    oci,
    packages,
    pki,
    process,
    runtime,
    settings,
)  # fmt: skip
from mms_cluster import down as taking_down
from mms_cluster.controlplane import ControlPlane
from mms_cluster.errors import ClusterError
from mms_cluster.kubeapi import Api
from mms_cluster.paths import cache_folder, locked, require_space, write
from mms_cluster.ports import holder

if TYPE_CHECKING:
    from mms_cluster.report import Reporter
    from mms_cluster.settings import Layout, Node, Settings

STATE_GIB = 4
SOCKET_BYTES = 107  # the longest path of a socket
POLICIES = "network-policies"
# The second has the servers that systemd's resolver asks, when the first has its own address on the host's loopback.
RESOLV_CONFS = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))
LOG_BYTES = 64 * 1024**2
PROGRAMS = {
    "cni": "gives pods their network",
    "containerd": "runs the pods' containers",
    "ctr": "loads images into containerd",
    "ip": "sets up the cluster's link and routes",
    "nft": "routes services to pods",
    "nsenter": "enters a node's network",
    "runc": "starts containers for containerd",
    "setpriv": "ties helper processes to this one",
}


@dataclass(frozen=True)
class Cluster:
    """A cluster that is being brought up: its programs and everything that is known of it beforehand."""

    layout: Layout
    plane: ControlPlane
    api: Api
    kube: Path
    cni: str
    report: Reporter


def up(layout: Layout, wanted: Settings | None, report: Reporter) -> None:
    """A cluster that is up when this returns, DNS included. `wanted` None keeps what it has, or takes what is usual.

    Nodes that are missing are added, those beyond the wanted number are taken away, links that were cut are mended.

    Raises ClusterError with what the user can do about it.
    """
    require_machine(report)
    require_space(layout.state, STATE_GIB, "The cluster")
    tools(layout, report)
    dns = gobuild.build(gobuild.DNS, report)
    pause = gobuild.build(gobuild.PAUSE, report)
    with locked(layout.lock, report):
        for folder in (layout.run, layout.logs):
            folder.mkdir(parents=True, exist_ok=True)
        chosen = wanted or settings.load(layout) or settings.Settings()
        require_short_paths(layout, chosen.nodes)
        settings.save(layout, chosen)
        cluster = _describe(layout, chosen, gobuild.build(gobuild.KUBE, report), report)
        _certificates(cluster)
        network.ensure(layout.state, layout.sysctls)
        _control_plane(cluster)
        for node in settings.superfluous(layout):
            taking_down.remove(layout, node, cluster.api, report)
        images = [image(nodeconfig.PAUSE_IMAGE, "/pause", pause), image(addons.DNS_IMAGE, "/coredns", dns)]
        first, *others = settings.nodes(layout)
        _node(cluster, first, images)
        _policies(cluster, first)
        if others and cluster.api.get(addons.DNS_DEPLOYMENT) is None:
            # It stays where it comes up: with the control plane, not on a node that a test takes away.
            addons.dns(cluster.api, report)
        for node in others:
            _node(cluster, node, images)
        addons.dns(cluster.api, report)
    report.line(f"the cluster is up: export KUBECONFIG={layout.kubeconfig} PATH={layout.bin}:$PATH")


def tools(layout: Layout, report: Reporter, *, helm: bool = True) -> Path:
    """The folder with kubectl and, if asked for, helm."""
    programs = {"kubectl": gobuild.build(gobuild.KUBE, report)}
    if helm:
        programs["helm"] = gobuild.build(gobuild.HELM, report)
    layout.bin.mkdir(parents=True, exist_ok=True)
    for name, program in programs.items():
        link(layout.bin / name, program)
    return layout.bin


def link(name: Path, program: Path) -> None:
    """Make `name` a link to `program`, without a moment in which it is none."""
    partial = name.with_name(f"{name.name}.{os.getpid()}")
    partial.symlink_to(program)
    partial.replace(name)


def require_machine(report: Reporter) -> None:
    """Raises ClusterError when this machine cannot have a cluster of ours. Installs what is missing."""
    if platform.system() != "Linux" or platform.machine() not in oci.ARCHITECTURES:
        raise ClusterError(
            f"A cluster of our own runs on Linux on x86_64 or aarch64, and this is {platform.system()} on "
            f"{platform.machine()}: start Docker with kind on PATH, or set KUBECONFIG to a cluster."
        )
    packages.ensure(PROGRAMS, report)
    if os.geteuid() != 0:
        raise ClusterError(
            "Bringing up Kubernetes takes root (control groups, mounts, networks): run it with sudo, "
            "or start Docker with kind on PATH, or set KUBECONFIG to a cluster."
        )


def require_short_paths(layout: Layout, nodes: int) -> None:
    """Raises ClusterError when the kubelet of the last node could not listen at its sockets, ten bytes in a folder."""
    last = settings.node(layout, nodes - 1).folder / "kubelet" / "pod-resources" / ("0" * 10)
    if (excess := len(os.fsencode(last)) - SOCKET_BYTES) > 0:
        raise ClusterError(
            f"The path {layout.state} is too long for the sockets in it, by {excess} bytes: "
            f"set MMS_CLUSTER_DIR to a folder with a shorter one."
        )


def _describe(layout: Layout, chosen: Settings, kube: Path, report: Reporter) -> Cluster:
    plane = ControlPlane(
        kube, layout.state, chosen.secure_port, chosen.etcd_port, chosen.etcd_peer_port, advertise=settings.GATEWAY
    )
    cni = packages.find("cni")
    if cni is None:
        raise ClusterError(f"The network plugins are in none of {', '.join(packages.CNI_FOLDERS)}: install them.")
    return Cluster(layout, plane, Api(chosen.secure_port, plane.pki), kube, cni, report)


def _certificates(cluster: Cluster) -> None:
    """Nodes other than the first do not share the host's loopback: they reach the API server at its other address."""
    plane, nodes = cluster.plane, settings.nodes(cluster.layout)
    pki.ensure(plane.pki, [*controlplane.identities(plane), *map(nodeconfig.identity, nodes)])
    inside = f"https://{plane.advertise}:{plane.secure_port}"
    for name in ("controller-manager", "scheduler"):
        pki.write_kubeconfig(plane.pki, name, plane.url, plane.kubeconfig(name))
    for name in ("proxy", *(node.name for node in nodes)):
        pki.write_kubeconfig(plane.pki, name, inside, plane.kubeconfig(name))
    pki.write_kubeconfig(plane.pki, "admin", plane.url, cluster.layout.kubeconfig)


def _control_plane(cluster: Cluster) -> None:
    """The others start after the API server is ready: before, the roles that give them their rights are not there."""
    plane, api = cluster.plane, cluster.api
    _daemon(cluster, "etcd", controlplane.etcd(plane), ports=(plane.etcd_port, plane.etcd_peer_port))
    command = controlplane.apiserver(plane, nodes=True)
    _daemon(cluster, "kube-apiserver", command, ports=(plane.secure_port,), files=(plane.pki / "apiserver.crt",))
    _await(cluster, "kube-apiserver", "The API server is not ready", api.unready, 90)
    for name, command, port in (
        ("kube-controller-manager", controlplane.controller_manager(plane), 10257),
        ("kube-scheduler", controlplane.scheduler(plane), 10259),
    ):
        identity = name.removeprefix("kube-")
        _daemon(cluster, name, command, ports=(port,), files=(plane.kubeconfig(identity),))


def _node(cluster: Cluster, node: Node, images: list[Path]) -> None:
    plane, layout = cluster.plane, cluster.layout
    _write_node(cluster, node)
    suffix = f"-{node.index}"
    if not process.alive(process.read_record(layout.record(f"containerd{suffix}"))) or not nodenet.exists(node):
        _forget_runtime_of_other_boot(cluster, node)
    nodenet.ensure(node)
    cgroups.ensure(node.cgroup)
    if node.netns is not None:
        _await_policies(cluster, node)
    toml = node.folder / "containerd.toml"
    command = node.inside(["containerd", "--config", str(toml)])
    _daemon(cluster, f"containerd{suffix}", command, files=(toml,))
    _await(cluster, f"containerd{suffix}", "containerd is not ready", lambda: runtime.unready(node.socket), 60)
    for archive in images:
        runtime.load(node, archive, cluster.report)
    kubeconfig = plane.kubeconfig(node.name)
    began = time.time()
    fresh = _daemon(
        cluster, f"kubelet{suffix}", node.inside(nodeconfig.kubelet(cluster.kube, node, kubeconfig)),
        ports=(10248, 10250) if node.netns is None else (),
        files=(node.folder / "kubelet.json", kubeconfig, plane.pki / f"{node.name}.crt"),
    )  # fmt: skip
    _daemon(
        cluster, f"kube-proxy{suffix}", node.inside(nodeconfig.proxy(cluster.kube, node)),
        ports=(10249, 10256) if node.netns is None else (),
        files=(node.folder / "proxy.json", plane.kubeconfig("proxy")),
    )  # fmt: skip
    path = f"/api/v1/nodes/{node.name}"
    since = dt.datetime.fromtimestamp(began if fresh else 0, dt.UTC)
    state = f"{node.name} is not Ready"
    _await(cluster, f"kubelet{suffix}", state, lambda: node_unready(cluster.api.get(path), since), 90)


def _policies(cluster: Cluster, first: Node) -> None:
    sources = Path(__file__).parent
    command = ["env", f"PYTHONPATH={sources.parent}", sys.executable, "-m", "mms_cluster.policyd"]
    _daemon(
        cluster, POLICIES, [*command, str(cluster.layout.state), str(cluster.api.port)],
        files=tuple(sources / f"{name}.py" for name in ("policyd", "policy", "kubeapi", "settings", "nodenet")),
    )  # fmt: skip
    _await_policies(cluster, first)


def _await_policies(cluster: Cluster, node: Node) -> None:
    """Before pods come to `node`: whoever was refused must not get through for a moment."""
    rules = f"NetworkPolicies are not enforced on {node.name}"
    _await(cluster, POLICIES, rules, lambda: "" if network.policed(node) else "no table in nftables", 30)


def node_unready(node: dict[str, Any] | None, since: dt.datetime) -> str:
    """What a Node object says against being ready; "" when it is, by a report that is not older than `since`.

    The report of a kubelet that was killed stands for most of a minute.
    """
    if node is None:
        return "it has not registered"
    conditions = {condition["type"]: condition for condition in node["status"].get("conditions", [])}
    ready = conditions.get("Ready", {"status": "Unknown", "message": "no condition yet"})
    if ready["status"] == "True":
        said = dt.datetime.fromisoformat(ready["lastHeartbeatTime"])
        return "" if said >= since.replace(microsecond=0) else "its kubelet has not reported since it was started"
    return str(ready.get("message") or ready["status"])


def _write_node(cluster: Cluster, node: Node) -> None:
    plane, layout = cluster.plane, cluster.layout
    for folder in ("cni", "containerd", "kubelet"):
        (node.folder / folder).mkdir(parents=True, exist_ok=True)
    resolv_conf = Path("/etc/resolv.conf")
    if node.netns is not None:
        resolv_conf = node.folder / "resolv.conf"
        write(resolv_conf, nodeconfig.resolv_conf(*map(_text, RESOLV_CONFS)).encode(), 0o644)
    kubelet = nodeconfig.kubelet_config(node, plane.pki, layout.logs, str(resolv_conf))
    proxy = nodeconfig.proxy_config(node, plane.kubeconfig("proxy"))
    files = {
        "containerd.toml": nodeconfig.containerd_toml(node, cluster.cni),
        "cni/10-mms.conflist": nodeconfig.cni_conflist(node, layout.label),
        "kubelet.json": json.dumps(kubelet, indent=2),
        "proxy.json": json.dumps(proxy, indent=2),
    }
    for name, text in files.items():
        write(node.folder / name, text.encode())


def _forget_runtime_of_other_boot(cluster: Cluster, node: Node) -> None:
    """After a reboot no container runs, and what containerd wrote of running ones would only mislead it.

    The same goes for a node that was killed, or lost its network: what may be left of it is ended.
    """
    mark = node.folder / "boot"
    if not nodenet.exists(node) or not mark.exists() or mark.read_text() != process.boot_id():
        mark.unlink(missing_ok=True)
        for name in node.daemons:
            process.stop(cluster.layout.record(name), grace=0)
        containers.forget(node)
        mark.write_text(process.boot_id())
        cluster.report.line(f"{node.name} starts with this boot")


def _daemon(
    cluster: Cluster, name: str, argv: list[str], ports: tuple[int, ...] = (), files: tuple[Path, ...] = ()
) -> bool:
    """Leave it alone when it runs with the same command and files, else start it (again) and say True."""
    record, log, plane = cluster.layout.record(name), cluster.layout.log(name), cluster.plane
    digest = process.digest_of(argv, *files)
    found = process.read_record(record)
    if found and process.alive(found):
        if found.digest == digest:
            return False
        cluster.report.line(f"{name} runs with another configuration: starting it again")
        process.stop(record, grace=10)
    for port in ports:
        # The last threads of a process that ends can hold its sockets for a moment longer.
        process.wait_gone(lambda port=port: not holder(port), 3)  # type: ignore[misc]
        if who := holder(port):
            options = {plane.secure_port: "--secure-port", plane.etcd_port: "--etcd-port"}
            options[plane.etcd_peer_port] = "--etcd-peer-port"
            choose = f", or choose another port with `up {options[port]}`" if port in options else ""
            raise ClusterError(f"{name} needs port {port}, which {who} has: stop that{choose}.")
    if log.exists() and log.stat().st_size > LOG_BYTES:
        log.replace(log.with_suffix(".log.old"))
    cluster.report.line(f"starting {name}")
    process.daemon(record, argv, log, digest)
    return True


def _await(cluster: Cluster, name: str, what: str, missing: Any, seconds: float) -> None:
    record = cluster.layout.record(name)
    log = cluster.layout.log(name)
    process.wait_until(what, missing, seconds, lambda: process.alive(process.read_record(record)), log)


def image(name: str, path: str, program: Path) -> Path:
    """An archive of an image that holds one static program, beside the program in the cache."""
    archive = program.with_suffix(".tar")
    if not archive.exists():
        with locked(cache_folder() / "image.lock"):
            oci.write(archive, name, {path: program}, {"Entrypoint": [path]})
    return archive


def _text(file: Path) -> str:
    return file.read_text() if file.exists() else ""
