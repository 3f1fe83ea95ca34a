"""Inputs of clients that both versions answer: who is told to sample and to compare, and what is counted."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from mms_operator.api.service import ServiceSpec
from mms_operator.plan.service import inputs
from mms_operator.plan.service.inputs import Pair
from mms_operator.plan.types import Interval
from mms_workloads.contract import AgentReport, InputOrders, InputsReport
from tests.unit.plan.serving_world import ServingWorld, digest
from tests.unit.plan.world import NOW

PAIR = Pair("b", "a")
ANALYSIS = {"disagreementLimit": "0.2", "liveInputs": {"perSecond": 6}, "limitSeconds": 600}
CANARY = {"strategy": "Canary", "canary": {"steps": [{"percent": 25, "seconds": 10}]}, "analysis": ANALYSIS}


def said(serves: str, compared: int, differing: int = 0, *, key: str = "k", reference: str = "a") -> AgentReport:
    told = InputsReport(key=key, reference=reference, compared=compared, differing=differing)
    return AgentReport(
        digest=serves, version=1, models=[], phase="Verified", goldenCases=1, goldenRight=1, inputs=told
    )  # fmt: skip


NOTHING = AgentReport(digest="b", version=1, models=[], phase="Verified", goldenCases=1, goldenRight=1)
COUNTED: dict[str, tuple[dict[str, AgentReport], dict[str, AgentReport], tuple[int, int]]] = {
    "of two pods": (
        {"1": said("b", 3, 1), "2": said("b", 0)}, {"1": said("b", 10, 2), "2": said("b", 5)}, (12, 1)
    ),
    "of the version before none are": ({"1": said("a", 0)}, {"1": said("a", 10)}, (0, 0)),
    "it was not heard before": ({}, {"1": said("b", 10)}, (0, 0)),
    "it had not been told to": ({"1": NOTHING}, {"1": said("b", 10)}, (0, 0)),
    "its agent was started again": ({"1": said("b", 2, key="old")}, {"1": said("b", 10)}, (0, 0)),
    "with another version": ({"1": said("b", 2, reference="z")}, {"1": said("b", 10)}, (0, 0)),
    "its agent counts anew": ({"1": said("b", 20)}, {"1": said("b", 10)}, (0, 0)),
}  # fmt: skip


@pytest.mark.parametrize("case", COUNTED)
def test_what_is_counted(case: str) -> None:
    before, after, wanted = COUNTED[case]
    assert inputs.compared(Interval(NOW, NOW + timedelta(seconds=5), before, after), PAIR) == wanted


def world(rollout: dict[str, Any]) -> ServingWorld:
    w = ServingWorld({"replicas": 4, "rollout": rollout})
    w.serve("a")
    w.settle()
    assert not any(pod.inputs for pod in w.pods), "while nothing is rolled out"
    w.serve("b")
    w.settle()
    for pod in w.pods:  # agents that are told make a key
        if pod.inputs:
            pod.compared = InputsReport(key=f"key-{pod.uid}", reference=digest("a"))
    w.settle()
    return w


def orders(w: ServingWorld, letter: str) -> list[InputOrders]:
    return [InputOrders.model_validate_json(pod.inputs or "") for pod in w.pods if pod.letter == letter]


def test_pods_hear_of_each_other() -> None:
    w = world(CANARY)
    keys = {letter: {f"key-{pod.uid}" for pod in w.pods if pod.letter == letter} for letter in "ab"}
    sending, taking = orders(w, "a"), orders(w, "b")
    assert len(sending) == 3
    assert len(taking) == 1
    for order in sending:
        assert (order.stable, order.next, order.both) == (digest("a"), digest("b"), False)
        assert {(peer.host, peer.key) for peer in order.to} == {("10.0.0.1", key) for key in keys["b"]}
        assert order.perSecond == 2, "6 of all three"
        assert not order.senders
    assert set(taking[0].senders) == keys["a"]
    assert (taking[0].perSecond, taking[0].to) == (6, [])
    volumes = w.objects[f"Deployment/words-{'b' * 12}"]["spec"]["template"]["spec"]["volumes"]
    (told,) = [source["downwardAPI"] for source in volumes[0]["projected"]["sources"] if "downwardAPI" in source]
    assert "inputs" in {item["path"] for item in told["items"]}


def test_a_pod_that_holds_both_does_it_by_itself() -> None:
    w = world({"strategy": "HotSwap", "analysis": ANALYSIS})
    (own,) = orders_of_told = [InputOrders.model_validate_json(pod.inputs) for pod in w.pods if pod.inputs]
    assert [pod.letter for pod in w.pods if pod.inputs] == ["b"]
    assert len(orders_of_told) == 1
    assert (own.both, own.perSecond, own.to, own.senders) == (True, 6, [], [])


def answers(w: ServingWorld, each: int, differing: int, message: str = "") -> None:
    for pod in w.pods:
        if pod.letter == "b" and pod.compared:
            known = pod.compared
            pod.compared = known.model_copy(
                update={
                    "compared": known.compared + each, "differing": known.differing + differing, "message": message,
                }
            )  # fmt: skip


def run(w: ServingWorld, each: int, differing: int, turns: int, message: str = "") -> None:
    for _ in range(turns):
        before = w._reports()
        began = w.now
        answers(w, each, differing, message)
        w.wait(2)
        w.interval = Interval(began, w.now, before, w._reports())
        w.turn()


def test_nothing_is_promoted_without_them_and_what_differs_is_given_up() -> None:
    w = world({**CANARY, "analysis": {"liveInputs": {"perSecond": 6}, "disagreementLimit": "0.2"}})
    run(w, 0, 0, 30, "its models are not asked")
    assert w.rollout["phase"] == "Analysing"
    found = w.rollout["analysis"]
    assert found["liveInputs"] == {"compared": 0, "differing": 0, "message": "its models are not asked"}
    assert found["message"].endswith("Live inputs: its models are not asked")
    run(w, 5, 5, 6)
    w.settle()
    assert w.condition("Ready") == ("False", "RolloutAborted")
    found = w.rollout["analysis"]
    (broken,) = [one for one in found["findings"] if one["verdict"] == "Rollback"]
    assert broken["metric"] == "liveInputs"
    assert found["liveInputs"]["differing"] == found["liveInputs"]["compared"] >= 20
    assert not any(pod.inputs for pod in w.pods), "nobody samples any more"


def test_without_the_field_nobody_is_told() -> None:
    w = world({**CANARY, "analysis": {"disagreementLimit": "0.2"}})
    assert not any(pod.inputs for pod in w.pods)
    volumes = w.objects[f"Deployment/words-{'b' * 12}"]["spec"]["template"]["spec"]["volumes"]
    assert "mms.dev/inputs" not in str(volumes)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ({"format": "TritonRepository", "trusted": True}, "requests to a Triton repository are not seen"),
        ({"pipeline": {"task": "textEmbedding"}}, "answers of textEmbedding cannot be compared"),
        ({"pipeline": {"task": "languageModel"}}, "answers of languageModel cannot be compared"),
        ({"pipeline": {"task": "imageClassification", "labels": ["a", "b"]}}, None),
        ({}, None),
    ],
    ids=["repository", "vectors", "made-up text", "labels", "not known yet"],
)
def test_what_can_never_be_compared_is_refused(model: dict[str, Any], why: str | None) -> None:
    found = {"model": {"pretrained": {"uri": "s3://models/one", **model}}, "rollout": CANARY}
    said = inputs.problem(ServiceSpec.model_validate(found))
    assert said == (f"spec.rollout.analysis.liveInputs: {why}: leave it out" if why else None)


def test_such_a_service_says_so() -> None:
    w = ServingWorld({"replicas": 1, "rollout": CANARY})
    w.cr["spec"]["model"] = {"pretrained": {"uri": "s3://models/one", "format": "TritonRepository", "trusted": True}}
    w.look()
    assert w.condition("Accepted") == ("False", "InvalidSpec")
