"""The life of a training, as its planner sees it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from mms_operator.api import names
from mms_operator.engine.problems import Problem, with_problem
from mms_operator.plan.training import draft, ending, planner, running, storage_place
from mms_operator.plan.types import ReferencedSecret
from mms_workloads.contract import Activity, Incident, JobFile, Outcome
from tests.unit.plan.world import CHECKPOINT, COMPLETE, SETTINGS, STORE, SUSPENDED, World, cr, spec


def world(**parts: object) -> World:
    return World(cr(**spec(**parts)))


def test_the_first_plan_makes_everything_and_the_second_nothing() -> None:
    found = world()
    plan = found.step()
    made = [[f"{o['kind']}/{o['metadata']['name']}" for o in wave] for wave in plan.waves]
    assert made == [
        ["ConfigMap/words-job-1-1", "Service/words-master", "NetworkPolicy/words-training", "Secret/words-store"],
        ["Pod/words-master-0-1", "Pod/words-worker-0-1", "Pod/words-worker-1-1"],
    ]
    assert plan.certificates is not None
    assert plan.certificates.master_dns_names == ("words-master.d.svc.cluster.local",)
    status = found.status
    again = found.step()
    assert again.status == status
    assert (again.events, again.deletions, again.certificates, again.waves[1]) == ((), (), None, ())


def test_a_result_that_misses_the_gate_fails_the_run_without_an_artifact() -> None:
    found = world(evaluation={"gate": {"metric": "contextAUC", "atLeast": "0.9"}})
    found.training()
    missed = Outcome(result="Failed", reason="GateMissed", message="contextAUC is 0.71, and 0.9 is the least")
    found.says(Activity.DONE, outcome=missed)
    found.settle()
    assert (found.status["phase"], found.condition("Failed")["reason"]) == ("Failed", "GateMissed")
    assert "artifact" not in found.status


def test_the_priority_class_goes_to_all_pods_and_the_templates_goes_before() -> None:
    policy = {"run": 1, "suspend": False, "backoffLimit": 3, "priorityClassName": "high"}
    found = world(runPolicy=policy)
    found.step()
    assert {pod["spec"]["priorityClassName"] for pod in found.pods.values()} == {"high"}
    template = {"spec": {"priorityClassName": "higher"}}
    found = world(runPolicy=policy, workers={"replicas": 2, "podTemplate": template})
    found.step()
    assert {pod["spec"]["priorityClassName"] for pod in found.pods.values()} == {"higher"}


def test_a_store_of_ones_own_is_mounted_from_its_secret() -> None:
    own = {"uri": "s3://models/x/", "endpoint": "https://s3.example.com", "secretRef": {"name": "keys"}}
    found = world(storage=own, data={"uri": "https://example.com/x.txt"})
    found.secrets = {"keys": ReferencedSecret("keys", frozenset({"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}))}
    found.step()
    assert planner.references(found.cr) == {"keys"}
    assert "Secret/words-store" not in found.others
    job = JobFile.model_validate_json(found.others["ConfigMap/words-job-1-1"]["data"]["job.json"])
    assert job.storage.uri == "s3://models/x/runs/1"
    assert job.data.store.credentials is None
    sources = found.pods["words-worker-0-1"]["spec"]["volumes"][0]["projected"]["sources"]
    assert [s["secret"]["name"] for s in sources if "secret" in s] == ["words-worker-tls", "keys"]


def test_pods_keep_to_the_restricted_standard_and_cannot_reach_the_api() -> None:
    found = world()
    found.step()
    for pod in found.pods.values():
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert pod["spec"]["restartPolicy"] == "Never"
        assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["spec"]["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_the_precision_of_training_is_told() -> None:
    """As long as nobody says another one: a new master has not heard of a step."""
    found = world()
    found.run()
    found.settle()
    found.says(step=7, precision="BF16")
    found.settle()
    assert found.status["precision"] == "BF16"
    found.says(step=7, precision=None)
    found.settle()
    assert found.status["precision"] == "BF16"


def test_from_pending_to_complete() -> None:
    found = world()
    found.settle()
    assert (found.status["phase"], found.condition("Ready")["reason"]) == ("Pending", "WaitingForPods")
    found.run()
    plan = found.settle()
    assert found.condition("Ready")["reason"] == "Starting"
    assert plan.master is not None
    assert plan.master.server_name == "words-master.d.svc.cluster.local"
    assert (plan.master.desired.suspend, plan.master.desired.workers) == (False, 2)
    found.says(Activity.COUNTING, step=0)
    found.settle()
    assert (found.status["phase"], found.condition("Ready")["status"]) == ("Running", "True")
    assert found.condition("Reconciling")["status"] is None
    found.says(step=7, percent=40, loss=0.25, samplesPerSecond=1000, etaSeconds=3, checkpoint=CHECKPOINT)
    found.settle()
    assert found.status["progress"]["loss"] == "0.2500"
    assert found.status["checkpoint"]["step"] == 9
    assert found.status["workers"] == {"ready": 2, "standby": 0, "epoch": 1}
    found.says(Activity.DONE, outcome=COMPLETE)
    found.settle()
    assert found.status["phase"] == "Complete"
    assert found.status["artifact"] == {
        "uri": "s3://mms/d/words/runs/1/artifact",
        "digest": "sha256:" + "a" * 64,
        "version": 1,
        "installationStore": True,
        "metrics": {"contextAUC": "0.7100"},
    }
    assert found.status["progress"]["percent"] == 100
    assert [found.condition(c)["status"] for c in ("Complete", "Finished", "Failed", "Ready")] == [
        "True", "True", "False", "True",
    ]  # fmt: skip
    assert found.status["completionTime"]
    assert [event.reason for event in found.events] == ["WaitingForPods", "Starting", "Training", "TrainingComplete"]


def test_a_report_that_says_nothing_else_writes_nothing() -> None:
    found = world()
    found.training()
    status = found.status
    found.now += timedelta(seconds=30)
    assert found.step().status == status
    found.says(step=6)
    found.now += timedelta(seconds=30)
    assert found.step().status["progress"]["updateTime"] == "2026-01-01T00:01:00Z"


def test_ended_pods_stay_for_their_logs_and_the_rest_is_taken_away() -> None:
    found = world()
    found.training()
    found.says(Activity.DONE, outcome=COMPLETE)
    found.settle()
    assert found.live() == {"words-master-0-1", "words-worker-0-1", "words-worker-1-1"}
    assert "Service/words-master" in found.others, "the workers still hear the master"
    found.end("words-worker-0-1", 0, COMPLETE)
    found.end("words-master-0-1", 0, COMPLETE)
    found.now += timedelta(seconds=ending.STRAGGLER_SECONDS + 1)
    found.settle()
    assert "deletionTimestamp" in found.pods["words-worker-1-1"]["metadata"]
    assert "deletionTimestamp" not in found.pods["words-worker-0-1"]["metadata"]
    assert [name for name in found.others if not name.startswith("Secret/")] == []
    assert found.settle().requeue_after is None


@pytest.mark.parametrize("teller", ["words-master-0-1", "words-worker-1-1"])
def test_the_outcome_is_read_from_a_pod_when_the_report_was_missed(teller: str) -> None:
    found = world()
    found.training()
    found.report = None
    found.end(teller, 0, COMPLETE)
    found.settle()
    assert found.status["phase"] == "Complete"


@pytest.mark.parametrize(
    ("loss", "said"),
    [(123456789.0, "123456789.0000"), (1e300, "1.0000e+300"), (-1e300, "-1.0000e+300"), (float("inf"), "inf")],
)
def test_a_loss_of_any_size_fits_into_the_status(loss: float, said: str) -> None:
    found = world()
    found.training()
    found.says(loss=loss)
    found.settle()
    assert found.status["progress"]["loss"] == said


def test_what_is_in_the_longest_folder_fits_into_the_status() -> None:
    found = world(storage={"uri": "s3://" + 895 * "m", "endpoint": "http://s3:9000"})
    found.training()
    written = JobFile.model_validate_json(found.others["ConfigMap/words-job-1-1"]["data"]["job.json"]).storage.uri
    found.says(checkpoint=CHECKPOINT.model_copy(update={"uri": f"{written}/checkpoints/step-{10**12}-{32 * 'f'}"}))
    found.settle()
    assert found.status["checkpoint"]["uri"].startswith("s3://mmm")
    longer = world(storage={"uri": "s3://" + 896 * "m"})
    longer.settle()
    assert "storage.uri" in longer.condition("Accepted")["message"]


# ---- losses


def test_a_deleted_worker_is_replaced_at_once_and_costs_nothing() -> None:
    found = world()
    found.training()
    found.pods["words-worker-1-1"]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    found.settle()
    assert "words-worker-1-2" in found.live()
    assert (found.status["phase"], found.status["restarts"]) == ("Restarting", 0)
    assert found.condition("Ready")["status"] == "False"
    found.run("words-worker-1-2")
    found.says(epoch=2, workersReady=1)
    found.settle()
    assert found.status["phase"] == "Restarting", "it has not joined yet"
    found.says(epoch=3, incidents=[Incident(time="2026-01-01T00:00:01Z", kind="WorkerLost", rank=1)])
    found.gone()
    found.settle()
    assert found.status["phase"] == "Running"
    assert [i["kind"] for i in found.status["incidents"]] == ["PodDeleted", "WorkerLost"]
    warned = [event for event in found.events if event.reason == "ReplacingPod"]
    assert [event.message for event in warned] == ["worker 1 is gone: words-worker-1-2 takes its place"]


FAILURES = {
    "signal": (137, "", "Error", "SIGKILL"),
    "out of memory": (137, "", "OOMKilled", "raise the memory limit"),
    "exit code for another try": (75, "", "Error", "exit code 75"),
    "retryable outcome": (
        75,
        Outcome(result="Failed", reason="StorageUnreachable", message="the store does not answer", retryable=True),
        "Error",
        "the store does not answer",
    ),
    "refused as stale": (1, Outcome(result="Failed", reason="StalePeer", message="refused"), "Error", "refused"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failed_worker_is_replaced_within_the_budget(case: str) -> None:
    code, outcome, reason, said = FAILURES[case]
    found = world(runPolicy={"run": 1, "suspend": False, "backoffLimit": 2})
    found.training()
    for number in (1, 2):
        found.end(f"words-worker-0-{number}", code, outcome, reason)
        found.settle()
        assert found.status["restarts"] == number
        found.run()
        found.settle()
    found.end("words-worker-0-3", code, outcome, reason)
    found.settle()
    assert (found.status["phase"], found.condition("Failed")["reason"]) == ("Failed", "BackoffLimitExceeded")
    assert said in found.condition("Failed")["message"]
    assert "raise spec.runPolicy.run" in found.condition("Ready")["message"]
    assert found.condition("Stalled")["status"] == "True"


def test_a_failure_of_the_master_counts_once_whoever_hears_of_it() -> None:
    found = world(runPolicy={"run": 1, "suspend": False, "backoffLimit": 1})
    found.training()
    mine = Outcome(result="Failed", reason="StorageUnreachable", message="it does not answer", retryable=True)
    heard = mine.model_copy(update={"heard": True})
    found.end("words-master-0-1", 75, mine)
    for rank in (0, 1):
        found.end(f"words-worker-{rank}-1", 75, heard)
    found.settle()
    assert found.status["restarts"] == 1
    assert {"words-master-0-2", "words-worker-0-2", "words-worker-1-2"} <= set(found.live())
    assert found.status["incidentCounts"] == {"MasterFailed": 2, "ProcessFailed": 1}


DISRUPTIONS = {
    "preempted": ({"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}, 0),
    "drained": ({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}, 0),
    "evicted by the kubelet": ({"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}, 1),
}


@pytest.mark.parametrize("case", DISRUPTIONS)
def test_a_disruption_from_outside_is_not_the_programs_failure(case: str) -> None:
    condition, restarts = DISRUPTIONS[case]
    found = world()
    found.training()
    found.pods["words-worker-0-1"]["status"] = {"phase": "Failed", "reason": "Evicted", "conditions": [condition]}
    found.settle()
    assert "words-worker-0-2" in found.live()
    assert found.status["restarts"] == restarts


def test_a_lost_master_has_a_successor_that_the_service_names() -> None:
    found = world()
    found.training()
    found.gone("words-master-0-1")
    plan = found.settle()
    assert plan.master is None
    assert "words-master-0-2" in found.live()
    assert found.others["Service/words-master"]["spec"]["selector"]["mms.dev/incarnation"] == "2"
    assert (found.status["attempt"], found.status["phase"]) == (1, "Restarting")
    found.run("words-master-0-2")
    assert found.settle().master is not None


PERMANENT = {
    "data": (Outcome(result="Failed", reason="DataEmpty", message="all 1 files are empty"), "DataEmpty"),
    "vocabulary": (
        Outcome(result="Failed", reason="VocabularyTooSmall", message="lower minCount"),
        "VocabularyTooSmall",
    ),
}


@pytest.mark.parametrize("case", PERMANENT)
@pytest.mark.parametrize("teller", ["report", "words-master-0-1", "words-worker-0-1"])
def test_what_no_other_try_can_mend_fails_the_training(case: str, teller: str) -> None:
    outcome, reason = PERMANENT[case]
    found = world()
    found.training()
    if teller == "report":
        found.says(Activity.DONE, outcome=outcome)
    else:
        found.end(teller, 1, outcome)
    found.settle()
    assert (found.status["phase"], found.condition("Failed")["reason"]) == ("Failed", reason)
    assert outcome.message in found.condition("Failed")["message"]
    assert found.status["restarts"] == 0
    found.now += timedelta(seconds=ending.STRAGGLER_SECONDS + 1)
    found.settle()
    assert found.live() == set()


def test_an_image_without_the_program_fails_with_the_end_of_its_log() -> None:
    found = world()
    found.settle()
    found.end("words-worker-0-1", 1, "/usr/bin/python: No module named mms_workloads")
    found.settle()
    assert found.status["phase"] == "Failed"
    assert "No module named mms_workloads" in found.condition("Failed")["message"]


def test_a_message_about_a_store_names_the_field() -> None:
    own = {"uri": "s3://elsewhere/x.txt", "endpoint": "http://s3:9000", "secretRef": {"name": "mine"}}
    found = world(data=own)
    found.secrets = {"mine": ReferencedSecret("mine", frozenset({"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}))}
    found.training()
    said = "http://s3:9000 does not accept the access key for s3://elsewhere/x.txt"
    found.says(Activity.DONE, outcome=Outcome(result="Failed", reason="CredentialsInvalid", message=said))
    found.settle()
    assert found.condition("Failed")["message"] == f"{said}. (spec.data.secretRef names the Secret mine)"


def test_pods_that_could_not_be_made_are_no_losses() -> None:
    """A quota, a webhook, leavings of a resource of the same name: the next try makes the same pods."""
    found = world()
    found.refuse_pods = True
    for _ in range(5):
        found.step()
    assert [one["number"] for one in found.status["incarnations"]] == [1, 1, 1]
    found.refuse_pods = False
    found.settle()
    assert found.live() == {"words-master-0-1", "words-worker-0-1", "words-worker-1-1"}
    assert [event.reason for event in found.events] == ["WaitingForPods"]
    found.run()
    found.says()
    found.settle()
    found.end("words-worker-1-1", 137)
    found.refuse_pods = True
    for _ in range(5):
        found.step()
    assert (found.status["restarts"], found.status["phase"]) == (1, "Restarting")
    assert [event.reason for event in found.events].count("ReplacingPod") == 1
    found.refuse_pods = False
    found.settle()
    assert "words-worker-1-2" in found.live()


def test_more_workers_that_cannot_start_are_told() -> None:
    found = world()
    found.training()
    found.change(workers={"replicas": 3})
    found.settle()
    waiting = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no cpu."}]
    found.pods["words-worker-2-1"]["status"]["conditions"] = waiting
    found.settle()
    said = found.condition("Ready")["message"]
    assert (found.status["phase"], said.startswith("2 of 3 workers train; no node takes")) == ("Running", True)


def test_pods_that_wait_are_made_anew_for_a_changed_spec() -> None:
    found = world(workers={"replicas": 1, "image": "registry/none:1"})
    found.settle()
    found.run("words-master-0-1")
    found.change(workers={"replicas": 1, "image": "registry/right:1"})
    found.settle()
    assert found.live() == {"words-master-0-1", "words-worker-0-2"}, "what runs is left alone"
    assert found.pods["words-worker-0-2"]["spec"]["containers"][0]["image"] == "registry/right:1"
    assert found.status["restarts"] == 0


def test_the_masters_resources_come_from_the_pod_template() -> None:
    given = [{"name": "master", "resources": {"limits": {"memory": "8Gi"}}}]
    found = world(workers={"replicas": 1, "podTemplate": {"spec": {"containers": given}}})
    found.settle()
    master, worker = (found.pods[name]["spec"]["containers"][0] for name in ("words-master-0-1", "words-worker-0-1"))
    assert master["resources"] == {"limits": {"memory": "8Gi"}}
    assert worker["resources"] == {"requests": {"cpu": "100m", "memory": "512Mi"}}


def test_nulls_of_a_pod_template_are_fields_that_are_not_there() -> None:
    nothing = {"env": None, "envFrom": None, "volumeMounts": None, "resources": None}
    given = [{"name": "worker", **nothing}, {"name": "log", "image": "x", "securityContext": None}]
    lists = {"tolerations": None, "volumes": None, "imagePullSecrets": None, "nodeSelector": {"a": None}}
    plain = world(workers={"replicas": 1})
    found = world(workers={"replicas": 1, "podTemplate": {"metadata": None, "spec": {"containers": given, **lists}}})
    plain.settle()
    found.settle()
    assert found.pods["words-master-0-1"]["spec"] == plain.pods["words-master-0-1"]["spec"] | {"nodeSelector": {}}
    worker, log = found.pods["words-worker-0-1"]["spec"]["containers"]
    assert worker == plain.pods["words-worker-0-1"]["spec"]["containers"][0]
    assert log["securityContext"] == worker["securityContext"]


@pytest.mark.parametrize("label", [names.LABEL_RANK, names.LABEL_INCARNATION, names.LABEL_RUN, names.LABEL_ATTEMPT])
def test_a_pod_whose_labels_somebody_has_written_over_is_replaced(label: str) -> None:
    found = world()
    found.training()
    found.pods["words-worker-0-1"]["metadata"]["labels"][label] = "mine"
    found.settle()
    assert "words-worker-0-1" not in found.live()
    assert "words-worker-0-2" in found.live()


def test_a_master_that_cannot_be_reached_is_told() -> None:
    found = world()
    found.training()
    found.master_error = "timeout"
    found.settle()
    assert (found.status["phase"], found.condition("Ready")["reason"]) == ("Running", "MasterUnreachable")
    assert "port 29400" in found.condition("Ready")["message"]
    assert found.events[-1].type == "Warning"
    found.master_error = None
    found.settle()
    assert found.condition("Ready")["reason"] == "Training"


# ---- waiting


@pytest.mark.parametrize(
    ("keys", "reason", "words"),
    [
        (None, "SecretNotFound", "create it with the keys AWS_ACCESS_KEY_ID"),
        (frozenset({"accesskey"}), "SecretKeyMissing", "lacks AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        (frozenset({"AWS_ACCESS_KEY_ID"}), "SecretKeyMissing", "lacks AWS_SECRET_ACCESS_KEY"),
    ],
    ids=["missing", "other key", "half"],
)
def test_a_secret_is_waited_for(keys: frozenset[str] | None, reason: str, words: str) -> None:
    found = world(data={"uri": "s3://x/y.txt", "secretRef": {"name": "mine"}})
    found.secrets = {"mine": ReferencedSecret("mine", keys)}
    plan = found.settle()
    assert (found.status["phase"], found.condition("Ready")["reason"]) == ("Pending", reason)
    assert words in found.condition("Ready")["message"]
    assert found.condition("Accepted")["status"] == "True"
    assert found.pods == {}
    assert plan.requeue_after == running.SECRET_SECONDS
    found.secrets = {"mine": ReferencedSecret("mine", frozenset({"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}))}
    found.settle()
    assert len(found.pods) == 3


@pytest.mark.parametrize(
    ("keys", "reason", "words"),
    [
        (None, "SecretNotFound", "create it with the data key in its entry data-key"),
        (frozenset({"key"}), "SecretKeyMissing", "has no entry data-key (it has key)"),
    ],
    ids=["missing", "other key"],
)
def test_the_data_key_is_waited_for_and_is_the_masters_alone(
    keys: frozenset[str] | None, reason: str, words: str
) -> None:
    encryption = {"keySecretRef": {"name": "mine", "key": "data-key"}}
    found = world(data={"uri": "s3://x/sealed", "encryption": encryption})
    found.secrets = {"mine": ReferencedSecret("mine", keys)}
    found.settle()
    assert (found.status["phase"], found.condition("Ready")["reason"]) == ("Pending", reason)
    assert words in found.condition("Ready")["message"]
    assert found.pods == {}
    found.secrets = {"mine": ReferencedSecret("mine", frozenset({"data-key"}))}
    found.settle()
    assert len(found.pods) == 3
    assert {name for name, pod in found.pods.items() if "mine" in str(pod)} == {"words-master-0-1"}


def test_a_secret_that_goes_while_pods_run_stops_only_what_is_to_be_made() -> None:
    found = world(data={"uri": "s3://x/y.txt", "secretRef": {"name": "mine"}})
    good = {"mine": ReferencedSecret("mine", frozenset({"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}))}
    found.secrets = good
    found.training()
    found.secrets = {"mine": ReferencedSecret("mine", None)}
    found.end("words-worker-1-1", 137)
    found.settle()
    assert found.condition("Ready")["reason"] == "SecretNotFound"
    assert found.live() == {"words-master-0-1", "words-worker-0-1"}
    assert found.status["restarts"] == 0
    found.secrets = good
    found.settle()
    assert "words-worker-1-2" in found.live()
    assert found.status["restarts"] == 1


UNFIT = {
    "unschedulable": (
        {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                         "message": "0/1 nodes are available: 1 Insufficient cpu."}]},
        "Unschedulable", "Insufficient cpu",
    ),
    "image": (
        {"containerStatuses": [{"name": "worker", "image": "localhost/none:1", "state": {"waiting": {
            "reason": "ImagePullBackOff", "message": "Back-off pulling image: ErrImagePull: not found"}}}]},
        "ImagePullFailed", "localhost/none:1",
    ),
    "configuration": (
        {"containerStatuses": [{"name": "worker", "image": "x", "state": {"waiting": {
            "reason": "CreateContainerConfigError", "message": "secret missing"}}}]},
        "ContainerConfigError", "secret missing",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNFIT)
def test_what_keeps_a_pod_from_starting_is_said(case: str) -> None:
    status, reason, words = UNFIT[case]
    found = world()
    found.settle()
    found.pods["words-worker-0-1"]["status"] = {"phase": "Pending", **status}
    found.settle()
    assert (found.status["phase"], found.condition("Ready")["reason"]) == ("Pending", reason)
    assert words in found.condition("Ready")["message"]
    assert found.condition("Reconciling")["status"] == "True"


# ---- refusals


def test_two_trainings_with_one_storage() -> None:
    found = world()
    found.storage_owner = "d/first"
    plan = found.settle()
    assert found.condition("Accepted")["reason"] == "StorageConflict"
    assert "d/first" in found.condition("Accepted")["message"]
    assert found.condition("Stalled")["status"] == "True"
    assert found.pods == {}
    assert plan.requeue_after is None
    assert "startTime" not in found.status, "what is wrong in the spec can still be changed"
    found.storage_owner = None
    found.settle()
    assert len(found.pods) == 3


def test_no_store_at_all() -> None:
    found = World(cr(**spec()), settings=type(SETTINGS)(SETTINGS.images))
    found.settle()
    assert found.condition("Accepted")["reason"] == "StorageMissing"
    assert "spec.storage.uri" in found.condition("Accepted")["message"]


def test_a_forbidden_pod_template() -> None:
    found = world(workers={"replicas": 1, "podTemplate": {"spec": {"hostNetwork": True}}})
    found.settle()
    assert found.condition("Accepted")["reason"] == "PodTemplateForbidden"
    assert "spec.workers.podTemplate.spec.hostNetwork" in found.condition("Accepted")["message"]
    assert found.pods == {}


def test_a_spec_that_cannot_be_read_leaves_what_runs_as_it_is() -> None:
    found = world()
    found.training()
    found.change(task={"wordEmbedding": {"dimensions": "many"}})
    plan = found.settle()
    assert (plan.waves, plan.deletions, plan.prune) == ((), (), False)
    assert found.condition("Accepted")["reason"] == "InvalidSpec"
    assert "spec.task.wordEmbedding.dimensions" in found.condition("Accepted")["message"]
    assert found.status["phase"] == "Running"


# ---- suspension


def test_a_checkpoint_that_was_given_up_is_not_told_of() -> None:
    found = World(cr(**spec()))
    found.settle()
    found.run()
    found.says(checkpoint=CHECKPOINT, knowsCheckpoint=True)
    found.settle()
    found.says(Activity.WAITING)  # another master, whose storage has not answered yet
    found.settle()
    assert found.status["checkpoint"]["step"] == 9
    found.says(knowsCheckpoint=True)
    found.settle()
    assert found.status.get("checkpoint") is None


def test_suspend_waits_for_the_checkpoint_then_releases_all_pods() -> None:
    found = world()
    found.training()
    found.change(runPolicy={"run": 1, "suspend": True, "backoffLimit": 3})
    plan = found.settle()
    assert (found.status["phase"], found.condition("Suspended")["status"]) == ("Suspending", "Unknown")
    assert plan.master is not None
    assert plan.master.desired.suspend is True
    assert len(found.live()) == 3
    found.says(Activity.DONE, outcome=SUSPENDED)
    found.settle()
    found.gone()
    found.settle()
    assert (found.status["phase"], found.pods) == ("Suspended", {})
    assert found.status["checkpoint"]["step"] == 9
    assert [found.condition(c)["status"] for c in ("Suspended", "Ready")] == ["True", "True"]

    found.change(runPolicy={"run": 1, "suspend": False, "backoffLimit": 3})
    found.settle()
    assert (found.status["phase"], found.status["attempt"]) == ("Pending", 2)
    assert found.live() == {"words-master-0-2", "words-worker-0-2", "words-worker-1-2"}
    assert "ConfigMap/words-job-1-2" in found.others
    assert "ConfigMap/words-job-1-1" not in found.others
    assert [a["number"] for a in found.status["attempts"]] == [1, 2]
    assert found.status["attempts"][0]["reason"] == "Suspended"
    assert found.status["startTime"] == "2026-01-01T00:00:00Z"


def test_suspended_from_the_beginning_starts_as_the_first_attempt() -> None:
    found = world(runPolicy={"run": 1, "suspend": True, "backoffLimit": 3})
    found.settle()
    assert (found.status["phase"], found.pods) == ("Suspended", {})
    found.change(runPolicy={"run": 1, "suspend": False, "backoffLimit": 3})
    found.settle()
    assert (found.status["attempt"], len(found.live())) == (1, 3)


def test_a_checkpoint_that_does_not_come_is_not_waited_for_without_end() -> None:
    found = world()
    found.training()
    found.change(runPolicy={"run": 1, "suspend": True, "backoffLimit": 3})
    plan = found.settle()
    assert plan.requeue_after is not None
    found.now += timedelta(seconds=plan.requeue_after)
    found.settle()
    assert found.status["phase"] == "Suspended"
    assert "SuspendTimedOut" in [event.reason for event in found.events]


def test_a_master_that_is_lost_while_suspending_has_a_successor_and_a_worker_has_none() -> None:
    found = world()
    found.training()
    found.change(runPolicy={"run": 1, "suspend": True, "backoffLimit": 3})
    found.settle()
    found.gone("words-master-0-1", "words-worker-0-1")
    found.settle()
    assert found.live() == {"words-master-0-2", "words-worker-1-1"}


def test_a_suspension_that_has_begun_is_finished_before_the_training_goes_on() -> None:
    found = world()
    found.training()
    found.change(runPolicy={"run": 1, "suspend": True, "backoffLimit": 3})
    found.settle()
    found.change(runPolicy={"run": 1, "suspend": False, "backoffLimit": 3})
    plan = found.settle()
    assert found.status["phase"] == "Suspending"
    assert "then the training goes on from it" in found.condition("Suspended")["message"]
    assert plan.master is not None
    assert plan.master.desired.suspend is True
    found.says(Activity.DONE, outcome=SUSPENDED)
    found.settle()
    assert (found.status["phase"], found.status["attempt"]) == ("Pending", 2)


# ---- runs, scale, certificates


def test_a_finished_training_runs_again_only_when_its_run_is_raised() -> None:
    found = world()
    found.training()
    found.says(Activity.DONE, outcome=COMPLETE)
    found.settle()
    for name in list(found.pods):
        found.end(name, 0, COMPLETE)
    found.settle()
    found.change(workers={"replicas": 1})
    found.settle()
    assert (found.status["phase"], found.live()) == ("Complete", set())
    assert found.status["observedGeneration"] == 2
    found.change(runPolicy={"run": 2, "suspend": False, "backoffLimit": 3})
    found.settle()
    assert (found.status["phase"], found.status["run"], found.status["attempt"]) == ("Pending", 2, 1)
    assert found.live() == {"words-master-0-2", "words-worker-0-2"}
    assert found.status["artifact"]["version"] == 1, "what was made stays known until the next is"
    assert "completionTime" not in found.status
    assert all("deletionTimestamp" in found.pods[name]["metadata"] for name in found.pods if name.endswith("-1"))
    job = JobFile.model_validate_json(found.others["ConfigMap/words-job-2-1"]["data"]["job.json"])
    assert (job.job.run, job.storage.uri) == (2, "s3://mms/d/words-uid-0123/runs/2")


def test_what_came_in_the_way_of_a_look_is_no_reason_of_an_ended_run() -> None:
    found = world()
    found.training()
    found.says(Activity.DONE, outcome=COMPLETE)
    found.settle()
    said = found.condition("Finished")
    overlaid = with_problem(found.status, found.status, Problem("ReconcileFailed", "no answer"), "2026-01-01T00:00:00Z")
    found.cr = {**found.cr, "status": overlaid}
    found.settle()
    assert found.condition("Complete")["message"] == said["message"]
    assert (found.condition("Ready")["status"], found.condition("Ready")["reason"]) == ("True", "TrainingComplete")


PLACES = {
    "its own": ({"uri": "s3://a/b/"}, None, " s3://a/b"),
    "elsewhere": ({"uri": "s3://a/b", "endpoint": "http://x/"}, None, "http://x s3://a/b"),
    "none": (None, None, None),
    "installation": (None, STORE, "http://store.mms-system.svc:8333 s3://mms/d/words-uid-0123"),
}


@pytest.mark.parametrize("case", PLACES)
def test_where_a_training_writes(case: str) -> None:
    storage, default, place = PLACES[case]
    assert storage_place(cr(**spec(storage=storage)), default) == place


def test_scale_up_and_down() -> None:
    found = world()
    found.training()
    found.change(workers={"replicas": 3})
    plan = found.settle()
    assert "words-worker-2-1" in found.live()
    assert plan.master is not None
    assert plan.master.desired.workers == 3
    assert (found.status["phase"], found.status["replicas"]) == ("Running", 3)
    found.change(workers={"replicas": 1})
    found.settle()
    assert found.live() == {"words-master-0-1", "words-worker-0-1"}
    found.gone()
    found.change(workers={"replicas": 2})
    found.settle()
    assert "words-worker-1-2" in found.live(), "the number of the one before was given away"
    assert found.status["phase"] == "Running", "more workers are no loss"
    assert not [event for event in found.events if event.reason == "ReplacingPod"]


def test_certificates_are_renewed_between_attempts_only() -> None:
    found = world()
    found.training()
    found.certificates = found.now + timedelta(seconds=draft.RENEW_SECONDS - 1)
    assert found.settle().certificates is None
    found.change(runPolicy={"run": 1, "suspend": True, "backoffLimit": 3})
    found.says(Activity.DONE, outcome=SUSPENDED)
    found.settle()
    found.gone()
    found.change(runPolicy={"run": 1, "suspend": False, "backoffLimit": 3})
    found.report = None
    assert found.step().certificates is not None


def test_lost_certificates_begin_another_attempt() -> None:
    found = world()
    found.training()
    found.certificates = None
    found.settle()
    assert found.status["attempt"] == 2
    assert found.certificates is not None
    assert found.live() == {"words-master-0-2", "words-worker-0-2", "words-worker-1-2"}
    assert found.status["attempts"][0]["reason"] == "CertificatesLost"


# ---- limits in time


def test_an_attempt_that_takes_too_long_has_failed() -> None:
    policy = {"run": 1, "suspend": False, "backoffLimit": 3, "activeDeadlineSeconds": 100}
    found = world(runPolicy=policy)
    found.training()
    found.now += timedelta(seconds=60)
    assert found.settle().requeue_after == 40
    found.change(runPolicy={**policy, "suspend": True})
    found.says(Activity.DONE, outcome=SUSPENDED)
    found.settle()
    found.gone()
    found.now += timedelta(seconds=500)
    found.change(runPolicy=policy)
    found.report = None
    found.settle()
    assert found.status["phase"] == "Pending", "a resume begins anew"
    found.now += timedelta(seconds=100)
    found.settle()
    assert (found.status["phase"], found.condition("Failed")["reason"]) == ("Failed", "DeadlineExceeded")
    assert "activeDeadlineSeconds (100 s)" in found.condition("Failed")["message"]


def test_a_finished_training_is_deleted_when_its_time_has_come() -> None:
    found = world(runPolicy={"run": 1, "suspend": False, "backoffLimit": 3, "ttlSecondsAfterFinished": 3600})
    found.training()
    assert found.settle().requeue_after is None
    found.says(Activity.DONE, outcome=COMPLETE)
    found.settle()
    for name in list(found.pods):
        found.end(name, 0, COMPLETE)
    plan = found.settle()
    assert plan.requeue_after == 3600
    found.now += timedelta(seconds=3600)
    (deletion,) = found.step().deletions
    assert (deletion.kind, deletion.name, deletion.uid) == ("ModelTraining", "words", "uid-0123456789")
    assert [event.reason for event in found.events][-1] == "Expired"


def test_without_a_ttl_nothing_is_deleted() -> None:
    found = world()
    found.training()
    found.says(Activity.DONE, outcome=COMPLETE)
    found.settle()
    found.now += timedelta(days=1000)
    assert [d for d in found.settle().deletions if d.kind != "Pod"] == []
