"""A service that follows a training: from when, what its pods hear, what is said, and what answers when it ends."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from mms_operator.api import names
from mms_workloads.contract import LiveReport, live_digest
from tests.unit.plan.serving_world import HOT_SWAP, ServingWorld, digest
from tests.unit.plan.world import cr, spec

if TYPE_CHECKING:
    from mms_operator.plan.types import Object

UID = "uid-0123456789"
RUN_1, RUN_2 = live_digest(UID, 1), live_digest(UID, 2)
LIVE_SYNC: Object = {"strategy": "LiveSync", "liveSync": {"maxStalenessMilliseconds": 800}}
FROM_NOTHING: Object = {"strategy": "LiveSync", "liveSync": {"maxStalenessMilliseconds": 800, "replaceArtifacts": True}}


def report(run: str = RUN_1, age: float = 0.3, phase: str = "Following", message: str = "", **more: Any) -> LiveReport:
    return LiveReport.model_validate(
        {"phase": phase, "message": message, "digest": f"{run}:7:1000", "step": 7, "time": 0, "age": age, "ageP50": age,
         "ageP99": age, "ageMax": age, "quality": 0.8, **more}
    )  # fmt: skip


def training(phase: str = "Running", activity: str = "Training", run: int = 1, **parts: Any) -> Object:
    """parts: of the spec."""
    found = cr(names.TRAINING, "words", **spec(**parts))
    found["status"] = {"phase": phase, "run": run, "progress": {"activity": activity}}
    return found


def artifact(of: Object, letter: str, version: int = 1) -> Object:
    made = {"version": version, "digest": digest(letter), "uri": f"s3://mms/{letter}", "installationStore": True}
    return {**of, "status": {**of["status"], "artifact": made}}


def world(of: Object | None, replicas: int = 2, rollout: Object | None = None) -> ServingWorld:
    model = {"trainingRef": {"name": "words"}}
    return ServingWorld({"replicas": replicas, "model": model, "rollout": rollout or LIVE_SYNC}, training=of)


def follow(w: ServingWorld, *reports: LiveReport) -> None:
    for pod, said in zip(w.pods, reports or [report()] * len(w.pods), strict=True):
        pod.live = said
    w.settle()


def live(w: ServingWorld) -> Object:
    found: Object = w.cr["status"]["live"]
    return found


def following(replicas: int = 2) -> ServingWorld:
    w = world(training(), replicas)
    w.settle()
    follow(w)
    assert w.condition("Live") == ("True", "Following")
    return w


@pytest.mark.parametrize(
    ("of", "reason"),
    [
        (None, "TrainingNotFound"),
        (training(activity="Counting"), "TrainingNotComplete"),
        (training(phase="Pending"), "TrainingNotComplete"),
        (training(task={"languageModel": {}}), "NotFollowed"),
        (training(task={"wordEmbedding": {"subwords": {}}}), "NotFollowed"),
    ],
    ids=["none", "counting", "pending", "language", "subwords"],
)
def test_nothing_is_served_before_there_are_parameters(of: Object | None, reason: str) -> None:
    w = world(of)
    w.settle()
    assert not w.pods
    assert w.condition("Live") == ("False", reason)
    assert w.condition("Ready")[0] == "False"  # type: ignore[index]


def test_pods_follow_from_when_it_trains() -> None:
    w = world(training())
    w.settle()
    assert w.condition("Ready") == ("True", "Available")
    assert w.condition("Live") == ("False", "WaitingForPods"), "nobody has said what it answers with"
    assert "Warning" not in {event.type for event in w.events}
    stable = w.cr["status"]["versions"]["stable"]
    assert (stable["digest"], stable["version"], stable["replicas"]) == (RUN_1, 1, 2)
    file = json.loads(w.objects["ConfigMap/words-serve-uid-012r1"]["data"]["serve.json"])
    assert file["live"]["masterHost"] == "words-master.d.svc.cluster.local"
    assert (file["live"]["uid"], file["live"]["run"]) == (UID, 1)
    assert file["live"]["orders"]["maxStalenessMilliseconds"] == 800
    pod = w.objects["Deployment/words-uid-012r1"]["spec"]["template"]["spec"]
    (secret,) = (
        one["secret"] for one in pod["volumes"][0]["projected"]["sources"]
        if one.get("secret", {}).get("name") == "words-reader-tls"
    )  # fmt: skip
    assert secret["optional"], "pods outlive the training"
    follow(w, report(age=0.2), report(age=0.456, quality=0.7))
    assert live(w) == {
        "phase": "Following", "message": "2 pods follow the training", "run": 1, "step": 7, "pods": 2,
        "ageMilliseconds": 460, "ageP50Milliseconds": 460, "ageP99Milliseconds": 460, "ageMaxMilliseconds": 460,
        "quality": "0.700", "paused": False,
    }  # fmt: skip
    assert w.condition("Live") == ("True", "Following")
    assert w.plan is not None
    assert w.plan.agents is not None
    assert (w.plan.agents.period, w.plan.agents.each) == (5.0, True)


@pytest.mark.parametrize(
    ("said", "reason", "word"),
    [
        (report(age=0.9), "ParametersStale", "1 of 2 pods answer with parameters older than 800 ms"),
        (report(age=9, phase="Unreachable", message="refused"), "ParametersStale", "refused"),
        (report(phase="Withheld", message="0.5 is worse"), "ParametersWithheld", "0.5 is worse"),
    ],
    ids=["old", "unreachable", "withheld"],
)
def test_what_is_not_well_is_told_once(said: LiveReport, reason: str, word: str) -> None:
    w = following()
    w.events.clear()
    follow(w, report(), said)
    assert w.condition("Live") == ("False", reason)
    assert word in live(w)["message"]
    assert w.condition("Ready") == ("True", "Available"), "the service answers all the while"
    assert [(event.type, event.reason) for event in w.events] == [("Warning", reason)]
    follow(w)
    assert [event.reason for event in w.events] == [reason, "Following"]


def test_a_pod_that_says_nothing_is_not_known_to_follow() -> None:
    w = following(3)
    w.events.clear()
    w.pods[1].silent = True
    w.settle()
    assert w.condition("Live") == ("False", "ParametersStale")
    assert "1 of 3 pods do not say what they answer with" in live(w)["message"]
    assert [(event.type, event.reason) for event in w.events] == [("Warning", "ParametersStale")]
    w.pods[1].silent = False
    w.settle()
    assert w.condition("Live") == ("True", "Following")


def test_pause_and_resume() -> None:
    w = following()
    w.say("pause")
    w.settle()
    assert [json.loads(pod.orders or "{}")["paused"] for pod in w.pods] == [True, True]
    assert w.condition("Live") == ("False", "FollowingPaused")
    w.say("resume")
    w.settle()
    assert [json.loads(pod.orders or "{}")["paused"] for pod in w.pods] == [False, False]
    w.cr["spec"]["rollout"] = {**LIVE_SYNC, "paused": True}
    w.settle()
    assert w.condition("Live") == ("False", "FollowingPaused")


def test_another_bound_is_heard_by_running_pods() -> None:
    w = following()
    w.cr["spec"]["rollout"] = {"strategy": "LiveSync", "liveSync": {"maxStalenessMilliseconds": 200}}
    w.settle()
    assert {json.loads(pod.orders or "{}")["maxStalenessMilliseconds"] for pod in w.pods} == {200}
    assert w.condition("Live") == ("False", "ParametersStale")


def test_the_artifact_takes_over_in_the_running_pods() -> None:
    w = following()
    pods = [pod.uid for pod in w.pods]
    w.training = artifact(training("Complete", "Done"), "a")
    w.settle()
    assert w.answering() == {"a": 2}
    assert [pod.uid for pod in w.pods] == pods
    stable = w.cr["status"]["versions"]["stable"]
    assert (stable["digest"], stable["base"]) == (digest("a"), RUN_1)
    assert w.condition("Live") == ("False", "TrainingEnded")
    assert "live" not in w.cr["status"]
    template = w.objects["Deployment/words-uid-012r1"]["spec"]["template"]
    w.scale(3)
    w.settle()
    assert w.answering() == {"a": 3}, "a new pod begins with the artifact"
    assert w.objects["Deployment/words-uid-012r1"]["spec"]["template"] == template, "no pod is replaced"


@pytest.mark.parametrize(
    ("then", "word"),
    [
        (training("Failed", "Training"), "has failed"),
        (None, "is gone"),
        (training("Suspended", "Training"), "is suspended"),
        (training("Pending", "Waiting", run=2), "another run"),
    ],
    ids=["failed", "deleted", "suspended", "next-run"],
)
def test_the_last_good_parameters_stay(then: Object | None, word: str) -> None:
    w = following()
    w.training = then
    w.settle()
    assert w.cr["status"]["versions"]["stable"]["digest"] == RUN_1
    assert w.condition("Live") == ("False", "TrainingEnded")
    assert word in live(w)["message"]
    assert w.condition("Ready") == ("True", "Available")


def test_pods_stay_while_the_training_replaces_one_of_its_own() -> None:
    w = following()
    w.training = training("Restarting")
    w.settle()
    assert w.condition("Live") == ("True", "Following")


def test_the_next_run_takes_the_place_of_an_artifact_by_its_own() -> None:
    w = following()
    w.training = artifact(training("Complete", "Done"), "a")
    w.settle()
    w.training = artifact(training(run=2), "a")
    w.settle()
    assert w.answering() == {"a": 2}, "a run begins with nothing learnt"
    w.training = artifact(training("Complete", "Done", run=2), "b", 2)
    w.settle()
    assert w.answering() == {"b": 2}


def following_the_second() -> ServingWorld:
    """The first run's artifact was served before."""
    w = following()
    w.cr["spec"]["rollout"] = FROM_NOTHING
    w.training = artifact(training("Complete", "Done"), "a")
    w.settle()
    w.training = artifact(training(run=2), "a")
    w.settle()
    follow(w, *[report(RUN_2)] * 2)
    return w


def test_the_next_run_is_followed_where_that_is_wanted_and_given_up_for_the_artifact() -> None:
    w = following_the_second()
    assert w.cr["status"]["versions"]["stable"]["digest"] == RUN_2
    assert w.condition("Live") == ("True", "Following")
    assert {pod.digest for pod in w.pods} == {RUN_1}, "no pod was started"
    w.say("abort")
    w.settle()
    assert w.answering() == {"a": 2}
    assert w.condition("Ready") == ("False", "RolledBack")
    w.say("retry")
    w.settle()
    assert w.cr["status"]["versions"]["stable"]["digest"] == RUN_2
    w.say("rollback")
    w.settle()
    w.training = artifact(training("Complete", "Done", run=2), "b", 2)
    w.settle()
    assert w.answering() == {"b": 2}, "what was given up was the following, not the run's artifact"


def test_a_run_that_was_followed_is_nothing_to_go_back_to() -> None:
    w = following()
    w.say("rollback")
    w.settle()
    w.training = artifact(training("Complete", "Done"), "a")
    w.settle()
    w.say("rollback @again")
    w.settle()
    w.say(f"rollback {RUN_1[:12]}")
    w.settle()
    refused = [event.message for event in w.events if event.reason == "CommandRefused"]
    assert len(refused) == 3
    assert "nothing was served before" in refused[0]
    assert "kept nowhere" in refused[2]
    assert w.answering() == {"a": 2}


def test_a_service_of_artifacts_begins_to_follow() -> None:
    done = artifact(training("Complete", "Done"), "a")
    w = world(done, rollout=HOT_SWAP)
    w.settle()
    assert w.answering() == {"a": 2}
    w.cr["spec"]["rollout"] = FROM_NOTHING
    w.training = artifact(training(run=2), "a")
    w.settle()
    assert w.cr["status"]["versions"]["stable"]["digest"] == RUN_2
    assert w.cr["status"]["versions"]["stable"]["base"] == digest("a")


def test_a_run_that_ends_before_any_pod_had_parameters() -> None:
    w = world(training())
    w.look()
    w.deploy()
    assert w.cr["status"]["versions"]["next"]["digest"] == RUN_1
    w.training = training("Failed")
    w.settle()
    assert not w.pods
    assert w.condition("Ready") == ("False", "TrainingNotComplete")


def test_a_run_that_fails_leaves_its_parameters_until_the_next_one_has_some() -> None:
    """The artifact of the run before it is older than they are."""
    w = following_the_second()
    for then in (
        training("Failed", run=2),
        training("Pending", "Waiting", run=3),
        training(activity="Counting", run=3),
    ):
        w.training = artifact(then, "a")
        w.settle()
        assert w.cr["status"]["versions"]["stable"]["digest"] == RUN_2
        assert "next" not in w.cr["status"]["versions"]
    assert "another run of words has begun" in live(w)["message"]
    w.training = artifact(training(run=3), "a")
    w.settle()
    assert w.cr["status"]["versions"]["stable"]["digest"] == live_digest(UID, 3)
    w.training = artifact(training("Complete", "Done", run=3), "c", 3)
    w.settle()
    assert w.answering() == {"c": 2}
