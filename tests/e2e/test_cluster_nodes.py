"""A cluster of several nodes: that they are one network, that they fail on request, that they come and go.

All clusters here are of the tests' own, each in a network namespace (see test_cluster).
"""

from __future__ import annotations

import re
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mms_cluster import gobuild, nodenet, process, settings, up
from mms_cluster.report import Reporter
from tests.e2e.test_cluster import POD, PROBE, Machine, bare_machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mms_cluster.settings import Node

pytestmark = pytest.mark.e2e

ON_NODE = {"home": "mms-node-0", "friend": "mms-node-0", "web": "mms-node-1", "stranger": "mms-node-1"}
POLICY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: friends}
spec:
  podSelector: {matchExpressions: [{key: app, operator: In, values: [web, home]}]}
  ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}], ports: [{port: http}]}]
"""
SECONDS = 60

# Of a connection that nobody refuses: no answer in time, or none to the question who has the address.
STALLED = ("deadline exceeded", "no route to host")


class Two:
    """A cluster of two nodes, with the pods of ON_NODE, each behind a Service of its name.

    error: why the last question had no answer.
    """

    def __init__(self, machine: Machine, probe: Path) -> None:
        self.machine = machine
        self.probe = probe
        self.error = ""

    @property
    def node(self) -> Node:
        return settings.node(self.machine.layout, 1)

    def apply(self, text: str) -> None:
        manifest = self.machine.layout.state / "manifest.yaml"
        manifest.write_text(text)
        self.machine.kubectl("apply", "-f", str(manifest))

    def run_pods(self) -> None:
        pods = (
            POD.format(name=name, image=PROBE).replace("spec:\n", f"spec:\n  nodeName: {node}\n", 1)
            for name, node in ON_NODE.items()
        )
        self.apply("".join(pods))
        self.machine.kubectl("wait", "--for=condition=Ready", f"--timeout={SECONDS}s", "pod", *ON_NODE)

    def ask(self, pod: str, url: str, seconds: float = 10) -> str:
        """What `url` answers to `pod`, asked through the kubelet: "" when nothing does."""
        kubectl = [str(self.machine.layout.bin / "kubectl"), f"--kubeconfig={self.machine.layout.kubeconfig}"]
        return self._asked([*kubectl, "exec", pod, "--", "/probe", "get", str(seconds), url])

    def ask_from_host(self, url: str, seconds: float = 10) -> str:
        return self._asked([str(self.probe), "get", str(seconds), url])

    def ask_from_node(self, url: str, seconds: float = 10) -> str:
        return self._asked(self.node.inside([str(self.probe), "get", str(seconds), url]))

    def ask_inside(self, pod: str, url: str, seconds: float = 10) -> str:
        """Like `ask`, but through the machine: a pod that is cut off can be asked so."""
        (pid,) = (pid for pid in self.processes() if _hostname(pid) == pod)
        return self._asked(["nsenter", f"--net=/proc/{pid}/ns/net", str(self.probe), "get", str(seconds), url])

    def processes(self) -> list[int]:
        """Those of the probe in node 1's pods."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.node.cgroup in (folder / "cgroup").read_text() and "probe" in (folder / "comm").read_text():
                    found.append(int(folder.name))
            except OSError:
                continue
        return found

    def address(self, pod: str) -> str:
        return f"http://{self.machine.kubectl('get', 'pod', pod, '-o', 'jsonpath={.status.podIP}')}/"

    def restarts(self) -> dict[str, str]:
        template = '{range .items[*]}{.metadata.name}={.status.containerStatuses[0].restartCount}{"\\n"}{end}'
        lines = self.machine.kubectl("get", "pods", "-o", f"jsonpath={template}").splitlines()
        return dict(line.split("=") for line in lines)

    def _asked(self, command: list[str]) -> str:
        # A container's links are not this process's: the machine's own network namespace is where all begins.
        done = subprocess.run([*self.machine.inside, *command], capture_output=True, text=True, check=False)
        self.error = done.stderr
        return done.stdout.strip()


@pytest.fixture(scope="module")
def probe() -> Path:
    return gobuild.build(gobuild.PROBE, Reporter())


@pytest.fixture(scope="module")
def archive(probe: Path) -> Path:
    return up.image(PROBE, "/probe", probe)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, probe: Path, archive: Path) -> Iterator[Two]:
    """Brought up with one node and then raised, as a cluster that is in use would be."""
    with bare_machine(tmp_path_factory.mktemp("m")) as machine:
        machine.tool("up")
        assert not _of_node_1(machine), "one node takes no namespace and no link"
        machine.tool("up", "--nodes", "2")
        machine.tool("load", str(archive))
        found = Two(machine, probe)
        found.run_pods()
        yield found


def test_nodes_are_one_network(two: Two) -> None:
    assert two.ask("friend", "http://web/") == "web", "to the other node"
    assert two.ask("web", "http://friend/") == "friend", "and back"
    assert two.ask("web", two.address("friend")) == "friend"
    assert two.ask("web", "http://stranger/") == "stranger", "on one node"
    assert two.ask("web", "http://web/") == "web", "a pod reaches itself through its service"
    assert two.machine.kubectl("logs", "web") == "serving as web\n"
    service = two.machine.kubectl("get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
    for ask in (two.ask_from_host, two.ask_from_node):
        assert ask(f"http://{service}/") == "web"
        assert ask(two.address("home")) == "home"
    says = subprocess.run(
        [*two.machine.inside, *two.node.inside([str(two.probe), "get", "5", "https://10.96.0.1/"])],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "certificate signed by unknown authority" in says.stderr, "the API server answers"


def test_pods_of_every_node_leave_the_machine_by_its_address(two: Two, tmp_path: Path) -> None:
    run = two.machine.run
    holder = process.child([*two.machine.inside, "unshare", "--net", "sleep", "infinity"], tmp_path / "log")
    server = None
    try:
        inside = Path(f"/proc/{two.machine.holder}/ns/net").readlink()
        assert process.wait_gone(
            lambda: Path(f"/proc/{holder.pid}/ns/net").readlink() not in {inside, Path("/proc/self/ns/net").readlink()},
            10,
        )
        there = ["nsenter", f"--net=/proc/{holder.pid}/ns/net", "--"]
        run("ip", "link", "add", "out", "type", "veth", "peer", "name", "in", "netns", str(holder.pid))
        run("ip", "address", "add", "192.0.2.1/24", "dev", "out")
        run("ip", "link", "set", "out", "up")
        run(*there, "ip", "address", "add", "192.0.2.2/24", "dev", "in")
        run(*there, "ip", "link", "set", "in", "up")
        server = process.child([*there, str(two.probe), "serve", "80"], tmp_path / "log")
        name = Path("/proc/sys/kernel/hostname").read_text().strip()
        assert two.ask("web", "http://192.0.2.2/") == name, "it knows no route to pods"
        assert two.ask("friend", "http://192.0.2.2/") == name
    finally:
        for child in (server, holder):
            if child:
                process.stop_child(child)
        subprocess.run([*two.machine.inside, "ip", "link", "delete", "out"], capture_output=True, check=False)


def test_network_policies_are_enforced_between_nodes(two: Two) -> None:
    web, home = two.address("web"), two.address("home")
    two.apply(POLICY)
    try:
        refused: dict[str, Callable[[], str]] = {
            "from another node": lambda: two.ask("home", web, 0),
            "to another node": lambda: two.ask("stranger", home, 0),
            "on one node, not the first": lambda: two.ask("stranger", "http://web/", 0),
            "from the host to a pod that is not on it": lambda: two.ask_from_host(web, 0),
            "from node 1 to a pod that is not on it": lambda: two.ask_from_node(home, 0),
        }
        for what, ask in refused.items():
            _eventually(lambda ask=ask: not ask(), f"the policy is not enforced {what}")  # type: ignore[misc]
        assert two.ask("friend", "http://web/") == "web"
        assert two.ask("friend", home) == "home"
        assert two.ask("web", "http://stranger/") == "stranger", "what the policy does not select is free"
        assert two.ask_from_node(web) == "web", "a node reaches its pods"
        assert two.ask_from_host(home) == "home", "a node reaches its pods"
    finally:
        two.machine.kubectl("delete", "networkpolicy", "friends")
    assert two.ask("stranger", home, 20) == "home"


def test_a_partitioned_node_is_alone(two: Two) -> None:
    web, home, stranger = (two.address(name) for name in ("web", "home", "stranger"))
    two.machine.tool("partition", "mms-node-1")
    try:
        assert not two.ask("friend", web, 0)
        for ask in (lambda: two.ask_from_host(web, 0), lambda: two.ask_inside("web", home, 0)):
            assert not ask()
            assert any(way in two.error for way in STALLED), f"it is refused, and does not stall: {two.error}"
        assert two.ask_inside("web", stranger) == "stranger", "its pods go on running, and reach each other"
        broken = subprocess.run(two.machine.command("status"), capture_output=True, text=True, check=False)
        assert broken.returncode == 1
        assert "mms-node-1               is cut off: `heal mms-node-1`" in broken.stdout
        two.machine.tool("partition", "mms-node-1")
    finally:
        two.machine.tool("heal", "mms-node-1")
    assert two.ask("friend", web) == "web"
    assert two.ask("web", home) == "home"
    two.machine.tool("heal", "mms-node-1")
    assert set(two.restarts().values()) == {"0"}
    two.machine.tool("status")


def test_a_lost_node_is_booted_by_up(two: Two) -> None:
    web = two.address("web")
    assert len(two.processes()) == 2
    two.machine.tool("kill", "mms-node-1")
    assert not two.processes()
    assert not [text for text in two.machine.left()["processes"] if f"{two.node.folder}/" in text]
    assert not nodenet.exists(two.node)
    assert not two.ask("friend", web, 0)
    two.machine.tool("kill", "mms-node-1")
    broken = subprocess.run(two.machine.command("status"), capture_output=True, text=True, check=False)
    assert "mms-node-1               is lost: `up` boots it" in broken.stdout
    for verb in ("heal", "load"):
        failed = _fail(two.machine, verb, "mms-node-1" if verb == "heal" else str(up.image(PROBE, "/probe", two.probe)))
        assert "mms-node-1" in failed
        assert "up`" in failed
    said = two.machine.tool("up")
    assert "mms-node-1 starts with this boot" in said
    assert "starting kubelet-0" not in said
    assert two.ask("friend", "http://web/", SECONDS) == "web"
    assert two.ask("web", "http://home/", SECONDS) == "home"
    assert {name for name, count in two.restarts().items() if count != "0"} == {"web", "stranger"}


def test_the_first_node_is_lost_without_the_control_plane(two: Two) -> None:
    two.machine.tool("kill", "mms-node-0")
    assert two.machine.kubectl("get", "node", "mms-node-1")
    assert two.ask("stranger", two.address("web")) == "web"
    said = two.machine.tool("up")
    assert "starting etcd" not in said
    assert "mms-node-0 starts with this boot" in said
    assert two.ask("web", "http://home/", SECONDS) == "home"


def test_no_such_node(two: Two) -> None:
    assert "No node is called n: choose of mms-node-0, mms-node-1" in _fail(two.machine, "partition", "n")
    assert "there is no link between them to cut" in _fail(two.machine, "partition", "mms-node-0")
    assert "1 to 256 nodes" in _fail(two.machine, "up", "--nodes", "0")


def test_a_node_that_is_not_wanted_any_more_goes(two: Two) -> None:
    """The last test of this cluster."""
    assert {"processes", "mounts", "control groups", "network namespaces", "links", "routes", "logs"} <= set(
        _of_node_1(two.machine)
    )
    command = [*two.machine.command("up"), "--nodes", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tool:
        assert tool.stderr is not None
        assert any("taking mms-node-1 away" in said for said in tool.stderr), "`up` never said so"
        tool.send_signal(signal.SIGKILL)
    two.machine.tool("up")
    _eventually(lambda: not _of_node_1(two.machine), "something is left of node 1")  # kube-proxy has yet to hear of it
    assert not two.node.folder.exists()
    names = two.machine.kubectl("get", "nodes,pods", "-o", "name").split()
    assert sorted(names) == ["node/mms-node-0", "pod/friend", "pod/home"]
    assert "taking" not in two.machine.tool("up")
    two.machine.tool("status")


@pytest.fixture
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with bare_machine(tmp_path_factory.mktemp("m")) as found:
        yield found


def test_down_takes_half_made_and_killed_nodes_away(machine: Machine, archive: Path, probe: Path) -> None:
    before = machine.left()
    command = [*machine.command("up"), "--nodes", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tool:
        assert tool.stderr is not None
        assert any("starting kubelet-1" in said for said in tool.stderr), "`up` never said so"
        tool.send_signal(signal.SIGKILL)
    assert _of_node_1(machine)
    machine.tool("down")
    assert machine.left() == before
    machine.tool("up", "--nodes", "2")
    machine.tool("load", str(archive))
    two = Two(machine, probe)
    two.run_pods()
    for record in sorted(machine.layout.run.glob("*.pid")):
        machine.kill(record.stem)
    assert two.processes(), "containers live on"
    machine.tool("down")
    assert machine.left() == before


def _of_node_1(machine: Machine) -> dict[str, list[str]]:
    """Of what there is of a cluster, that which is node 1's; without what there is none of."""
    own = re.compile(r"node-1\b|\bmms1\b|\b10\.244\.1\.")
    found = {what: [text for text in texts if own.search(text)] for what, texts in machine.left().items()}
    return {what: texts for what, texts in found.items() if texts}


def _fail(machine: Machine, verb: str, *arguments: str) -> str:
    done = subprocess.run([*machine.command(verb), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    return done.stderr


def _hostname(pid: int) -> str:
    """Of the UTS namespace of a process."""
    command = ["nsenter", "--uts", f"--target={pid}", "hostname"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _eventually(holds: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.1)
