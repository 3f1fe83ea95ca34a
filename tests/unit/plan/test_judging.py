"""The analysis of a rollout: what is counted, and what its verdict does."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from mms_operator.api.rollout import Analysis
from mms_operator.plan.analysis import errors
from mms_operator.plan.analysis.errors import NOTHING, Counts
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
BLUE_GREEN = {"strategy": "BlueGreen", "analysis": {"errorMargin": "0.005", "limitSeconds": 600}}
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
    found, carried, compared = judging.sample(interval(before, after), PAIR, compared=False)
    assert found.stable == Side(requests=40, failed=3, timed=37, seconds=2.0)
    assert found.canary == Side(requests=4, failed=1, timed=3, seconds=0.0)
    assert (found.own, carried, compared) == (False, NOTHING, False)


def asked(canary: tuple[int, int], stable: tuple[int, int]) -> Interval:
    """Clients' requests and those that failed, beside the agents' own: 100 of which 2 failed, 200 of which 1 did."""

    def answers(serves: str, clients: tuple[int, int], own: Counters) -> AgentReport:
        requests, failed = clients
        report = said(serves, 7 + own.requests + requests, failed=own.failed + failed)
        return report.model_copy(update={"own": own})

    after = {
        "1": answers("b", canary, Counters(requests=100, failed=2, timed=98)),
        "2": answers("a", stable, Counters(requests=200, failed=1, timed=199)),
    }
    return interval({"1": said("b", 7), "2": said("a", 7)}, after)


OWN = (100, 2, 200, 1)
KINDS = {
    "clients ask both": ((10, 5), (90, 3), (10, 5, 90, 3), NOTHING),
    "only the agents ask": ((0, 0), (0, 0), OWN, NOTHING),
    "clients ask only what was there before": ((0, 0), (90, 30), OWN, NOTHING),
    "less than can be told from chance": ((2, 1), (90, 3), OWN, Counts(2, 1, 90, 3)),
    "an answer is sent before it is counted": ((-1, 0), (90, 3), OWN, Counts(-1, 0)),
}


@pytest.mark.parametrize("case", KINDS)
def test_requests_of_one_kind_are_compared(case: str) -> None:
    """Clients ask otherwise than the agents, and may fail for what they ask."""
    canary, stable, wanted, left = KINDS[case]
    found, carried, _ = judging.sample(asked(canary, stable), PAIR, compared=False)
    assert (found.canary.requests, found.canary.failed, found.stable.requests, found.stable.failed) == wanted
    assert (found.own, carried) == (wanted == OWN, left)


def test_clients_that_ask_rarely_are_counted_in_the_end() -> None:
    carried, found = NOTHING, None
    for canary, stable in (((1, 1), (2, 0)), ((0, 0), (1, 0)), ((1, 1), (3, 1))):
        found, carried, _ = judging.sample(asked(canary, stable), PAIR, carried, compared=False)
        assert found.own
    found, carried, _ = judging.sample(asked((1, 0), (0, 0)), PAIR, carried, compared=False)
    assert (found.own, carried) == (False, NOTHING)
    assert (found.canary.requests, found.canary.failed) == (3, 2)
    assert (found.stable.requests, found.stable.failed) == (6, 1)


def test_what_agents_ask_is_in_no_block_with_what_clients_do() -> None:
    spec = judging.spec_of(Analysis.model_validate({"errorMargin": "0.05"}))
    known = errors.Errors(0.05)
    for own in (False, True, False):
        known = errors.fold(spec, known, Side(9, 3 * (not own)), Side(90, 0), own=own)
    assert (known.blocks, known.pending) == (0, Counts(18, 6, 180, 0))
    assert known.pending_own == Counts(9, 0, 90, 0)
    known = errors.fold(spec, known, Side(9, 3), Side(90, 0))
    assert (known.blocks, known.counted, known.pending) == (1, Counts(27, 9, 270, 0), NOTHING)
    assert known.pending_own == Counts(9, 0, 90, 0)


ODD = {
    "it was not asked before": ({}, {"1": said("a", 100)}),
    "it took another artifact": ({"1": said("a", 100)}, {"1": said("b", 200)}),
    "it serves neither": ({"1": said("c", 100)}, {"1": said("c", 200)}),
    "Triton was started again": ({"1": said("a", 100)}, {"1": said("a", 20)}),
    "Triton was started again and has done more since": (
        {"1": said("a", 20)},
        {"1": said("a", 30).model_copy(update={"counters": Counters(requests=30, timed=30, starts=1)})},
    ),
    "Triton did not say": ({"1": said("a", 1)}, {"1": said("a", 2).model_copy(update={"counters": None})}),
}


@pytest.mark.parametrize("case", ODD)
def test_what_is_not_of_one_version_for_a_whole_interval_is_not_counted(case: str) -> None:
    found, *_ = judging.sample(interval(*ODD[case]), PAIR, compared=False)
    assert found.stable == found.canary == Side()


def test_comparisons_count_once_and_with_what_is_stable_only() -> None:
    of_stable = Comparison(reference="a", compared=64, differing=3)
    after = {"3": said("b", 0, comparison=of_stable), "4": said("b", 0, comparison=of_stable)}
    found, _, compared = judging.sample(interval({}, after), PAIR, compared=False)
    assert ((found.compared, found.differing), compared) == ((64, 3), True)
    found, _, compared = judging.sample(interval({}, after), PAIR, compared=True)
    assert ((found.compared, found.differing), compared) == ((0, 0), False)
    of_another = Comparison(reference="z", compared=64, differing=3)
    found, _, compared = judging.sample(interval({}, {"3": said("b", 0, comparison=of_another)}), PAIR, compared=False)
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


@pytest.mark.parametrize(
    ("rollout", "canary", "metric"),
    [
        (CANARY, SLOW, "latency"),
        (CANARY, FAILING, "errors"),
        (HOT_SWAP, SLOW, "latency"),
        (HOT_SWAP, FAILING, "errors"),
        (BLUE_GREEN, FAILING, "errors"),
    ],
)
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


PRETRAINED = {"pretrained": {"uri": "s3://m/one", "digest": "sha256:" + "1" * 64, "trusted": True}}


@pytest.mark.parametrize(
    ("compared", "why"),
    [(None, "brings no comparisons"), (7, "there are 7 comparisons"), (0, "there are 0 comparisons")],
    ids=["of a model that was not trained here", "of too few", "of none"],
)
@pytest.mark.parametrize("alone", [False, True])
def test_comparisons_that_will_never_decide_hold_nothing_up(compared: int | None, why: str, alone: bool) -> None:
    analysis = {"disagreementLimit": "0.2", "limitSeconds": 600} | ({} if alone else {"errorMargin": "0.05"})
    w = ServingWorld({"replicas": 4, "rollout": {**CANARY, "analysis": analysis}})
    if compared is None:
        w.cr["spec"]["model"] = PRETRAINED
    else:
        w.serve("a")
        w.comparison = Comparison(reference=digest("a"), compared=compared, differing=0)
    w.settle()
    assert w.condition("Ready") == ("True", "Available")
    (first,) = {pod.letter for pod in w.pods}
    w.traffic = {first: GOOD, "b": GOOD}
    w.serve("b")
    w.settle()
    run(w, 60)
    w.settle()
    found = w.rollout["analysis"]
    assert "disagreement is not judged: " in found["message"]
    assert why in found["message"]
    if alone:
        assert (found["verdict"], found["findings"]) == ("Pause", [])
        assert found["message"].startswith("Nothing can be judged, Pause by policy")
        assert w.condition("Ready") == ("False", "AwaitingPromotion")
    else:
        assert [(one["metric"], one["verdict"]) for one in found["findings"]] == [("errors", "Promote")]
        assert w.condition("Ready") == ("True", "Available")


def test_a_limit_that_is_edited_counts_the_comparisons_again() -> None:
    w = world({**CANARY, "analysis": {"disagreementLimit": "0.01"}}, GOOD)
    w.comparison = Comparison(reference=digest("a"), compared=64, differing=3)
    run(w, 20)
    assert w.rollout["analysis"]["verdict"] == "Continue"
    w.cr["spec"]["rollout"]["analysis"]["disagreementLimit"] = "0.3"
    run(w, 20)
    w.settle()
    assert w.rollout["analysis"]["verdict"] == "Promote"
    assert w.condition("Ready") == ("True", "Available")
