"""A training with fewer workers than wanted, with pods that are not heard of, and what its attempts lost."""

from __future__ import annotations

from datetime import timedelta

from mms_operator.api import names
from mms_workloads.contract import Activity, Desired, Gone, Outcome
from tests.unit.plan.world import CHECKPOINT, SUSPENDED, World, cr, spec

# ---- workers that cannot run


def test_a_pod_that_stands_by_makes_up_for_one_that_cannot_run() -> None:
    found = World(cr(**spec(workers={"replicas": 2, "standby": 1})))
    found.settle()
    assert {name for name in found.pods if "worker" in name} == {f"words-worker-{rank}-1" for rank in range(3)}
    found.run()
    found.says(workersStandby=1)
    plan = found.settle()
    assert (found.status["replicas"], found.status["workers"]) == (2, {"ready": 2, "standby": 1, "epoch": 1})
    assert "2 workers train, 1 stands by" in found.condition("Ready")["message"]
    found.gone("words-worker-0-1")
    found.settle()
    found.waits("words-worker-0-2")
    found.says(workersStandby=0)
    plan = found.settle()
    assert plan.master is not None
    assert plan.master.desired.workers == 2
    assert found.status["phase"] == "Running"
    assert "2 workers train, 0 of 1 stand by" in found.condition("Degraded")["message"]


def test_a_training_goes_on_with_those_that_can_run_and_grows_back() -> None:
    found = World(cr(**spec(workers={"replicas": 3, "minReplicas": 2})))
    found.settle()
    found.run()
    found.says(workersReady=3)
    found.settle()
    found.gone("words-worker-1-1")
    found.settle()
    assert (found.status["phase"], found.condition("Ready")["reason"]) == ("Restarting", "ReplacingPod")
    found.waits("words-worker-1-2")
    found.says(workersReady=2)
    plan = found.settle()
    assert plan.master is not None
    assert plan.master.desired == Desired(workers=2, minWorkers=2)
    assert (found.status["phase"], found.condition("Ready")["status"]) == ("Running", "True")
    degraded = found.condition("Degraded")
    assert (degraded["status"], degraded["reason"]) == ("True", "Unschedulable")
    assert degraded["message"].startswith("2 of 3 workers train; no node takes pod words-worker-1-2: 0/2 nodes")
    assert "words-worker-1-2" in found.live(), "it stays, and starts when there is room"
    assert [(event.type, event.reason) for event in found.events][-1] == ("Warning", "Unschedulable")
    events = len(found.events)
    found.settle()
    assert len(found.events) == events

    found.run("words-worker-1-2")
    plan = found.settle()
    assert plan.master is not None
    assert plan.master.desired.workers == 3
    assert found.condition("Degraded")["status"] == "False"
    assert found.status["phase"] == "Running"


def test_dead_data_is_told() -> None:
    found = World(cr(**spec(workers={"replicas": 2})))
    found.settle()
    found.run()
    found.says(workersReady=2, quarantined=3)
    found.settle()
    degraded = found.condition("Degraded")
    assert (found.status["phase"], degraded["status"], degraded["reason"]) == ("Running", "True", "DeadData")
    assert degraded["message"].startswith("3 blocks of the data")


def test_below_the_least_number_nobody_trains() -> None:
    found = World(cr(**spec(workers={"replicas": 3, "minReplicas": 3})))
    found.settle()
    found.run()
    found.says(workersReady=3)
    found.settle()
    found.gone("words-worker-1-1")
    found.settle()
    found.waits("words-worker-1-2")
    found.says(Activity.WAITING, workersReady=2)
    plan = found.settle()
    assert plan.master is not None
    assert plan.master.desired.workers == 3
    assert (found.status["phase"], found.condition("Ready")["reason"]) == ("Restarting", "Unschedulable")
    assert "Insufficient cpu" in found.condition("Ready")["message"]
    assert found.condition("Degraded")["status"] == "False"


def test_a_training_begins_with_those_that_can_run() -> None:
    found = World(cr(**spec(workers={"replicas": 3, "minReplicas": 1})))
    found.settle()
    found.run("words-master-0-1", "words-worker-0-1")
    found.waits("words-worker-1-1", "words-worker-2-1")
    plan = found.settle()
    assert plan.master is not None
    assert plan.master.desired.workers == 1
    assert found.status["phase"] == "Pending"
    found.says(workersReady=1)
    found.settle()
    assert found.status["phase"] == "Running"
    assert found.condition("Ready")["message"].startswith("1 of 3 workers train; no node takes")


# ---- pods that are not heard of


def test_a_worker_that_is_not_heard_of_is_replaced_although_its_pod_seems_to_run() -> None:
    found = World(cr(**spec(runPolicy={"run": 1, "suspend": False, "backoffLimit": 0})))
    found.training()
    found.misses("words-worker-1-1", seconds=2.9, workersReady=1)
    found.settle()
    assert found.status["phase"] == "Running", "its process may be starting again in its pod"
    found.misses("words-worker-1-1", workersReady=1)
    found.settle()
    assert found.live() == {"words-master-0-1", "words-worker-0-1", "words-worker-1-2"}
    assert (found.status["phase"], found.status["restarts"]) == ("Restarting", 0)
    affinity = found.pods["words-worker-1-2"]["spec"]["affinity"]["nodeAffinity"]
    (preference,) = affinity["preferredDuringSchedulingIgnoredDuringExecution"]
    (field,) = preference["preference"]["matchFields"]
    assert field == {"key": "metadata.name", "operator": "NotIn", "values": ["node-of-words-worker-1-1"]}
    (warned,) = [event for event in found.events if event.reason == "ReplacingPod"]
    assert "worker 1 has not been heard of for 3 s on node node-of-words-worker-1-1 (NodeUnreachable" in warned.message
    assert found.status["incidentCounts"] == {"NodeUnreachable": 1}
    # Nothing waits for the old pod, which stays Terminating for as long as its node is away.
    found.run("words-worker-1-2")
    found.says(epoch=3)
    found.settle()
    assert found.status["phase"] == "Running"
    assert "words-worker-1-1" in found.pods


def test_where_others_on_the_node_are_heard_of_the_process_is_at_fault() -> None:
    found = World(cr(**spec()))
    found.settle()
    found.run(node="one")
    found.says()
    found.settle()
    found.misses("words-worker-1-1", workersReady=1, seconds=8.0)
    found.settle()
    assert found.status["restarts"] == 0, "its supervisor starts it again, after its stacks are in the log"
    found.misses("words-worker-1-1", workersReady=1, seconds=12.0)
    found.settle()
    assert (found.status["restarts"], found.status["incidentCounts"]) == (1, {"ProcessSilent": 1})


def test_a_node_that_is_cut_off_costs_nothing_however_many_pods_were_on_it() -> None:
    server = {"shards": 2, "replicas": 2}
    found = World(cr(**spec(sync={"mode": "ParameterServer", "parameterServer": server})))
    found.settle()
    found.run("words-master-0-1", "words-worker-0-1", "words-shard-0-1", node="one")
    found.run("words-worker-1-1", "words-shard-1-1", node="two")
    found.says()
    found.settle()
    found.misses("words-worker-1-1", "words-shard-1-1", workersReady=1, shardsReady=1)
    found.settle()
    assert {"words-worker-1-2", "words-shard-1-2"} <= found.live()
    assert (found.status["restarts"], found.status["incidentCounts"]) == (0, {"NodeUnreachable": 2})


def test_a_master_that_answered_and_answers_no_more_is_replaced() -> None:
    found = World(cr(**spec()))
    found.training()
    found.silent_master = ("words-master-0-1", 9.9)
    found.settle()
    assert found.status["phase"] == "Running"
    found.silent_master = ("words-master-0-1", 10.0)
    found.settle()
    assert "words-master-0-2" in found.live()
    assert found.status["phase"] == "Restarting"
    assert (found.status["restarts"], found.status["incidentCounts"]) == (1, {"MasterSilent": 1})
    service = next(o for o in found.others.values() if o["kind"] == "Service")
    assert service["spec"]["selector"][names.LABEL_INCARNATION] == "2", "nobody finds the one that may come back"
    found.run("words-master-0-2")
    found.says(workersReady=1)
    found.settle()
    assert not [name for name in found.pods if name.startswith("words-master-0-3")]


def test_what_a_new_master_has_never_heard_of_is_replaced_if_it_is_older() -> None:
    found = World(cr(**spec()))
    found.training()
    found.now += timedelta(seconds=60)
    del found.pods["words-master-0-1"]
    found.settle()
    found.run("words-master-0-2")
    unheard = [Gone(role="worker", rank=rank, incarnation=0, seconds=12) for rank in (0, 1)]
    found.says(workersReady=1, gone=unheard[1:])
    found.settle()
    assert "words-worker-1-2" in found.live()
    found.run("words-worker-1-2")
    found.now += timedelta(seconds=60)
    found.says(workersReady=1, gone=unheard[1:])
    found.settle()
    assert not [name for name in found.pods if name.startswith("words-worker-1-3")], "it is younger than the master"


def test_one_that_was_replaced_already_is_not_replaced_again() -> None:
    found = World(cr(**spec()))
    found.training()
    found.misses("words-worker-1-1", seconds=60, workersReady=1)
    found.settle()
    found.run("words-worker-1-2")
    found.settle()
    assert "words-worker-1-2" in found.live()
    assert not [name for name in found.pods if name.startswith("words-worker-1-3")]


def test_other_nodes_are_preferred_to_those_that_the_template_prefers() -> None:
    zone = {"weight": 1, "preference": {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}}
    affinity = {
        "podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": []},
        "nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [zone]},
    }
    found = World(cr(**spec(workers={"replicas": 2, "podTemplate": {"spec": {"affinity": affinity}}})))
    found.training()
    assert found.pods["words-worker-1-1"]["spec"]["affinity"] == affinity
    found.misses("words-worker-1-1", workersReady=1)
    found.settle()
    made = found.pods["words-worker-1-2"]["spec"]["affinity"]
    assert made["podAffinity"] == affinity["podAffinity"]
    preferred = made["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert (preferred[0], preferred[1]["weight"]) == (zone, 100)


# ---- what an attempt lost


def test_what_an_attempt_lost_is_what_came_after_its_checkpoint() -> None:
    found = World(cr(**spec()))
    found.training()
    found.says(step=20, checkpoint=CHECKPOINT)
    found.settle()
    found.certificates = None
    found.settle()
    (first, second) = found.status["attempts"]
    assert (first["steps"], first["lostSteps"], first["reason"]) == (20, 11, "CertificatesLost")
    assert (second["steps"], second["lostSteps"]) == (0, 0)


def test_a_suspension_whose_checkpoint_is_of_the_last_step_loses_nothing() -> None:
    found = World(cr(**spec()))
    found.training()
    found.change(runPolicy={"run": 1, "suspend": True, "backoffLimit": 3})
    found.says(step=9)
    found.settle()
    found.says(Activity.DONE, step=9, outcome=SUSPENDED)
    found.settle()
    (attempt,) = found.status["attempts"]
    assert (attempt["steps"], attempt["lostSteps"]) == (9, 0)


def test_steps_that_are_trained_again_within_an_attempt_are_lost() -> None:
    found = World(cr(**spec()))
    found.training()
    found.says(step=20, checkpoint=CHECKPOINT)
    found.settle()
    found.says(Activity.WAITING, step=9, workersReady=0)
    found.settle()
    assert found.status["attempts"][0]["lostSteps"] == 0, "a master that starts has not heard of the workers' step yet"
    found.says(step=9, epoch=4)
    found.settle()
    found.says(step=12, epoch=4)
    found.settle()
    assert (found.status["attempts"][0]["steps"], found.status["attempts"][0]["lostSteps"]) == (12, 11)


def test_a_name_is_used_once_though_the_run_failed_when_its_pod_was_first_seen() -> None:
    """The plan that ends a run sees processes of which none before has heard; the next runs have fewer places."""
    found = World(cr(**spec(workers={"replicas": 3})))
    found.settle()
    found.run()
    found.end("words-worker-0-1", 1, Outcome(result="Failed", reason="DataEmpty", message="no data"))
    found.settle()
    assert found.status["phase"] == "Failed"
    found.change(runPolicy={**found.cr["spec"]["runPolicy"], "run": 2}, workers={"replicas": 2})
    for name in list(found.pods):
        found.gone(name)
    found.settle()
    found.change(workers={"replicas": 3})
    found.settle()
    assert "words-worker-2-1" not in found.pods
    assert "words-worker-2-2" in found.pods
