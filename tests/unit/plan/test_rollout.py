"""Rollouts from the first pod to the last: who answers at each step, and what a user's word does."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mms_operator.api.rollout import Rollout
from mms_operator.plan.service import rollout as rollouts
from mms_operator.plan.types import ReferencedSecret
from tests.unit.plan.serving_world import BLUE_GREEN, CANARY, HOT_SWAP, NOW, ServingWorld, digest, world


def test_pod_by_pod() -> None:
    w = world(replicas=4)
    w.serve("b")
    seen = []
    for _ in range(12):
        w.turn()
        seen.append(w.counts())
        assert sum(w.answering().values()) >= 4
    assert seen[0] == {"a": 4, "b": 1}, "the first one is alone"
    assert seen[-1] == {"b": 4}
    assert w.condition("Ready") == ("True", "Available")
    assert [one["digest"] for one in w.cr["status"]["history"]] == [digest("b"), digest("a")]
    assert w.rollout["phase"] == "Complete"


def test_a_bad_version_never_has_a_second_pod() -> None:
    for rollout in ({}, CANARY, BLUE_GREEN):
        w = world(rollout, bad="b")
        w.serve("b")
        w.settle()
        assert w.counts() == {"a": 5, "b": 1}
        assert w.answering() == {"a": 5}
        assert w.condition("Available") == ("True", "Available")


def test_canary_by_steps() -> None:
    w = world(CANARY)
    w.serve("b")
    w.settle()
    assert w.answering() == {"a": 4, "b": 1}
    assert (w.rollout["step"], w.rollout["phase"], w.rollout["percent"]) == (1, "Waiting", 20)
    assert w.plan is not None
    assert w.plan.requeue_after == 60
    w.wait(59)
    w.settle()
    assert w.counts() == {"a": 4, "b": 1}
    w.wait(1)
    w.settle()
    assert w.answering() == {"a": 2, "b": 3}
    w.wait(3600)
    w.settle()
    assert w.condition("Ready") == ("False", "AwaitingPromotion")
    assert w.plan.requeue_after is None
    w.say("promote")
    w.settle()
    assert w.answering() == {"b": 5}
    assert w.condition("Ready") == ("True", "Available")
    assert [event.reason for event in w.events] == [
        "RollingOut", "Available", "RollingOut", "RolloutStep", "AwaitingPromotion", "RollingOut", "Available"
    ]  # fmt: skip


def test_a_step_that_was_reached_goes_on_while_more_pods_are_wanted_of_it() -> None:
    """Such as by a scaler, whose every change would else begin the step's time anew."""
    w = world(CANARY)
    w.serve("b")
    w.settle()
    w.wait(40)
    w.scale(10)
    w.look()
    assert w.rollout["step"] == 1
    w.settle()
    assert w.answering() == {"a": 8, "b": 2}
    assert (w.rollout["step"], w.rollout["phase"]) == (1, "Waiting")
    assert w.plan is not None
    assert w.plan.requeue_after == 20
    w.wait(20)
    w.settle()
    assert w.rollout["step"] == 2


def test_a_step_begins_anew_when_none_of_its_pods_answers() -> None:
    w = world(CANARY)
    w.serve("b")
    w.settle()
    w.wait(40)
    for pod in w.pods:
        pod.ready = pod.letter != "b"
    w.look()
    assert w.rollout.get("reachedTime") is None
    w.settle()
    assert w.plan is not None
    assert w.plan.requeue_after == 60


@pytest.mark.parametrize("strategy", ["RollingUpdate", "Canary", "HotSwap"])
def test_an_abort_in_the_last_moment_finds_who_answers(strategy: str) -> None:
    """All pods of the next version answer, and their Deployment is not through yet, such as with another template."""
    how = Rollout.model_validate({"strategy": strategy})
    state = rollouts.promoted(rollouts.begin(how, 3, NOW), fully=True)
    fleets = rollouts.Fleets(3, rollouts.Fleet(1, 1, complete=True), rollouts.Fleet(3, 3, complete=False))
    step = rollouts.advance(how, state, fleets, NOW)
    assert not step.done
    assert (step.next_replicas, step.stable_replicas) == (3, 1)


def test_one_replica_has_a_canary_beside_it() -> None:
    w = world(CANARY, replicas=1)
    w.serve("b")
    w.settle()
    assert w.answering() == {"a": 1, "b": 1}
    assert w.rollout["percent"] == 50, "what it is, and not what was asked for"


def test_blue_green_switches_at_once_and_back_at_once() -> None:
    w = world(BLUE_GREEN)
    w.serve("b")
    w.settle()
    assert w.ready() == {"a": 5, "b": 5}
    assert w.answering() == {"a": 5}
    assert w.objects["Service/words-next"]["spec"]["selector"]["mms.dev/artifact"] == "b" * 12
    w.say("promote")
    w.look()
    assert w.answering() == {"b": 5}
    w.settle()
    assert w.counts() == {"a": 5, "b": 5}, "kept for a while"
    assert "Service/words-next" not in w.objects
    w.say("rollback")
    w.look()
    assert w.answering() == {"a": 5}, "in one write"
    w.settle()
    assert w.counts() == {"a": 5}
    assert w.condition("Ready") == ("False", "RolledBack")
    assert w.condition("Stalled") == ("True", "RolledBack")


def test_what_was_kept_goes_when_its_time_is_over() -> None:
    w = world(BLUE_GREEN)
    w.serve("b")
    w.settle()
    w.say("promote")
    w.settle()
    assert w.plan is not None
    assert w.plan.requeue_after == 100
    w.wait(100)
    w.settle()
    assert w.counts() == {"b": 5}
    w.say("rollback")
    w.settle()
    assert w.answering() == {"a": 5}, "its pods are made again"


@pytest.mark.parametrize(
    "rollout", [CANARY, {"strategy": "HotSwap", "hotSwap": {"seconds": 60}}], ids=["canary", "hot-swap"]
)
def test_a_step_lasts_no_longer_where_the_clock_is_set_back(rollout: dict[str, Any]) -> None:
    w = world(rollout)
    w.serve("b")
    w.settle()
    w.wait(30)
    w.now -= timedelta(hours=5)
    w.settle()
    assert w.plan is not None
    assert w.plan.requeue_after == 60
    assert w.answering()["b"] == 1
    w.wait(60)
    w.settle()
    assert w.answering()["b"] > 1


def test_pods_are_kept_no_longer_where_the_clock_is_set_back() -> None:
    w = world(BLUE_GREEN)
    w.serve("b")
    w.settle()
    w.say("promote")
    w.settle()
    w.now -= timedelta(hours=5)
    w.settle()
    assert w.counts() == {"a": 5, "b": 5}
    w.wait(100)
    w.settle()
    assert w.counts() == {"b": 5}


@pytest.mark.parametrize("rollout", [{}, CANARY, BLUE_GREEN], ids=["rolling", "canary", "blue-green"])
def test_abort(rollout: dict[str, Any]) -> None:
    w = world(rollout)
    w.serve("b")
    w.look()
    w.deploy()
    w.start()
    w.look()
    w.say("abort")
    w.look()
    assert set(w.answering()) == {"a"}, "nobody is answered by what was given up"
    w.settle()
    assert w.counts() == {"a": 5}
    assert w.condition("Ready") == ("False", "RolloutAborted")
    assert w.condition("Available") == ("True", "Available")
    w.settle()
    w.say("retry")
    w.settle()
    assert w.ready()["b"] >= 1, "tried again"


def test_another_artifact_is_tried_after_an_abort() -> None:
    w = world()
    w.serve("b")
    w.turn()
    w.say("abort")
    w.settle()
    w.serve("c")
    w.settle()
    assert w.answering() == {"c": 5}
    assert w.condition("Ready") == ("True", "Available")


def test_an_aborted_rollback_leaves_everything_as_it_was() -> None:
    w = world()
    w.serve("b")
    w.settle()
    w.bad = frozenset({digest("a")})
    w.say("rollback")
    w.settle()
    assert w.rollout["rollback"]
    w.say("abort")
    w.settle()
    assert w.condition("Ready") == ("True", "Available")
    assert {one["digest"]: one["outcome"] for one in w.cr["status"]["history"]} == {
        digest("a"): "Served", digest("b"): "Served"
    }  # fmt: skip


def test_many_failures_do_not_make_it_forget_what_was_served() -> None:
    w = world()
    w.serve("b")
    w.settle()
    for letter in "cdef0123456789":
        w.serve(letter)
        w.turn()
        w.say(f"abort @{letter}")
        w.settle()
    w.say("rollback")
    w.settle()
    assert w.answering() == {"a": 5}


def test_what_the_spec_no_longer_names_is_not_rolled_out() -> None:
    w = world(CANARY)
    w.serve("b")
    w.settle()
    w.say("abort")
    w.settle()
    w.serve("c")
    w.settle()
    w.serve("b")
    w.settle()
    assert w.answering() == {"a": 5}


def test_rollback_to_any_version_that_is_known() -> None:
    w = world()
    for letter in "bcd":
        w.serve(letter)
        w.settle()
    w.say("rollback " + "b" * 8)
    w.turn()
    assert w.counts() == {"b": 5, "d": 5}, "it has answered before: all its pods at once"
    w.settle()
    assert w.answering() == {"b": 5}
    w.say("rollback")
    w.settle()
    assert w.answering() == {"c": 5}, "what was served before, and was not rolled back itself"
    w.say("rollback zzz")
    w.look()
    assert w.events[-1].reason == "CommandRefused"
    assert "no such version" in w.events[-1].message
    assert w.answering() == {"c": 5}


def test_pause_holds_a_rollout_where_it_is() -> None:
    w = world(replicas=8)
    w.serve("b")
    w.turn()
    w.turn()
    w.say("pause")
    w.look()
    counts = w.counts()
    w.settle()
    assert w.condition("Ready") == ("False", "RolloutPaused")
    assert w.counts()["b"] == counts["b"]
    w.say("resume")
    w.settle()
    assert w.answering() == {"b": 8}


def test_paused_by_the_spec() -> None:
    w = world({**CANARY, "paused": True})
    w.serve("b")
    w.settle()
    assert w.counts() == {"a": 5}, "it does not begin"
    w.cr["spec"]["rollout"]["paused"] = False
    w.settle()
    assert w.answering() == {"a": 4, "b": 1}


def test_a_command_is_carried_out_once() -> None:
    w = world(CANARY)
    w.serve("b")
    w.settle()
    w.say("promote")
    w.settle()
    assert w.answering() == {"a": 2, "b": 3}
    w.wait(3600)
    w.settle()
    assert w.answering() == {"a": 2, "b": 3}, "it awaits the next promotion"
    w.say("promote @2")
    w.settle()
    assert w.answering() == {"b": 5}


def test_promote_all_leaves_the_steps_out() -> None:
    w = world(CANARY)
    w.serve("b")
    w.say("promote all")
    w.look()
    assert w.events[-2].reason == "CommandRefused", "there was no rollout yet"
    w.say("promote all @2")
    w.settle()
    assert w.answering() == {"b": 5}


@pytest.mark.parametrize(
    "command", ["pause", "resume", "promote", "abort", "rollback", "retry", "nonsense", "rollback 1 2"]
)
def test_what_cannot_be_carried_out_is_refused_once(command: str) -> None:
    w = world()
    before = w.counts()
    w.say(command)
    w.settle()
    assert [event.reason for event in w.events][2:] == ["CommandRefused"]
    assert w.counts() == before
    w.say(None)
    w.settle()
    w.say(command)
    w.settle()
    assert [event.reason for event in w.events][2:] == ["CommandRefused"] * 2, "it was taken away and said again"


def test_the_spec_goes_back_to_what_answers() -> None:
    w = world(CANARY)
    w.serve("b")
    w.settle()
    w.serve("a")
    w.settle()
    assert w.answering() == {"a": 5}
    assert w.condition("Ready") == ("True", "Available")
    w.serve("b")
    w.settle()
    assert w.answering() == {"a": 4, "b": 1}, "nobody gave it up"


def test_a_third_version_takes_the_place_of_the_second() -> None:
    w = world(CANARY)
    w.serve("b")
    w.settle()
    w.serve("c")
    w.settle()
    assert w.answering() == {"a": 4, "c": 1}
    assert w.rollout["step"] == 1


@pytest.mark.parametrize(
    "rollout", [{}, CANARY, BLUE_GREEN, {"strategy": "HotSwap"}], ids=["rolling", "canary", "bg", "hot"]
)
@pytest.mark.parametrize("bad", ["", "b"])
def test_to_zero_and_back_in_a_rollout(rollout: dict[str, Any], bad: str) -> None:
    """Nothing is proved without pods: it goes on where it was."""
    w = world(rollout, replicas=3, bad=bad)
    w.serve("b")
    w.look()
    w.scale(0)
    w.settle()
    assert w.counts() == {}
    assert w.condition("Ready") == ("True", "ScaledToZero")
    assert w.cr["status"]["versions"]["stable"]["digest"] == digest("a")
    w.scale(3)
    w.look()
    w.deploy()
    assert w.counts()["a"] == 3
    assert w.counts().get("b", 0) <= 1
    w.settle()
    if bad:
        assert w.answering() == {"a": 3}


def test_the_first_version_is_not_called_served_without_pods() -> None:
    w = ServingWorld({"replicas": 0}, frozenset({digest("a")}))
    w.serve("a")
    w.settle()
    assert w.condition("Ready") == ("True", "ScaledToZero")
    assert "stable" not in w.cr["status"]["versions"]


HAPPENINGS = ("turn", "look", "deploy", "start", "take", "wait")
WISHES = ("a", "b", "c", "up", "down", "none", "other strategy")
COMMANDS = ("pause", "resume", "promote", "abort", "rollback", "retry")
ACTIONS = st.sampled_from(HAPPENINGS + WISHES + COMMANDS)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([{}, CANARY, BLUE_GREEN, HOT_SWAP]), st.lists(ACTIONS, max_size=40), st.booleans())
def test_whatever_happens_clients_are_answered(rollout: dict[str, Any], actions: list[str], good: bool) -> None:
    """By as many pods as were asked for, but while more are asked for; and it comes to rest."""
    w = world(rollout, replicas=4, bad="" if good else "b")
    asked = 4
    for number, action in enumerate(actions):
        match action:
            case "turn" | "look" | "deploy" | "start" | "take":
                getattr(w, action)()
            case "wait":
                w.wait(120)
            case "a" | "b" | "c":
                w.serve(action)
            case "up" | "down" | "none":
                w.scale({"up": 5, "down": 3, "none": 0}[action])
                asked = w.cr["spec"]["replicas"]
            case "other strategy":
                w.cr["spec"]["rollout"] = HOT_SWAP if w.cr["spec"]["rollout"] != HOT_SWAP else CANARY
            case _:
                w.say(f"{action} @{number}")
        assert w.plan is not None
        planned = [(obj["kind"], obj["metadata"]["name"]) for wave in w.plan.waves for obj in wave]
        assert len(planned) == len(set(planned)), "each object once"
        if not good:
            assert w.counts().get("b", 0) <= 1
        if action == "take" and asked and w.ready():
            assert sum(w.answering().values()) >= 1
    w.settle()
    assert sum(w.answering().values()) >= asked


@pytest.mark.parametrize("begun", [False, True], ids=["before any pod", "at zero"])
def test_a_secret_that_is_missing_for_the_next_version_holds_only_that_one_up(begun: bool) -> None:
    w = world(replicas=2)
    missing = {"keys": ReferencedSecret("keys", None)}
    w.cr["spec"]["model"] = {"artifact": {"uri": "s3://x/b", "digest": digest("b"), "secretRef": {"name": "keys"}}}
    w.secrets = {"keys": ReferencedSecret("keys", frozenset({"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}))}
    if begun:
        w.scale(0)
        w.settle()
        assert w.deployments.keys() == {digest("a"), digest("b")}
    w.secrets = missing
    w.settle()
    for replicas in (4, 0, 3):
        w.scale(replicas)
        w.settle()
        assert w.counts().get("a", 0) == replicas
        assert w.condition("Ready") == ("False", "SecretNotFound")
        assert w.cr["status"]["versions"]["next"]["digest"] == digest("b")
    w.secrets = {"keys": ReferencedSecret("keys", frozenset({"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}))}
    w.settle()
    assert w.answering() == {"b": 3}


def test_a_secret_that_goes_while_pods_of_the_next_version_are_there_leaves_them() -> None:
    w = world(CANARY)
    w.cr["spec"]["model"] = {"artifact": {"uri": "s3://x/b", "digest": digest("b"), "secretRef": {"name": "keys"}}}
    w.secrets = {"keys": ReferencedSecret("keys", frozenset({"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}))}
    w.settle()
    before = w.answering()
    assert before == {"a": 4, "b": 1}
    w.secrets = {"keys": ReferencedSecret("keys", None)}
    w.settle()
    assert w.answering() == before
