"""The cluster itself: what pods can do in it, and that it comes up and goes down whatever happened before.

What takes a cluster down is done to one of its own, in a network namespace in which it has all ports to itself.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mms_cluster import down, gobuild, network, oci, process, provider, up
from mms_cluster.report import Reporter
from mms_cluster.settings import Layout

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e

SOURCES = Path(up.__file__).parents[1]
PROBE = "localhost/mms-probe:1"
POD = """
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{{name: memory, emptyDir: {{medium: Memory, sizeLimit: 1Mi}}}}]
  containers:
  - name: probe
    image: {image}
    args: [serve, "80"]
    ports: [{{name: http, containerPort: 80}}]
    readinessProbe: {{tcpSocket: {{port: 80}}, periodSeconds: 1}}
    volumeMounts: [{{name: memory, mountPath: /memory}}]
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{selector: {{app: {name}}}, ports: [{{port: 80}}]}}
---
"""
POLICY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}], ports: [{port: http}]}]
"""


@pytest.fixture(scope="module")
def probe() -> Path:
    """An archive of the image that answers and asks over HTTP."""
    return up.image(PROBE, "/probe", gobuild.build(gobuild.PROBE, Reporter()))


# What pods can do


class Pods:
    """A namespace of the cluster with the pods web, friend and stranger, each behind a Service."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace

    def kubectl(self, *arguments: str, text: str | None = None, check: bool = True) -> str:
        command = ["kubectl", "--namespace", self.namespace, *arguments]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, done.stderr
        return done.stdout

    def ask(self, pod: str, url: str, seconds: float = 10) -> str:
        """What `url` answers to `pod`: "" when nothing does."""
        return self.kubectl("exec", pod, "--", "/probe", "get", str(seconds), url, check=False).strip()


@pytest.fixture(scope="module")
def pods(cluster: provider.Provider, probe: Path) -> Iterator[Pods]:
    if cluster.borrowed:
        pytest.skip("the probe's image is in no registry")
    cluster.load(provider.in_archives([probe]))
    found = Pods(f"cluster-{uuid.uuid4().hex[:8]}")
    found.kubectl("create", "namespace", found.namespace)
    names = ("web", "friend", "stranger")
    found.kubectl("apply", "-f", "-", text="".join(POD.format(name=name, image=PROBE) for name in names))
    found.kubectl("wait", "--for=condition=Ready", "--timeout=60s", "pod", *names)
    yield found
    found.kubectl("delete", "namespace", found.namespace, "--wait=false")


def test_services_are_found_by_name(pods: Pods) -> None:
    assert pods.ask("friend", "http://web/") == "web"
    assert pods.ask("friend", f"http://web.{pods.namespace}.svc.cluster.local/") == "web"
    assert pods.ask("web", "http://web/") == "web", "a pod reaches itself through its service"


def test_pods_and_services_are_reached_from_the_host(pods: Pods) -> None:
    addresses = [
        pods.kubectl("get", "pod", "web", "-o", "jsonpath={.status.podIP}"),
        pods.kubectl("get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"),
    ]
    program = gobuild.build(gobuild.PROBE, Reporter())
    for address in addresses:
        done = subprocess.run([program, "get", "10", f"http://{address}/"], capture_output=True, text=True, check=True)
        assert done.stdout == "web\n"


def test_the_api_server_is_reached_from_pods(pods: Pods) -> None:
    command = [
        "kubectl",
        "-n",
        pods.namespace,
        "exec",
        "web",
        "--",
        "/probe",
        "get",
        "5",
        "https://kubernetes.default/",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "certificate signed by unknown authority" in done.stderr, "it answers, with the cluster's own certificate"


def test_logs(pods: Pods) -> None:
    assert pods.kubectl("logs", "web") == "serving as web\n"


def test_network_policies_are_enforced(pods: Pods) -> None:
    assert pods.ask("stranger", "http://web/") == "web"
    pods.kubectl("apply", "-f", "-", text=POLICY)
    try:
        deadline = time.monotonic() + 20
        while pods.ask("stranger", "http://web/", 0):
            assert time.monotonic() < deadline, "the policy is not enforced"
        assert pods.ask("friend", "http://web/") == "web"
        assert pods.ask("web", "http://stranger/") == "stranger", "what the policy does not select is free"
        assert pods.kubectl("get", "pod", "web", "-o", "jsonpath={.status.containerStatuses[0].ready}") == "true"
    finally:
        pods.kubectl("delete", "networkpolicy", "web")
    assert pods.ask("stranger", "http://web/", 20) == "web"


def test_loading_what_is_there_does_nothing(
    pods: Pods, cluster: provider.Provider, probe: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    provider.Own(Layout(provider.paths.state_folder()), Reporter()).load(provider.in_archives([probe]))
    assert f"{PROBE} is there" in capfd.readouterr().err


def test_an_image_that_was_pulled_can_be_loaded_under_another_name(
    pods: Pods, cluster: provider.Provider, tmp_path: Path
) -> None:
    program = gobuild.build(gobuild.PROBE, Reporter())
    nonce = uuid.uuid4().hex[:8]
    archive, name = tmp_path / "image.tar", f"localhost/mms-probe-{nonce}:1"
    oci.write(archive, name, {"/probe": program}, {"Entrypoint": ["/probe"], "Env": [f"NONCE={nonce}"]})
    with registry(archive) as address:
        pull = POD.format(name="pulled", image=f"{address}/probe:1").partition("---")[0]
        pods.kubectl("apply", "-f", "-", text=pull)
        pods.kubectl("wait", "--for=condition=Ready", "--timeout=60s", "pod/pulled")
    cluster.load(provider.in_archives([archive]))
    pods.kubectl("apply", "-f", "-", text=POD.format(name="loaded", image=name).partition("---")[0])
    pods.kubectl("wait", "--for=condition=Ready", "--timeout=60s", "pod/loaded")
    pods.kubectl("delete", "pod", "pulled", "loaded", "--wait=false")


@contextlib.contextmanager
def registry(archive: Path) -> Iterator[str]:
    """A registry on loopback that gives the image of an OCI archive under every name (OCI distribution, pull only)."""
    with tarfile.open(archive) as tar:
        blobs = {m.name.rpartition("/")[2]: _bytes(tar, m) for m in tar if m.isfile()}
    manifest = json.loads(blobs["index.json"])["manifests"][0]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            place = self.path.split("/")
            digest = manifest["digest"] if "manifests" in place and "sha256:" not in self.path else place[-1]
            body = b"" if self.path == "/v2/" else blobs.get(digest.removeprefix("sha256:"))
            self.send_response(404 if body is None else 200)
            kind = manifest["mediaType"] if "manifests" in place else "application/octet-stream"
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body or b"")))
            if digest.startswith("sha256:"):
                self.send_header("Docker-Content-Digest", digest)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body or b"")

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _bytes(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None
    return file.read()


# Up and down, whatever happened before


class Machine:
    """A network namespace, and a state folder for a cluster in it."""

    def __init__(self, holder: int, layout: Layout) -> None:
        self.holder = holder
        self.inside = ["nsenter", f"--net=/proc/{holder}/ns/net", "--"]
        self.layout = layout

    def command(self, verb: str) -> list[str]:
        variables = ["env", "-u", "KUBECONFIG", f"PYTHONPATH={SOURCES}", f"MMS_CLUSTER_DIR={self.layout.state}"]
        return [*self.inside, *variables, sys.executable, "-m", "mms_cluster", verb]

    def run(self, *argv: str) -> str:
        done = subprocess.run([*self.inside, *argv], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def kubectl(self, *arguments: str) -> str:
        return self.run(str(self.layout.bin / "kubectl"), f"--kubeconfig={self.layout.kubeconfig}", *arguments)

    def tool(self, verb: str, *arguments: str) -> str:
        done = subprocess.run([*self.command(verb), *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def kill(self, name: str) -> None:
        record = process.read_record(self.layout.record(name))
        assert record is not None
        os.kill(record.pid, signal.SIGKILL)
        assert process.wait_gone(lambda: not process.alive(record), 5)

    def left(self) -> dict[str, list[str]]:
        """What there is of a cluster: all that is in the network namespace, elsewhere what is marked as its own."""
        state, label = f"{self.layout.state}/", self.layout.label
        commands = {}
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                commands[file.parent.name] = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
        groups = [str(folder) for folder in Path("/sys/fs/cgroup").rglob(f"{label}*")]
        names = self.run("ip", "netns").splitlines()
        results = [_text(file) for file in down.CNI_RESULTS.glob("*")]
        logs = [str(link.readlink()) for link in down.CONTAINER_LOGS.glob("*") if link.is_symlink()]
        return {
            "processes": [text for text in commands.values() if state in text],
            "mounts": [x for x in Path("/proc/self/mountinfo").read_text().splitlines() if state in x or label in x],
            "control groups": groups,
            "network namespaces": [name for name in names if label in name or not name.startswith("mms-")],
            "links": re.findall(r"^\d+: (\S+?)[@:]", self.run("ip", "-o", "link"), re.MULTILINE),
            "addresses": re.findall(r"inet6? (\S+)", self.run("ip", "-o", "address")),
            "routes": self.run("ip", "route", "show").splitlines(),
            "nftables": self.run("nft", "list", "ruleset").splitlines(),
            "iptables": [x for x in self.run("iptables-save").splitlines() if x.startswith("-A") or "KUBE" in x],
            "forwarding": [self.run("cat", "/proc/sys/net/ipv4/ip_forward").strip()],
            "results of network plugins": [text for text in results if state in text],
            "logs": [target for target in logs if target.startswith(state)],
        }


def _text(file: Path) -> str:
    """ "" when it is gone by now: other clusters' come and go."""
    try:
        return file.read_text()
    except FileNotFoundError:
        return ""


@contextlib.contextmanager
def bare_machine(folder: Path) -> Iterator[Machine]:
    """Keeps its things in `folder`; what is up in it at the end is taken down."""
    if os.geteuid() != 0:
        pytest.skip("a cluster of our own takes root")
    holder = process.child(["unshare", "--net", "sleep", "infinity"], folder / "holder.log")
    own = Path("/proc/self/ns/net").readlink()
    assert process.wait_gone(lambda: Path(f"/proc/{holder.pid}/ns/net").readlink() != own, 10)
    found = Machine(holder.pid, Layout(folder / "state"))
    found.run("ip", "link", "set", "lo", "up")
    try:
        yield found
    finally:
        try:
            found.tool("down")
        finally:
            process.stop_child(holder)


@pytest.fixture
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    # tmp_path has the test's name in it, and the paths of sockets are short.
    with bare_machine(tmp_path_factory.mktemp("m")) as found:
        yield found


def test_down_leaves_nothing_behind(machine: Machine, probe: Path) -> None:
    machine.run("iptables", "-P", "FORWARD", "DROP")  # as Docker leaves a machine
    before = machine.left()
    machine.tool("up")
    machine.tool("status")
    machine.tool("load", str(probe))
    manifest = machine.layout.state / "pod.yaml"
    manifest.write_text(POD.format(name="web", image=PROBE) + POLICY)
    machine.kubectl("apply", "-f", str(manifest))
    machine.kubectl("wait", "--for=condition=Ready", "--timeout=60s", "pod/web")
    machine.kubectl("exec", "web", "--", "/probe", "get", "10", "http://web/")
    during = machine.left()
    for what in (
        "processes",
        "mounts",
        "control groups",
        "links",
        "routes",
        "nftables",
        "iptables",
        "results of network plugins",
    ):
        assert during[what] != before[what], f"nothing to clean up: {what}"
    machine.tool("down")
    assert machine.left() == before
    assert "there is no cluster" in machine.tool("down")


def test_down_after_everything_was_killed(machine: Machine) -> None:
    before = machine.left()
    machine.tool("up")
    for record in sorted(machine.layout.run.glob("*.pid")):
        machine.kill(record.stem)
    assert any("/coredns" in text or "shim" in text for text in machine.left()["processes"]), "containers live on"
    machine.tool("down")
    assert machine.left() == before


def test_up_repairs_what_was_killed(machine: Machine) -> None:
    machine.tool("up")
    lines = machine.tool("up")
    assert "starting" not in lines, "up of a cluster that is up touches nothing"
    for name in ("kubelet-0", "containerd-0", "etcd", "kube-apiserver", "network-policies"):
        machine.kill(name)
    broken = subprocess.run(machine.command("status"), capture_output=True, text=True, check=False)
    assert broken.returncode == 1
    assert "kubelet-0" in broken.stdout
    assert "does not run: `up` starts it again" in broken.stdout
    assert machine.tool("up").count("starting ") == 5
    for _ in range(10):  # a kubelet that has just started changes its mind about pods within its first seconds
        machine.tool("status")
    restarts = "jsonpath={.items[*].status.containerStatuses[*].restartCount}"
    assert machine.kubectl("-n", "kube-system", "get", "pods", "-o", restarts) == "0", "containers live on meanwhile"


@pytest.mark.parametrize(
    "line", ["starting kube-apiserver", "starting containerd-0", "starting kubelet-0", "waiting for DNS"]
)
def test_up_takes_over_after_a_killed_one(machine: Machine, line: str) -> None:
    before = machine.left()
    with subprocess.Popen(machine.command("up"), stderr=subprocess.PIPE, text=True) as tool:
        assert tool.stderr is not None
        assert any(line in said for said in tool.stderr), f"`up` never said {line}"
        tool.send_signal(signal.SIGKILL)
    machine.tool("up")
    machine.tool("status")
    counted = [text for text in machine.left()["processes"] if "kube-apiserver" in text]
    assert len(counted) == 1
    machine.tool("down")
    assert machine.left() == before


def test_another_cluster_of_ours_is_not_touched(machine: Machine, tmp_path: Path) -> None:
    machine.run("ip", "link", "add", network.LINK, "type", "bridge")
    machine.run("ip", "link", "set", network.LINK, "alias", str(tmp_path))
    failed = subprocess.run(machine.command("up"), capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert f"take it down with `MMS_CLUSTER_DIR={tmp_path} " in failed.stderr
    machine.tool("down")
    assert machine.run("ip", "link", "show", network.LINK)


def test_a_port_that_is_taken_is_told_with_its_holder(machine: Machine) -> None:
    code = "import socket, sys, time; s = socket.create_server(('', 6443)); print('on', flush=True); time.sleep(600)"
    with subprocess.Popen(
        [*machine.command("status")[:3], sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "on\n"
        failed = subprocess.run(machine.command("up"), capture_output=True, text=True, check=False)
        assert failed.returncode == 2
        assert f"kube-apiserver needs port 6443, which process {other.pid} (" in failed.stderr
        assert "`up --secure-port`" in failed.stderr
        done = machine.tool("up", "--secure-port", "7443")
        assert "the cluster is up" in done
        assert "127.0.0.1:7443" in machine.layout.kubeconfig.read_text()
        other.kill()
