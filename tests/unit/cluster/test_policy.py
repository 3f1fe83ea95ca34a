"""NetworkPolicies to nftables rules."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import pytest

from mms_cluster.policy import Pod, pod, ruleset, selects

WEB = Pod("a", "10.244.0.2", {"app": "web"}, {("TCP", "http"): 8080})
DB = Pod("a", "10.244.0.3", {"app": "db"}, {("TCP", "http"): 9090})
OTHER = Pod("b", "10.244.0.4", {"app": "web"})
NAMESPACES = {"a": {"team": "x"}, "b": {"team": "y"}}
ON_WEB = {"podSelector": {"matchLabels": {"app": "web"}}}


def rules(chain: str, **spec: Any) -> list[str] | None:
    """The rules of a chain that the policy makes in namespace a, without those that every chain has."""
    policy = {"metadata": {"name": "p", "namespace": "a"}, "spec": {**ON_WEB, **spec}}
    for line in ruleset([policy], [WEB, DB, OTHER], NAMESPACES).splitlines():
        if line.startswith(f"  chain {chain} {{"):
            first, *middle, last = [part.strip() for part in line[line.index("{") + 1 : line.rindex("}")].split(";")][
                :-1
            ]
            assert first.endswith(f"{chain.split('_', 1)[1].replace('_', '.')} return")
            assert last == "drop"
            return middle
    return None


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        pytest.param({}, [], id="deny-all"),
        pytest.param({"ingress": [{}]}, ["return"], id="allow-all"),
        pytest.param(
            {"ingress": [{"from": [{"podSelector": {}}]}]}, ["ip saddr { 10.244.0.2, 10.244.0.3 } return"],
            id="same-namespace",
        ),
        pytest.param(
            {"ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": "y"}}}]}]},
            ["ip saddr { 10.244.0.4 } return"], id="other-namespace",
        ),
        pytest.param(
            {"ingress": [{"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "db"}}}]}]},
            ["ip saddr { 10.244.0.3 } return"], id="both-selectors",
        ),
        pytest.param({"ingress": [{"from": [{"podSelector": {"matchLabels": {"a": "b"}}}]}]}, [], id="no-such-peer"),
        pytest.param(
            {"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}]}]},
            ["ip saddr 10.0.0.0/8 ip saddr != { 10.1.0.0/16 } return"], id="block",
        ),
        pytest.param({"ingress": [{"from": [{"ipBlock": {"cidr": "fd00::/8"}}]}]}, [], id="block-of-ipv6"),
        pytest.param({"ingress": [{"ports": [{"port": 80}]}]}, ["tcp dport 80 return"], id="port"),
        pytest.param({"ingress": [{"ports": [{"port": 80, "endPort": 90}]}]}, ["tcp dport 80-90 return"], id="range"),
        pytest.param({"ingress": [{"ports": [{"protocol": "UDP"}]}]}, ["meta l4proto udp return"], id="protocol"),
        pytest.param({"ingress": [{"ports": [{"port": "http"}]}]}, ["tcp dport 8080 return"], id="named-port"),
        pytest.param(
            {"ingress": [{"from": [{"podSelector": ON_WEB["podSelector"]}], "ports": [{"port": 1}, {"port": 2}]}]},
            ["ip saddr { 10.244.0.2 } tcp dport 1 return", "ip saddr { 10.244.0.2 } tcp dport 2 return"],
            id="ports-of-peer",
        ),
    ],
)  # fmt: skip
def test_ingress(spec: dict[str, Any], expected: list[str]) -> None:
    assert rules("ingress_10_244_0_2", **spec) == expected
    assert rules("ingress_10_244_0_3", **spec) is None, "a pod that no policy selects is free"
    assert rules("ingress_10_244_0_4", **spec) is None, "a policy ends at its namespace"
    assert rules("egress_10_244_0_2", **spec) is None


def test_egress() -> None:
    spec = {
        "policyTypes": ["Egress"],
        "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "db"}}}], "ports": [{"port": "http"}]}],
    }
    assert rules("egress_10_244_0_2", **spec) == ["ip daddr { 10.244.0.3 } tcp dport 9090 return"]
    assert rules("ingress_10_244_0_2", **spec) is None


@pytest.mark.skipif(shutil.which("nft") is None, reason="nft comes with the cluster, whose tests need it")
def test_nft_takes_it() -> None:
    deny = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    allow = {**ON_WEB, "ingress": [{"ports": [{"port": 80, "endPort": 81}]}]}
    policies = [{"metadata": {"name": str(n), "namespace": "a"}, "spec": spec} for n, spec in enumerate((deny, allow))]
    text = ruleset(policies, [WEB, DB, OTHER], NAMESPACES)
    checked = subprocess.run(["nft", "--check", "-f", "-"], input=text, capture_output=True, text=True, check=False)
    if "not permitted" in checked.stderr:
        pytest.skip("nft checks rules for root only")
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize(
    ("operator", "values", "matches"),
    [
        pytest.param("In", ["web", "db"], True, id="in"),
        pytest.param("NotIn", ["web"], False, id="not-in"),
        pytest.param("Exists", [], True, id="exists"),
        pytest.param("DoesNotExist", [], False, id="does-not-exist"),
    ],
)
def test_expressions(operator: str, values: list[str], matches: bool) -> None:
    expression = {"key": "app", "operator": operator, "values": values}
    assert selects({"matchExpressions": [expression]}, {"app": "web"}) is matches


@pytest.mark.parametrize(
    ("status", "spec"),
    [
        pytest.param({}, {}, id="no-address-yet"),
        pytest.param({"podIP": "10.244.0.9", "phase": "Succeeded"}, {}, id="ended"),
        pytest.param({"podIP": "10.244.0.1", "phase": "Running"}, {"hostNetwork": True}, id="host-network"),
    ],
)
def test_pods_without_an_address_of_their_own(status: dict[str, Any], spec: dict[str, Any]) -> None:
    assert pod({"metadata": {"namespace": "a"}, "spec": {"containers": [], **spec}, "status": status}) is None
