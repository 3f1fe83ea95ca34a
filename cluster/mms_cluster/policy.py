"""NetworkPolicy objects as nftables rules. Pure: objects in, a ruleset out.

Enforced: podSelector, namespaceSelector and ipBlock with except, numbered and named ports, port ranges, TCP, UDP and
SCTP, both directions. As the API says, a pod always reaches itself, the node itself always reaches its pods, replies
always pass, and connections that stand outlive a policy that would refuse them. For IPv4.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

TABLE = "mms_policy"
INGRESS, EGRESS = "Ingress", "Egress"
_ADDRESS = {INGRESS: "ip saddr", EGRESS: "ip daddr"}  # of the other side
_ENDED = {"Succeeded", "Failed"}


@dataclass(frozen=True)
class Pod:
    """A pod with an address of its own. `ports` is (protocol, name) -> number."""

    namespace: str
    ip: str
    labels: Mapping[str, str]
    ports: Mapping[tuple[str, str], int] = field(default_factory=dict)


def pod(manifest: Mapping[str, Any]) -> Pod | None:
    """None when it has no address, no longer has it, or shares the node's."""
    status, spec = manifest.get("status", {}), manifest["spec"]
    if not status.get("podIP") or status.get("phase") in _ENDED or spec.get("hostNetwork"):
        return None
    ports = {
        (port.get("protocol", "TCP"), port["name"]): port["containerPort"]
        for container in spec["containers"]
        for port in container.get("ports", [])
        if "name" in port
    }
    meta = manifest["metadata"]
    return Pod(meta["namespace"], status["podIP"], meta.get("labels", {}), ports)


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a label selector matches; an empty one matches everything."""
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    return all(_holds(expression, labels) for expression in selector.get("matchExpressions", []))


def ruleset(
    policies: Iterable[Mapping[str, Any]], pods: Sequence[Pod], namespaces: Mapping[str, Mapping[str, str]]
) -> str:
    """The whole table, to be put in the place of the one there is. `namespaces` is name -> labels."""
    chains: dict[tuple[str, str], list[str]] = defaultdict(list)
    for policy in sorted(policies, key=lambda item: (item["metadata"]["namespace"], item["metadata"]["name"])):
        namespace, spec = policy["metadata"]["namespace"], policy["spec"]
        for target in pods:
            if target.namespace == namespace and selects(spec.get("podSelector", {}), target.labels):
                for direction in _types(spec):
                    for rule in spec.get(direction.lower()) or [None]:
                        allowed = [] if rule is None else _allowed(rule, direction, target, _Peers(pods, namespaces))
                        chains[direction, target.ip].extend(allowed)
    return _table(chains)


def _table(chains: Mapping[tuple[str, str], list[str]]) -> str:
    """Each pod that a policy selects has a chain for that direction, which allows by `return` and else drops."""
    lines = [f"table inet {TABLE}", f"delete table inet {TABLE}", f"table inet {TABLE} {{"]
    for (direction, ip), rules in sorted(chains.items()):
        body = "; ".join([f"{_ADDRESS[direction]} {ip} return", *dict.fromkeys(rules), "drop"])
        lines.append(f"  chain {_chain(direction, ip)} {{ {body}; }}")
    for direction in (INGRESS, EGRESS):
        elements = ", ".join(f"{ip} : jump {_chain(way, ip)}" for way, ip in sorted(chains) if way == direction)
        filled = f" elements = {{ {elements} }};" if elements else ""
        lines.append(f"  map {direction.lower()} {{ type ipv4_addr : verdict;{filled} }}")
    # Services have been translated by then. What a pod sends to the node itself is not forwarded but comes in.
    out, both = ["ip saddr vmap @egress"], ["ip saddr vmap @egress", "ip daddr vmap @ingress"]
    for hook, maps in (("forward", both), ("input", out)):
        body = "; ".join(["ct state established,related accept", *maps])
        lines.append(f"  chain {hook} {{ type filter hook {hook} priority filter; policy accept; {body}; }}")
    return "\n".join([*lines, "}"]) + "\n"


@dataclass(frozen=True)
class _Peers:
    """All pods, and the labels of their namespaces."""

    pods: Sequence[Pod]
    namespaces: Mapping[str, Mapping[str, str]]

    def of(self, peer: Mapping[str, Any], namespace: str) -> list[Pod]:
        """Without a namespaceSelector, peers are of the policy's own namespace."""
        return [
            pod
            for pod in self.pods
            if selects(peer.get("podSelector") or {}, pod.labels)
            and (
                selects(peer["namespaceSelector"], self.namespaces.get(pod.namespace, {}))
                if "namespaceSelector" in peer
                else pod.namespace == namespace
            )
        ]


def _allowed(rule: Mapping[str, Any], direction: str, target: Pod, peers: _Peers) -> list[str]:
    """What one rule of a policy allows for `target`, each ending in `return`. A named port is the receiver's."""
    address, given = _ADDRESS[direction], rule.get("from" if direction == INGRESS else "to")
    matches: list[tuple[str, Sequence[Pod]]] = []
    if not given:
        matches.append(("", peers.pods))
    for peer in given or []:
        if "ipBlock" in peer:
            if ":" not in peer["ipBlock"]["cidr"]:
                matches.append((_block(peer["ipBlock"], address), ()))
        elif found := peers.of(peer, target.namespace):
            matches.append((f"{address} {{ {', '.join(sorted(pod.ip for pod in found))} }} ", found))
    return [
        f"{match}{ports}return"
        for match, receivers in matches
        for ports in _ports(rule.get("ports"), [target] if direction == INGRESS else receivers)
    ]


def _ports(ports: Sequence[Mapping[str, Any]] | None, named_on: Iterable[Pod]) -> list[str]:
    """A match for each port, followed by a space; one that matches all when none are given."""
    if not ports:
        return [""]
    found = []
    for port in ports:
        protocol, number = port.get("protocol", "TCP"), port.get("port")
        if number is None:
            found.append(f"meta l4proto {protocol.lower()} ")
        elif isinstance(number, str):
            numbers = {other.ports.get((protocol, number)) for other in named_on} - {None}
            found += [f"{protocol.lower()} dport {known} " for known in sorted(n for n in numbers if n)]
        else:
            last = f"-{port['endPort']}" if "endPort" in port else ""
            found.append(f"{protocol.lower()} dport {number}{last} ")
    return found


def _block(block: Mapping[str, Any], address: str) -> str:
    excepted = block.get("except")
    return f"{address} {block['cidr']} " + (f"{address} != {{ {', '.join(excepted)} }} " if excepted else "")


def _types(spec: Mapping[str, Any]) -> list[str]:
    """The API server fills policyTypes in; by the same rule when it is not there."""
    return list(spec.get("policyTypes") or ([INGRESS, EGRESS] if spec.get("egress") else [INGRESS]))


def _chain(direction: str, ip: str) -> str:
    return f"{direction.lower()}_{ip.replace('.', '_')}"


def _holds(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    key, values = expression["key"], expression.get("values", [])
    match expression["operator"]:
        case "In":
            return labels.get(key) in values
        case "NotIn":
            return labels.get(key) not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
        case _:
            raise ValueError(f"a label selector has the unknown operator {json.dumps(expression)}")
