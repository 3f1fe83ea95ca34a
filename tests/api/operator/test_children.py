"""What the operator does with the objects that a planner wants: made, kept as they are, put back, pruned."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from mms_operator import main
from mms_operator.api import names
from mms_operator.engine.cache import Cache
from mms_operator.engine.kubeapi import Call
from mms_operator.plan.types import Plan
from tests.api.operating import SECONDS, Cluster, Object, Replica, until
from tests.trivial import OPTIONAL, PLANNERS

pytestmark = pytest.mark.api

CHILDREN = (
    ("ConfigMap", "words-job"),
    ("Secret", "words-store"),
    ("Service", "words-master"),
    ("Secret", "words-ca"),
    ("Secret", "words-master-tls"),
    ("Secret", "words-worker-tls"),
    ("Pod", "words-worker-0-1"),
    ("Pod", "words-worker-1-1"),
)
SOME = (("ConfigMap", "words-job"), ("Pod", "words-worker-0-1"))  # one of each kind of watch


def test_children_appear_with_owner_labels_and_hash(cluster: Cluster, operator: Replica) -> None:
    cr = cluster.train()
    for kind, name in CHILDREN:
        metadata = cluster.there(kind, name)["metadata"]
        (reference,) = metadata["ownerReferences"]
        assert reference == {
            "apiVersion": names.API_VERSION,
            "kind": names.TRAINING,
            "name": "words",
            "uid": cr["metadata"]["uid"],
            "controller": True,
            "blockOwnerDeletion": True,
        }
        assert metadata["labels"][names.LABEL_MANAGED_BY] == names.MANAGED_BY
        assert re.fullmatch("[0-9a-f]{64}", metadata["annotations"][names.ANNOTATION_HASH])
    assert operator.metric("mms_errors_total", what="ReconcileFailed") == 0


def test_the_status_is_written_once_and_the_event_comes_once(cluster: Cluster, operator: Replica) -> None:
    cluster.train()
    cluster.there("Pod", "words-worker-1-1")
    operator.settled()
    training = cluster.get(names.TRAINING, "words")
    assert training
    assert training["status"]["observedGeneration"] == training["metadata"]["generation"] == 1
    assert cluster.event_reasons() == ["Starting"]
    statuses = [status for call, status in operator.calls if call.resource == "modeltrainings/status"]
    assert statuses == [200]
    cluster.patch(names.TRAINING, "words", {"spec": {"workers": {"replicas": 3}}})
    cluster.there("Pod", "words-worker-2-1")
    until(lambda: cluster.status(names.TRAINING, "words").get("observedGeneration") == 2, "generation 2")
    assert cluster.event_reasons() == ["Starting"]


def test_when_settled_nothing_is_written(cluster: Cluster, operator: Replica) -> None:
    for n in range(5):
        cluster.train(f"words-{n}")
    cluster.serve("served", "words-0")
    for n in range(5):
        cluster.there("Pod", f"words-{n}-worker-1-1")
    before = operator.settled()
    reads = len(operator.calls)
    time.sleep(3)  # this is what is tested: nothing happens
    assert operator.writes() == before
    assert {call.verb for call, _ in operator.calls[reads:] if call.resource != "leases"} <= {"watch", "list"}


def test_after_a_restart_nothing_is_written_again(cluster: Cluster) -> None:
    with Replica(cluster, (cluster.namespace,)) as replica:
        cluster.train()
        cluster.there("Pod", "words-worker-1-1")
        replica.settled()
    with Replica(cluster, (cluster.namespace,)) as replica:
        replica.leads()
        until(lambda: replica.metric("mms_reconciles_total", kind=names.TRAINING, result="unchanged"), "a look")
        assert replica.settled() == 0


EDITS = {
    "a changed value": ("ConfigMap", "words-job", {"data": {"job.json": "edited"}}),
    "a removed value": ("ConfigMap", "words-job", {"data": {"job.json": None}}),
    "a Secret": ("Secret", "words-store", {"data": {"key": "ZWRpdGVk"}}),
    "a removed label": ("Service", "words-master", {"metadata": {"labels": {names.LABEL_TRAINING: None}}}),
    "the label that is watched": ("Service", "words-master", {"metadata": {"labels": {names.LABEL_MANAGED_BY: None}}}),
    "the hash": ("ConfigMap", "words-job", {"metadata": {"annotations": {names.ANNOTATION_HASH: "x"}}}),
}


@pytest.mark.parametrize(("kind", "name", "edit"), EDITS.values(), ids=EDITS)
def test_what_is_edited_by_hand_is_put_back(
    cluster: Cluster, operator: Replica, kind: str, name: str, edit: Object
) -> None:
    cluster.train()
    cluster.there("Pod", "words-worker-1-1")
    before = operator.settled()
    original = cluster.there(kind, name)
    edited = cluster.patch(kind, name, edit)
    assert content(edited) != content(original)
    until(lambda: content(cluster.get(kind, name)) == content(original), f"{kind} {name} is as before")
    assert operator.settled() - before <= 3, "one write does it; that nobody's own label is lost may take a second look"
    assert cluster.event_reasons() == ["Starting"]


@pytest.mark.parametrize(("kind", "name", "edit"), EDITS.values(), ids=EDITS)
def test_what_was_edited_while_nobody_led_is_put_back(cluster: Cluster, kind: str, name: str, edit: Object) -> None:
    with Replica(cluster, (cluster.namespace,)) as replica:
        cluster.train()
        cluster.there("Pod", "words-worker-1-1")
        replica.settled()
    original = cluster.there(kind, name)
    assert content(cluster.patch(kind, name, edit)) != content(original)
    with Replica(cluster, (cluster.namespace,)) as replica:
        replica.leads()
        until(lambda: content(cluster.get(kind, name)) == content(original), f"{kind} {name} is as before")
        assert 1 <= replica.settled() <= 3


def content(obj: Object | None) -> Object:
    assert obj
    metadata = obj["metadata"]
    return {
        **{key: obj[key] for key in ("data", "spec") if key in obj},
        "metadata": {key: metadata.get(key) for key in ("labels", "annotations", "ownerReferences", "uid")},
    }


def test_what_others_add_is_theirs(cluster: Cluster, operator: Replica) -> None:
    cluster.train()
    cluster.there("Pod", "words-worker-1-1")
    before = operator.settled()
    cluster.patch("ConfigMap", "words-job", {"data": {"more": "x"}, "metadata": {"labels": {"team": "a"}}})
    assert operator.settled() == before
    found = cluster.there("ConfigMap", "words-job")
    assert found["data"]["more"] == "x"
    assert found["metadata"]["labels"]["team"] == "a"


def test_deleted_children_are_made_again(cluster: Cluster, operator: Replica) -> None:
    cluster.train()
    cluster.there("Pod", "words-worker-1-1")
    operator.settled()
    for kind, name in CHILDREN:
        uid = cluster.there(kind, name)["metadata"]["uid"]
        cluster.delete(kind, name)
        cluster.there(kind, name, but=uid)
    operator.settled()
    assert operator.metric("mms_swept_total") == 0, "the watches told it"


def test_what_leaves_the_plan_is_pruned(cluster: Cluster, operator: Replica) -> None:
    cluster.train(annotations={OPTIONAL: "yes"})
    cluster.there("NetworkPolicy", "words-pods")
    operator.settled()
    cluster.patch(names.TRAINING, "words", {"metadata": {"annotations": {OPTIONAL: None}}})
    until(lambda: cluster.get("NetworkPolicy", "words-pods") is None, "the policy is gone")
    for kind, name in CHILDREN:
        assert cluster.get(kind, name), "everything else stays"


def test_a_finalizer_is_waited_for(cluster: Cluster, operator: Replica) -> None:
    cluster.train(annotations={OPTIONAL: "yes"})
    cluster.there("NetworkPolicy", "words-pods")
    cluster.patch("NetworkPolicy", "words-pods", {"metadata": {"finalizers": ["example.com/wait"]}})
    operator.settled()
    cluster.patch(names.TRAINING, "words", {"metadata": {"annotations": {OPTIONAL: None}}})
    until(lambda: "deletionTimestamp" in cluster.there("NetworkPolicy", "words-pods")["metadata"], "the deletion")
    operator.settled()
    deletions = [call for call, _ in operator.calls if call == Call("delete", "networking.k8s.io", "networkpolicies")]
    assert len(deletions) == 1
    cluster.patch("NetworkPolicy", "words-pods", {"metadata": {"finalizers": None}})


@pytest.mark.parametrize("kind", ["ConfigMap", "Pod"])
@pytest.mark.parametrize("labelled", [False, True], ids=["nobody's", "with our label"])
def test_nobodys_object_of_the_same_name_is_left_alone(
    cluster: Cluster, operator: Replica, kind: str, labelled: bool
) -> None:
    name = "words-job" if kind == "ConfigMap" else "words-worker-0-1"
    labels = {names.LABEL_MANAGED_BY: names.MANAGED_BY} if labelled else {}
    body = {"data": {"theirs": "x"}} if kind == "ConfigMap" else {"spec": {"containers": [{"name": "c", "image": "x"}]}}
    theirs = cluster.create({"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "labels": labels}, **body})
    cluster.train()
    until(lambda: cluster.conditions().get("Ready") == "NameTaken", "condition NameTaken")
    until(lambda: "NameTaken" in cluster.event_reasons(), "event NameTaken")
    until(lambda: operator.metric("mms_errors_total", what="NameTaken") >= 3, "some more tries")
    assert cluster.get(kind, name) == theirs
    assert sorted(cluster.event_reasons()) == ["NameTaken", "Starting"]
    cluster.delete(kind, name)
    until(lambda: cluster.conditions() == {"Ready": "Starting"}, "the problem is taken back")
    assert cluster.there(kind, name)["metadata"]["ownerReferences"]


def test_a_deleted_training_is_forgotten_and_its_successor_waits_for_its_leavings(
    cluster: Cluster, operator: Replica
) -> None:
    cluster.train()
    cluster.there("Pod", "words-worker-1-1")
    before = operator.settled()
    cluster.delete(names.TRAINING, "words")
    assert operator.settled() == before, "what belonged to it is the garbage collector's"
    uid = cluster.train()["metadata"]["uid"]
    until(lambda: cluster.conditions().get("Ready") == "WaitingForDeletion", "its predecessor's objects are there")
    for kind, name in CHILDREN:
        cluster.delete(kind, name)
    for kind, name in CHILDREN:
        until(
            lambda kind=kind, name=name: cluster.there(kind, name)["metadata"]["ownerReferences"][0]["uid"] == uid,
            f"{kind} {name} of the successor",
        )


def test_a_service_hears_of_its_training(cluster: Cluster, operator: Replica) -> None:
    """Also when it is the operator itself that changed the training."""
    cluster.serve("served", "words")
    until(lambda: cluster.status(names.SERVICE, "served").get("observedGeneration") == 1, "a status")
    operator.settled()
    cluster.train()
    until(lambda: cluster.status(names.SERVICE, "served").get("replicas") == 1, "generation 1")
    cluster.patch(names.TRAINING, "words", {"spec": {"workers": {"replicas": 3}}})
    until(lambda: cluster.status(names.SERVICE, "served").get("replicas") == 2, "generation 2")
    operator.settled()
    woken = operator.metric("mms_reconciles_total", kind=names.SERVICE, result="unchanged")
    cluster.patch(names.TRAINING, "words", {"status": {"phase": "Complete"}}, "status")
    until(lambda: cluster.status(names.TRAINING, "words").get("phase") == "Pending", "the operator's word")
    until(
        lambda: operator.metric("mms_reconciles_total", kind=names.SERVICE, result="unchanged") >= woken + 2,
        "a look for either change of the status",
    )


def test_a_secret_that_a_spec_names_is_looked_for(
    cluster: Cluster, operator: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mms_operator.engine.reconcile.SECRET_SECONDS", 0.2)
    cluster.create(
        {
            "apiVersion": names.API_VERSION,
            "kind": names.TRAINING,
            "metadata": {"name": "words"},
            "spec": {
                "task": {"wordEmbedding": {}},
                "data": {"uri": "s3://corpora/x", "endpoint": "http://s3.example", "secretRef": {"name": "keys"}},
            },
        }
    )
    until(lambda: cluster.conditions() == {"Ready": "SecretNotFound"}, "SecretNotFound")
    assert cluster.get("Pod", "words-worker-0-1") is None
    cluster.create({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "stringData": {"a": "b"}})
    cluster.there("Pod", "words-worker-0-1")


def test_values_of_secrets_never_enter_the_cache(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Cache] = []

    class Seen(Cache):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(main, "Cache", Seen)
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "theirs", "labels": {names.LABEL_MANAGED_BY: names.MANAGED_BY}},
        "data": {"key": "dmFsdWU="},
    }
    cluster.create(secret)
    with Replica(cluster, (cluster.namespace,)) as replica:
        replica.leads()
        cluster.train()
        cluster.there("Pod", "words-worker-1-1")
        cluster.patch("Secret", "theirs", {"data": {"more": "dmFsdWU="}})
        replica.settled()
        (cache,) = made
        entries = list(cache.entries("Secret"))
        assert {entry.name for entry in entries} == {
            "theirs", "words-store", "words-ca", "words-master-tls", "words-worker-tls",
        }  # fmt: skip
        assert all(entry.body is None for entry in entries)
        assert "dmFsdWU" not in repr(cache._entries)
        assert ("get", "secrets") not in {(call.verb, call.resource) for call, _ in replica.calls}


def test_a_status_that_is_overtaken_is_no_failure(cluster: Cluster, operator: Replica) -> None:
    """The planner holds the reconciliation up while the custom resource changes, and then while it goes."""
    entered, go = threading.Event(), threading.Event()
    planner = PLANNERS[names.TRAINING]

    def slow(*args: Any) -> Any:
        entered.set()
        assert go.wait(SECONDS)
        return planner.plan(*args)

    operator.stop()
    planners = {**PLANNERS, names.TRAINING: replace(planner, plan=slow)}
    with Replica(cluster, (cluster.namespace,), planners) as replica:
        replica.leads()
        cluster.train()
        assert entered.wait(SECONDS)
        cluster.patch(names.TRAINING, "words", {"metadata": {"annotations": {"a": "b"}}})
        go.set()
        cluster.there("Pod", "words-worker-1-1")
        until(lambda: replica.metric("mms_reconciles_total", kind=names.TRAINING, result="overtaken"), "a conflict")
        replica.settled()
        entered.clear()
        go.clear()
        cluster.patch(names.TRAINING, "words", {"spec": {"workers": {"replicas": 3}}})
        assert entered.wait(SECONDS)
        cluster.delete(names.TRAINING, "words")
        go.set()
        until(lambda: replica.metric("mms_reconciles_total", kind=names.TRAINING, result="gone"), "its end")
        replica.settled()
        assert replica.metric("mms_reconciles_total", kind=names.TRAINING, result="error") == 0
        assert cluster.get("Pod", "words-worker-2-1") is None
        assert sorted(cluster.event_reasons()) == ["Starting"]


def test_a_planner_that_fails_is_seen_on_the_object_and_harms_no_other(cluster: Cluster) -> None:
    planner = PLANNERS[names.TRAINING]
    broken = threading.Event()
    broken.set()

    def plan(cr: Object, *args: Any) -> Any:
        if cr["metadata"]["name"] == "bad" and broken.is_set():
            raise KeyError("what it needs")
        return planner.plan(cr, *args)

    planners = {**PLANNERS, names.TRAINING: replace(planner, plan=plan)}
    with Replica(cluster, (cluster.namespace,), planners) as replica:
        replica.leads()
        cluster.train("bad")
        cluster.train("good")
        cluster.there("Pod", "good-worker-1-1")
        until(lambda: cluster.conditions("bad").get("Ready") == "ReconcileFailed", "the condition")
        until(lambda: replica.metric("mms_errors_total", what="KeyError") >= 3, "some more tries")
        assert cluster.event_reasons("bad") == ["ReconcileFailed"]
        broken.clear()
        until(lambda: cluster.conditions("bad") == {"Ready": "Starting"}, "the problem is taken back")


@pytest.mark.parametrize("ends", [False, True], ids=["deleted", "deleted with its namespace"])
def test_a_training_that_is_held_goes_when_it_is_let_go(cluster: Cluster, ends: bool) -> None:
    planner, enough = PLANNERS[names.TRAINING], threading.Event()

    def plan(cr: Object, *args: Any) -> Any:
        if "deletionTimestamp" not in cr["metadata"]:
            return replace(planner.plan(cr, *args), finalizer=True)
        going = enough.is_set()
        return Plan(status={**cr["status"], "phase": "Suspending"}, prune=False, finalizer=not going, requeue_after=0.2)

    planners = {**PLANNERS, names.TRAINING: replace(planner, plan=plan)}
    with Replica(cluster, (cluster.namespace,), planners) as replica:
        replica.leads()
        cluster.train(finalizers=["example.com/theirs"])
        cluster.there("Pod", "words-worker-1-1")
        until(lambda: names.FINALIZER in cluster.there(names.TRAINING, "words")["metadata"]["finalizers"], "held")
        writes = replica.settled()
        cluster.patch(names.TRAINING, "words", {"metadata": {"labels": {"a": "b"}}})
        assert replica.settled() == writes, "it is held once"
        if ends:
            status, answer = cluster.server.api.request("DELETE", f"/api/v1/namespaces/{cluster.namespace}")
            assert status == 200, answer
        cluster.delete(names.TRAINING, "words")
        until(lambda: cluster.status(names.TRAINING, "words").get("phase") == "Suspending", "the planner's word")
        enough.set()
        until(
            lambda: cluster.there(names.TRAINING, "words")["metadata"]["finalizers"] == ["example.com/theirs"],
            "it is let go, and another's finalizer stays",
        )
        cluster.patch(names.TRAINING, "words", {"metadata": {"finalizers": None}})
        until(lambda: cluster.get(names.TRAINING, "words") is None, "it is gone")
        replica.settled()
        assert replica.metric("mms_reconciles_total", kind=names.TRAINING, result="error") == 0


def test_a_namespace_that_ends_is_no_failure(cluster: Cluster, operator: Replica) -> None:
    cluster.train()
    cluster.there("Pod", "words-worker-1-1")
    operator.settled()
    status, answer = cluster.server.api.request("DELETE", f"/api/v1/namespaces/{cluster.namespace}")
    assert status == 200, answer
    cluster.delete("ConfigMap", "words-job")
    cluster.delete("Pod", "words-worker-0-1")
    operator.settled()
    assert operator.metric("mms_reconciles_total", kind=names.TRAINING, result="error") == 0
