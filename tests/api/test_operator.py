"""The operator, with planners that decide next to nothing, against a real API server.

Most tests run it in a thread with an event loop of its own: kopf takes all tasks of its loop for its own when it ends.
What needs a process, signals and sudden death, has one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest
from tests.api.operating import ROOT, SECONDS, Cluster, Object, Replica, beyond_the_rules, install, until
from tests.trivial import OPTIONAL, PLANNERS

from mms_cluster import process
from mms_cluster.apionly import ApiOnly
from mms_cluster.ports import free_ports
from mms_operator import main, uninstall
from mms_operator.api import names
from mms_operator.engine import kubeapi
from mms_operator.engine.cache import Cache
from mms_operator.engine.intake import Intake
from mms_operator.engine.kubeapi import Call
from mms_operator.engine.lease import Lease
from mms_operator.engine.sweep import Sweeper
from mms_operator.plan.types import Plan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mms_operator.engine.resources import Resource

pytestmark = pytest.mark.api


@pytest.fixture(scope="module")
def crds(apiserver: ApiOnly) -> None:
    install(apiserver)


@pytest.fixture
def cluster(apiserver: ApiOnly, crds: None, kubeconfig: Path, namespace: str) -> Cluster:
    return Cluster(apiserver, namespace)


@pytest.fixture(autouse=True)
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A replica in a thread that loses its Lease would end the tests' process."""
    statuses: list[int] = []

    def exit_(status: int) -> None:
        statuses.append(status)
        raise SystemExit(status)

    monkeypatch.setattr(main.os, "_exit", exit_)
    return statuses


@pytest.fixture
def operator(cluster: Cluster) -> Iterator[Replica]:
    """A replica that serves the test's namespace, and leads."""
    with Replica(cluster, (cluster.namespace,)) as replica:
        yield replica.leads()


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


class Proxy:
    """A way to the API server that can be cut."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._open: set[socket.socket] = set()
        self._cut = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._cut = True
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def restore(self) -> None:
        self._cut = False

    def close(self) -> None:
        self.cut()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._cut:
                client.close()
                continue
            server = socket.create_connection(("127.0.0.1", self._target))
            self._open |= {client, server}
            for one, other in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            self._open.discard(end)
        source.close()


@pytest.fixture
def proxy(apiserver: ApiOnly) -> Iterator[Proxy]:
    proxy = Proxy(apiserver.api.port)
    yield proxy
    proxy.close()


def test_what_happens_while_the_watches_are_cut_is_noticed(cluster: Cluster, proxy: Proxy) -> None:
    with Replica(cluster, (cluster.namespace,), url=proxy.url) as replica:
        replica.leads()
        cluster.train()
        cluster.there("Pod", "words-worker-1-1")
        replica.settled()
        before = {kind: cluster.there(kind, name)["metadata"]["uid"] for kind, name in SOME}
        proxy.cut()
        for kind, name in SOME:
            cluster.delete(kind, name)
        cluster.train("more")
        proxy.restore()
        for kind, name in SOME:
            cluster.there(kind, name, but=before[kind])
        cluster.there("Pod", "more-worker-1-1")


class Deaf(Intake):
    """Is told of no deletion, as after a gap in a watch that was too long to go on from."""

    def observe(self, resource: Resource, kind: str | None, obj: Object) -> None:
        if kind != "DELETED":
            super().observe(resource, kind, obj)


def test_the_sweeper_finds_what_the_watches_missed(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "Intake", Deaf)
    monkeypatch.setattr(Sweeper.run, "__defaults__", (0.3, 0.3))
    with Replica(cluster, (cluster.namespace,)) as replica:
        replica.leads()
        cluster.train()
        cluster.serve("served", "words")
        cluster.there("Pod", "words-worker-1-1")
        until(lambda: cluster.status(names.SERVICE, "served").get("replicas") == 1, "generation 1")
        replica.settled()
        swept = replica.metric("mms_swept_total")
        for n, (kind, name) in enumerate(SOME, start=1):
            uid = cluster.there(kind, name)["metadata"]["uid"]
            cluster.delete(kind, name)
            cluster.there(kind, name, but=uid)
            assert replica.metric("mms_swept_total") >= swept + n
        cluster.delete(names.TRAINING, "words")
        until(lambda: not cluster.status(names.SERVICE, "served").get("replicas"), "the service hears of it")


def test_only_the_namespaces_that_were_named_are_served(cluster: Cluster, apiserver: ApiOnly) -> None:
    others = [Cluster(apiserver, f"{cluster.namespace}-{n}") for n in range(2)]
    for other in others:
        manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": other.namespace}}
        assert apiserver.api.apply(f"/api/v1/namespaces/{other.namespace}", manifest) == ""
    with Replica(cluster, (cluster.namespace, others[0].namespace)) as replica:
        replica.leads()
        others[1].train()
        for served in (cluster, others[0]):
            served.train()
            served.there("Pod", "words-worker-1-1")
        uid = others[0].there("ConfigMap", "words-job")["metadata"]["uid"]
        others[0].delete("ConfigMap", "words-job")
        others[0].there("ConfigMap", "words-job", but=uid)
        replica.settled()
    assert others[1].get("Pod", "words-worker-0-1") is None
    with Replica(cluster, ()) as replica:
        replica.leads()
        others[1].there("Pod", "words-worker-0-1")


def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """duration, deadline and period of every Lease that is made from now on."""
    for attribute, value in (("duration", 3), ("deadline", 2.0), ("period", 0.3)):
        monkeypatch.setattr(Lease, attribute, value)
    defaults = list(Lease.__init__.__defaults__ or ())
    assert defaults[1:4] == [15, 10.0, 2.0]
    monkeypatch.setattr(Lease.__init__, "__defaults__", (defaults[0], 3, 2.0, 0.3, *defaults[4:]))


def test_of_two_replicas_one_works_and_the_other_takes_over_at_once(cluster: Cluster) -> None:
    with Replica(cluster, (cluster.namespace,)) as first:
        first.leads()
        with Replica(cluster, (cluster.namespace,)) as second:
            until(lambda: second.health.unready() == [], "the standby is ready")
            cluster.train()
            cluster.there("Pod", "words-worker-1-1")
            first.settled()
            assert {call.resource for call, _ in second.calls} == {"leases"}
            assert not second.health.synced
            first.stop()
            stopped = time.monotonic()
            second.leads()
            assert time.monotonic() - stopped < 12, "it need not wait for the Lease to run out"
            assert second.settled() == 0, "all is there"
            cluster.train("more")
            cluster.there("Pod", "more-worker-1-1")


def test_a_replica_that_is_cut_off_ends_before_the_other_takes_over(
    cluster: Cluster, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, exits: list[int]
) -> None:
    short_lease(monkeypatch)
    with Replica(cluster, (cluster.namespace,), url=proxy.url) as first:
        first.leads()
        with Replica(cluster, (cluster.namespace,)) as second:
            until(lambda: second.health.unready() == [], "the standby is ready")
            proxy.cut()
            cut = time.monotonic()
            until(lambda: exits, "the process would have ended")
            ended = time.monotonic()
            second.leads()
            assert ended - cut < 3, "before its Lease has run out"
            assert exits == [main.EXIT_LEASE_LOST]
            cluster.train()
            cluster.there("Pod", "words-worker-1-1")
        proxy.restore()


def test_before_an_installation_goes_nothing_is_held_and_nobody_holds_it_again(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, exits: list[int]
) -> None:
    short_lease(monkeypatch)
    planner = PLANNERS[names.TRAINING]

    def plan(*args: Any) -> Any:
        return replace(planner.plan(*args), finalizer=True)

    async def uninstall_() -> int:
        api = kubeapi.KubeApi(await kubeapi.load_configuration())
        try:
            scope = main.Scope(namespaces=(cluster.namespace,), lease_namespace=cluster.namespace)
            return await uninstall.run(scope, api)
        finally:
            await api.close()

    with Replica(cluster, (cluster.namespace,), {**PLANNERS, names.TRAINING: replace(planner, plan=plan)}) as replica:
        replica.leads()
        cluster.train("first", finalizers=["example.com/theirs"])
        cluster.train("second")
        for name in ("first", "second"):
            until(lambda name=name: names.FINALIZER in finalizers(cluster, name), "held")
        assert asyncio.run(uninstall_()) == 2
        assert exits == [main.EXIT_LEASE_LOST], "the operator ended before the finalizers were taken off"
        assert [finalizers(cluster, name) for name in ("first", "second")] == [["example.com/theirs"], []]
        with Replica(cluster, (cluster.namespace,)) as next_one:
            time.sleep(1)  # this is what is tested: it does not lead yet
            assert not next_one.health.synced
            cluster.patch("Lease", names.LEASE_NAME, {"spec": {"leaseDurationSeconds": 1}})
            next_one.leads()
    assert asyncio.run(uninstall_()) == 0
    cluster.patch(names.TRAINING, "first", {"metadata": {"finalizers": None}})


def finalizers(cluster: Cluster, name: str) -> list[str]:
    found: list[str] = cluster.there(names.TRAINING, name)["metadata"].get("finalizers", [])
    return found


@dataclass
class Process:
    """`python -m tests.trivial`."""

    cluster: Cluster
    folder: Path

    def __post_init__(self) -> None:
        (self.port,) = free_ports(1)
        self.calls_file, self.log = self.folder / f"calls-{self.port}", self.folder / f"log-{self.port}"

    def __enter__(self) -> Self:
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("operator", "workloads", "cluster", "")),
            "KUBECONFIG": str(self.cluster.server.kubeconfig),
            "MMS_WORKER_IMAGE": "localhost/worker:1",
            "MMS_SERVER_IMAGE": "localhost/server:1",
            "MMS_NAMESPACES": self.cluster.namespace,
            "MMS_LEASE_NAMESPACE": self.cluster.namespace,
            "MMS_HEALTH_PORT": str(self.port),
            "MMS_TEST_CALLS": str(self.calls_file),
        }
        with self.log.open("wb") as log:
            command = [sys.executable, "-m", "tests.trivial"]
            self.popen = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=log, stdout=log)
        return self

    def __exit__(self, *_: object) -> None:
        self.popen.kill()
        self.popen.wait()
        assert not beyond_the_rules([Call(*call[:3]) for call in self.calls()])

    def ask(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def ready(self, *, leads: bool) -> Self:
        line = f"mms_leader {float(leads)}"
        until(lambda: self.ask("/readyz")[0] == 200 and line in self.ask("/metrics")[1], f"ready, {line}")
        return self

    def calls(self) -> list[tuple[str, str, str, int]]:
        if not self.calls_file.exists():
            return []
        return [tuple(json.loads(line)) for line in self.calls_file.read_text().splitlines() if line.endswith("]")]

    def said(self) -> list[Object]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def ends(self, number: int | None = None, seconds: float = 10) -> int:
        if number is not None:
            self.popen.send_signal(number)
        return self.popen.wait(seconds)


def test_a_process_answers_works_and_stops_cleanly(cluster: Cluster, tmp_path: Path) -> None:
    with Process(cluster, tmp_path) as operator:
        operator.ready(leads=True)
        assert operator.ask("/healthz") == (200, "ok\n")
        cluster.train()
        cluster.there("Pod", "words-worker-1-1")
        written = 'mms_api_writes_total{resource="pods",verb="create"} 2.0'
        until(lambda: written in operator.ask("/metrics")[1], "both answers have come")
        with socket.create_connection(("127.0.0.1", operator.port)) as scraper:  # stays connected, as Prometheus does
            scraper.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            assert scraper.recv(9) == b"HTTP/1.1 "
            assert operator.ends(signal.SIGTERM) == 0
        assert cluster.holder() == ""
        said = operator.said()
        assert said[-1]["event"] == "stopped"
        assert [line for line in said if line["level"] in ("warning", "error", "critical")] == []


def test_a_standby_stops_cleanly_and_is_ready_before(cluster: Cluster, tmp_path: Path) -> None:
    with Replica(cluster, (cluster.namespace,)) as leader:
        leader.leads()
        holder = cluster.holder()
        with Process(cluster, tmp_path) as standby:
            standby.ready(leads=False)
            assert standby.ends(signal.SIGTERM, 5) == 0
        assert {call[2] for call in standby.calls()} == {"leases"}
        assert cluster.holder() == holder


def test_a_replica_that_is_killed_is_replaced_when_its_lease_has_run_out(cluster: Cluster, tmp_path: Path) -> None:
    with Process(cluster, tmp_path) as first:
        first.ready(leads=True)
        cluster.train()
        cluster.there("Pod", "words-worker-1-1")
        # What is left of the Lease of 15 s is cut short: nothing but the record says how long its holder is believed.
        with Replica(cluster, (cluster.namespace,)) as second:
            until(lambda: second.health.unready() == [], "the standby is ready")
            first.ends(signal.SIGKILL)
            assert cluster.holder()
            killed = time.monotonic()
            cluster.patch("Lease", names.LEASE_NAME, {"spec": {"leaseDurationSeconds": 4}})
            second.leads()
            assert time.monotonic() - killed > 3
            cluster.delete("Pod", "words-worker-0-1")
            cluster.there("Pod", "words-worker-0-1")


def test_who_loses_the_lease_ends(cluster: Cluster, tmp_path: Path) -> None:
    with Process(cluster, tmp_path) as operator:
        operator.ready(leads=True)
        cluster.patch("Lease", names.LEASE_NAME, {"spec": {"holderIdentity": "another"}})
        assert operator.ends() == main.EXIT_LEASE_LOST
        assert cluster.holder() == "another"
        assert operator.said()[-1]["event"] == "lease lost"


def test_an_api_server_that_restarts_is_survived(crds: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ApiOnly(tmp_path) as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig))
        install(server)
        cluster = Cluster(server, "default")
        with Replica(cluster, ("default",)) as replica:
            replica.leads()
            cluster.train()
            cluster.there("Pod", "words-worker-1-1")
            replica.settled()
            apiserver = server._children[1]
            command = Path(f"/proc/{apiserver.pid}/cmdline").read_bytes().decode().split("\0")[:-1]
            process.stop_child(apiserver)
            server._children[1] = process.child(command, tmp_path / "kube-apiserver.log")
            until(lambda: server.api.unready() == "", "the API server is back")
            cluster.train("more")
            cluster.there("Pod", "more-worker-1-1")
            uid = cluster.there("ConfigMap", "words-job")["metadata"]["uid"]
            cluster.delete("ConfigMap", "words-job")
            cluster.there("ConfigMap", "words-job", but=uid)
            assert replica.health.troubles() == []
