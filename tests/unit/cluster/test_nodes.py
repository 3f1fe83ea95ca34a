"""Nodes beyond the first: which there are, their addresses and routes, what is asked of them that they do not have."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from mms_cluster import cli, faults, network, nodeconfig, nodenet, policyd, settings, up
from mms_cluster.errors import ClusterError
from mms_cluster.report import Reporter
from mms_cluster.settings import Layout, Settings

RESOLVER = "nameserver 192.0.2.1\n"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Of a cluster that is to have two nodes."""
    found = Layout(tmp_path)
    settings.save(found, Settings(nodes=2))
    return found


def test_each_node_has_names_and_addresses_of_its_own(layout: Layout) -> None:
    first, second = settings.nodes(layout)
    assert (first.netns, first.ip, first.pod_cidr) == (None, settings.GATEWAY, "10.244.0.0/24")
    assert (second.netns, second.ip, second.pod_cidr) == (f"{layout.label}-node-1", "10.244.1.1", "10.244.1.0/24")
    assert second.netns != settings.node(Layout(layout.state / "other"), 1).netns, "clusters do not clash"
    last = settings.node(layout, settings.MOST_NODES - 1)
    for field in ("name", "ip", "pod_cidr", "folder", "cgroup", "socket", "uplink", "daemons"):
        assert len({getattr(node, field) for node in (first, second, last)}) == 3
    assert "10.244.1.1" in nodeconfig.identity(second).hosts, "the API server fetches logs by the address"
    assert second.daemons[0] == "kubelet-1", "the first to be ended"
    assert len(last.uplink) <= 15, "the kernel takes no longer names of links"


def test_one_node_unless_more_were_asked_for(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    assert [node.index for node in settings.nodes(layout)] == [0]
    layout.settings.write_text('{"secure_port": 7443}')
    assert [node.index for node in settings.nodes(layout)] == [0], "settings of before there could be more"


def test_nodes_that_are_there(layout: Layout) -> None:
    for name in ("node-0", "node-1", "node-2", "node-10", "node-01", "node-x", "node-256", "node-1.old"):
        (layout.state / name).mkdir()
    assert [node.index for node in settings.present(layout)] == [0, 1, 2, 10]
    assert [node.index for node in settings.superfluous(layout)] == [2, 10]
    layout.settings.write_text("{")
    assert [node.index for node in settings.present(layout)] == [0, 1, 2, 10], "`down` needs no settings"


def test_a_cluster_that_was_not_brought_up_has_node_0(tmp_path: Path) -> None:
    assert [node.index for node in settings.present(Layout(tmp_path))] == [0]


def test_commands_of_ip(layout: Layout) -> None:
    node = settings.node(layout, 1)
    inner, outer = nodenet.inner(node), nodenet.outer(node)
    assert "route replace default via 10.244.0.1 dev eth0 src 10.244.1.1" in inner
    assert inner.index("link set eth0 up") < inner.index("route replace 10.244.0.1 dev eth0 src 10.244.1.1")
    assert "route replace 10.244.1.0/24 via 10.244.1.1 dev mms1 src 10.244.0.1" in outer
    assert outer[0] == "link set mms1 up", "a link that is down has no routes"
    assert all(" replace " in command or command.endswith(" up") for command in (*inner, *outer)), "can be given again"


@pytest.mark.parametrize(
    ("outside", "inside", "expected"),
    [
        pytest.param({"ifindex": 4, "link_index": 2}, {"ifindex": 2, "link_index": 4}, True, id="pair"),
        pytest.param({"ifindex": 4, "link_index": 2}, {"ifindex": 2, "link_index": 5}, False, id="of-another-cluster"),
        pytest.param({"ifindex": 4, "link_index": 2}, {}, False, id="no-inner-end"),
        pytest.param({}, {"ifindex": 2, "link_index": 4}, False, id="no-outer-end"),
        pytest.param({}, {}, False, id="none"),
    ],
)
def test_paired(outside: dict[str, int], inside: dict[str, int], *, expected: bool) -> None:
    assert nodenet.paired(outside, inside) is expected


def test_a_node_without_a_namespace(layout: Layout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(nodenet, "FOLDER", tmp_path)
    first, second = settings.nodes(layout)
    assert nodenet.exists(first), "the host's is always there"
    assert not nodenet.exists(second)
    (tmp_path / str(second.netns)).touch()
    assert not nodenet.exists(second), "the file that a namespace is mounted on is none"


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        pytest.param(["search x\n" + RESOLVER], "search x\n" + RESOLVER, id="as-it-is"),
        pytest.param(["nameserver 127.0.0.53\noptions edns0\n", RESOLVER], RESOLVER, id="the-resolver-behind"),
        pytest.param(["nameserver 127.0.0.1\n" + RESOLVER, "x"], RESOLVER, id="not-the-loopback"),
        pytest.param(["nameserver 2001:db8::1\n"], "", id="not-ipv6"),
        pytest.param(["", ""], "", id="none"),
    ],
)
def test_resolv_conf_names_what_the_namespace_reaches(texts: list[str], expected: str) -> None:
    assert nodeconfig.resolv_conf(*texts) == expected


class Nft:
    """Stands in for `nft` in the namespaces of nodes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.networks = {"mms-node-0": (0, 0), "mms-node-1": (1, 1)}
        self.fails = False
        self.goes = False
        monkeypatch.setattr(network, "run", self._run)
        monkeypatch.setattr(nodenet, "identity", lambda node: self.networks.get(node.name))

    def _run(self, *argv: str, stdin: str) -> str:
        self.calls.append(f"{'node 1' if argv[0] == 'nsenter' else 'host'}: {stdin}")
        if self.goes:
            del self.networks["mms-node-1"]
        if self.fails:
            raise ClusterError("nft failed")
        return ""


def test_policies_are_given_to_each_network_once(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    nft = Nft(monkeypatch)
    applied: dict[str, policyd.Applied] = {}

    def apply(rules: str) -> list[str]:
        nft.calls = []
        for node in settings.nodes(layout):
            policyd.apply(node, rules, applied)
        return nft.calls

    assert apply("a") == ["host: a", "node 1: a"]
    assert apply("a") == []
    nft.networks["mms-node-1"] = (1, 2)
    assert apply("a") == ["node 1: a"], "booted again, with nothing in its tables"
    del nft.networks["mms-node-1"]
    assert apply("b") == ["host: b"], "a node that is lost has none to give them to"
    nft.networks["mms-node-1"] = (1, 2)
    assert apply("b") == ["node 1: b"]


def test_policies_of_a_node_that_goes_meanwhile(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    nft = Nft(monkeypatch)
    nft.fails = True
    node = settings.node(layout, 1)
    with pytest.raises(ClusterError, match="nft failed"):
        policyd.apply(node, "a", {})
    nft.goes = True
    applied: dict[str, policyd.Applied] = {}
    policyd.apply(node, "a", applied)
    assert not applied


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("mms-node-2", "No node is called mms-node-2: choose of mms-node-0, mms-node-1;", id="unknown"),
        pytest.param("mms-node-0", "there is no link between them to cut", id="on-the-host"),
        pytest.param("mms-node-1", "mms-node-1 does not run: `up` boots it", id="killed"),
    ],
)
def test_nodes_that_cannot_be_cut_off(
    name: str, message: str, layout: Layout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(nodenet, "FOLDER", tmp_path)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    for fault in (faults.partition, faults.heal):
        with pytest.raises(ClusterError, match=message):
            fault(layout, name, Reporter(io.StringIO()))


@pytest.mark.parametrize("fault", [faults.partition, faults.heal, faults.kill])
def test_faults_take_root_and_a_cluster(
    fault: faults.Fault, layout: Layout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    report = Reporter(io.StringIO())
    with pytest.raises(ClusterError, match=r"There is no cluster in .*/none: run .* up"):
        fault(Layout(tmp_path / "none"), "mms-node-1", report)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(ClusterError, match="takes root"):
        fault(layout, "mms-node-1", report)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        pytest.param(["up", "--nodes", "0"], "1 to 256 nodes, not 0", id="too-few"),
        pytest.param(["up", "--nodes", "257"], "1 to 256 nodes, not 257", id="too-many"),
        pytest.param(["up", "--nodes", "2"], "leave them out", id="nodes-of-a-borrowed-cluster"),
        pytest.param(["kill", "n"], "Only nodes of a cluster of our own", id="fault-in-a-borrowed-cluster"),
    ],
)
def test_what_the_command_line_refuses(
    argv: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", "/theirs")
    assert cli.main(argv) == 2
    assert message in capsys.readouterr().err


def test_the_number_of_nodes_is_kept_with_the_ports(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[Settings | None] = []
    monkeypatch.setenv("MMS_CLUSTER_DIR", str(layout.state))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setattr(up, "up", lambda _, wanted, __: chosen.append(wanted))
    for argv in (["up"], ["up", "--secure-port", "7443"], ["up", "--nodes", "3"]):
        assert cli.main(argv) == 0
    assert chosen == [None, Settings(secure_port=7443, nodes=2), Settings(nodes=3)]


def test_a_folder_with_too_long_a_path_for_sockets() -> None:
    sockets = len("/node-0/kubelet/pod-resources/0123456789")
    layout = Layout(Path("/" + "x" * (107 - 1 - sockets)))
    for nodes in (1, 10):
        up.require_short_paths(layout, nodes)
    with pytest.raises(ClusterError, match=r"too long .*, by 1 bytes: set MMS_CLUSTER_DIR"):
        up.require_short_paths(layout, 11)
