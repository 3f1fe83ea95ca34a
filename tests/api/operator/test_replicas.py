"""Which replica works: Leases, their loss, and the end of an installation."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from mms_operator import main, uninstall
from mms_operator.api import names
from mms_operator.engine import kubeapi
from mms_operator.engine.lease import Lease
from tests.api.operating import Cluster, Replica, until
from tests.trivial import PLANNERS

if TYPE_CHECKING:
    from tests.api.operator.conftest import Proxy

pytestmark = pytest.mark.api


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
