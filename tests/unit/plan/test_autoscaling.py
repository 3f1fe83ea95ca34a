"""Replicas by an objective: what is measured and counted, what is decided, and what the status says of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mms_operator.api.autoscaling import Schedule
from mms_operator.plan.scaling import schedule
from mms_workloads.contract import Batching
from tests.unit.plan.scaled_world import ScaledWorld


def world(replicas: int = 1, **scaling: Any) -> ScaledWorld:
    spec = {
        "replicas": replicas,
        "model": {"artifact": {"uri": "s3://mms/a", "digest": "sha256:" + "a" * 64}},
        "objective": {"latencyP99Milliseconds": 50},
        "autoscaling": {"mode": "Objective", "maxReplicas": 10, **scaling},
    }
    return ScaledWorld(spec)


def served(replicas: int = 1, rate: float = 0.0, **scaling: Any) -> ScaledWorld:
    found = world(replicas, **scaling)
    found.look()
    found.rate = rate
    found.tick(20)
    return found


def test_the_first_pod_is_alone_until_it_has_been_measured() -> None:
    found = world(replicas=3)
    found.look()
    assert "is not known until" in found.scaling["reason"]
    found.tick(2)
    assert len(found.pods) == 1
    found.tick(8)
    (capacity,) = found.scaling["capacity"]
    assert (capacity["requestsPerSecond"], len(capacity["curve"])) == ("50", 4)  # the point at 45 ms, not at 200 ms
    assert found.condition("Ready") == ("True", "Available")


def test_pods_that_come_later_are_not_measured_again() -> None:
    found = served(rate=120.0)
    assert len(found.pods) > 1
    assert sum(work.measured is not None for work in found.work.values()) == 1


def test_more_come_as_requests_do_and_go_with_them() -> None:
    found = served(rate=20.0)
    assert found.replicas == 1
    found.rate = 200.0
    found.tick(60)
    grown = found.replicas
    assert 4 <= grown <= 10
    assert found.scaling["latencyP99Milliseconds"] == "30"
    found.rate = 20.0
    found.tick(900)
    assert found.replicas == 1
    assert found.scaling["history"][0]["replicas"] == 1
    assert len(found.scaling["history"]) <= 20


def test_the_status_says_what_came_and_what_a_start_takes() -> None:
    found = served(rate=120.0)
    found.tick(20)
    assert found.scaling["requestsPerSecond"] == "120"
    assert float(found.scaling["coldStartSeconds"]) == pytest.approx(6.0, abs=2)  # of those that were not measured
    scaled = [event.message for event in found.events if event.reason == "Scaled"]
    assert scaled
    assert scaled[0].startswith("from 1 to ")


def test_between_limits() -> None:
    found = served(rate=400.0, maxReplicas=5, minReplicas=2)
    found.tick(30)
    assert found.replicas == 5
    found.rate = 0.0
    found.tick(1500)
    assert found.replicas == 2


def test_no_faster_than_allowed() -> None:
    found = served(rate=20.0, upPerMinute=2, downPerMinute=1)
    found.rate = 400.0
    found.tick(20)
    assert found.replicas <= 3
    found.tick(25)
    assert 3 < found.replicas <= 5
    found.tick(100)
    there = found.replicas
    found.rate = 1.0
    before = found.now
    found.tick(900)
    minutes = (found.now - before).total_seconds() / 60
    assert there - found.replicas <= minutes + 1


def test_to_zero_when_nobody_asks_and_back_when_somebody_does() -> None:
    found = served(rate=5.0, scaleToZeroAfterSeconds=60)
    assert found.replicas == 1
    assert "EndpointSlice/words-activator" not in found.objects
    found.rate = 0.0
    found.tick(25)
    assert found.replicas == 1
    found.tick(10)
    assert (found.replicas, found.pods) == (0, [])
    assert found.scaling["reason"] == "nobody has asked for 60 s"
    slice_ = found.objects["EndpointSlice/words-activator"]
    assert slice_["endpoints"] == [{"addresses": ["10.0.0.9"], "conditions": {"ready": True}}]
    assert [(port["name"], port["port"]) for port in slice_["ports"]] == [("http", 20_000), ("grpc", 20_001)]
    found.tick(30)
    assert found.replicas == 0
    found.held = found.came = 1
    found.look()
    assert found.replicas == 1
    found.tick(5)
    assert found.condition("Ready") == ("True", "Available")
    assert "EndpointSlice/words-activator" in found.objects, "some node may not know of the pod yet"
    found.tick(5)
    assert "EndpointSlice/words-activator" not in found.objects


@pytest.mark.parametrize("there", [None, ()], ids=["none is installed", "none answers"])
def test_never_to_zero_without_an_activator(there: tuple[str, ...] | None) -> None:
    found = served(rate=5.0, scaleToZeroAfterSeconds=60)
    found.activators, found.rate = there, 0.0
    found.tick(60)
    assert found.replicas == 1
    assert "no activator is there" in found.scaling["reason"]


def test_capacity_follows_what_clients_show() -> None:
    found = served(rate=30.0, maxReplicas=1)
    found.power = 100.0  # the pod does more than it did when it was measured
    found.rate = 90.0
    found.tick(90)
    assert float(found.scaling["capacity"][0]["requestsPerSecond"]) > 52


def test_an_objective_that_nothing_meets_is_said() -> None:
    found = world()
    found.curve = ((1, 5.0, 0.2), (2, 6.0, 0.4))
    found.look()
    found.rate = 1.0
    found.tick(20)
    assert "even one request at a time takes longer" in found.scaling["reason"]


def test_numbers_alone_with_an_objective_and_no_scaling() -> None:
    found = ScaledWorld({**world().spec, "autoscaling": {"mode": "Off"}, "replicas": 2})
    found.look()
    found.rate = 40.0
    found.tick(40)
    assert found.replicas == 2
    assert float(found.scaling["requestsPerSecond"]) == pytest.approx(40, abs=2)
    assert found.scaling["latencyP99Milliseconds"] == "30"
    assert "replicas" not in found.scaling


def test_what_scales_from_outside_is_left_alone() -> None:
    found = ScaledWorld({**world().spec, "autoscaling": {"mode": "External"}, "replicas": 0})
    found.look()
    found.rate = 10.0
    found.tick(10)
    assert found.replicas == 0
    assert "EndpointSlice/words-activator" in found.objects
    found.scale(1)
    found.tick(10)
    assert "EndpointSlice/words-activator" not in found.objects
    assert found.condition("Ready") == ("True", "Available")


def test_another_version_is_measured_before_it_answers() -> None:
    found = served(replicas=2, rate=60.0)
    found.curve = ((1, 10.0, 0.02), (2, 20.0, 0.03))
    found.serve("b")
    found.tick(40)
    assert found.condition("Ready") == ("True", "Available")
    assert found.scaling["capacity"][0]["requestsPerSecond"] == "20"


def test_a_service_without_either_is_as_it_was() -> None:
    found = ScaledWorld({"replicas": 1, "model": world().spec["model"]})
    found.look()
    found.tick(5)
    assert "autoscaling" not in found.cr["status"]
    assert found.plan
    assert (found.plan.scale, found.plan.scaling, found.plan.agents) == (None, None, None)


def test_an_operator_that_starts_anew_takes_nothing_away_at_once() -> None:
    found = served(rate=200.0)
    found.tick(60)
    there = found.replicas
    found.carried = None
    found.tick(20)
    assert found.replicas >= there


def test_a_clock_that_is_set_back_holds_nothing_up() -> None:
    found = served(rate=20.0)
    found.tick(60)
    found.now -= timedelta(hours=1)
    found.asked = []  # as the agents' questions begin anew, too
    found.rate = 200.0
    found.tick(60)
    assert 4 <= found.replicas <= 10
    assert found.carried.counted <= found.now


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("moment", "wanted"),
    [
        ("2026-03-02T07:59:00", 0),  # a Monday
        ("2026-03-02T08:00:00", 3),
        ("2026-03-02T17:59:59", 3),
        ("2026-03-02T18:00:00", 0),
        ("2026-03-07T10:00:00", 0),  # a Saturday
        ("2026-03-06T23:30:00", 7),  # of Friday's night
        ("2026-03-07T01:59:00", 7),
        ("2026-03-07T02:00:00", 0),
        ("2026-03-08T01:00:00", 0),  # of Saturday's
    ],
)
def test_schedules(moment: str, wanted: int) -> None:
    week = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"]
    plans = [
        Schedule.model_validate({"start": "08:00", "end": "18:00", "days": week, "replicas": 3}),
        Schedule.model_validate({"start": "23:00", "end": "02:00", "days": ["Friday"], "replicas": 7}),
    ]
    assert schedule.replicas(plans, at(moment)) == wanted


def test_schedules_are_of_their_time_zone() -> None:
    plans = [Schedule.model_validate({"start": "08:00", "end": "09:00", "timeZone": "Asia/Tokyo", "replicas": 3})]
    assert schedule.replicas(plans, at("2026-03-01T23:30:00")) == 3
    assert schedule.replicas(plans, at("2026-03-02T08:30:00")) == 0


def test_a_time_zone_that_nobody_knows_is_refused() -> None:
    found = world(schedules=[{"start": "08:00", "end": "09:00", "timeZone": "Mars/Base", "replicas": 3}])
    found.look()
    assert found.condition("Accepted") == ("False", "InvalidSpec")
    said = next(one["message"] for one in found.cr["status"]["conditions"] if one["type"] == "Accepted")
    assert "spec.autoscaling.schedules[0].timeZone: Mars/Base" in said


def test_a_schedule_raises_what_there_is() -> None:
    found = world(schedules=[{"start": "00:00", "end": "00:00", "replicas": 4}], scaleToZeroAfterSeconds=60)
    found.look()
    found.tick(60)
    assert found.replicas == 4
    assert "a schedule wants 4" in found.scaling["history"][0]["reason"]


def tuning() -> ScaledWorld:
    spec = world().spec
    found = ScaledWorld({**spec, "server": {"batching": {"autotune": True, "maxQueueDelayMicroseconds": 100}}})
    found.look()
    return found


def file_of(found: ScaledWorld) -> Any:
    return json.loads(found.objects["ConfigMap/words-serve-" + "a" * 12]["data"]["serve.json"])


def test_the_first_pod_is_to_find_the_best_way_and_the_others_run_so() -> None:
    found = tuning()
    file = file_of(found)
    assert file["measure"] == {"limitSeconds": 110.0, "withinSeconds": 0.05, "objectiveSeconds": 0.05}
    assert file["batching"] == {"preferredBatchSize": 0, "maxQueueDelayMicroseconds": 100, "instances": 1}
    found.batching = Batching(instances=4, maxQueueDelayMicroseconds=200, preferredBatchSize=16)
    before = found.deployments["sha256:" + "a" * 64]["spec"]["template"]
    found.tick(10)
    (capacity,) = found.scaling["capacity"]
    assert (capacity["instances"], capacity["maxQueueDelayMicroseconds"], capacity["preferredBatchSize"]) == (
        4,
        200,
        16,
    )
    file = file_of(found)
    assert "measure" not in file
    assert file["batching"] == {"preferredBatchSize": 16, "maxQueueDelayMicroseconds": 200, "instances": 4}
    assert found.deployments["sha256:" + "a" * 64]["spec"]["template"] == before, "pods that run are not replaced"


def test_another_way_that_is_asked_for_makes_other_pods() -> None:
    found = ScaledWorld({"replicas": 1, "model": world().spec["model"]})
    found.look()
    before = found.deployments["sha256:" + "a" * 64]["spec"]["template"]
    assert file_of(found)["batching"]["instances"] == 1
    found.cr["spec"]["server"] = {"instances": 2}
    found.look()
    assert file_of(found)["batching"]["instances"] == 2
    assert found.deployments["sha256:" + "a" * 64]["spec"]["template"] != before


def asleep(**more: Any) -> ScaledWorld:
    found = world(scaleToZeroAfterSeconds=60)
    found.cr["spec"] |= more
    found.look()
    found.tick(60)
    assert (found.replicas, found.pods) == (0, [])
    return found


def test_who_leads_to_activators_stays_until_they_are_known() -> None:
    found = asleep()
    found.carried, found.activators = None, ()  # the operator has begun anew
    found.look()
    assert found.objects["EndpointSlice/words-activator"]["endpoints"][0]["addresses"] == ["10.0.0.9"]
    found.activators = ("10.0.0.7",)
    found.look()
    assert found.objects["EndpointSlice/words-activator"]["endpoints"][0]["addresses"] == ["10.0.0.7"]
    found.activators = None  # the installation has none any more
    found.look()
    assert "EndpointSlice/words-activator" not in found.objects


def test_clients_of_a_gateway_wake_it_too() -> None:
    found = asleep(traffic={"gateway": {"http": {"name": "front"}}})
    labels = found.objects["EndpointSlice/words-stable-activator"]["metadata"]["labels"]
    assert labels["kubernetes.io/service-name"] == "words-stable"


def test_a_pod_that_says_nothing_once_changes_nothing() -> None:
    found = served(rate=40.0)
    found.tick(30)
    there, recent = found.replicas, found.scaling["requestsPerSecond"]
    found.mute = frozenset({found.pods[0].uid})
    found.tick(1)
    found.mute = frozenset()
    found.tick(20)
    assert found.replicas == there
    assert float(found.scaling["requestsPerSecond"]) == pytest.approx(float(recent), rel=0.1)


def test_silence_is_no_sign_that_nobody_asks() -> None:
    found = served(rate=40.0, scaleToZeroAfterSeconds=60)
    there = found.replicas
    found.mute = frozenset(pod.uid for pod in found.pods)
    found.tick(60)
    assert found.replicas == there
    assert "do not say what they have to do" in found.scaling["reason"]


def test_a_silent_pod_is_no_reason_to_stay_few() -> None:
    """Such as one of a node that is lost, which is ready until Kubernetes gives the node up."""
    found = served(rate=40.0)
    found.tick(30)
    there = found.replicas
    assert there > 1
    found.mute = frozenset({found.pods[0].uid})
    found.tick(3)
    assert found.replicas == there + 1, "as many as are needed, without it"
    assert "and are not counted" in found.scaling["history"][0]["reason"]
    found.tick(10)
    assert found.replicas == there + 1, "once"
    found.rate = 200.0
    found.tick(10)
    assert found.replicas >= 5
    found.mute = frozenset()
    found.rate = 40.0
    found.tick(300)
    assert found.replicas == there


@pytest.mark.parametrize(
    ("golden", "remedy"),
    [(1, "delete the pod to try again"), (0, "set autoscaling.mode to External or Off")],
    ids=["once", "never"],
)
def test_what_could_not_be_measured_is_told(golden: int, remedy: str) -> None:
    found = world(replicas=2)
    found.curve, found.golden = (), golden
    found.look()
    found.tick(20)
    assert "could not be measured: pod words-" in found.scaling["reason"]
    assert found.scaling["reason"].endswith(remedy)
    assert found.condition("Ready") == ("True", "Available")
    assert len(found.pods) == 2


def test_two_fleets_are_no_reason_for_more() -> None:
    found = served(replicas=3, rate=120.0, minReplicas=3)
    found.cr["spec"]["rollout"] = {"strategy": "BlueGreen", "blueGreen": {"approval": True}}
    found.serve("b")
    found.tick(30)
    there = found.replicas
    assert len([pod for pod in found.pods if pod.ready]) >= 2 * there
    found.carried = None  # the operator has begun anew
    found.tick(40)
    assert found.replicas <= there + 1


def test_a_scale_that_is_refused_is_told_once() -> None:
    found = served(rate=20.0)
    found.refuses_scale = True
    found.rate = 200.0
    found.tick(30)
    wanted = found.scaling["replicas"]
    assert found.replicas == 1
    assert wanted > 1
    assert len([event for event in found.events if event.reason == "Scaled"]) <= 10
    found.refuses_scale = False
    found.tick(2)
    assert found.replicas >= wanted


def test_a_pod_that_is_not_ready_for_a_moment_has_not_started_anew() -> None:
    found = served(replicas=2, rate=20.0, minReplicas=2)
    found.tick(200)
    known = found.scaling["coldStarts"]
    pod = found.pods[1]
    assert found.work[pod.uid].measured is None
    for carried in (found.carried, None):  # also where the operator has begun anew meanwhile
        pod.ready = False
        found.carried = carried
        found.look()
        found.restarts = {} if carried else {pod.uid: 1}
        found.work[pod.uid].made -= timedelta(seconds=1)
        found.tick(3)
        assert pod.ready
        assert found.scaling["coldStarts"] == known


def test_what_came_in_a_long_silence_is_spread_over_it() -> None:
    found = served(rate=10.0)
    found.tick(60)
    assert found.replicas == 1
    found.mute = frozenset(pod.uid for pod in found.pods)
    found.tick(150)
    found.mute = frozenset()
    found.tick(20)
    assert found.replicas == 1, "ten a second came all the time, and not fifty"


def test_a_version_that_was_given_up_decides_nothing() -> None:
    found = served(rate=20.0)
    found.cr["spec"]["rollout"] = {"strategy": "BlueGreen", "blueGreen": {"approval": True}}
    found.curve = ((1, 2.0, 0.02), (2, 4.0, 0.03))
    found.serve("b")
    found.tick(40)
    assert len(found.scaling["capacity"]) == 2
    slow = found.replicas
    found.say("abort")
    found.tick(400)
    assert found.condition("Ready") == ("False", "RolloutAborted")
    assert found.replicas == 1 < slow


def test_a_capacity_is_corrected_by_its_own_pods_alone() -> None:
    found = served(rate=40.0, minReplicas=4, maxReplicas=4)
    (first,) = found.scaling["capacity"]
    assert found.carried.corrections.keys() == {first["template"]}
    canary = {"steps": [{"percent": 25, "approval": True}]}
    found.cr["spec"]["rollout"] = {"strategy": "Canary", "canary": canary}
    found.curve = ((1, 2.0, 0.02), (2, 4.0, 0.03))  # less than its part of what comes
    found.serve("b")
    found.tick(40)
    assert found.answering() == {"a": 3, "b": 1}
    assert found.carried.corrections == {first["template"]: 1.0}, "which of the two answers so much is not known"
    found.say("promote")
    found.tick(60)
    assert found.answering() == {"b": 4}
    (own,) = found.carried.corrections.keys() - {first["template"]}
    assert found.carried.corrections[own] > 1.0
