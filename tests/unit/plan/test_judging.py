"""The analysis of a rollout: what is counted, and what its verdict does."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from mms_operator.plan.analysis.types import Side
from mms_operator.plan.service import judging
from mms_operator.plan.service.inputs import Pair
from mms_operator.plan.types import Interval
from mms_workloads.contract import AgentReport, Comparison, Counters
from tests.unit.plan.serving_world import ServingWorld, digest
from tests.unit.plan.world import NOW

PAIR = Pair("b", "a")
ANALYSIS = {"errorMargin": "0.05", "latencyMargin": "0.5", "limitSeconds": 600}
CANARY = {"strategy": "Canary", "canary": {"steps": [{"percent": 25, "seconds": 10}]}, "analysis": ANALYSIS}
BLUE_GREEN = {"strategy": "BlueGreen", "analysis": ANALYSIS}
HOT_SWAP = {"strategy": "HotSwap", "analysis": ANALYSIS}
GOOD, SLOW, FAILING = (30, 0, 0.01), (30, 0, 0.03), (30, 9, 0.01)


def said(serves: str, requests: int, *, failed: int = 0, seconds: float = 0.0, comparison: Any = None) -> AgentReport:
    counters = Counters(requests=requests, failed=failed, timed=requests - failed, seconds=seconds)
    return AgentReport(
        digest=serves, version=1, models=[], phase="Verified", goldenCases=1, goldenRight=1, counters=counters,
        comparison=comparison,
    )  # fmt: skip


def interval(before: dict[str, AgentReport], after: dict[str, AgentReport]) -> Interval:
    return Interval(NOW, NOW + timedelta(seconds=2), before, after)


def test_what_both_versions_did_is_counted() -> None:
    before = {"1": said("a", 100, seconds=1), "2": said("a", 0), "3": said("b", 5, failed=5)}
    after = {"1": said("a", 130, failed=3, seconds=2.5), "2": said("a", 10, seconds=0.5), "3": said("b", 9, failed=6)}
    found, compared = judging.sample(interval(before, after), PAIR, compared=False)
    assert found.stable == Side(requests=40, failed=3, timed=37, seconds=2.0)
    assert found.canary == Side(requests=4, failed=1, timed=3, seconds=0.0)
    assert not compared


@pytest.mark.parametrize(
    ("clients", "failed", "wanted"),
    [(10, 5, (10, 5)), (0, 0, (100, 2)), (2, 1, (100, 2))],
    ids=["clients ask", "only the agent asks", "less than can be told from chance"],
)
def test_what_the_agent_asks_does_not_hide_what_clients_see(clients: int, failed: int, wanted: tuple[int, int]) -> None:
    before = {"1": said("b", 7)}
    own = Counters(requests=100, failed=2, timed=98)
    after = {"1": said("b", 107 + clients, failed=failed + 2).model_copy(update={"own": own})}
    found, _ = judging.sample(interval(before, after), PAIR, compared=False)
    assert (found.canary.requests, found.canary.failed) == wanted


ODD = {
    "it was not asked before": ({}, {"1": said("a", 100)}),
    "it took another artifact": ({"1": said("a", 100)}, {"1": said("b", 200)}),
    "it serves neither": ({"1": said("c", 100)}, {"1": said("c", 200)}),
    "Triton was started again": ({"1": said("a", 100)}, {"1": said("a", 20)}),
    "Triton did not say": ({"1": said("a", 1)}, {"1": said("a", 2).model_copy(update={"counters": None})}),
}


@pytest.mark.parametrize("case", ODD)
def test_what_is_not_of_one_version_for_a_whole_interval_is_not_counted(case: str) -> None:
    found, _ = judging.sample(interval(*ODD[case]), PAIR, compared=False)
    assert found.stable == found.canary == Side()


def test_comparisons_count_once_and_with_what_is_stable_only() -> None:
    of_stable = Comparison(reference="a", compared=64, differing=3)
    after = {"3": said("b", 0, comparison=of_stable), "4": said("b", 0, comparison=of_stable)}
    found, compared = judging.sample(interval({}, after), PAIR, compared=False)
    assert ((found.compared, found.differing), compared) == ((64, 3), True)
    found, compared = judging.sample(interval({}, after), PAIR, compared=True)
    assert ((found.compared, found.differing), compared) == ((0, 0), False)
    of_another = Comparison(reference="z", compared=64, differing=3)
    found, compared = judging.sample(interval({}, {"3": said("b", 0, comparison=of_another)}), PAIR, compared=False)
    assert (found.compared, compared) == (0, False)


def world(rollout: dict[str, Any], canary: tuple[int, int, float]) -> ServingWorld:
    """A service that answers with a, and is told to serve b, which answers so."""
    w = ServingWorld({"replicas": 4, "rollout": rollout})
    w.serve("a")
    w.settle()
    w.traffic = {"a": GOOD, "b": canary}
    w.serve("b")
    w.settle()
    return w


def run(w: ServingWorld, seconds: int) -> None:
    for _ in range(seconds // 2):
        w.serve_clients()
        w.turn()


def test_a_clock_that_is_set_back_holds_no_analysis_up() -> None:
    w = world(BLUE_GREEN, GOOD)
    run(w, 10)
    sampled = w.rollout["analysis"]["sampledTime"]
    w.now -= timedelta(hours=1)
    w.settle()
    assert w.rollout["analysis"]["sampledTime"] == sampled, "the interval of before counts once"
    run(w, 590)
    w.settle()
    assert (w.rollout["analysis"]["verdict"], w.rollout["phase"]) == ("Promote", "Complete")


@pytest.mark.parametrize("rollout", [CANARY, BLUE_GREEN, HOT_SWAP], ids=["canary", "blue-green", "hot-swap"])
def test_a_version_that_is_as_good_is_promoted(rollout: dict[str, Any]) -> None:
    w = world(rollout, GOOD)
    run(w, 10)
    assert w.rollout["phase"] == "Analysing"
    assert "requests to the canary" in w.rollout["analysis"]["forecast"]
    assert w.counts().get("a") in {3, 4}
    assert {pod.probe for pod in w.pods} == {"5"}, "asked, so that there is something to measure"
    run(w, 580)
    w.settle()
    assert w.condition("Ready") == ("True", "Available")
    assert set(w.answering()) == {"b"}
    assert w.rollout["analysis"]["verdict"] == "Promote"
    assert {pod.probe for pod in w.pods if pod.letter == "b"} <= {None, "0"}


@pytest.mark.parametrize("rollout", [CANARY, BLUE_GREEN, HOT_SWAP], ids=["canary", "blue-green", "hot-swap"])
@pytest.mark.parametrize(("canary", "metric"), [(SLOW, "latency"), (FAILING, "errors")], ids=["slow", "failing"])
def test_a_version_that_is_worse_is_given_up(
    rollout: dict[str, Any], canary: tuple[int, int, float], metric: str
) -> None:
    w = world(rollout, canary)
    run(w, 590)
    w.settle()
    assert w.condition("Ready") == ("False", "RolloutAborted")
    assert w.answering() == {"a": 4}
    assert w.rollout["analysis"]["verdict"] == "Rollback"
    (broken,) = [one for one in w.rollout["analysis"]["findings"] if one["verdict"] == "Rollback"]
    assert broken["metric"] == metric
    assert w.cr["status"]["history"][0]["message"] == w.rollout["analysis"]["message"]
    assert w.cr["status"]["history"][0]["digest"] == digest("b")


@pytest.mark.parametrize(
    ("at_end", "reason"), [("Pause", "AwaitingPromotion"), ("Promote", "Available"), ("Rollback", "RolloutAborted")]
)
def test_when_nothing_is_known_for_sure_at_the_end(at_end: str, reason: str) -> None:
    w = world({**CANARY, "analysis": {**ANALYSIS, "atEnd": at_end}}, (0, 0, 0.0))
    run(w, 590)
    assert w.condition("Ready") == ("False", "RollingOut")
    run(w, 20)
    w.settle()
    found = w.condition("Ready")
    assert found is not None
    assert found[1] == reason


def test_a_word_ends_an_analysis() -> None:
    w = world(CANARY, (0, 0, 0.0))
    run(w, 20)
    w.say("promote")
    w.settle()
    assert w.condition("Ready") == ("True", "Available")


def test_answers_that_differ() -> None:
    rollout = {**CANARY, "analysis": {"disagreementLimit": "0.2"}}
    w = world(rollout, GOOD)
    w.comparison = Comparison(reference=digest("a"), compared=64, differing=60)
    run(w, 10)
    w.settle()
    assert w.condition("Ready") == ("False", "RolloutAborted")
    w = world(rollout, GOOD)
    w.comparison = Comparison(reference=digest("a"), compared=64, differing=1)
    run(w, 30)
    w.settle()
    assert w.condition("Ready") == ("True", "Available")


def test_an_interval_counts_once() -> None:
    w = world(CANARY, GOOD)
    w.serve_clients()
    w.look()
    kept = w.rollout["analysis"]
    for _ in range(3):
        w.look()
        assert w.rollout["analysis"] == kept


def test_what_cannot_be_asked_is_refused() -> None:
    w = ServingWorld({"replicas": 1, "rollout": {**CANARY, "analysis": {"errorMargin": "0"}}})
    w.serve("a")
    w.look()
    assert w.condition("Accepted") == ("False", "InvalidSpec")
    assert "spec.rollout.analysis: error_margin is 0" in w.cr["status"]["conditions"][0]["message"]


def test_what_the_status_remembers_may_be_nonsense() -> None:
    w = world(CANARY, GOOD)
    run(w, 10)
    w.rollout["analysis"]["memory"] = "nonsense"
    run(w, 10)
    assert w.rollout["analysis"]["memory"] != "nonsense"


def test_the_time_that_it_sleeps_does_not_count() -> None:
    w = world(CANARY, (0, 0, 0.0))
    run(w, 300)
    w.scale(0)
    w.settle()
    w.wait(3600)
    w.look()
    w.scale(4)
    w.settle()
    run(w, 20)
    assert w.rollout["analysis"]["verdict"] == "Continue"
    run(w, 600)
    assert w.rollout["analysis"]["verdict"] == "Pause"
