"""A training that is deleted, and one that another controller carries out."""

from __future__ import annotations

from datetime import timedelta

import pytest

from mms_operator.plan.training import deletion
from mms_workloads.contract import Activity
from tests.unit.plan.world import COMPLETE, SUSPENDED, World, cr, spec


def world(**parts: object) -> World:
    return World(cr(**spec(**parts)))


def suspending(found: World) -> None:
    found.change(runPolicy={"run": 1, "suspend": True, "backoffLimit": 3})
    found.settle()


def test_it_is_held_only_while_pods_may_hold_what_no_checkpoint_has() -> None:
    found = world()
    found.settle()
    assert not found.held, "pods that start hold nothing"
    found.run()
    found.says()
    found.settle()
    assert found.held
    suspending(found)
    assert found.held
    found.says(Activity.DONE, outcome=SUSPENDED)
    found.settle()
    assert not found.held
    found.gone()
    found.change(runPolicy={"run": 1, "suspend": False, "backoffLimit": 3})
    found.training()
    assert found.held
    found.says(Activity.DONE, outcome=COMPLETE)
    found.settle()
    assert not found.held


def test_a_last_checkpoint_is_written_before_it_goes() -> None:
    found = world()
    found.training()
    found.deleted()
    plan = found.settle()
    assert found.held
    assert plan.master is not None
    assert plan.master.desired.suspend
    assert (found.status["phase"], found.condition("Ready")["reason"]) == ("Suspending", "Deleting")
    assert plan.requeue_after == deletion.SECONDS + 1
    assert (plan.waves, plan.deletions, plan.certificates, plan.prune) == ((), (), None, False)
    found.says(Activity.DONE, outcome=SUSPENDED)
    plan = found.settle()
    assert not found.held
    assert (plan.waves, plan.deletions, plan.events) == ((), (), ()), "the garbage collector has the rest"


def test_a_checkpoint_that_does_not_come_holds_it_for_a_minute_at_most() -> None:
    found = world()
    found.training()
    found.deleted()
    plan = found.settle()
    assert plan.requeue_after is not None
    found.now += timedelta(seconds=plan.requeue_after)
    found.step()
    assert not found.held
    assert [(event.type, event.reason) for event in found.events][-1] == ("Warning", "SuspendTimedOut")


@pytest.mark.parametrize(
    "lost", ["all are told to stop", "all are gone", "the master is gone", "the master has crashed"]
)
def test_where_no_checkpoint_can_come_it_goes_at_once(lost: str) -> None:
    """As when its namespace ends: its pods are deleted with everything else, and nothing can be made."""
    found = world()
    found.training()
    found.deleted()
    found.settle()
    match lost:
        case "all are told to stop":
            for pod in found.pods.values():
                pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:30Z"
        case "all are gone":
            found.gone(*found.pods)
        case "the master is gone":
            found.gone("words-master-0-1")
        case _:
            found.end("words-master-0-1", 139)
    plan = found.step()
    assert not found.held
    assert plan.waves == ()


def test_a_worker_that_is_lost_meanwhile_has_no_successor() -> None:
    found = world()
    found.training()
    found.deleted()
    found.settle()
    found.gone("words-worker-1-1")
    plan = found.settle()
    assert found.held
    assert (plan.waves, found.live()) == ((), {"words-master-0-1", "words-worker-0-1"})
    assert found.status["incidents"][0]["action"] == "worker 1 is gone: the others write the checkpoint"


@pytest.mark.parametrize("phase", ["Pending", "Suspended", "Complete", "no status"])
def test_what_holds_nothing_goes_at_once(phase: str) -> None:
    found = world()
    match phase:
        case "Pending":
            found.settle()
        case "Suspended":
            suspending(found)
        case "Complete":
            found.training()
            found.says(Activity.DONE, outcome=COMPLETE)
            found.settle()
        case _:
            pass
    status = found.status
    found.deleted()
    plan = found.step()
    assert plan.finalizer is False
    assert (found.status, plan.waves, plan.deletions) == (status, (), ())


def test_a_spec_that_cannot_be_read_holds_nothing() -> None:
    found = world()
    found.training()
    found.change(task={"wordEmbedding": {"dimensions": "many"}})
    found.settle()
    assert found.held, "what runs is left as it is"
    found.deleted()
    found.step()
    assert not found.held


# ---- another controller


OTHER = "kueue.x-k8s.io/multikueue"


def test_what_another_controller_carries_out_is_left_alone() -> None:
    found = world(managedBy=OTHER)
    plan = found.settle()
    assert (plan.waves, plan.certificates, plan.deletions, plan.finalizer, found.pods) == ((), None, (), None, {})
    said = found.condition("Accepted")
    assert (said["status"], said["reason"]) == ("Unknown", "ManagedByAnother")
    assert OTHER in said["message"]
    assert set(found.status) == {"conditions"}


def test_what_another_controller_writes_is_never_touched() -> None:
    found = world(managedBy=OTHER)
    found.settle()
    theirs = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}], "run": 1}
    found.cr = {**found.cr, "status": theirs}
    plan = found.settle()
    assert plan.status == theirs


def test_our_own_name_is_as_none() -> None:
    found = world(managedBy="mms.dev/operator")
    found.settle()
    assert len(found.pods) == 3
