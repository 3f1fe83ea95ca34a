"""Rollouts into running pods: who is told what, and what a pod that cannot take a version does to the others."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.plan.serving_world import BLUE_GREEN, HOT_SWAP, digest, digest_in, world


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


def test_what_no_running_pod_can_take_comes_by_new_pods() -> None:
    """The first one is alone, the others answer meanwhile; and so back, all together."""
    w = world({**HOT_SWAP, "hotSwap": {"approval": True}}, replicas=3, strange="b")
    w.serve("b")
    w.settle()
    assert w.answering() == {"a": 2, "b": 1}
    assert w.rollout["newPods"] == "the artifact wants other tensors"
    ready = w.cr["status"]["conditions"][1]
    assert ready["reason"] == "AwaitingPromotion"
    assert "by new pods, since the running ones cannot take it (the artifact wants other tensors)" in ready["message"]
    assert any("by new pods" in event.message and event.reason == "RolloutStep" for event in w.events)
    assert {digest_in(pod.told)[-1] for pod in w.pods if pod.told} == {"a"}, "who was told b is told that it stays"
    w.say("promote")
    w.settle()
    assert w.answering() == w.counts() == {"b": 3}
    assert w.condition("Ready") == ("True", "Available")
    assert "base" not in w.cr["status"]["versions"]["stable"]
    w.say("rollback")
    w.settle()
    assert w.answering() == w.counts() == {"a": 3}
    w.serve("c")
    w.say(None)
    w.settle()
    w.say("promote")
    pods = {pod.uid for pod in w.pods}
    w.settle()
    assert w.answering() == {"c": 3}
    assert {pod.uid for pod in w.pods} == pods, "what comes after is taken by running pods"
    assert "newPods" not in w.rollout


def test_a_bad_version_that_came_by_new_pods_has_one() -> None:
    w = world(HOT_SWAP, replicas=3, bad="b", strange="b")
    w.serve("b")
    w.settle()
    assert w.answering() == {"a": 3}
    assert w.counts() == {"a": 3, "b": 1}
    w.say("abort")
    w.settle()
    assert w.answering() == w.counts() == {"a": 3}


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


@pytest.mark.parametrize("command", ["abort", "rollback"])
@pytest.mark.parametrize("first", ["a", "b"])
def test_who_goes_back_is_not_held_by_a_pod_that_cannot(command: str, first: str) -> None:
    """To what the pods began with, or to what they took later."""
    w = world({**HOT_SWAP, "hotSwap": {"approval": True}}, replicas=3)
    for letter in ("b", "c") if first == "b" else ("b",):
        w.serve(letter)
        w.say(None)
        w.settle()
        if letter == first or command == "rollback":
            w.say("promote")
            w.settle()
    w.pods[1].broken = True
    w.say(command)
    left = w.answering()
    for _ in range(6):
        w.turn()
        now = w.answering()
        assert now.get("c", 0) <= left.get("c", 0), "who was back is sent away again"
        left = now
    w.settle()
    if first == "a" and command == "rollback":  # there are no others that could begin with it: the Deployment is theirs
        assert w.answering() == {"a": 2, "b": 1}
        assert "delete the pod, and one that begins with it is made" in w.cr["status"]["conditions"][1]["message"]
        del w.pods[1]
        w.settle()
    assert w.answering() == w.counts() == {first: 3}


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


def test_rollback_to_a_version_older_than_the_one_before() -> None:
    w = world(HOT_SWAP, replicas=2)
    pods = [pod.uid for pod in w.pods]
    for letter in "bcd":
        w.serve(letter)
        w.settle()
    for letter in "ba":  # the last one is what the pods began with
        w.say("rollback " + letter * 8)
        w.settle()
        assert w.answering() == {letter: 2}
        assert [pod.uid for pod in w.pods] == pods, "in the running pods"
    w.say("rollback")
    w.settle()
    assert w.answering() == {"c": 2}, "b and d were rolled back themselves"
