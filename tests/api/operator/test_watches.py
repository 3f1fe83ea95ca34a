"""What the operator sees: gaps in its watches, the sweeper, the namespaces that it serves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mms_operator import main
from mms_operator.api import names
from mms_operator.engine.intake import Intake
from mms_operator.engine.sweep import Sweeper
from tests.api.operating import Cluster, Object, Replica, until

if TYPE_CHECKING:
    from mms_cluster.apionly import ApiOnly
    from mms_operator.engine.resources import Resource
    from tests.api.operator.conftest import Proxy

pytestmark = pytest.mark.api

SOME = (("ConfigMap", "words-job"), ("Pod", "words-worker-0-1"))  # one of each kind of watch


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
