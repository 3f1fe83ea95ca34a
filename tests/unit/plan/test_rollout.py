"""Rollouts from the first pod to the last: who answers at each step, and what a user's word does."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.plan.serving_world import ServingWorld, digest

STEPS = [{"percent": 20, "seconds": 60}, {"percent": 60, "seconds": 30, "approval": True}]
CANARY = {"strategy": "Canary", "canary": {"steps": STEPS}}
HOT_SWAP = {"strategy": "HotSwap"}
BLUE_GREEN = {"strategy": "BlueGreen", "blueGreen": {"approval": True, "keepSeconds": 100}}


def world(rollout: dict[str, Any] | None = None, replicas: int = 5, bad: str = "") -> ServingWorld:
    """A service that answers with a."""
    found = ServingWorld({"replicas": replicas, "rollout": rollout or {}}, frozenset(digest(one) for one in bad))
    found.serve("a")
    found.settle()
    assert found.answering() == {"a": replicas}
    assert found.condition("Ready") == ("True", "Available")
    return found


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


def test_running_pods_take_the_next_version_one_by_one() -> None:
    w = world(HOT_SWAP, replicas=3)
    pods = [pod.uid for pod in w.pods]
    w.serve("b")
    told = []
    for _ in range(12):
        w.look()
        told.append(sum(pod.told is not None and pod.serves != digest("b") for pod in w.pods))
        w.take()
        assert sum(w.answering().values()) == 3
    assert max(told) == 1
    assert w.answering() == {"b": 3}
    assert [pod.uid for pod in w.pods] == pods, "no pod was started"
    assert w.condition("Ready") == ("True", "Available")
    assert w.cr["status"]["versions"]["stable"]["base"] == digest("a")
    w.scale(4)
    w.settle()
    assert w.answering() == {"b": 4}, "a new pod begins with what is stable"


def test_the_first_pod_is_alone_for_a_while() -> None:
    w = world({**HOT_SWAP, "hotSwap": {"seconds": 60, "approval": True}}, replicas=3)
    w.serve("b")
    w.settle()
    assert w.answering() == {"a": 2, "b": 1}
    assert (w.rollout["phase"], w.rollout["percent"]) == ("Waiting", 33)
    w.wait(60)
    w.settle()
    assert w.condition("Ready") == ("False", "AwaitingPromotion")
    w.say("promote")
    w.settle()
    assert w.answering() == {"b": 3}


@pytest.mark.parametrize("how", [{"seconds": 60}, {"approval": True}])
def test_the_only_pod_takes_its_time_too(how: dict[str, Any]) -> None:
    w = world({**HOT_SWAP, "hotSwap": how}, replicas=1)
    w.serve("b")
    w.settle()
    assert w.rollout["phase"] == ("Waiting" if "seconds" in how else "AwaitingPromotion")
    w.wait(60)
    w.say("promote")
    w.settle()
    assert w.condition("Ready") == ("True", "Available")


def test_an_abort_waits_for_pods_to_be_back() -> None:
    w = world({**HOT_SWAP, "hotSwap": {"approval": True}}, replicas=2)
    w.serve("b")
    w.settle()
    w.say("abort")
    w.look()
    w.look()
    ready = w.cr["status"]["conditions"][1]
    assert (ready["reason"], "Not back yet: words-" in ready["message"]) == ("RolloutAborted", True)
    w.settle()
    assert "Not back yet" not in w.cr["status"]["conditions"][1]["message"]
    assert w.answering() == {"a": 2}


def test_pods_go_back_when_the_strategy_changes_on_the_way() -> None:
    w = world({**HOT_SWAP, "hotSwap": {"approval": True}}, replicas=2)
    w.serve("b")
    w.settle()
    assert w.answering() == {"a": 1, "b": 1}
    w.cr["spec"]["rollout"] = BLUE_GREEN
    w.settle()
    assert w.answering() == {"a": 2}
    assert w.rollout["phase"] == "AwaitingPromotion"


def test_what_is_tried_again_is_told_and_late_in_the_end() -> None:
    w = world({**HOT_SWAP, "progressDeadlineSeconds": 60}, replicas=2, bad="b")
    for pod in w.pods:
        pod.tries_again = True
    w.serve("b")
    w.settle()
    assert w.condition("Ready") == ("False", "GoldenMismatch")
    assert w.condition("Stalled") is None
    w.wait(61)
    w.look()
    assert w.condition("Stalled") == ("True", "GoldenMismatch")
    assert w.counts() == {"a": 2}


def test_a_retry_is_another_attempt() -> None:
    w = world(HOT_SWAP, replicas=2, bad="b")
    w.serve("b")
    w.settle()
    w.bad = frozenset()
    w.wait(1)
    w.say("retry")
    w.settle()
    assert w.answering() == {"b": 2}


def test_back_to_what_pods_began_with_under_other_keys() -> None:
    """They cannot take it as they are: their Deployment replaces them."""
    w = world(HOT_SWAP, replicas=2)
    w.serve("b")
    w.settle()
    model = w.cr["spec"]["model"]["artifact"]
    w.cr["spec"]["model"] = {"artifact": {**model, "endpoint": "http://other"}}
    w.settle()
    w.say("rollback")
    w.settle()
    assert w.answering() == {"a": 2}
    assert sum(one.startswith("Deployment/") for one in w.objects) == 1


def test_what_a_running_pod_cannot_take_is_told_to_no_other() -> None:
    w = world(HOT_SWAP, replicas=3, bad="b")
    w.serve("b")
    w.settle()
    assert w.answering() == {"a": 3}
    assert w.condition("Ready") == ("False", "RolloutAborted")
    assert "could not take artifact bbbbbbbbbbbb: GoldenMismatch" in w.cr["status"]["conditions"][1]["message"]
    assert [pod.told for pod in w.pods].count(None) == 2
    w.serve("c")
    w.settle()
    assert w.answering() == {"c": 3}


@pytest.mark.parametrize("command", ["abort", "rollback"])
def test_running_pods_go_back_together(command: str) -> None:
    w = world({**HOT_SWAP, "hotSwap": {"approval": True}}, replicas=3)
    w.serve("b")
    w.settle()
    w.say("promote" if command == "rollback" else None)
    w.settle()
    assert w.answering() == ({"b": 3} if command == "rollback" else {"a": 2, "b": 1})
    w.say(command)
    w.look()
    w.take()
    assert w.answering() == {"a": 3}
    w.settle()
    assert w.counts() == {"a": 3}
    assert w.condition("Stalled") is not None


def test_a_pod_that_is_made_in_a_swap_takes_it_too() -> None:
    w = world(HOT_SWAP, replicas=2)
    w.serve("b")
    w.look()
    w.take()
    w.pods.pop()
    w.settle()
    assert w.answering() == {"b": 2}


def test_another_strategy_follows_a_swap() -> None:
    w = world(HOT_SWAP, replicas=2)
    w.serve("b")
    w.settle()
    w.cr["spec"]["rollout"] = {"strategy": "RollingUpdate"}
    w.serve("c")
    w.settle()
    assert w.answering() == {"c": 2}
    assert "base" not in w.cr["status"]["versions"]["stable"]


def test_pods_that_began_with_a_version_go_back_to_it_as_they_are() -> None:
    """Whatever the strategy: their Deployment is that version's."""
    w = world(HOT_SWAP, replicas=2)
    w.serve("b")
    w.settle()
    w.cr["spec"]["rollout"] = {"strategy": "Canary"}
    w.serve("a")
    w.settle()
    assert w.answering() == {"a": 2}


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
