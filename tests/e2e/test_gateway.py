"""Rollouts behind a Gateway: Envoy Gateway makes of the routes what they say."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.http as triton_http

from mms_cluster import extras
from mms_operator.cli.forward import port_forward
from tests.e2e.clients import asking
from tests.e2e.kube import Kube, condition, service, training
from tests.e2e.test_autoscaling import slept
from tests.e2e.test_rollout import mms, serve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mms_cluster.provider import Provider
    from tests.e2e.conftest import Corpora

pytestmark = [pytest.mark.e2e, pytest.mark.slow]  # Envoy Gateway takes minutes to build

SYSTEM = Kube("mms-system")
PERCENT, COPIES = 20, 50
RATE, SECONDS = 20.0, 12.0
PORTS = {"http": 8000, "grpc": 8001}
GATEWAY: dict[str, dict[str, Any]] = {
    "http": {"name": "front", "sectionName": "http"},
    "grpc": {"name": "front", "sectionName": "grpc"},
    "nextHeader": {"name": "x-version", "value": "next"},
    "shadow": {"percent": COPIES},
}
HOW: dict[str, Any] = {
    "replicas": 1,
    "rollout": {"strategy": "Canary", "canary": {"steps": [{"percent": PERCENT, "seconds": 3600}]}},
    "traffic": {"gateway": GATEWAY},
}


@pytest.fixture(scope="module")
def implementation(installed: Provider) -> Iterator[None]:
    """Envoy Gateway, for the tests of this file."""
    extras.gateway(installed)
    # The operator looks for the Gateway API when it starts.
    SYSTEM.run("rollout", "restart", "deployment/mms-operator")
    SYSTEM.run("rollout", "status", "deployment/mms-operator", "--timeout=120s")
    yield
    extras.remove(installed, "gateway")


@pytest.fixture
def front(kube: Kube, implementation: None) -> str:
    """The address of a Gateway."""
    listeners = [{"name": name, "protocol": "HTTP", "port": port} for name, port in PORTS.items()]
    kube.apply({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "front"},
        "spec": {"gatewayClassName": "envoy", "listeners": listeners},
    })  # fmt: skip
    found = kube.wait("gateway", "front", lambda it: condition(it, "Programmed").get("status") == "True", 120, "ready")
    return str(found["status"]["addresses"][0]["value"])


def test_a_canary_behind_a_gateway(kube: Kube, artifacts: list[dict[str, str]], front: str) -> None:
    """Exact parts of requests whatever the connections, copies, a header that chooses; then promoted, and aborted."""
    first, second = artifacts
    serve(kube, first, **HOW)
    kube.wait_condition("modelservice", "words", "Ready", "True", seconds=180)
    taken(kube, "HTTPRoute", {"stable": 100})
    with asking(kube, "words", host=front) as before:
        serve(kube, second, **HOW)
        for kind in ("HTTPRoute", "GRPCRoute"):
            taken(kube, kind, {"stable": 100 - PERCENT, "next": PERCENT})
    with port_forward(kube.namespace, "svc/words-next", PORTS["http"]) as address:
        answered = answers(address)
        with asking(kube, "words", RATE, front) as asked:
            time.sleep(SECONDS)  # what is measured: who answers in that time
        answered = answers(address) - answered
    assert whoever_asks_by(front) == {"http": {"2"}, "grpc": {"2"}}
    with asking(kube, "words", host=front) as promoted:
        mms("rollout", "promote", "words", "-n", kube.namespace)
        kube.wait_condition("modelservice", "words", "Ready", "True", "Available")
    serve(kube, first, **HOW)
    taken(kube, "HTTPRoute", {"stable": 100 - PERCENT, "next": PERCENT})
    with asking(kube, "words", host=front) as aborted:
        mms("rollout", "abort", "words", "-n", kube.namespace)
        kube.wait_condition("modelservice", "words", "Ready", "False", "RolloutAborted")
        taken(kube, "HTTPRoute", {"stable": 100})
    for part in (before, asked, promoted, aborted):
        assert {way: part.failures(way) for way in part.ways} == {"close": 0, "keep": 0, "grpc": 0}, part.ways
    sent = sum(way["sent"] for way in asked.ways.values())
    for way, found in asked.ways.items():
        share = found["versions"].get("2", 0) / found["sent"]
        assert abs(share - PERCENT / 100) < 0.13, (way, found)  # five standard deviations
    copies = answered - sum(way["versions"].get("2", 0) for way in asked.ways.values())
    assert abs(copies / sent - COPIES / 100) < 0.1, (copies, sent)


def test_from_zero_behind_a_gateway(kube: Kube, corpora: Corpora, front: str) -> None:
    """Whoever asks while there are no pods is held by the activators, to which the route's Service leads."""
    kube.apply(training("words", corpora.small))
    kube.wait_phase("words", "Complete")
    made = service("words")
    made["spec"] |= {"autoscaling": {"mode": "External"}, "traffic": {"gateway": GATEWAY}}
    kube.apply(made)
    kube.wait_condition("modelservice", "words", "Ready", "True", seconds=180)
    taken(kube, "HTTPRoute", {"stable": 100})
    kube.run("scale", "modelservice", "words", "--replicas=0")
    slept(kube)
    with asking(kube, "words", 2, front) as asked:
        time.sleep(3)  # so that some are held
        kube.run("scale", "modelservice", "words", "--replicas=1")
        kube.wait("modelservice", "words", lambda s: s["status"].get("readyReplicas"), 60, "awake")
    assert {way: asked.failures(way) for way in asked.ways} == {"close": 0, "keep": 0, "grpc": 0}, asked.ways


def taken(kube: Kube, kind: str, weights: dict[str, int]) -> None:
    """Until the route has these weights, and the Gateway has taken it as it is."""

    def reached(route: dict[str, Any]) -> bool:
        backends = route["spec"]["rules"][-1]["backendRefs"]
        parents = route.get("status", {}).get("parents", [])
        seen = [one for parent in parents for one in parent["conditions"]]
        current = all(one["observedGeneration"] == route["metadata"]["generation"] for one in seen)
        good = {one["type"] for one in seen if one["status"] == "True"} >= {"Accepted", "ResolvedRefs"}
        return current and good and weights == {one["name"].removeprefix("words-"): one["weight"] for one in backends}

    kube.wait(kind, "words", reached, 120, f"taken with {weights}")


def answers(address: str) -> int:
    """How many requests a pod's Triton has answered."""
    with triton_http.InferenceServerClient(address) as client:
        (found,) = client.get_inference_statistics("neighbours")["model_stats"]
    return int(found["inference_stats"]["success"]["count"])


def whoever_asks_by(front: str) -> dict[str, set[str]]:
    """The versions that answer requests with the header."""
    header = {GATEWAY["nextHeader"]["name"]: GATEWAY["nextHeader"]["value"]}
    found: dict[str, set[str]] = {}
    for way, module in (("http", triton_http), ("grpc", triton)):
        with module.InferenceServerClient(f"{front}:{PORTS[way]}") as client:
            words = module.InferInput("WORDS", [1, 1], "BYTES")
            words.set_data_from_numpy(np.array([[b"congress"]], dtype=object))
            # The HTTP client writes into the headers that it is given.
            seen = [client.infer("neighbours", [words], headers={**header}).as_numpy("VERSION") for _ in range(20)]
            found[way] = {str(one.flat[0]) for one in seen}
    return found
