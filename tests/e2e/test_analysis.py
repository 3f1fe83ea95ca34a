"""Whether a canary is to answer everything: decided by golden questions, clients' inputs, and what clients meet."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.clients import asking
from tests.e2e.kube import Kube, Object, installation_store, service, training
from tests.e2e.test_rollout import published_again, serve

if TYPE_CHECKING:
    from tests.e2e.conftest import Corpora

pytestmark = pytest.mark.e2e

PIPELINE = {"task": "imageClassification", "labels": ["dark", "light"], "image": {"height": 4, "width": 4}}
# What an answer takes is mostly slept: what a busy machine adds is little beside the difference.
PROGRAM = """
import itertools, time
import numpy as np

def load(folder):
    counted = itertools.count(1)
    def answer(feeds):
        time.sleep({seconds})
        light = feeds["pixels"].mean(axis=(1, 2, 3))
        if {fails} and light.min() > 0.7 and next(counted) % 3 == 0:
            raise ValueError("it is too bright")
        return {{"logits": np.stack([-light, light], axis=1)}}
    return answer
"""
USUAL, SLOW = 0.02, 0.3
BRIGHT = {
    "model": "classify",
    "inputs": [{"name": "PIXELS", "datatype": "FP32", "shape": [1, 3, 4, 4], "data": [0.9] * 48}],
}


@pytest.mark.parametrize("strategy", ["Canary", pytest.param("HotSwap", marks=pytest.mark.slow)])
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
        how["rollout"]["canary"] = {"steps": [{"percent": 50, "seconds": 1}]}
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
    publish({"first": (USUAL, False), "again": (USUAL, False), "slow": (SLOW, False), "failing": (USUAL, True)})
    take(kube, "first")
    kube.wait_condition("modelservice", "colours", "Ready", "True", "Available", seconds=180)
    take(kube, "again")
    kube.wait_condition("modelservice", "colours", "Ready", "True", "Available", seconds=180)
    status = kube.get("modelservice", "colours")["status"]
    assert status["versions"]["stable"]["uri"].endswith("again"), status["versions"]
    assert {name: one["verdict"] for name, one in findings(status).items()} == {
        "errors": "Promote",
        "latency": "Promote",
    }

    given_up(kube, "slow", "latency")
    assert float(findings(kube.get("modelservice", "colours")["status"])["latency"]["estimate"]) > 1

    with asking(kube, "colours", question=json.dumps(BRIGHT)) as asked:
        given_up(kube, "failing", "errors")
    assert asked.failures("close") > 0, "clients were answered by it, too"
    assert findings(kube.get("modelservice", "colours")["status"])["latency"]["verdict"] != "Rollback"
    kube.wait("modelservice", "colours", lambda s: s["status"]["versions"]["stable"]["replicas"] == 2, 60, "back")
    with asking(kube, "colours", rate=20, question=json.dumps(BRIGHT)) as asked:
        kube.wait("modelservice", "colours", lambda _: len(pods(kube)) == 2, 60, "the other version's pods are gone")
        time.sleep(2)  # what is measured: who answers in that time
    assert asked.failures("close") == asked.failures("grpc") == 0, asked.ways
    assert asked.ways["close"]["sent"] > 20, asked.ways


def publish(programs: dict[str, tuple[float, bool]]) -> None:
    with installation_store() as store:
        for name, (seconds, fails) in programs.items():
            store.pipe_file(f"models/analysed/{name}/pipeline.json", json.dumps(PIPELINE).encode())
            program = PROGRAM.format(seconds=seconds, fails=fails)
            store.pipe_file(f"models/analysed/{name}/model.py", program.encode())


def take(kube: Kube, name: str) -> None:
    analysis = {"errorMargin": "0.1", "latencyMargin": "1", "probesPerSecond": 20, "limitSeconds": 120}
    steps = [{"percent": 50, "seconds": 1}]
    made = service("colours", pretrained={"uri": f"s3://models/analysed/{name}", "trusted": True})
    made["spec"] |= {
        "replicas": 2,
        "rollout": {"strategy": "Canary", "canary": {"steps": steps}, "analysis": analysis},
    }
    kube.apply(made)


def given_up(kube: Kube, name: str, metric: str) -> None:
    """For that reason; the version before answers everything then."""
    take(kube, name)
    seen = kube.wait_condition("modelservice", "colours", "Ready", "False", "RolloutAborted", seconds=180)
    status = kube.get("modelservice", "colours")["status"]
    assert findings(status)[metric]["verdict"] == "Rollback", (seen, status["rollout"])
    assert findings(status)[metric]["message"] in seen["message"]
    assert status["versions"]["stable"]["uri"].endswith("again"), status["versions"]


def findings(status: Object) -> dict[str, Any]:
    return {one["metric"]: one for one in status["rollout"]["analysis"]["findings"]}


def pods(kube: Kube) -> list[Object]:
    return kube.list("pods", "mms.dev/service=colours")
