"""Routes of the Gateway API while a version is rolled out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.plan.serving_world import BLUE_GREEN, CANARY, HOT_SWAP, ServingWorld

if TYPE_CHECKING:
    from mms_operator.plan.types import Object

HTTP = {"name": "front", "namespace": "edge", "sectionName": "https", "hostnames": ["words.example.com"]}
GRPC = {"name": "front", "namespace": "edge", "sectionName": "grpc"}


def world(rollout: Object | None = None, replicas: int = 5, **more: Any) -> ServingWorld:
    gateway = {"http": HTTP, "grpc": GRPC, **more}
    found = ServingWorld({"replicas": replicas, "rollout": rollout or {}, "traffic": {"gateway": gateway}})
    found.serve("a")
    found.settle()
    return found


def weights(found: ServingWorld, kind: str = "HTTPRoute") -> dict[str, int]:
    """Of the rule for those who ask for nothing special."""
    rule = found.objects[f"{kind}/words"]["spec"]["rules"][-1]
    return {one["name"].removeprefix("words-"): one["weight"] for one in rule["backendRefs"]}


def test_a_route_of_each_kind_leads_to_what_answers() -> None:
    found = world()
    http, grpc = found.objects["HTTPRoute/words"], found.objects["GRPCRoute/words"]
    assert http["apiVersion"] == grpc["apiVersion"] == "gateway.networking.k8s.io/v1"
    parent = {"name": "front", "namespace": "edge", "sectionName": "https"}
    assert (http["spec"]["parentRefs"], http["spec"]["hostnames"]) == ([parent], ["words.example.com"])
    assert "hostnames" not in grpc["spec"]
    assert http["spec"]["rules"][0]["backendRefs"] == [{"name": "words-stable", "port": 8000, "weight": 100}]
    assert grpc["spec"]["rules"][0]["backendRefs"] == [{"name": "words-stable", "port": 8001, "weight": 100}]
    assert found.objects["Service/words-stable"]["spec"]["selector"]["mms.dev/artifact"] == "a" * 12


def test_a_canary_gets_exactly_what_its_step_says() -> None:
    found = world(CANARY, replicas=2)
    found.serve("b")
    found.look()
    assert weights(found) == {"stable": 100}  # no pod answers yet
    found.settle()
    assert weights(found) == {"stable": 80, "next": 20}  # of 3 pods that answer one is the next version's
    assert weights(found, "GRPCRoute") == {"stable": 80, "next": 20}
    assert found.rollout["percent"] == 20, "of requests, whatever part of the pods that is"
    ready = next(one for one in found.cr["status"]["conditions"] if one["type"] == "Ready")
    assert "20 % of requests are sent to it" in ready["message"]
    assert found.objects["Service/words-next"]["spec"]["selector"]["mms.dev/artifact"] == "b" * 12
    found.wait(61)
    found.settle()
    assert weights(found) == {"stable": 40, "next": 60}
    found.wait(31)
    found.say("promote")
    seen = []
    for _ in range(10):
        found.turn()
        seen.append(weights(found).get("next", 100))
    assert min(seen) >= 60
    assert weights(found) == {"stable": 100}
    assert found.objects["Service/words-stable"]["spec"]["selector"]["mms.dev/artifact"] == "b" * 12
    assert "Service/words-next" not in found.objects


def test_a_canary_keeps_its_part_while_it_is_scaled() -> None:
    found = world(CANARY)
    found.serve("b")
    found.settle()
    found.scale(10)
    seen = []
    for _ in range(6):
        found.turn()
        seen.append(weights(found)["next"])
    assert set(seen) == {20}
    assert found.ready()["b"] == 2


def test_an_abort_takes_all_back_at_once() -> None:
    found = world(CANARY)
    found.serve("b")
    found.settle()
    assert weights(found)["next"] == 20
    found.say("abort")
    found.look()
    assert weights(found) == {"stable": 100}


def test_nobody_is_sent_to_the_green_pods_before_they_are_promoted() -> None:
    found = world(BLUE_GREEN)
    found.serve("b")
    found.settle()
    assert weights(found) == {"stable": 100, "next": 0}
    found.say("promote")
    found.settle()
    assert weights(found) == {"stable": 100}
    assert found.objects["Service/words-stable"]["spec"]["selector"]["mms.dev/artifact"] == "b" * 12


def test_pods_that_take_another_version_stay_behind_one_service() -> None:
    found = world(HOT_SWAP)
    found.serve("b")
    found.settle()
    assert weights(found) == {"stable": 100}
    assert found.objects["Service/words-stable"]["spec"]["selector"]["mms.dev/artifact"] == "a" * 12


def test_who_says_so_gets_the_next_version_and_copies_go_there() -> None:
    found = world(CANARY, nextHeader={"name": "x-version", "value": "next"}, shadow={"percent": 30})
    (rule,) = found.objects["HTTPRoute/words"]["spec"]["rules"]
    assert "filters" not in rule
    found.serve("b")
    found.settle()
    special, rule = found.objects["HTTPRoute/words"]["spec"]["rules"]
    assert special["matches"] == [{"headers": [{"name": "x-version", "value": "next"}]}]
    assert special["backendRefs"] == [{"name": "words-next", "port": 8000, "weight": 100}]
    mirror = {"backendRef": {"name": "words-next", "port": 8000}, "percent": 30}
    assert rule["filters"] == [{"type": "RequestMirror", "requestMirror": mirror}]


@pytest.mark.parametrize("kind", ["HTTPRoute", "GRPCRoute"])
def test_what_is_not_asked_for_is_not_made(kind: str) -> None:
    found = ServingWorld({"replicas": 1, "traffic": {"gateway": {"http" if kind == "GRPCRoute" else "grpc": GRPC}}})
    found.serve("a")
    found.settle()
    assert f"{kind}/words" not in found.objects


def test_without_the_api_it_is_refused_and_what_is_there_goes_on() -> None:
    found = ServingWorld({"replicas": 1, "traffic": {"gateway": {"http": HTTP}}}, gateway_api=False)
    found.serve("a")
    found.look()
    assert found.condition("Accepted") == ("False", "GatewayApiMissing")
