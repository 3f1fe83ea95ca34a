"""A service as its planner sees it: which artifact, how far its rollout is, what is wrong."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from mms_operator.api import names
from mms_operator.plan import service
from mms_operator.plan.service import planner
from mms_operator.plan.types import ObservedService, ReferencedSecret
from mms_workloads.contract import Outcome, ServeFile
from mms_workloads.serve.triton import CHANNEL_SECONDS
from tests.unit.plan.world import ARTIFACT, cr, plan_service, spec

KEYS = frozenset({"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"})
FOLLOWING = {"model": {"trainingRef": {"name": "words"}}}
OTHER = "sha256:" + "c" * 64


def following(**parts: Any) -> dict[str, Any]:
    return cr(names.SERVICE, "words", **{**FOLLOWING, **parts})


def trained(digest: str = ARTIFACT.digest, version: int = 1, **parts: Any) -> dict[str, Any]:
    made = {"uri": f"s3://mms/d/words/runs/{version}/artifact", "digest": digest, "version": version}
    made["installationStore"] = True
    return {**cr(**spec(**parts)), "status": {"phase": "Complete", "artifact": made}}


def objects_of(plan: Any) -> dict[str, Any]:
    return {f"{o['kind']}/{o['metadata']['name']}": o for wave in plan.waves for o in wave}


def name_of(digest: str) -> str:
    return f"Deployment/words-{digest.removeprefix('sha256:')[:12]}"


def deployed(
    plan: Any, digest: str | None = None, *, ready: int = 1, replicas: int = 1, total: int | None = None
) -> dict[str, Any]:
    """The planned Deployment as the API server has it, so far rolled out."""
    digest = digest or ARTIFACT.digest
    found = copy.deepcopy(objects_of(plan)[name_of(digest)])
    found["metadata"]["generation"] = 1
    found["spec"]["replicas"] = replicas
    found["status"] = {
        "observedGeneration": 1, "replicas": replicas if total is None else total, "updatedReplicas": replicas,
        "readyReplicas": ready,
    }  # fmt: skip
    return found


def pod(digest: str, *, ready: bool = True, **status: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": f"words-{digest[7:10]}",
            "uid": "u",
            "labels": {"mms.dev/service": "words", "app.kubernetes.io/component": "server"},
            "annotations": {names.ANNOTATION_DIGEST: digest},
        },
        "status": {"conditions": [{"type": "Ready", "status": "True" if ready else "False"}], **status},
    }


def condition(plan: Any, kind: str) -> dict[str, Any]:
    return next((c for c in plan.status["conditions"] if c["type"] == kind), {"status": None})


def after(found: dict[str, Any], plan: Any) -> dict[str, Any]:
    return {**found, "status": copy.deepcopy(plan.status)}


MISSING = {
    "no training": (None, "TrainingNotFound", "there is no ModelTraining words"),
    "not complete": (cr(**spec()), "TrainingNotComplete", "has no artifact yet"),
    "failed": ({**cr(**spec()), "status": {"phase": "Failed"}}, "TrainingNotComplete", "has failed"),
    "suspended": ({**cr(**spec()), "status": {"phase": "Suspended"}}, "TrainingNotComplete", "is suspended"),
}


@pytest.mark.parametrize("case", MISSING)
def test_nothing_to_serve_yet(case: str) -> None:
    training, reason, words = MISSING[case]
    plan = plan_service(following(), ObservedService(training=training))
    assert (condition(plan, "Ready")["status"], condition(plan, "Ready")["reason"]) == ("False", reason)
    assert words in condition(plan, "Ready")["message"]
    assert condition(plan, "Available")["status"] == "False"
    assert plan.waves == ()


def test_rollout_of_the_first_artifact() -> None:
    found = following()
    plan = plan_service(found, ObservedService(training=trained()))
    assert set(objects_of(plan)) == {
        "Service/words", "NetworkPolicy/words-serving", "PodDisruptionBudget/words", name_of(ARTIFACT.digest),
        "ConfigMap/words-serve-aaaaaaaaaaaa", "Secret/words-serving-store",
    }  # fmt: skip
    assert condition(plan, "Ready")["reason"] == "RollingOut"
    assert plan.status["versions"]["next"]["version"] == 1
    assert "stable" not in plan.status["versions"]
    assert plan.status["grpcUrl"] == "words.d.svc.cluster.local:8001"
    serve = ServeFile.model_validate_json(objects_of(plan)["ConfigMap/words-serve-aaaaaaaaaaaa"]["data"]["serve.json"])
    assert (serve.artifact.digest, serve.storage.uri) == (ARTIFACT.digest, "s3://mms/d/words/runs/1/artifact")
    assert serve.storage.credentials == "storage"

    found = after(found, plan)
    observed = ObservedService(trained(), (deployed(plan, ready=0),), (pod(ARTIFACT.digest, ready=False),))
    again = plan_service(found, observed)
    assert again.events == ()
    assert condition(again, "Ready")["status"] == "False"

    done = plan_service(found, ObservedService(trained(), (deployed(plan),), (pod(ARTIFACT.digest),)))
    assert (condition(done, "Ready")["status"], condition(done, "Available")["status"]) == ("True", "True")
    assert condition(done, "Reconciling")["status"] is None
    assert done.status["versions"] == {
        "stable": {
            "version": 1, "digest": ARTIFACT.digest, "uri": "s3://mms/d/words/runs/1/artifact", "training": "words",
            "installationStore": True, "replicas": 1,
        }
    }  # fmt: skip
    assert [event.reason for event in done.events] == ["Available"]
    final = plan_service(after(found, done), ObservedService(trained(), (deployed(plan),), (pod(ARTIFACT.digest),)))
    assert (final.status, final.events) == (done.status, ())


@pytest.mark.parametrize(
    ("containers", "port"),
    [([], "8080"), ([{"name": "triton", "env": []}], "8080"), ([{"name": "log", "image": "x"}], None)],
)
def test_pods_are_ready_as_soon_as_their_agents_say_so_unless_more_is_needed(
    containers: list[dict[str, Any]], port: str | None
) -> None:
    found = following()
    template = {"spec": {"containers": containers}}
    found["spec"] = {**FOLLOWING, "server": {"podTemplate": template}}
    plan = plan_service(found, ObservedService(training=trained()))
    assert objects_of(plan)["Service/words"]["metadata"]["labels"].get(names.LABEL_AGENT) == port


def served() -> tuple[dict[str, Any], Any]:
    """A service whose first artifact is rolled out, and the plan that says so."""
    found = following()
    first = plan_service(found, ObservedService(training=trained()))
    plan = plan_service(after(found, first), ObservedService(trained(), (deployed(first),), (pod(ARTIFACT.digest),)))
    return after(found, plan), first


def test_the_next_run_is_rolled_out_and_the_old_one_answers_meanwhile() -> None:
    found, first = served()
    newer = trained(OTHER, 2)
    plan = plan_service(found, ObservedService(newer, (deployed(first),), (pod(ARTIFACT.digest),)))
    assert (condition(plan, "Ready")["status"], condition(plan, "Available")["status"]) == ("False", "True")
    assert plan.status["versions"]["stable"]["version"] == 1
    assert plan.status["versions"]["next"]["version"] == 2
    assert {"ConfigMap/words-serve-aaaaaaaaaaaa", "ConfigMap/words-serve-cccccccccccc"} <= set(objects_of(plan))
    assert objects_of(plan)[name_of(OTHER)]["metadata"]["annotations"][names.ANNOTATION_DIGEST] == OTHER
    assert [objects_of(plan)[name_of(one)]["spec"]["replicas"] for one in (ARTIFACT.digest, OTHER)] == [1, 1]
    found = after(found, plan)
    both = (deployed(first), deployed(plan, OTHER))
    done = plan_service(found, ObservedService(newer, both, (pod(ARTIFACT.digest), pod(OTHER))))
    assert done.status["versions"]["stable"]["version"] == 2
    assert "next" not in done.status["versions"]
    assert objects_of(done)[name_of(ARTIFACT.digest)]["spec"]["replicas"] == 0
    assert "ConfigMap/words-serve-aaaaaaaaaaaa" in objects_of(done), "until the status says that it is rolled out"
    final = plan_service(after(found, done), ObservedService(newer, both, (pod(OTHER),)))
    assert not {"ConfigMap/words-serve-aaaaaaaaaaaa", name_of(ARTIFACT.digest)} & set(objects_of(final))


@pytest.mark.parametrize("training", [None, cr(**spec())], ids=["deleted", "made again"])
def test_what_is_pinned_outlives_its_training(training: dict[str, Any] | None) -> None:
    found, first = served()
    plan = plan_service(found, ObservedService(training, (deployed(first),), (pod(ARTIFACT.digest),)))
    assert condition(plan, "Ready")["status"] == "True"
    assert plan.status == found["status"]
    assert objects_of(plan) == objects_of(first)


def test_what_is_served_is_fetched_from_where_it_was_written() -> None:
    """The training's storage may be another one by now, for its next run."""
    found = following()
    training = trained()
    training["status"]["artifact"] |= {
        "installationStore": False, "endpoint": "https://a.example.com", "secretRef": {"name": "keys-of-a"},
    }  # fmt: skip
    training["spec"]["storage"] = {"uri": "s3://b", "endpoint": "https://b.example.com"}
    plan = plan_service(found, ObservedService(training=training))
    text = objects_of(plan)["ConfigMap/words-serve-aaaaaaaaaaaa"]["data"]["serve.json"]
    assert ServeFile.model_validate_json(text).storage.endpoint == "https://a.example.com"
    assert service.references(after(found, plan)) == {"keys-of-a"}


def test_a_secret_that_goes_leaves_what_is_served_as_it_is() -> None:
    artifact = {"uri": "s3://x/artifact", "digest": ARTIFACT.digest, "secretRef": {"name": "keys"}}
    found = cr(names.SERVICE, "words", model={"artifact": artifact})
    there = {"keys": ReferencedSecret("keys", KEYS)}
    first = plan_service(found, ObservedService(secrets=there))
    found = after(found, first)
    pods = (pod(ARTIFACT.digest),)
    found = after(found, plan_service(found, ObservedService(None, (deployed(first),), pods, there)))
    found["spec"]["replicas"] = 2
    plan = plan_service(
        found, ObservedService(None, (deployed(first),), pods, {"keys": ReferencedSecret("keys", None)})
    )
    assert condition(plan, "Ready")["reason"] == "SecretNotFound"
    assert "next" not in plan.status["versions"]
    assert objects_of(plan)[name_of(ARTIFACT.digest)]["spec"]["replicas"] == 2


def test_another_training_that_is_not_there_leaves_what_is_served() -> None:
    found, first = served()
    found["spec"] = {"model": {"trainingRef": {"name": "typo"}}}
    plan = plan_service(found, ObservedService(None, (deployed(first),), (pod(ARTIFACT.digest),)))
    assert condition(plan, "Ready")["reason"] == "TrainingNotFound"
    assert condition(plan, "Available")["status"] == "True"
    assert name_of(ARTIFACT.digest) in objects_of(plan)


FAILURES = {
    "corrupt": (
        Outcome(result="Failed", reason="ArtifactCorrupt", message="model.safetensors: expected sha256:..."),
        "initContainerStatuses", "ArtifactCorrupt", "model.safetensors", "True",
    ),
    "golden": (
        Outcome(result="Failed", reason="GoldenMismatch", message="golden case 3"), "initContainerStatuses",
        "GoldenMismatch", "golden case 3", "True",
    ),
    "store away": (
        Outcome(result="Failed", reason="StorageUnreachable", message="no answer", retryable=True),
        "initContainerStatuses", "StorageUnreachable", "no answer", None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FAILURES)
def test_what_a_container_said_is_the_reason(case: str) -> None:
    outcome, statuses, reason, words, stalled = FAILURES[case]
    found = following()
    first = plan_service(found, ObservedService(training=trained()))
    failed = {"terminated": {"exitCode": 1, "reason": "Error", "message": outcome.model_dump_json(exclude_none=True)}}
    container = {
        "name": "fetch", "image": "x", "ready": False, "lastState": failed,
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
    }  # fmt: skip
    broken = pod(ARTIFACT.digest, ready=False, **{statuses: [container]})
    plan = plan_service(after(found, first), ObservedService(trained(), (deployed(first, ready=0),), (broken,)))
    assert condition(plan, "Ready")["reason"] == reason
    assert words in condition(plan, "Ready")["message"]
    assert condition(plan, "Stalled")["status"] == stalled
    assert [event.type for event in plan.events] == ["Warning"]


def test_a_bad_artifact_leaves_the_good_one_answering() -> None:
    found, first = served()
    found["spec"] = {"model": {"artifact": {"uri": "s3://mms/x/artifact", "digest": OTHER}}}
    outcome = Outcome(result="Failed", reason="ArtifactCorrupt", message="expected digest")
    failed = {"terminated": {"exitCode": 1, "message": outcome.model_dump_json(exclude_none=True)}}
    broken = pod(OTHER, ready=False, initContainerStatuses=[{"name": "fetch", "state": failed}])
    observed = ObservedService(None, (deployed(first),), (pod(ARTIFACT.digest), broken))
    plan = plan_service(found, observed)
    assert (condition(plan, "Ready")["reason"], condition(plan, "Available")["status"]) == ("ArtifactCorrupt", "True")
    assert plan.status["versions"]["stable"]["digest"] == ARTIFACT.digest


def test_an_artifact_by_address_with_keys_of_its_own() -> None:
    artifact = {
        "uri": "s3://models/x/artifact/", "digest": OTHER, "endpoint": "https://s3.example.com",
        "secretRef": {"name": "keys"},
    }  # fmt: skip
    found = cr(names.SERVICE, "words", model={"artifact": artifact})
    assert service.references(found) == {"keys"}
    waiting = plan_service(found, ObservedService(secrets={"keys": ReferencedSecret("keys", None)}))
    assert (condition(waiting, "Ready")["reason"], waiting.requeue_after) == ("SecretNotFound", planner.SECRET_SECONDS)
    assert waiting.waves == ()
    plan = plan_service(found, ObservedService(secrets={"keys": ReferencedSecret("keys", KEYS)}))
    assert "Secret/words-serving-store" not in objects_of(plan)
    sources = objects_of(plan)[name_of(OTHER)]["spec"]["template"]["spec"]["volumes"][0]["projected"]["sources"]
    assert [source["secret"]["name"] for source in sources if "secret" in source] == ["keys"]


def test_scaled_to_zero() -> None:
    found, first = served()
    found["spec"] = {**FOLLOWING, "replicas": 0}
    stopping = plan_service(found, ObservedService(trained(), (deployed(first),), (pod(ARTIFACT.digest),)))
    assert condition(stopping, "Ready")["status"] == "False"
    plan = plan_service(found, ObservedService(trained(), (deployed(first, ready=0, replicas=0),)))
    assert (condition(plan, "Ready")["status"], condition(plan, "Ready")["reason"]) == ("True", "ScaledToZero")
    assert condition(plan, "Available")["reason"] == "ScaledToZero"


def test_a_rollout_that_does_not_advance_is_stalled() -> None:
    found = following()
    first = plan_service(found, ObservedService(training=trained()))
    stuck = deployed(first, ready=0)
    stuck["status"]["conditions"] = [
        {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "timed out"}
    ]
    plan = plan_service(after(found, first), ObservedService(trained(), (stuck,), (pod(ARTIFACT.digest, ready=False),)))
    assert condition(plan, "Ready")["reason"] == "ProgressDeadlineExceeded"
    assert condition(plan, "Stalled")["status"] == "True"
    stuck["metadata"]["generation"] = 2
    plan = plan_service(after(found, first), ObservedService(trained(), (stuck,), ()))
    assert condition(plan, "Ready")["reason"] == "RollingOut", "that was said of the spec before"


def test_a_forbidden_pod_template_leaves_what_is_served() -> None:
    found, first = served()
    found["spec"] = {**FOLLOWING, "server": {"podTemplate": {"spec": {"hostPID": True}}}}
    plan = plan_service(found, ObservedService(trained(), (deployed(first),), (pod(ARTIFACT.digest),)))
    assert condition(plan, "Accepted")["reason"] == "PodTemplateForbidden"
    assert condition(plan, "Available")["status"] == "True"
    assert (plan.waves, plan.prune) == ((), False)


def test_times_of_an_ending_pod_add_up() -> None:
    plan = plan_service(following(), ObservedService(training=trained()))
    spec_ = objects_of(plan)[name_of(ARTIFACT.digest)]["spec"]["template"]["spec"]
    triton = spec_["containers"][0]
    pre_stop = int(triton["lifecycle"]["preStop"]["exec"]["command"][1])
    exit_timeout = int(triton["env"][0]["value"])
    assert spec_["terminationGracePeriodSeconds"] >= pre_stop + exit_timeout + 10
    assert pre_stop >= 1.1 * CHANNEL_SECONDS + 1, "the last gRPC channel has left before"
    fetch, agent = spec_["initContainers"]
    assert ("restartPolicy" not in fetch, agent["restartPolicy"]) == (True, "Always")
