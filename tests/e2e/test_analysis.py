"""Whether a canary is to answer everything: decided by golden questions, clients' inputs, and what clients meet."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.clients import asking
from tests.e2e.kube import Kube, training
from tests.e2e.programs import BRIGHT, NAME, findings, pods, publish, take
from tests.e2e.published import published_again
from tests.e2e.test_rollout import serve

if TYPE_CHECKING:
    from tests.e2e.conftest import Corpora

pytestmark = pytest.mark.e2e

USUAL, SLOW = {"seconds": 0.02}, {"seconds": 0.3}
FOLDER = "analysed"
PROGRAMS = {
    "first": USUAL, "again": USUAL, "slow": SLOW, "failing": {**USUAL, "fails": True},
    "inverted": {**USUAL, "inverted": True},
}  # fmt: skip
STEPS = {"steps": [{"percent": 50, "seconds": 1}]}


@pytest.mark.parametrize(
    "strategy", ["Canary", *(pytest.param(one, marks=pytest.mark.slow) for one in ("HotSwap", "BlueGreen"))]
)
def test_by_answers(kube: Kube, corpora: Corpora, strategy: str) -> None:
    """The same vectors are promoted once clients' inputs were compared; others are given up without clients."""
    kube.apply(training("words", corpora.small), training("other", corpora.small, optimizer={"epochs": 1}))
    first, other = (
        {key: kube.wait_phase(name, "Complete")["status"]["artifact"][key] for key in ("uri", "digest")}
        for name in ("words", "other")
    )
    same = published_again(first)
    analysis = {
        "disagreementLimit": "0.3", "errorMargin": "0.2", "probesPerSecond": 20, "limitSeconds": 120,
        "liveInputs": {"perSecond": 10},
    }  # fmt: skip
    how = {"rollout": {"strategy": strategy, "analysis": analysis}}
    if strategy == "Canary":
        how["rollout"]["canary"] = STEPS
    serve(kube, first, replicas=2, **how)
    kube.wait_condition("modelservice", "words", "Ready", "True", seconds=180)
    with asking(kube, "words"):
        serve(kube, same, replicas=2, **how)
        kube.wait_condition("modelservice", "words", "Ready", "True", "Available", seconds=180)
    status = kube.get("modelservice", "words")["status"]
    assert status["versions"]["stable"]["digest"] == same["digest"]
    assert status["rollout"]["analysis"]["verdict"] == "Promote", status["rollout"]
    found = findings(status)
    assert found["disagreement"]["estimate"] == "0"
    assert found["errors"]["verdict"] == "Promote"
    compared = status["rollout"]["analysis"]["liveInputs"]
    assert compared["compared"] >= 20, status["rollout"]
    assert compared["differing"] == 0, status["rollout"]
    assert found["liveInputs"]["verdict"] == "Promote", status["rollout"]
    serve(kube, other, replicas=2, **how)
    seen = kube.wait_condition("modelservice", "words", "Ready", "False", "RolloutAborted", seconds=180)
    assert "differ" in seen["message"], seen
    status = kube.get("modelservice", "words")["status"]
    assert status["versions"]["stable"]["digest"] == same["digest"]
    kube.wait("modelservice", "words", lambda s: s["status"]["versions"]["stable"]["replicas"] == 2, 60, "back")


def test_by_errors_and_time(kube: Kube) -> None:
    """A version as good as the one before is promoted; one that takes longer is not, nor one that fails of clients."""
    publish(FOLDER, PROGRAMS)
    bounds = {"errorMargin": "0.1", "latencyMargin": "1"}
    for name in ("first", "again"):
        taken(kube, name, bounds)
        kube.wait_condition("modelservice", NAME, "Ready", "True", "Available", seconds=180)
    status = kube.get("modelservice", NAME)["status"]
    assert status["versions"]["stable"]["uri"].endswith("again"), status["versions"]
    assert {name: one["verdict"] for name, one in findings(status).items()} == {
        "errors": "Promote",
        "latency": "Promote",
    }

    given_up(kube, "slow", bounds, "latency")
    assert float(findings(kube.get("modelservice", NAME)["status"])["latency"]["estimate"]) > 1

    with asking(kube, NAME, question=BRIGHT) as asked:
        given_up(kube, "failing", bounds, "errors")
    assert asked.failures("close") > 0, "clients were answered by it, too"
    assert findings(kube.get("modelservice", NAME)["status"])["latency"]["verdict"] != "Rollback"
    kube.wait("modelservice", NAME, lambda s: s["status"]["versions"]["stable"]["replicas"] == 2, 60, "back")
    with asking(kube, NAME, rate=20, question=BRIGHT) as asked:
        kube.wait("modelservice", NAME, lambda _: len(pods(kube)) == 2, 60, "the other version's pods are gone")
        time.sleep(2)  # what is measured: who answers in that time
    assert asked.failures("close") == asked.failures("grpc") == 0, asked.ways
    assert asked.ways["close"]["sent"] > 20, asked.ways


def test_by_what_clients_ask(kube: Kube) -> None:
    """A pretrained model whose golden questions are answered alike and clients' are not is given up for these."""
    publish(FOLDER, PROGRAMS)
    bounds = {"disagreementLimit": "0.3", "liveInputs": {"perSecond": 20}}
    taken(kube, "first", bounds)
    kube.wait_condition("modelservice", NAME, "Ready", "True", "Available", seconds=180)
    with asking(kube, NAME, question=BRIGHT) as asked:
        taken(kube, "again", bounds)
        kube.wait_condition("modelservice", NAME, "Ready", "True", "Available", seconds=180)
        status = kube.get("modelservice", NAME)["status"]
        assert status["versions"]["stable"]["uri"].endswith("again"), status["versions"]
        assert findings(status)["liveInputs"]["verdict"] == "Promote", status["rollout"]
        given_up(kube, "inverted", bounds, "liveInputs")
    assert asked.failures("close") == asked.failures("grpc") == 0, asked.ways


def taken(kube: Kube, name: str, bounds: dict[str, Any]) -> None:
    """A canary that golden questions and clients judge."""
    analysis = {**bounds, "probesPerSecond": 20, "limitSeconds": 120}
    how = {"strategy": "Canary", "canary": STEPS, "analysis": analysis}
    take(kube, FOLDER, name, replicas=2, rollout=how)


def given_up(kube: Kube, name: str, bounds: dict[str, Any], metric: str) -> None:
    """For that reason; the version before answers everything then."""
    taken(kube, name, bounds)
    seen = kube.wait_condition("modelservice", NAME, "Ready", "False", "RolloutAborted", seconds=180)
    status = kube.get("modelservice", NAME)["status"]
    assert findings(status)[metric]["verdict"] == "Rollback", (seen, status["rollout"])
    assert findings(status)[metric]["message"] in seen["message"]
    assert status["versions"]["stable"]["uri"].endswith("again"), status["versions"]
