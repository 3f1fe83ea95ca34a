"""Failures on their way into conditions and events."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from mms_operator.engine import events
from mms_operator.engine.problems import MESSAGE_LIMIT, Problem, ReconcileError, with_problem
from mms_operator.plan.types import Event
from tests.unit.engine.fake_api import training

NOW, THEN = "2026-01-02T00:00:00Z", "2026-01-01T00:00:00Z"
PROBLEM = Problem("ApplyFailed", "the API server refused it")


def condition(kind: str, status: str, reason: str = "Whatever") -> dict[str, str]:
    return {"type": kind, "status": status, "reason": reason, "message": "", "lastTransitionTime": THEN}


def test_ready_and_reconciling_say_why_and_the_rest_stays() -> None:
    wanted = {
        "phase": "Running",
        "observedGeneration": 3,
        "conditions": [condition("Ready", "True"), condition("Accepted", "True")],
    }
    found = with_problem(wanted, {}, PROBLEM, NOW)
    assert found["phase"] == "Running"
    by_type = {each["type"]: each for each in found["conditions"]}
    assert by_type["Accepted"] == condition("Accepted", "True")
    assert by_type["Ready"] == {
        "type": "Ready",
        "status": "False",
        "reason": "ApplyFailed",
        "message": "the API server refused it",
        "lastTransitionTime": NOW,
        "observedGeneration": 3,
    }
    assert by_type["Reconciling"]["status"] == "True"
    assert len(found["conditions"]) == len(by_type)
    assert wanted["conditions"][0] == condition("Ready", "True"), "what was given is left as it is"


@pytest.mark.parametrize(
    ("before", "time"),
    [
        pytest.param([condition("Ready", "True")], NOW, id="it was ready"),
        pytest.param([condition("Ready", "False")], THEN, id="it was not, for another reason"),
        pytest.param([], NOW, id="nothing was said"),
    ],
)
def test_the_time_moves_with_the_status_only(before: list[dict[str, str]], time: str) -> None:
    found = with_problem({"conditions": []}, {"conditions": before}, PROBLEM, NOW)
    assert next(each for each in found["conditions"] if each["type"] == "Ready")["lastTransitionTime"] == time


def test_a_status_that_never_was() -> None:
    found = with_problem({}, {}, PROBLEM, NOW)
    assert [each["type"] for each in found["conditions"]] == ["Ready", "Reconciling"]
    assert all("observedGeneration" not in each for each in found["conditions"])


def test_several_problems_are_one_with_the_first_ones_reason() -> None:
    error = ReconcileError((Problem("One", "first"), Problem("Two", "x" * 2000)))
    assert error.problem.reason == "One"
    assert error.problem.message.startswith("first; xxx")
    assert len(error.problem.message) == MESSAGE_LIMIT


@pytest.mark.parametrize(
    ("message", "note"),
    [
        pytest.param("short", "short", id="short"),
        pytest.param("x" * 2000, "x" * 1024, id="long"),
        pytest.param("\N{SNOWMAN}" * 400, "\N{SNOWMAN}" * 341, id="the limit is of bytes"),
    ],
)
def test_an_events_note_fits(message: str, note: str) -> None:
    manifest = events.manifest(training(), Event("Normal", "R", message), datetime(2026, 1, 1, tzinfo=UTC), "me")
    assert manifest["note"] == note
    assert len(manifest["note"].encode()) <= MESSAGE_LIMIT


@pytest.mark.parametrize(
    ("name", "prefix"), [("words", "words."), ("a" * 253, "a" * 236 + "."), ("a" * 235 + ".b", "a" * 235 + ".")]
)
def test_an_events_name_fits(name: str, prefix: str) -> None:
    manifest = events.manifest(training(name), Event("Normal", "R", ""), datetime(2026, 1, 1, tzinfo=UTC), "me" * 99)
    assert manifest["metadata"]["name"].startswith(prefix)
    assert len(manifest["metadata"]["name"]) <= 253
    assert len(manifest["metadata"]["name"]) == len(prefix) + 16
    assert len(manifest["reportingInstance"]) == 128
    assert manifest["regarding"]["uid"] == f"uid-{name}"
    assert manifest["eventTime"] == "2026-01-01T00:00:00.000000Z"
