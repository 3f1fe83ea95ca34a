"""The host's part of the cluster network: one link, two routes, one nftables table, kernel settings put back later."""

from __future__ import annotations

import contextlib
import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from mms_cluster import packages, policy
from mms_cluster.controlplane import POD_CIDR, SERVICE_CIDR
from mms_cluster.errors import ClusterError
from mms_cluster.paths import write
from mms_cluster.settings import GATEWAY, LINK

if TYPE_CHECKING:
    from mms_cluster.settings import Node

TABLE = "mms_cluster"
# Tables of kube-proxy and ours; `nft delete` of one that is not there is no error after `add`.
TABLES = (("ip", TABLE), ("inet", policy.TABLE), ("ip", "kube-proxy"), ("ip6", "kube-proxy"))

# For machines that forward nothing by default, as Docker has them do: no table of nftables can allow what it drops.
FORWARDS = tuple(
    ("FORWARD", side, POD_CIDR, "-m", "comment", "--comment", TABLE, "-j", "ACCEPT") for side in ("-s", "-d")
)

FORWARD = "net/ipv4/ip_forward"
# What the kubelet sets on its own.
KUBELETS = (
    "vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)  # fmt: skip


def ruleset() -> str:
    """Packets of pods that leave the machine carry its address."""
    return f"""\
table ip {TABLE}
delete table ip {TABLE}
table ip {TABLE} {{
  chain postrouting {{
    type nat hook postrouting priority srcnat;
    ip saddr {POD_CIDR} ip daddr != {{ {POD_CIDR}, {SERVICE_CIDR} }} masquerade
  }}
}}
"""


def ensure(state: Path, saved_sysctls: Path) -> None:
    """Make what is missing. Raises ClusterError when another cluster of ours has the network.

    The link has no ports: its address is where pods and nodes reach the API server. The route for services ends there,
    so that a packet to a service without rules never leaves the machine; the one for pods says at once that an address
    without a pod is nobody's.
    """
    owner = _owner()
    if owner not in {"", str(state)} and Path(owner).exists():
        raise ClusterError(
            f"The cluster of {owner} is up on this machine, and there is one network: "
            f"take it down with `MMS_CLUSTER_DIR={owner} python -m mms_cluster down`."
        )
    save_sysctls(saved_sysctls)
    _sysctl(FORWARD).write_text("1")
    if not _link_exists():
        run("ip", "link", "add", LINK, "type", "bridge")
    run("ip", "link", "set", LINK, "alias", str(state))
    run("ip", "address", "replace", f"{GATEWAY}/32", "dev", LINK)
    run("ip", "link", "set", LINK, "up")
    run("ip", "route", "replace", SERVICE_CIDR, "dev", LINK, "src", GATEWAY)
    run("ip", "route", "replace", "unreachable", POD_CIDR)
    run("nft", "-f", "-", stdin=ruleset())
    if packages.find("iptables") and "-P FORWARD DROP" in run("iptables", "-w", "-S", "FORWARD"):
        for rule in FORWARDS:
            if not _has(rule):
                run("iptables", "-w", "-I", *rule)


def remove(state: Path, saved_sysctls: Path) -> None:
    """Undo `ensure`, and the rules of kube-proxy. The link goes last: it says whose all this is."""
    if _owner() not in {"", str(state)}:
        return
    run("nft", "-f", "-", stdin="".join(f"table {f} {name}\ndelete table {f} {name}\n" for f, name in TABLES))
    for rule in FORWARDS if packages.find("iptables") else ():
        if _has(rule):
            run("iptables", "-w", "-D", *rule)
    if f"unreachable {POD_CIDR}" in run("ip", "route", "show", "type", "unreachable"):
        run("ip", "route", "delete", "unreachable", POD_CIDR)
    _delete_pods_links()
    if _link_exists():
        run("ip", "link", "delete", LINK)
    restore_sysctls(saved_sysctls)


def cut_pods(state: Path) -> None:
    """Cut the pods on the host off, if the network is this cluster's."""
    if _owner() == str(state):
        _delete_pods_links()


def stray_links(links: list[dict[str, object]]) -> list[str]:
    """Of `ip -json address`: the pods' links, which carry the gateway's address. Usually gone with their pods."""
    return [
        str(link["ifname"])
        for link in links
        if any(address.get("local") == GATEWAY for address in link.get("addr_info") or [])  # type: ignore[attr-defined]
    ]


def save_sysctls(path: Path) -> None:
    """Write down the values before the cluster's, once."""
    if path.exists():
        return
    values = {name: _sysctl(name).read_text().strip() for name in (FORWARD, *KUBELETS) if _sysctl(name).exists()}
    write(path, json.dumps(values).encode())


def restore_sysctls(path: Path) -> None:
    """Put back what `save_sysctls` wrote down."""
    with contextlib.suppress(FileNotFoundError):
        for name, value in json.loads(path.read_text()).items():
            if _sysctl(name).read_text().strip() != value:
                _sysctl(name).write_text(value)
        path.unlink()


def run(*argv: str, stdin: str | None = None) -> str:
    """A system program's output. Raises ClusterError with its words when it fails."""
    result = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise ClusterError(f"`{' '.join(argv)}` failed: {result.stderr.strip() or result.stdout.strip()}")
    return result.stdout


def policed(node: Node) -> bool:
    """Whether the table of NetworkPolicies is there."""
    command = node.inside(["nft", "list", "table", "inet", policy.TABLE])
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _delete_pods_links() -> None:
    """The kernel deletes those of pods that are gone by itself, perhaps just now: that one is not there is no error."""
    for veth in _pods_links():
        subprocess.run(["ip", "link", "delete", veth], capture_output=True, check=False)
    if left := _pods_links():
        raise ClusterError(f"The links {', '.join(left)} of pods cannot be deleted: try `ip link delete {left[0]}`.")


def _pods_links() -> list[str]:
    return stray_links(json.loads(run("ip", "-json", "address", "show", "type", "veth") or "[]"))


def _has(rule: tuple[str, ...]) -> bool:
    return subprocess.run(["iptables", "-w", "-C", *rule], capture_output=True, check=False).returncode == 0


def _owner() -> str:
    """The state folder of the cluster whose link is there; "" without a link or of one that was not finished."""
    found = json.loads(run("ip", "-json", "link", "show", LINK)) if _link_exists() else [{}]
    return str(found[0].get("ifalias", ""))


def _link_exists() -> bool:
    return subprocess.run(["ip", "link", "show", LINK], capture_output=True, check=False).returncode == 0


def _sysctl(name: str) -> Path:
    return Path("/proc/sys") / name
