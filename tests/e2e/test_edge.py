"""A service with an edge, keys and TLS: what clients see while it changes, and whom it lets in.

With nginx beside Triton no request fails in a planned change, in any way of asking: kept connections are told to close.
"""

from __future__ import annotations

import errno
import json
import queue
import ssl
import threading
import time
import urllib.request
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from typer.testing import CliRunner

from mms_operator.cli import app
from mms_operator.cli.forward import port_forward
from mms_workloads.contract import BEHIND_EDGE_GRPC_PORT, BEHIND_EDGE_HTTP_PORT, EDGE_PORT
from mms_workloads.serve import query
from mms_workloads.serve.access import Access
from tests.e2e.clients import asking
from tests.e2e.kube import Kube, service, training
from tests.e2e.published import published_again
from tests.e2e.test_autoscaling import slept
from tests.e2e.test_contract import PLANNED, ready
from tests.e2e.test_rollout import mms
from tests.unit.serve.authority import Authority

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tritonclient.utils import InferenceServerException

    from tests.e2e.conftest import Corpora

pytestmark = pytest.mark.e2e

KEY, OTHER = "a-key-of-the-tests", "another-key-of-them"
ALL = ("close", "keep", "grpc")
EXAMPLE = Path(__file__).parents[2] / "examples" / "edge" / "service.yaml"
SECURED = {"tls": {"secretRef": {"name": "cert"}}, "apiKeys": {"secretRef": {"name": "keys"}}}


def secret(name: str, values: dict[str, bytes], kind: str = "Opaque") -> dict[str, Any]:
    data = {key: b64encode(value).decode() for key, value in values.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "type": kind, "data": data}


def certificate(kube: Kube, authority: Authority, name: str = "cert") -> dict[str, Any]:
    return secret(name, authority.issue("words", f"words.{kube.namespace}.svc"), "kubernetes.io/tls")


def serve(kube: Kube, corpora: Corpora, replicas: int, traffic: dict[str, Any], **spec: Any) -> None:
    kube.apply(training("words", corpora.small))
    kube.wait_phase("words", "Complete")
    made = service("words")
    kube.apply({**made, "spec": {**made["spec"], "replicas": replicas, "traffic": traffic, **spec}})
    ready(kube, replicas)


def pods(kube: Kube) -> list[str]:
    return [pod["metadata"]["name"] for pod in kube.list("pods", "mms.dev/service=words")]


def metric(kube: Kube, pod: str, name: str) -> float:
    with (
        port_forward(kube.namespace, f"pod/{pod}", EDGE_PORT) as address,
        urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer,
    ):
        text = answer.read().decode()
    return float(next(line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(f"{name} ")))


def everywhere(kube: Kube, name: str, value: float, seconds: float = 150) -> None:
    """The kubelet looks at Secrets when it looks at a pod, which another annotation makes it do."""
    deadline = time.monotonic() + seconds
    turn = 0
    while any(metric(kube, pod, name) != value for pod in pods(kube)):
        assert time.monotonic() < deadline, f"{name} was not {value} in time"
        kube.run("annotate", "pods", "-l", "mms.dev/service=words", f"turn={(turn := turn + 1)}", "--overwrite")
        time.sleep(2)


@pytest.mark.slow
def test_planned_changes(kube: Kube, corpora: Corpora, tmp_path: Path) -> None:
    """Those that tests/e2e/test_contract.py makes without an edge, and what is rotated."""
    authority = Authority()
    kube.apply(certificate(kube, authority), secret("keys", {"tests": KEY.encode()}))
    serve(kube, corpora, 2, SECURED)
    trusted = {"key": KEY, "ca": authority.pem.decode()}

    def another_certificate(_: Kube) -> None:
        kube.apply(certificate(kube, authority))
        everywhere(kube, "mms_edge_reloads_total", 1)

    def another_key(_: Kube) -> None:
        kube.apply(secret("keys", {"tests": KEY.encode(), "other": OTHER.encode()}))
        everywhere(kube, "mms_edge_reloads_total", 2)

    rotated: dict[str, Callable[[Kube], None]] = {"certificate": another_certificate, "key": another_key}
    (tmp_path / "ca.crt").write_bytes(authority.pem)
    for name, change in {**rotated, **PLANNED}.items():
        stays = name in rotated
        with (
            asking(kube, "words", rate=10, **trusted) as asked,
            streaming(kube, tmp_path / "ca.crt") if stays else nullcontext(),
        ):
            change(kube)
        assert [asked.failures(way) for way in ALL] == [0, 0, 0], (name, asked.ways)
        assert asked.ways["keep"]["sent"] > 20, (name, asked.ways)
    with port_forward(kube.namespace, "svc/words", 8001) as address:
        access = Access(OTHER, str(tmp_path / "ca.crt"), f"words.{kube.namespace}.svc")
        assert query.neighbours(f"grpcs://{address}", ["congress"], 3, access=access)[0].words
    of_another = {**authority.issue("words"), "tls.key": authority.issue("words")["tls.key"]}
    kube.apply(secret("cert", of_another, "kubernetes.io/tls"))
    everywhere(kube, "mms_edge_current", 0)
    with asking(kube, "words", rate=10, **trusted) as asked:
        time.sleep(3)  # what is measured: who answers in that time
    assert [asked.failures(way) for way in ALL] == [0, 0, 0], asked.ways


@contextmanager
def streaming(kube: Kube, ca: Path) -> Iterator[None]:
    """One gRPC stream, open all the time: each question that it sends is answered."""
    pool, stop = ThreadPoolExecutor(1), threading.Event()
    answers: queue.Queue[InferenceServerException | None] = queue.Queue()
    options = [("grpc.ssl_target_name_override", f"words.{kube.namespace}.svc")]
    with (
        port_forward(kube.namespace, "svc/words", 8001) as address,
        triton.InferenceServerClient(address, ssl=True, root_certificates=str(ca), channel_args=options) as client,
    ):
        client.start_stream(lambda **said: answers.put(said["error"]), headers={"authorization": f"Bearer {KEY}"})
        words = triton.InferInput("WORDS", [1, 1], "BYTES")
        words.set_data_from_numpy(np.array([[b"congress"]], dtype=object))

        def ask() -> int:
            sent = 0
            while not stop.wait(0.1):
                client.async_stream_infer("neighbours", [words])
                assert answers.get(timeout=10) is None
                sent += 1
            return sent

        asked = pool.submit(ask)
        yield
        stop.set()
        assert asked.result(timeout=20) > 20
        client.stop_stream()
    pool.shutdown()


@pytest.mark.slow  # without an edge they are tested in test_rollout.py and test_autoscaling.py
def test_rollouts(kube: Kube, artifacts: list[dict[str, str]]) -> None:
    """A canary that is promoted, one that is aborted, blue-green, to zero and back: nobody's request fails."""
    first, second = artifacts
    third = published_again(second)  # what was aborted is not tried again
    canary = {"strategy": "Canary", "canary": {"steps": [{"percent": 50, "seconds": 1, "approval": True}]}}
    green = {"strategy": "BlueGreen", "blueGreen": {"approval": True, "keepSeconds": 0}}

    def take(artifact: dict[str, str], rollout: dict[str, Any], reason: str) -> None:
        made = service("words", artifact=artifact)
        traffic, scaling = {"edge": "Sidecar"}, {"mode": "External"}
        made["spec"] |= {"replicas": 2, "traffic": traffic, "autoscaling": scaling, "rollout": rollout}
        kube.apply(made)
        kube.wait_condition("modelservice", "words", "Ready", "True" if reason == "Available" else "False", reason)

    def told(command: str, reason: str) -> None:
        mms("rollout", command, "words", "-n", kube.namespace)
        kube.wait_condition("modelservice", "words", "Ready", "True" if reason == "Available" else "False", reason)

    def canary_promoted() -> None:
        take(second, canary, "AwaitingPromotion")
        told("promote", "Available")

    def canary_aborted() -> None:
        take(first, canary, "AwaitingPromotion")
        told("abort", "RolloutAborted")
        take(second, canary, "Available")

    def blue_green() -> None:
        take(third, green, "AwaitingPromotion")
        told("promote", "Available")

    def to_zero_and_back() -> None:
        kube.run("scale", "modelservice", "words", "--replicas=0")
        slept(kube)
        kube.run("scale", "modelservice", "words", "--replicas=2")

    take(first, canary, "Available")
    ready(kube, 2)
    for change in (canary_promoted, canary_aborted, blue_green, to_zero_and_back):
        with asking(kube, "words", rate=10) as asked:
            change()
            ready(kube, 2)
        asked.told(f"edge-{change.__name__.replace('_', '-')}")
        assert [asked.failures(way) for way in ALL] == [0, 0, 0], (change.__name__, asked.ways)


@pytest.mark.slow  # without an edge it is tested in test_rollout.py
def test_hot_swap(kube: Kube, corpora: Corpora) -> None:
    """Another artifact into running pods behind their edges, and the edge itself put before running pods."""
    serve(kube, corpora, 2, {"edge": "None"}, rollout={"strategy": "HotSwap"})
    first = kube.get("modelservice", "words")["status"]["versions"]["stable"]["digest"]
    with asking(kube, "words", rate=10) as asked:
        kube.patch("modelservice", "words", {"traffic": {"edge": "Sidecar"}})
        kube.wait("modelservice", "words", lambda _: edges(kube) == 2 == len(pods(kube)), 180, "behind edges")
        ready(kube, 2)
    assert [asked.failures(way) for way in ("close", "grpc")] == [0, 0], asked.ways
    before = set(pods(kube))
    with asking(kube, "words", rate=20) as asked:
        kube.patch("modeltraining", "words", {"runPolicy": {"run": 2}})
        kube.wait(
            "modelservice", "words", lambda s: s["status"]["versions"]["stable"]["digest"] != first, 180, "swapped"
        )
        kube.wait_condition("modelservice", "words", "Ready", "True", "Available", seconds=60)
    assert [asked.failures(way) for way in ALL] == [0, 0, 0], asked.ways
    assert [len(asked.versions(way)) for way in ALL] == [2, 2, 2], asked.ways
    assert set(pods(kube)) == before


def edges(kube: Kube) -> int:
    found = kube.list("pods", "mms.dev/service=words")
    return sum(any(one["name"] == "edge" for one in pod["spec"]["containers"]) for pod in found)


def test_who_gets_in(kube: Kube, corpora: Corpora, tmp_path: Path) -> None:
    """examples/edge: without a key, too often, too much, with another authority; and not past the edge to Triton."""
    authority = Authority()
    kube.apply(training("words", corpora.small))
    kube.wait_phase("words", "Complete")
    kube.run("apply", "-f", str(EXAMPLE))
    kube.wait_condition("modelservice", "words", "Ready", "False", "SecretNotFound")
    kube.apply(certificate(kube, authority, "words-tls"), secret("words-keys", {"tests": KEY.encode()}))
    ready(kube, 1)
    name, ca = f"words.{kube.namespace}.svc", tmp_path / "ca.crt"
    ca.write_bytes(authority.pem)
    assert kube.get("modelservice", "words")["status"]["url"].startswith("https://")
    with (
        port_forward(kube.namespace, "svc/words", 8001) as grpc,
        port_forward(kube.namespace, "svc/words", 8000) as http,
    ):
        for url in (f"grpcs://{grpc}", f"https://{http}"):
            good = Access(KEY, str(ca), name)
            assert len(query.neighbours(url, ["congress"], 3, access=good)[0].words) == 3
            with pytest.raises(query.RefusedError, match="no valid API key"):
                query.neighbours(url, ["congress"], access=Access(None, str(ca), name))
            with pytest.raises(query.RefusedError, match="larger than"):
                query.vectors(url, ["congress" * 600] * 256, access=good)
            with pytest.raises(query.UnreachableError):
                query.neighbours(url, ["congress"], timeout=5, access=Access(KEY, None, name))

        def ask(_: int) -> None:
            query.neighbours(f"grpcs://{grpc}", ["congress"], 3, access=good)

        with ThreadPoolExecutor(16) as pool, pytest.raises(query.RefusedError, match="too many requests"):
            list(pool.map(ask, range(200)))
        key = tmp_path / "key"
        key.write_text(KEY)
        time.sleep(2)  # what came too often is over
        mms = ["query", "words", "congress", "-n", kube.namespace, "--json"]
        answer = CliRunner().invoke(app, [*mms, "--api-key-file", str(key), "--ca", str(ca)])
        assert len(json.loads(answer.stdout)["congress"]) == 5
        context = ssl.create_default_context(cafile=str(ca))
        context.check_hostname = False
        with urllib.request.urlopen(f"https://{http}/v2/health/ready", timeout=10, context=context) as answered:
            assert answered.status == 200, "health needs no key"
    (pod,) = kube.list("pods", "mms.dev/service=words")
    for port in (BEHIND_EDGE_HTTP_PORT, BEHIND_EDGE_GRPC_PORT):
        script = f"import socket; print(socket.socket().connect_ex(('{pod['status']['podIP']}', {port})))"
        said = kube.run("exec", pod["metadata"]["name"], "-c", "edge", "--", "python", "-c", script)
        assert int(said) == errno.ECONNREFUSED
