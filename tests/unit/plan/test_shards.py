"""A training with parameter shards: their pods, losses, and their number while it runs."""

from __future__ import annotations

import pytest

from mms_workloads.contract import Activity, Desired, JobFile
from tests.unit.plan.world import SUSPENDED, World, cr, spec


def sharded(shards: int = 2, replicas: int = 1, workers: int = 2) -> World:
    server = {"shards": shards, "replicas": replicas}
    return World(cr(**spec(sync={"mode": "ParameterServer", "parameterServer": server}, workers={"replicas": workers})))


def shards(world: World, number: int) -> None:
    world.change(sync={"mode": "ParameterServer", "parameterServer": {"shards": number}})


def test_shards_are_pods_like_workers_with_certificates_of_their_own() -> None:
    found = sharded()
    plan = found.step()
    assert list(found.pods) == [
        "words-master-0-1", "words-worker-0-1", "words-worker-1-1", "words-shard-0-1", "words-shard-1-1",
    ]  # fmt: skip
    assert plan.certificates is not None
    assert plan.certificates.roles == ("master", "worker", "shard", "reader")
    worker, shard = found.pods["words-worker-1-1"]["spec"], found.pods["words-shard-1-1"]["spec"]
    (container,) = shard["containers"]
    assert container["name"] == "shard"
    for key in ("image", "command", "resources", "securityContext"):
        assert container[key] == worker["containers"][0][key]
    environment = {one["name"]: one.get("value") for one in container["env"]}
    assert (environment["MMS_ROLE"], environment["MMS_RANK"], environment["MMS_INCARNATION"]) == ("shard", "1", "1")
    sources = shard["volumes"][0]["projected"]["sources"]
    assert "words-shard-tls" in [source["secret"]["name"] for source in sources if "secret" in source]
    (spread,) = shard["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"]["mms.dev/role"] == "shard"
    job = JobFile.model_validate_json(found.others["ConfigMap/words-job-1-1"]["data"]["job.json"])
    assert job.syncMode == "ParameterServer"
    assert job.parameterServer is not None
    assert (job.parameterServer.shards, job.parameterServer.replicas) == (2, 1)
    assert job.parameterServer.consistency == "Synchronous"


def test_the_block_of_the_parameter_server_may_be_left_out() -> None:
    found = World(cr(**spec(sync={"mode": "ParameterServer"})))
    plan = found.settle()
    assert "words-shard-0-1" in found.live()
    found.run()
    plan = found.settle()
    assert plan.master is not None
    assert plan.master.desired == Desired(workers=2, minWorkers=1, shards=1)


def test_ring_has_no_shards() -> None:
    found = World(cr(**spec()))
    plan = found.step()
    assert plan.certificates is not None
    assert plan.certificates.roles == ("master", "worker", "reader")
    assert not [name for name in found.pods if "shard" in name]
    assert "shards" not in found.status


def test_what_the_template_says_of_workers_holds_for_shards() -> None:
    containers = [
        {"name": "worker", "env": [{"name": "A", "value": "1"}], "resources": {"limits": {"memory": "1Gi"}}},
        {"name": "shard", "env": [{"name": "B", "value": "2"}]},
        {"name": "master", "resources": {"limits": {"memory": "2Gi"}}},
        {"name": "log", "image": "registry/log:1"},
    ]
    template = {"spec": {"containers": containers}}
    found = sharded()
    found.change(workers={"replicas": 2, "podTemplate": template})
    found.settle()
    made = {role: found.pods[f"words-{role}-0-1"]["spec"]["containers"] for role in ("master", "worker", "shard")}
    assert [len(made[role]) for role in ("master", "worker", "shard")] == [1, 2, 1], "the sidecar is of the workers"
    names = {role: {one["name"] for one in made[role][0]["env"]} for role in made}
    assert ("A" in names["shard"], "B" in names["shard"]) == (True, True)
    assert ("A" in names["worker"], "B" in names["worker"]) == (True, False)
    assert made["shard"][0]["resources"] == {"limits": {"memory": "1Gi"}}
    assert made["master"][0]["resources"] == {"limits": {"memory": "2Gi"}}


@pytest.mark.parametrize("how", ["killed", "deleted", "vanished"])
def test_a_lost_shard_is_replaced(how: str) -> None:
    found = sharded()
    found.training()
    match how:
        case "killed":
            found.end("words-shard-1-1", 137)
        case "deleted":
            found.pods["words-shard-1-1"]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        case "vanished":
            found.gone("words-shard-1-1")
    found.settle()
    assert "words-shard-1-2" in found.live()
    assert (found.status["phase"], found.status["restarts"]) == ("Restarting", 1 if how == "killed" else 0)
    found.waits("words-shard-1-2")
    found.says(shardsReady=1)
    found.settle()
    assert (found.status["phase"], found.condition("Ready")["reason"]) == ("Restarting", "Unschedulable")
    found.run()
    found.says(shardsReady=1)
    found.settle()
    assert found.status["phase"] == "Restarting", "nobody trains without its parameters"
    found.says()
    found.settle()
    assert (found.status["phase"], found.status["shards"]) == ("Running", {"ready": 2})


def test_a_shard_that_has_no_node_is_told() -> None:
    found = sharded()
    found.settle()
    found.run("words-master-0-1", "words-worker-0-1", "words-worker-1-1", "words-shard-0-1")
    found.waits("words-shard-1-1")
    found.says(Activity.WAITING, shardsReady=1)
    found.settle()
    assert (found.status["phase"], found.condition("Ready")["reason"]) == ("Pending", "Unschedulable")
    assert "words-shard-1-1" in found.condition("Ready")["message"]


def test_shards_are_added_while_the_training_runs() -> None:
    found = sharded()
    found.training()
    shards(found, 3)
    plan = found.settle()
    assert "words-shard-2-1" in found.live()
    assert plan.master is not None
    assert plan.master.desired.shards == 3
    found.run()
    found.says(shardsReady=2)
    found.settle()
    assert found.status["phase"] == "Running"
    assert found.condition("Ready")["message"] == "2 workers train; 2 shards hold the parameters, 3 are to"
    found.says()
    found.settle()
    assert found.condition("Ready")["message"] == "2 workers train"


def test_a_shard_more_that_has_no_node_does_not_stop_the_training() -> None:
    found = sharded()
    found.training()
    shards(found, 3)
    found.settle()
    found.waits("words-shard-2-1")
    found.says(shardsReady=2)
    found.settle()
    assert found.status["phase"] == "Running"
    assert found.condition("Degraded")["reason"] == "Unschedulable"


def test_a_shard_less_goes_when_its_parameters_are_with_the_others() -> None:
    found = sharded(shards=3)
    found.training()
    shards(found, 2)
    found.settle()
    assert "words-shard-2-1" in found.live(), "the master has not heard of it"
    found.says(shardsReady=3)
    found.settle()
    assert "words-shard-2-1" in found.live(), "it still holds parameters"
    found.misses("words-shard-1-1", shardsReady=2, seconds=1)
    found.settle()
    assert "words-shard-2-1" in found.live(), "two are ready since another is missing"
    found.says(shardsReady=2)
    found.settle()
    assert "words-shard-2-1" not in found.live()
    found.gone()
    found.settle()
    assert (found.status["phase"], found.status["restarts"]) == ("Running", 0)
    assert not [event for event in found.events if event.reason == "ReplacingPod"]
    shards(found, 3)
    found.settle()
    assert "words-shard-2-2" in found.live(), "the number of the one before was given away"


def test_a_report_from_before_the_change_releases_no_shard() -> None:
    found = sharded(shards=3)
    found.training()
    found.says(shardsReady=2)  # one is being restored
    shards(found, 2)
    found.settle()
    assert "words-shard-2-1" in found.live()


def test_a_shard_that_is_wanted_again_stays_what_it_was() -> None:
    found = sharded(shards=3)
    found.training()
    shards(found, 2)
    found.settle()
    shards(found, 3)
    found.says(shardsReady=3)
    found.settle()
    assert {name for name in found.live() if "shard" in name} == {f"words-shard-{rank}-1" for rank in range(3)}


def test_a_shard_less_that_is_lost_has_no_successor() -> None:
    found = sharded(shards=3)
    found.training()
    shards(found, 2)
    found.settle()
    found.end("words-shard-2-1", 137)
    found.settle()
    assert {name for name in found.live() if "shard" in name} == {"words-shard-0-1", "words-shard-1-1"}
    assert found.status["restarts"] == 0


def test_suspension_waits_for_the_checkpoint_of_the_shards() -> None:
    found = sharded()
    found.training()
    found.change(runPolicy={"run": 1, "suspend": True, "backoffLimit": 3})
    found.settle()
    found.gone("words-worker-0-1", "words-shard-0-1")
    plan = found.settle()
    assert found.live() == {"words-master-0-1", "words-worker-1-1", "words-shard-0-2", "words-shard-1-1"}
    assert plan.master is not None
    assert (plan.master.desired.suspend, plan.master.desired.shards) == (True, 2)
    assert found.status["incidentCounts"] == {"PodDeleted": 2}
    found.says(Activity.DONE, outcome=SUSPENDED)
    found.settle()
    found.gone()
    found.settle()
    assert (found.status["phase"], found.pods) == ("Suspended", {})
    assert "shards" not in found.status
