"""The network of a node that is a network namespace: a link to the host, addresses, routes, and cutting it off.

    host                                            namespace of node 1
    mms0  10.244.0.1, no ports                      mms0  10.244.1.1, no ports
    mms1  <------------------ veth ------------->   eth0
    10.244.1.0/24 via 10.244.1.1 dev mms1           default via 10.244.0.1 dev eth0

The ends of the link have no addresses of their own: each side answers for the address of its mms0. What one node sends
to another goes through the host, which is the cluster's router and masquerades what leaves the machine.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from mms_cluster.controlplane import SERVICE_CIDR
from mms_cluster.network import run
from mms_cluster.settings import GATEWAY, LINK

if TYPE_CHECKING:
    from mms_cluster.settings import Node

FOLDER = Path("/run/netns")  # where `ip netns` looks for namespaces
UPLINK = "eth0"  # the node's end of the link
SILENCE = "1000"  # the metric of the route that is taken when there is no other


def exists(node: Node) -> bool:
    """Whether the node's network namespace is there; that of the host always is."""
    return identity(node) is not None


def identity(node: Node) -> tuple[int, int] | None:
    """Tells a node's network from one that had the same name before; None when it has none.

    Numbers of namespaces are used again: the time at which it was made belongs to it.
    """
    if node.netns is None:
        return (0, 0)
    try:
        found = _path(node).stat()
    except FileNotFoundError:
        return None
    # The file of a namespace is a mount on an ordinary one, which is all that a killed `ensure` may have left.
    return None if found.st_dev == FOLDER.stat().st_dev else (found.st_ino, found.st_ctime_ns)


def ensure(node: Node) -> None:
    """Make what is missing, and take the link up. Nothing to do for a node on the host."""
    if node.netns is None:
        return
    if not exists(node):
        FOLDER.mkdir(exist_ok=True)
        _path(node).touch()
        run("unshare", f"--net={_path(node)}", "true")
    _pair(node)
    if LINK not in _links(node):
        run(*node.inside(["ip", "link", "add", LINK, "type", "bridge"]))
    run(*node.inside(["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]))
    run(*node.inside(["ip", "-batch", "-"]), stdin="\n".join(inner(node)) + "\n")
    run("ip", "-batch", "-", stdin="\n".join(outer(node)) + "\n")


def inner(node: Node) -> list[str]:
    """Commands of `ip` in the namespace, which can be given again.

    What is for a service without rules, or for none of the node's pods, ends here: the host would only send it back.
    """
    return [
        "link set lo up",
        f"link set {LINK} up",
        f"address replace {node.ip}/32 dev {LINK}",
        f"link set {UPLINK} up",
        f"route replace {GATEWAY} dev {UPLINK} src {node.ip}",
        f"route replace default via {GATEWAY} dev {UPLINK} src {node.ip}",
        f"route replace {SERVICE_CIDR} dev {LINK} src {node.ip}",
        f"route replace unreachable {node.pod_cidr}",
    ]


def outer(node: Node) -> list[str]:
    """Commands of `ip` on the host, which can be given again.

    The kernel takes away the routes of a link that is down. What is then sent to the node is swallowed by a link
    without ports, as by a network that has lost a machine; without the last route, the sender would be told at once.
    """
    return [
        f"link set {node.uplink} up",
        f"route replace {node.ip} dev {node.uplink} src {GATEWAY}",
        f"route replace {node.pod_cidr} via {node.ip} dev {node.uplink} src {GATEWAY}",
        f"route replace {node.pod_cidr} dev {LINK} src {GATEWAY} metric {SILENCE}",
    ]


def cut(node: Node) -> None:
    """Take the link down: to the node as if its cable were pulled."""
    run("ip", "link", "set", node.uplink, "down")


def is_cut(node: Node) -> bool:
    """Whether the link is there, and down."""
    if node.netns is None or not exists(node):
        return False
    found = [link for link in json.loads(run("ip", "-json", "link")) if link["ifname"] == node.uplink]
    return bool(found) and "UP" not in found[0]["flags"]


def remove(node: Node) -> None:
    """Take the namespace away with all that is in it, and its link. What is sent to the node is swallowed from now on.

    The link is deleted first, by itself: a namespace lives on for as long as a process is in it.
    """
    if node.netns is None:
        return
    if exists(node) and UPLINK in _links(node):
        run(*node.inside(["ip", "link", "delete", UPLINK]))
    while exists(node):
        run("umount", "--lazy", str(_path(node)))
    _path(node).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        FOLDER.rmdir()


def forget(node: Node) -> None:
    """Take away the host's last route to a node that was removed."""
    if run("ip", "route", "show", node.pod_cidr, "dev", LINK):
        run("ip", "route", "delete", node.pod_cidr, "dev", LINK)


def paired(outside: dict[str, int], inside: dict[str, int]) -> bool:
    """Whether two links, as `ip -json link` shows them, are the ends of one."""
    return bool(outside and inside) and (
        (outside["ifindex"], outside.get("link_index")) == (inside.get("link_index"), inside["ifindex"])
    )


def _pair(node: Node) -> None:
    """The link between host and namespace; one of the same name that leads elsewhere is of a cluster that is gone."""
    outside, inside = (_links(None).get(node.uplink, {}), _links(node).get(UPLINK, {}))
    if paired(outside, inside):
        return
    if inside:
        run(*node.inside(["ip", "link", "delete", UPLINK]))
    if node.uplink in _links(None):
        run("ip", "link", "delete", node.uplink)
    run("ip", "link", "add", node.uplink, "type", "veth", "peer", "name", UPLINK, "netns", str(node.netns))


def _links(node: Node | None) -> dict[str, dict[str, int]]:
    """The links in the node's namespace, or in that of this process, by name."""
    command = ["ip", "-json", "link"]
    return {link["ifname"]: link for link in json.loads(run(*(node.inside(command) if node else command)))}


def _path(node: Node) -> Path:
    return FOLDER / str(node.netns)
