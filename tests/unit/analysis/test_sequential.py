"""One look after another: what ends a rollout, what is left out, what is kept, and what people are told."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mms_operator.plan.analysis import disagreement, errors, latency
from mms_operator.plan.analysis.sequential import FORMAT, Memory, decide, dump, fold, judge, load
from mms_operator.plan.analysis.types import Decision, Metric, Sample, Side, Spec, Verdict

PROMOTE, ROLLBACK, CONTINUE, PAUSE = Verdict.PROMOTE, Verdict.ROLLBACK, Verdict.CONTINUE, Verdict.PAUSE
SPEC = Spec()
ERRORS = Spec(latency_margin=None, disagreement_limit=None)
LATENCY = Spec(error_margin=None, disagreement_limit=None)
DISAGREEMENT = Spec(error_margin=None, latency_margin=None)


def side(requests: int, failed: int = 0, seconds: float = 0.02) -> Side:
    return Side(requests, failed, requests - failed, (requests - failed) * seconds)


def sample(failed: int = 0, seconds: float = 0.02, differing: int = 0, *, compared: int = 20) -> Sample:
    """50 requests to the canary and 450 to a stable version without failures."""
    return Sample(side(50, failed, seconds), side(450), compared, differing)


GOOD = sample()
IDLE = Sample(Side(), side(500))
SAMPLES = st.lists(
    st.builds(
        lambda n, k, m, j, seconds, compared, differing: Sample(
            side(n, min(n, k), seconds), side(m, min(m, j)), compared, min(compared, differing)
        ),
        st.integers(0, 300),
        st.sampled_from([0, 0, 1, 5, 300]),
        st.integers(0, 300),
        st.sampled_from([0, 0, 1, 5, 300]),
        st.sampled_from([0.001, 0.02, 0.021, 0.03, 5.0]),
        st.sampled_from([0, 1, 50]),
        st.sampled_from([0, 1, 3, 50]),
    ),
    max_size=25,
)
SPECS = st.builds(
    Spec,
    error_margin=st.sampled_from([None, 0.01, 0.3]),
    latency_margin=st.sampled_from([0.05, 0.2]),
    disagreement_limit=st.sampled_from([None, 0.05]),
    alpha_rollback=st.sampled_from([0.001, 0.05, 0.5]),
    alpha_promote=st.sampled_from([0.001, 0.05, 0.5]),
    warmup_intervals=st.sampled_from([0, 2]),
    block_requests=st.sampled_from([1, 20, 400]),
    least_blocks=st.sampled_from([1, 3]),
    dependence=st.sampled_from([1.0, 3.0]),
    at_end=st.sampled_from([PROMOTE, ROLLBACK, PAUSE]),
)


def run(spec: Spec, samples: list[Sample], memory: Memory | None = None) -> list[Decision]:
    """Until it ends. A restart after each look loses nothing."""
    memory, found = memory or Memory(), []
    for each in samples:
        memory, decision = decide(spec, load(dump(memory)), each)
        found.append(decision)
        if decision.verdict is not CONTINUE:
            break
    return found


@dataclass(frozen=True)
class Case:
    name: str
    spec: Spec
    samples: list[Sample]
    verdict: Verdict
    looks: int  # that it takes, the one of the warm-up among them


CASES = [
    # An always failing canary is gone with the third block that counts.
    Case("all fail", ERRORS, [sample(50)] * 30, ROLLBACK, 4),
    Case("a fifth fail", ERRORS, [sample(10)] * 30, ROLLBACK, 4),
    # No test could do with fewer than 300 requests: 0.99^298 is 0.05.
    Case("none fail", ERRORS, [GOOD] * 30, PROMOTE, 9),
    Case("4 % fail", ERRORS, [sample(2)] * 30, ROLLBACK, 6),
    # In the middle of what is allowed and what is not it takes long.
    Case("1 % fail", ERRORS, [sample(1), GOOD] * 15, CONTINUE, 30),
    # All but the warm-up is good.
    Case("the first fail", ERRORS, [sample(50), *[GOOD] * 30], PROMOTE, 9),
    Case("as slow", LATENCY, [GOOD] * 30, PROMOTE, 7),
    Case("three times as slow", LATENCY, [sample(seconds=0.06)] * 30, ROLLBACK, 7),
    Case("at the margin", LATENCY, [sample(seconds=0.024)] * 30, CONTINUE, 30),
    Case("faster", LATENCY, [sample(seconds=0.01)] * 30, PROMOTE, 6),
    # Nor with fewer than 59 inputs: 0.95^59 is 0.05.
    Case("all alike", DISAGREEMENT, [GOOD] * 30, PROMOTE, 4),
    Case("half differ", DISAGREEMENT, [sample(differing=10)] * 30, ROLLBACK, 1),
    Case("a tenth differs", DISAGREEMENT, [sample(differing=2)] * 30, ROLLBACK, 11),
    # Overall: a rollback needs one metric, a promotion all of them, and the last one decides.
    Case("all good", SPEC, [GOOD] * 30, PROMOTE, 9),
    Case("good but slow", SPEC, [sample(seconds=0.06)] * 30, ROLLBACK, 9),
    Case("good but other", SPEC, [sample(differing=10)] * 30, ROLLBACK, 1),
    Case("good but nothing to compare", SPEC, [sample(compared=0)] * 30, CONTINUE, 30),
    Case("no requests", SPEC, [IDLE] * 30, CONTINUE, 30),
    # Idle intervals neither warm up nor count.
    Case("now and then", ERRORS, [IDLE, GOOD] * 15, PROMOTE, 18),
    # Ten requests an interval: two intervals make a block.
    Case("few requests", ERRORS, [Sample(side(10, 10), side(90))] * 30, ROLLBACK, 7),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_cases(case: Case) -> None:
    found = run(case.spec, case.samples)
    assert (found[-1].verdict, len(found)) == (case.verdict, case.looks)
    assert found[-1].conclusive is (case.verdict is not CONTINUE)
    assert all(decision.verdict is CONTINUE and not decision.conclusive for decision in found[:-1])


def test_a_canary_that_turns_bad_is_noticed() -> None:
    # Disagreement is never asked about: so nothing is decided while the canary is good.
    found = run(SPEC, [sample(compared=0)] * 20 + [sample(20, compared=0)] * 20)
    assert found[-1].verdict is ROLLBACK
    assert len(found) <= 26


@pytest.mark.parametrize(("bad", "verdict"), [(-9.0, PROMOTE), (2.0, CONTINUE), (9.0, ROLLBACK)])
def test_what_was_good_once_is_not_promoted(bad: float, verdict: Verdict) -> None:
    # All bettors have e^9 on the canary's being good, and that on its being bad.
    counted = errors.Counts(500, 9, 4500, 0)
    known = errors.Errors(0.01, blocks=10, counted=counted, good=(9.0,) * 6, bad=(bad,) * 20)
    decision = judge(ERRORS, Memory(errors=known))
    assert decision.verdict is verdict
    changed = (
        "it has changed, at most 1 percentage point above it with 99.9% and more than 1 percentage point above it "
        "with 86.6% confidence"
    )
    assert (changed in decision.message) is (verdict is CONTINUE)


def test_one_burst_of_failures_decides_nothing() -> None:
    found = run(ERRORS, [GOOD, GOOD, sample(50), *[GOOD] * 20])
    assert ROLLBACK not in {decision.verdict for decision in found}


def test_one_hiccup_of_either_side_decides_nothing() -> None:
    slow = Sample(side(50), side(450, seconds=2.0), 20, 0)
    for hiccup, samples in ((sample(seconds=2.0), [GOOD] * 20), (slow, [sample(seconds=0.06)] * 20)):
        found = run(LATENCY, [samples[0], samples[0], hiccup, *samples])
        assert found[2].verdict is CONTINUE
        assert found[-1].verdict is (PROMOTE if samples[0] == GOOD else ROLLBACK)


@pytest.mark.parametrize("policy", [PROMOTE, ROLLBACK, PAUSE])
def test_when_the_time_is_over_the_policy_decides(policy: Verdict) -> None:
    spec = replace(SPEC, at_end=policy)
    memory = fold(spec, fold(spec, Memory(), GOOD), GOOD)
    decision = judge(spec, memory, over=True)
    assert (decision.verdict, decision.conclusive) == (policy, False)
    assert decision.message.startswith(f"Inconclusive when the time was over, {policy} by policy: errors: ")
    assert "0.00% of 50 requests failed" in decision.message
    assert "20 ms a request" in decision.message
    assert "0.00% of 40 answers differ: at most 5% with " in decision.message


@pytest.mark.parametrize(("samples", "verdict"), [([GOOD] * 12, PROMOTE), ([sample(50)] * 12, ROLLBACK)])
def test_when_the_time_is_over_evidence_decides_if_there_is_any(samples: list[Sample], verdict: Verdict) -> None:
    spec = replace(SPEC, at_end=PAUSE)
    memory = Memory()
    for each in samples:
        memory = fold(spec, memory, each)
    decision = judge(spec, memory, over=True)
    assert (decision.verdict, decision.conclusive) == (verdict, True)


def test_numbers_and_words() -> None:
    # The first one is the warm-up: 2, 1, 2, 1, 2, 1 and 2 of 50 requests failed in those that count.
    memory = Memory()
    for number in range(8):
        memory, decision = decide(SPEC, memory, sample(1 + number % 2, 0.03, 1))
    one, two, three = decision.findings
    assert (one.metric, two.metric, three.metric) == (Metric.ERRORS, Metric.LATENCY, Metric.DISAGREEMENT)
    assert (one.canary, one.stable, one.estimate, one.bound) == pytest.approx((11 / 350, 0.0, 11 / 350, 0.01))
    assert (one.canary_requests, one.stable_requests) == (350, 3150)
    assert (two.canary, two.stable, two.estimate, two.bound) == pytest.approx((0.03, 0.02, 1.5, 1.2))
    assert (two.canary_requests, two.stable_requests) == (339, 3150)
    assert (three.canary, three.stable, three.estimate, three.bound) == (None, None, 0.05, 0.05)
    assert three.canary_requests == 160
    assert one.broken == pytest.approx(0.949, abs=1e-3)
    assert one.message == (
        "3.14% of 350 requests failed, 0.00% of 3,150 of the stable version: "
        "more than 1 percentage point above it with 94.9% confidence, 98.3% are needed"
    )
    assert two.message == (
        "30 ms a request, 20 ms of the stable version, typically 1.5 times as long: "
        "more than 1.2 times with 97.2% confidence, 98.3% are needed"
    )
    assert three.message == "5.00% of 160 answers differ: no evidence either way yet"
    assert decision.message == (
        f"Continue: errors: {one.message}. latency: {two.message}. disagreement: {three.message}"
    )


def test_what_decides_is_told_first() -> None:
    *_, rolled_back = run(SPEC, [sample(differing=10)] * 3)
    assert rolled_back.message == (
        "Rollback: disagreement: 50.00% of 20 answers differ: more than 5% with 99.9% confidence. "
        "errors: nothing to compare yet. latency: nothing to compare yet"
    )
    *_, promoted = run(ERRORS, [GOOD] * 10)
    assert promoted.message == (
        "Promote: errors: 0.00% of 400 requests failed, 0.00% of 3,600 of the stable version: "
        "at most 1 percentage point above it with 95.3% confidence"
    )
    little = run(SPEC, [GOOD] * 2)[-1].message
    assert little.startswith("Continue: errors: 0.00% of 50 requests failed")
    assert "too little to judge by, 50 requests in 3 blocks of 20 are the least" in little
    assert "at most 5% with 83.4% confidence, 95% are needed" in little


def test_enough_is_asked_before_a_verdict() -> None:
    spec = replace(ERRORS, warmup_intervals=0, least_blocks=1, least_requests=200)
    found = run(spec, [sample(50)] * 10)
    assert [finding.enough for decision in found for finding in decision.findings] == [False, False, False, True]
    assert found[-1].verdict is ROLLBACK
    spec = replace(DISAGREEMENT, least_inputs=100)
    found = run(spec, [sample(differing=20)] * 10)
    assert (found[-1].verdict, len(found)) == (ROLLBACK, 5)


def test_false_rollbacks_are_shared_among_metrics() -> None:
    assert SPEC.alpha_bad == pytest.approx(0.05 / 3)
    assert ERRORS.alpha_bad == 0.05
    # 5 of 20 inputs, evidence 33: enough for one metric alone (20), not for one of three (60).
    decisions = [judge(spec, fold(spec, Memory(), sample(differing=5))) for spec in (SPEC, DISAGREEMENT)]
    assert decisions[0].findings[-1].broken == decisions[1].findings[-1].broken
    assert 0.95 < decisions[0].findings[-1].broken < 1 - 0.05 / 3
    assert [decision.verdict for decision in decisions] == [CONTINUE, ROLLBACK]


def test_warm_up() -> None:
    spec = replace(SPEC, warmup_intervals=2)
    memory = Memory()
    for each, warmed in ((IDLE, 0), (GOOD, 1), (IDLE, 1), (GOOD, 2)):
        memory = fold(spec, memory, each)
        assert memory.warmed == warmed
        assert memory.errors == errors.Errors(0.01)
        assert memory.latency == latency.Latency(0.2)
    # Whether it answers otherwise is not a matter of warmth.
    assert memory.disagreement == disagreement.Disagreement(0.05, 40, 0)
    memory = fold(spec, memory, GOOD)
    assert memory.errors is not None
    assert memory.errors.blocks == 1


def test_a_metric_whose_bound_is_edited_begins_anew() -> None:
    memory = Memory()
    for _ in range(6):
        memory = fold(SPEC, memory, GOOD)
    edited = replace(SPEC, error_margin=0.02, disagreement_limit=None)
    assert judge(edited, memory).findings[0].message == "nothing to compare yet"
    after = fold(edited, memory, GOOD)
    assert after.errors is not None
    assert (after.errors.margin, after.errors.blocks) == (0.02, 1)
    assert after.latency is not None
    assert after.latency.blocks == 6
    assert after.disagreement is None


def test_what_is_kept_is_small_and_json() -> None:
    memory = Memory()
    for number in range(500):
        memory = fold(SPEC, memory, sample(number % 7 == 0, 0.02 + 0.001 * (number % 5), number % 3 == 0))
    text = dump(memory)
    assert len(text) < 1000
    assert json.loads(text)["errors"]["blocks"] == 499
    assert load(text) == memory
    assert load(dump(Memory())) == Memory()


def test_what_cannot_be_used_is_not() -> None:
    text = dump(fold(SPEC, Memory(), GOOD))
    assert load(text.replace(f'"format":{FORMAT}', '"format":0')) == Memory()
    for broken in ("", "[]", '{"errors": {"margin": "x"}}', '{"errors": {"margin": 0.01, "pending": ["x"]}}'):
        with pytest.raises(ValueError):
            load(broken)


@settings(max_examples=60)
@given(SPECS, SAMPLES)
def test_a_restart_changes_nothing(spec: Spec, samples: list[Sample]) -> None:
    kept = restarted = Memory()
    for each in samples:
        kept, decision = decide(spec, kept, each)
        restarted, same = decide(spec, load(dump(restarted)), each)
        assert kept == restarted
        assert decision == same == judge(spec, kept)


@settings(max_examples=100)
@given(SPECS, SAMPLES)
def test_a_verdict_is_one_and_follows_from_the_metrics(spec: Spec, samples: list[Sample]) -> None:
    memory = Memory()
    for each in samples:
        memory, decision = decide(spec, memory, each)
        assert [finding.metric for finding in decision.findings] == list(spec.metrics)
        verdicts = {finding.verdict for finding in decision.findings}
        for finding in decision.findings:
            promotes, rolls_back = (
                finding.held > 1 - spec.alpha_promote - 1e-9,
                finding.broken > 1 - spec.alpha_bad - 1e-9,
            )
            assert 0 <= finding.held <= 1
            assert 0 <= finding.broken <= 1
            assert (finding.verdict is PROMOTE) <= (promotes and finding.enough and not finding.broken)
            assert (finding.verdict is ROLLBACK) <= (rolls_back and finding.enough)
        assert (decision.verdict is ROLLBACK) == (ROLLBACK in verdicts)
        assert (decision.verdict is PROMOTE) == (verdicts == {PROMOTE})
        assert decision.conclusive is (decision.verdict is not CONTINUE)
        at_end = judge(spec, memory, over=True)
        assert at_end.verdict is (decision.verdict if decision.conclusive else spec.at_end)
        assert at_end.findings == decision.findings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"error_margin": 0.0}, "error_margin is 0.0: it is to be above 0 and at most 0.5"),
        ({"error_margin": 0.6}, "error_margin is 0.6"),
        ({"latency_margin": -0.1}, "latency_margin is -0.1"),
        ({"latency_margin": math.nan}, "latency_margin is nan"),
        ({"disagreement_limit": 0.9}, "disagreement_limit is 0.9: it is to be above 0 and at most 0.8"),
        ({"alpha_rollback": 0.0}, "alpha_rollback is 0.0"),
        ({"alpha_promote": 1.0}, "alpha_promote is 1.0"),
        ({"warmup_intervals": -1}, "warmup_intervals is -1: it is to be at least 0"),
        ({"block_requests": 0}, "block_requests is 0: it is to be at least 1"),
        ({"least_blocks": 0}, "least_blocks is 0"),
        ({"least_requests": 0}, "least_requests is 0"),
        ({"least_inputs": 0}, "least_inputs is 0"),
        ({"dependence": 0.5}, "dependence is 0.5: it is to be at least 1"),
        ({"dependence": math.nan}, "dependence is nan"),
        ({"at_end": CONTINUE}, "at_end is Continue: when the time is over it is Promote, Rollback or Pause"),
        ({"error_margin": None, "latency_margin": None, "disagreement_limit": None}, "no metric is asked"),
    ],
)
def test_a_spec_without_sense_is_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SPEC, **change)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"requests": -3}, "requests is -3: after a restart, count from zero"),
        ({"requests": 3, "failed": -1}, "failed is -1"),
        ({"timed": -1}, "timed is -1"),
        ({"timed": 1, "seconds": -0.5}, "seconds is -0.5"),
        ({"timed": 1, "seconds": math.nan}, "seconds is nan"),
        ({"timed": 1, "seconds": math.inf}, "seconds is inf"),
        ({"requests": 3, "failed": 4}, "4 of 3 requests can't have failed"),
    ],
)
def test_counts_that_cannot_have_been_are_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Side(**fields)


@pytest.mark.parametrize(("compared", "differing"), [(-1, 0), (3, -1), (3, 4)])
def test_answers_that_cannot_differ_are_refused(compared: int, differing: int) -> None:
    with pytest.raises(ValueError, match=f"{differing} of {compared} answers can't differ"):
        Sample(compared=compared, differing=differing)
