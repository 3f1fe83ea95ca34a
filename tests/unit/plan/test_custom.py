"""A program of somebody else's: what its pods find, and what becomes of the run, told by pods alone."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from mms_operator.api import names
from mms_operator.api.custom_task import Custom
from mms_operator.api.training import TrainingSpec
from mms_operator.plan import pods as reading
from mms_operator.plan.training import references
from mms_operator.plan.training.custom import objects
from mms_operator.plan.training.job import Job
from mms_operator.plan.types import ObservedService, ReferencedSecret
from tests.unit.plan.world import SETTINGS, World, cr, plan_service, role_of

IMAGE = "registry/mine:1"
LOCAL = "mine-pods.d.svc.cluster.local"


def world(framework: str = "PyTorch", *, custom: dict[str, Any] | None = None, **parts: Any) -> World:
    task = {"custom": {"image": IMAGE, "command": ["python", "train.py"], "framework": framework, **(custom or {})}}
    policy = {"run": 1, "suspend": False, "backoffLimit": 1}
    return World(cr(name="mine", **{"task": task, "workers": {"replicas": 2}, "runPolicy": policy, **parts}))


def environment(made: World, pod: str) -> dict[str, str]:
    container = made.pods[pod]["spec"]["containers"][0]
    return {one["name"]: one.get("value", "") for one in container["env"]}


def running(made: World) -> World:
    made.settle()
    made.run()
    made.settle()
    assert made.status["phase"] == "Running"
    return made


def reason(made: World) -> str:
    found: str = made.condition("Ready")["reason"]
    return found


# ---- what pods find


def test_pytorch() -> None:
    made = world(custom={"port": 23456})
    made.settle()
    assert set(made.pods) == {"mine-worker-0-1", "mine-worker-1-1"}
    found = environment(made, "mine-worker-1-1")
    wanted = {
        "MASTER_ADDR": f"mine-worker-0-1.{LOCAL}", "MASTER_PORT": "23456", "RANK": "1", "WORLD_SIZE": "2",
        "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_NPROC_PER_NODE": "1",
        "PET_MASTER_ADDR": f"mine-worker-0-1.{LOCAL}", "PET_MASTER_PORT": "23456",
    }  # fmt: skip
    assert {name: found[name] for name in wanted} == wanted
    assert "TF_CONFIG" not in found
    assert not any(name.startswith("DMLC_") for name in found)


def test_the_names_are_those_of_the_pods() -> None:
    made = world()
    made.settle()
    for name, pod in made.pods.items():
        assert (pod["spec"]["hostname"], pod["spec"]["subdomain"]) == (name, "mine-pods")
    service = made.others["Service/mine-pods"]["spec"]
    assert (service["clusterIP"], service["publishNotReadyAddresses"]) == ("None", True)
    assert service["selector"] == {names.LABEL_TRAINING: "mine"}


def tf_config(made: World, pod: str) -> Any:
    return json.loads(environment(made, pod)["TF_CONFIG"])


@pytest.mark.parametrize("framework", ["TensorFlow", "Keras"])
def test_workers_of_tensorflow(framework: str) -> None:
    made = world(framework)
    made.settle()
    addresses = [f"mine-worker-{rank}-1.{LOCAL}:29500" for rank in (0, 1)]
    assert tf_config(made, "mine-worker-1-1") == {
        "cluster": {"worker": addresses},
        "task": {"type": "worker", "index": 1},
    }
    assert ("WORLD_SIZE" in environment(made, "mine-worker-1-1")) == (framework == "Keras")


def test_parameter_servers_of_tensorflow() -> None:
    """The chief coordinates; the evaluator is no part of the cluster."""
    made = world("TensorFlow", custom={"servers": 2, "evaluator": True}, workers={"replicas": 3})
    made.settle()
    tasks = {name: tf_config(made, name) for name in made.pods}
    assert {name: tuple(found["task"].values()) for name, found in tasks.items()} == {
        "mine-worker-0-1": ("chief", 0),
        "mine-worker-1-1": ("worker", 0),
        "mine-worker-2-1": ("worker", 1),
        "mine-server-0-1": ("ps", 0),
        "mine-server-1-1": ("ps", 1),
        "mine-evaluator-0-1": ("evaluator", 0),
    }
    clusters = [found["cluster"] for found in tasks.values()]
    assert all(cluster == clusters[0] for cluster in clusters)
    assert {kind: len(addresses) for kind, addresses in clusters[0].items()} == {"chief": 1, "worker": 2, "ps": 2}
    assert clusters[0]["chief"] == [f"mine-worker-0-1.{LOCAL}:29500"]


def test_mxnet() -> None:
    made = world("MXNet", custom={"port": 9091, "servers": 2})
    made.settle()
    assert sorted(made.pods) == [
        "mine-scheduler-0-1", "mine-server-0-1", "mine-server-1-1", "mine-worker-0-1", "mine-worker-1-1",
    ]  # fmt: skip
    for name, pod in made.pods.items():
        found = environment(made, name)
        assert {key: value for key, value in found.items() if key.startswith("DMLC_")} == {
            "DMLC_ROLE": role_of(pod),
            "DMLC_PS_ROOT_URI": f"mine-scheduler-0-1.{LOCAL}",
            "DMLC_PS_ROOT_PORT": "9091",
            "DMLC_NUM_WORKER": "2",
            "DMLC_NUM_SERVER": "2",
            "DMLC_USE_KUBERNETES": "1",
        }


def test_all_find_where_they_are() -> None:
    storage = {"uri": "s3://models/mine", "endpoint": "http://minio:9000", "secretRef": {"name": "keys"}}
    made = world("Other", data={"uri": "https://example.com/data.csv"}, storage=storage)
    made.settle()
    assert environment(made, "mine-worker-1-1") == {
        "HOME": "/scratch", "PYTHONUNBUFFERED": "1", "MMS_TRAINING": "mine", "MMS_NAMESPACE": "d", "MMS_RUN": "1",
        "MMS_ATTEMPT": "1", "MMS_ROLE": "worker", "MMS_RANK": "1", "MMS_INCARNATION": "1", "MMS_WORKERS": "2",
        "MMS_WORKER_HOSTS": f"mine-worker-0-1.{LOCAL},mine-worker-1-1.{LOCAL}", "MMS_PORT": "29500",
        "MMS_SCRATCH_DIR": "/scratch", "MMS_DATA_URI": "https://example.com/data.csv",
        "MMS_STORAGE_URI": "s3://models/mine/runs/1", "MMS_STORAGE_ENDPOINT": "http://minio:9000",
        "MMS_STORAGE_CREDENTIALS_DIR": "/etc/mms/credentials/storage", "MMS_POD_IP": "",
    }  # fmt: skip
    assert references(made.cr) == {"keys"}


def secrets(pod: Any) -> set[str]:
    projected = [volume["projected"]["sources"] for volume in pod["spec"]["volumes"] if "projected" in volume]
    return {source["secret"]["name"] for sources in projected for source in sources if "secret" in source}


def test_the_image_is_trusted_with_nothing_that_the_spec_does_not_name() -> None:
    """Neither the installation's store, though data is in it, nor certificates, nor the Kubernetes API."""
    made = world(data={"uri": "s3://corpora/text/*.txt"})
    plan = made.settle()
    assert plan.certificates is None
    assert plan.master is None
    assert not [name for name in made.others if name.startswith("Secret/")]
    for pod in made.pods.values():
        assert secrets(pod) == set()
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert pod["spec"]["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True
        assert pod["spec"]["containers"][0]["image"] == IMAGE
    made = world(storage={"uri": "s3://models/mine", "secretRef": {"name": "keys"}})
    made.settle()
    assert all(secrets(pod) == {"keys"} for pod in made.pods.values())


def test_a_pod_template_gives_more() -> None:
    containers = [
        {"name": "worker", "env": [{"name": "HOME", "value": "/data"}], "resources": {"limits": {"cpu": "2"}}},
        {"name": "scheduler", "resources": {"limits": {"cpu": "1"}}},
        {"name": "logs", "image": "logs:1"},
    ]
    made = world("MXNet", workers={"replicas": 1, "podTemplate": {"spec": {"containers": containers}}})
    made.settle()
    found = {role_of(pod): pod["spec"]["containers"] for pod in made.pods.values()}
    assert {role: len(them) for role, them in found.items()} == {"worker": 2, "server": 1, "scheduler": 1}
    limits = {role: them[0]["resources"]["limits"]["cpu"] for role, them in found.items()}
    assert limits == {"worker": "2", "server": "2", "scheduler": "1"}
    variables = [(one["name"], one.get("value")) for one in found["server"][0]["env"]]
    assert [value for name, value in variables if name == "HOME"] == ["/data"]


@pytest.mark.parametrize(
    ("framework", "name", "refused"),
    [("PyTorch", "RANK", True), ("PyTorch", "PET_NNODES", True), ("PyTorch", "RANKING", False), ("Keras", "RANK", True),
     ("PyTorch", "TF_CONFIG", False), ("TensorFlow", "TF_CONFIG", True), ("MXNet", "DMLC_ROLE", True),
     ("Other", "RANK", False), ("Other", "MMS_RANK", True)],
)  # fmt: skip
def test_what_the_operator_sets_is_its_own(framework: str, name: str, *, refused: bool) -> None:
    template = {"spec": {"containers": [{"name": "worker", "env": [{"name": name, "value": "7"}]}]}}
    made = world(framework, workers={"replicas": 1, "podTemplate": template})
    made.settle()
    assert made.condition("Accepted")["status"] == ("False" if refused else "True")
    if refused:
        assert f"{name} is set by the operator" in made.condition("Accepted")["message"]
    assert bool(made.pods) != refused


# ---- what becomes of the run


def test_a_run_from_start_to_end() -> None:
    made = world(storage={"uri": "s3://models/mine"})
    made.settle()
    assert (made.status["phase"], reason(made)) == ("Pending", "WaitingForPods")
    made.run("mine-worker-0-1")
    made.settle()
    assert made.status["phase"] == "Pending"
    assert made.status["workers"]["ready"] == 1
    made.run("mine-worker-1-1")
    made.settle()
    assert made.status["phase"] == "Running"
    assert made.status["workers"] == {"ready": 2, "standby": 0, "epoch": 1}
    assert not made.held, "there is no last checkpoint to wait for"
    made.end("mine-worker-1-1", 0)
    made.settle()
    assert made.status["phase"] == "Running"
    assert "1 of them to the end" in made.condition("Ready")["message"]
    made.end("mine-worker-0-1", 0)
    made.settle()
    assert made.status["phase"] == "Complete"
    assert "s3://models/mine/runs/1" in made.condition("Complete")["message"]
    assert not {"artifact", "progress", "checkpoint"} & made.status.keys(), "nobody knows"
    assert made.status["replicas"] == 0


def test_servers_are_ended_when_the_workers_are_done() -> None:
    made = running(world("MXNet"))
    for rank in (0, 1):
        made.end(f"mine-worker-{rank}-1", 0)
    made.settle()
    assert made.status["phase"] == "Complete"
    made.now += timedelta(seconds=20)
    made.settle()
    assert made.live() == set()
    assert made.others == {}


def test_the_chief_says_when_parameter_servers_and_their_workers_are_done() -> None:
    made = running(world("TensorFlow", custom={"servers": 1}))
    made.end("mine-worker-1-1", 0)
    made.settle()
    assert made.status["phase"] == "Running"
    made.end("mine-worker-0-1", 0)
    made.settle()
    assert made.status["phase"] == "Complete"


@pytest.mark.parametrize(
    ("code", "reason_", "cause"),
    [(1, "Error", "PermanentFailure"), (75, "Error", "ProcessFailed"), (137, "Error", "ProcessKilled"),
     (137, "OOMKilled", "OutOfMemory")],
)  # fmt: skip
def test_a_loss_takes_the_world_with_it(code: int, reason_: str, cause: str) -> None:
    """Whatever the exit code. The next attempt waits for the pods of the one before, whose names it never meets."""
    made = running(world())
    made.end("mine-worker-1-1", code, "said at last", reason_)
    made.settle()
    assert (made.status["phase"], reason(made)) == ("Restarting", "WorldRestarts")
    assert (made.status["attempt"], made.status["restarts"]) == (2, 1)
    assert made.status["attempts"][0]["reason"] == cause
    assert [(one["kind"], one["rank"]) for one in made.status["incidents"]] == [(cause, 1)]
    assert [event.reason for event in made.events].count("WorldRestarts") == 1
    assert "attempt 2" in made.condition("Ready")["message"]
    assert set(made.pods) == {"mine-worker-0-1", "mine-worker-1-1"}
    made.gone()
    made.settle()
    assert made.live() == {"mine-worker-0-2", "mine-worker-1-2"}
    assert "mine-worker-1-1" in made.pods, "its log says why"
    assert environment(made, "mine-worker-1-2")["MASTER_ADDR"] == f"mine-worker-0-2.{LOCAL}"
    assert environment(made, "mine-worker-1-2")["MMS_ATTEMPT"] == "2"
    made.run()
    made.settle()
    assert made.status["phase"] == "Running"
    made.end("mine-worker-0-2", code, "said at last", reason_)
    made.settle()
    assert (made.status["phase"], reason(made)) == ("Failed", "BackoffLimitExceeded")
    assert "worker 0" in made.condition("Failed")["message"]


def test_nobody_waits_for_a_lost_node_for_ever() -> None:
    made = running(world())
    made.end("mine-worker-1-1", 1)
    made.settle()
    made.now += timedelta(seconds=44)
    assert made.settle().requeue_after == pytest.approx(1)
    assert "mine-worker-0-2" not in made.pods
    made.now += timedelta(seconds=2)
    made.settle()
    assert made.live() == {"mine-worker-0-2", "mine-worker-1-2"}
    terms = made.pods["mine-worker-0-2"]["spec"]["affinity"]["nodeAffinity"]
    assert "node-of-mine-worker-0-1" in json.dumps(terms), "rather on another node"


@pytest.mark.parametrize("disruption", ["", "DeletionByTaintManager", "EvictionByEvictionAPI"])
def test_what_comes_from_outside_does_not_count(disruption: str) -> None:
    """Nor do the others' ends count, which follow from it."""
    made = running(world())
    taken = made.pods["mine-worker-1-1"]
    taken["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:30Z"
    if disruption:
        taken["status"]["conditions"] = [{"type": "DisruptionTarget", "status": "True", "reason": disruption}]
    made.end("mine-worker-0-1", 1)
    made.settle()
    assert (made.status["attempt"], made.status["restarts"]) == (2, 0)
    assert [one["rank"] for one in made.status["incidents"]] == [1]


def test_the_first_end_is_the_cause() -> None:
    made = running(world())
    for name, second in (("mine-worker-0-1", "05"), ("mine-worker-1-1", "03")):
        made.end(name, 1)
        state = made.pods[name]["status"]["containerStatuses"][0]["state"]["terminated"]
        state["finishedAt"] = f"2026-01-01T00:00:{second}Z"
        assert reading.seen(made.pods[name], "worker").finished == state["finishedAt"]
    made.settle()
    assert [one["rank"] for one in made.status["incidents"]] == [1]


def test_another_number_of_workers_is_another_world() -> None:
    made = running(world())
    made.change(workers={"replicas": 3})
    made.settle()
    assert (made.status["phase"], made.status["attempt"], made.status["restarts"]) == ("Restarting", 2, 0)
    assert not made.status.get("incidents")
    made.gone()
    made.settle()
    assert made.live() == {f"mine-worker-{rank}-{2 if rank < 2 else 1}" for rank in range(3)}
    assert environment(made, "mine-worker-2-1")["WORLD_SIZE"] == "3"
    made.run()
    made.settle()
    made.change(workers={"replicas": 1})
    made.settle()
    made.gone()
    made.settle()
    assert made.live() == {"mine-worker-0-3"}


def test_another_pod_template_is_no_reason_to_restart() -> None:
    made = running(world())
    made.change(workers={"replicas": 2, "podTemplate": {"metadata": {"labels": {"a": "b"}}}})
    made.settle()
    assert (made.status["phase"], made.status["attempt"]) == ("Running", 1)


def test_a_field_that_another_operator_knows_beside_is_no_reason_to_restart() -> None:
    class Later(Custom):
        more: int = 7

    spec = TrainingSpec.model_validate(world().cr["spec"])
    assert spec.task.custom is not None
    more = Later.model_validate(spec.task.custom.model_dump())
    later = spec.model_copy(update={"task": spec.task.model_copy(update={"custom": more})})
    first, second = (objects.template(Job(world().cr, one, SETTINGS, 1, 1)) for one in (spec, later))
    assert first == second


def test_an_image_that_is_put_right() -> None:
    """Of pods that wait and pods that run, all are made anew."""
    made = world()
    made.settle()
    made.run("mine-worker-0-1")
    waiting = {"reason": "ImagePullBackOff", "message": "no such image"}
    status = {"name": "worker", "image": IMAGE, "state": {"waiting": waiting}}
    made.pods["mine-worker-1-1"]["status"] = {"phase": "Pending", "containerStatuses": [status]}
    made.settle()
    assert (made.status["phase"], reason(made)) == ("Pending", "ImagePullFailed")
    made.change(task={"custom": {"image": "registry/mine:2", "framework": "PyTorch"}})
    made.settle()
    assert (made.status["phase"], made.status["restarts"]) == ("Pending", 0)
    made.gone()
    made.settle()
    assert {pod["spec"]["containers"][0]["image"] for pod in made.pods.values()} == {"registry/mine:2"}
    assert made.live() == {"mine-worker-0-2", "mine-worker-1-2"}
    made.run()
    made.settle()
    assert made.status["phase"] == "Running"


# ---- suspension, deadline, deletion, runs


def suspended(made: World, *, suspend: bool = True) -> None:
    made.change(runPolicy={**made.cr["spec"]["runPolicy"], "suspend": suspend})
    made.settle()


def test_suspend_and_resume() -> None:
    made = running(world())
    suspended(made)
    assert made.status["phase"] == "Suspending"
    assert made.live() == set()
    made.end("mine-worker-0-1", 0)  # told to stop, it says that all went well
    made.settle()
    assert made.status["phase"] == "Suspending"
    made.gone()
    made.settle()
    assert made.status["phase"] == "Suspended"
    assert "checkpoint" not in made.condition("Suspended")["message"]
    assert made.others == {}
    suspended(made, suspend=False)
    assert (made.status["phase"], made.status["attempt"], made.status["restarts"]) == ("Pending", 2, 0)
    assert made.live() == {"mine-worker-0-2", "mine-worker-1-2"}


def test_a_suspension_ends_although_a_pod_does_not() -> None:
    made = running(world())
    suspended(made)
    made.gone("mine-worker-0-1")
    made.now += timedelta(seconds=46)
    made.settle()
    assert made.status["phase"] == "Suspended"
    assert "mine-worker-1-1" in made.condition("Suspended")["message"]
    assert "SuspendTimedOut" in [event.reason for event in made.events]


def test_suspended_before_it_begins() -> None:
    made = world(runPolicy={"run": 1, "suspend": True})
    made.settle()
    assert made.status["phase"] == "Suspended"
    suspended(made, suspend=False)
    assert made.live() == {"mine-worker-0-1", "mine-worker-1-1"}
    assert made.status["attempt"] == 1


def test_the_deadline() -> None:
    made = world(runPolicy={"run": 1, "activeDeadlineSeconds": 60})
    running(made)
    made.now += timedelta(seconds=61)
    made.settle()
    assert (made.status["phase"], reason(made)) == ("Failed", "DeadlineExceeded")


def test_it_is_deleted_at_once() -> None:
    made = running(world())
    made.deleted()
    plan = made.step()
    assert plan.finalizer is False
    assert plan.waves == ()


def test_another_run() -> None:
    made = running(world())
    for rank in (0, 1):
        made.end(f"mine-worker-{rank}-1", 0)
    made.settle()
    assert made.status["phase"] == "Complete"
    made.change(runPolicy={"run": 2})
    made.settle()
    assert made.live() == {"mine-worker-0-2", "mine-worker-1-2"}
    assert environment(made, "mine-worker-0-2")["MMS_RUN"] == "2"
    assert (made.status["run"], made.status["attempt"]) == (2, 1)


def test_nobody_waits_for_an_artifact_of_it() -> None:
    done = world().cr | {"status": {"phase": "Complete"}}
    served = cr(names.SERVICE, model={"trainingRef": {"name": "mine"}})
    found = plan_service(served, ObservedService(training=done)).status["conditions"]
    assert "spec.model.pretrained.uri" in next(one["message"] for one in found if one["type"] == "Ready")
    started = {"textClassification": {}}
    following = World(cr(task=started, data={"uri": "s3://a/b"}, pretrained={"trainingRef": {"name": "mine"}}))
    following.pretrained = done
    following.settle()
    assert "spec.pretrained.uri" in following.condition("Ready")["message"]


def test_a_secret_is_waited_for() -> None:
    made = world(storage={"uri": "s3://models/mine", "secretRef": {"name": "keys"}})
    made.secrets = {"keys": ReferencedSecret("keys", None)}
    made.settle()
    assert reason(made) == "SecretNotFound"
    assert made.pods == {}
    made.secrets = {"keys": ReferencedSecret("keys", frozenset({"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}))}
    running(made)
    made.secrets = {"keys": ReferencedSecret("keys", None)}
    made.end("mine-worker-1-1", 1)
    made.settle()
    assert (made.status["phase"], made.status["attempt"], reason(made)) == ("Restarting", 1, "SecretNotFound")
    assert made.others, "what runs keeps its name in DNS"
