"""Leader election: never two leaders, and never long without one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mms_operator.engine import lease as module
from mms_operator.engine.kubeapi import ApiError
from mms_operator.engine.lease import Lease, LeaseLostError
from mms_operator.engine.resources import LEASE
from tests.unit.engine.fake_api import FakeApi

Object = dict[str, Any]


class Time:
    """A clock that runs only when someone sleeps. `at` runs something when a time has come."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self._todo: list[tuple[float, Any]] = []
        self._real = asyncio.sleep
        monkeypatch.setattr(module.asyncio, "sleep", self.sleep)

    def __call__(self) -> float:
        return self.now

    def at(self, when: float, what: Any) -> None:
        self._todo.append((when, what))

    async def sleep(self, seconds: float) -> None:
        if seconds:
            self.now += seconds
            for todo in [todo for todo in self._todo if todo[0] <= self.now]:
                self._todo.remove(todo)
                todo[1]()
        assert self.now < 1000, "nothing comes of this"
        await self._real(0)


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    return Time(monkeypatch)


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


def replica(api: FakeApi, time: Time, identity: str) -> Lease:
    return Lease(api, "ns", identity, clock=time)  # type: ignore[arg-type]


def stored(api: FakeApi) -> Object:
    return api.objects["Lease", "ns", "mms-operator"]


def store(api: FakeApi, **spec: Any) -> None:
    manifest = {
        "apiVersion": LEASE.api_version,
        "kind": "Lease",
        "metadata": {"name": "mms-operator", "namespace": "ns"},
    }
    api.store({**manifest, "spec": {"leaseDurationSeconds": 15, **spec}})


def away(*_: str) -> None:
    raise OSError("no answer")


async def test_the_first_makes_the_lease(api: FakeApi, time: Time) -> None:
    one = replica(api, time, "one")
    await one.acquire()
    assert one.leads
    spec = stored(api)["spec"]
    assert (spec["holderIdentity"], spec["leaseDurationSeconds"], spec["leaseTransitions"]) == ("one", 15, 0)
    assert time.now == 0


async def test_a_holder_that_renews_is_believed_for_as_long(api: FakeApi, time: Time) -> None:
    store(api, holderIdentity="one", renewTime="0")
    for n in range(20):
        time.at(5.0 * n, lambda n=n: store(api, holderIdentity="one", renewTime=str(n)))
    two = replica(api, time, "two")
    await two.acquire()
    assert time.now >= 95 + 15
    assert time.now <= 95 + 15 + 2 * two.period


async def test_the_holders_own_clock_says_nothing(api: FakeApi, time: Time) -> None:
    store(api, holderIdentity="one", renewTime="1999-01-01T00:00:00.000000Z")
    two = replica(api, time, "two")
    await two.acquire()
    assert 15 <= time.now <= 15 + two.period
    assert stored(api)["spec"]["leaseTransitions"] == 1


@pytest.mark.parametrize("holder", ["", None])
async def test_what_was_given_back_is_taken_at_once(api: FakeApi, time: Time, holder: str | None) -> None:
    store(api, holderIdentity=holder)
    await replica(api, time, "two").acquire()
    assert time.now == 0


async def test_the_holder_says_how_long_it_is_believed(api: FakeApi, time: Time) -> None:
    store(api, holderIdentity="one", leaseDurationSeconds=60)
    await replica(api, time, "two").acquire()
    assert 60 <= time.now <= 62


async def test_what_was_got_without_hearing_of_it_is_kept(api: FakeApi, time: Time) -> None:
    store(api, holderIdentity="one", leaseTransitions=3)
    await replica(api, time, "one").acquire()
    assert time.now == 0
    assert stored(api)["spec"]["leaseTransitions"] == 3


async def test_of_two_that_try_one_gets_it(api: FakeApi, time: Time) -> None:
    one, two = replica(api, time, "one"), replica(api, time, "two")
    assert sorted(await asyncio.gather(one._attempt(), two._attempt())) == [False, True]
    store(api, holderIdentity="")
    one, two = replica(api, time, "one"), replica(api, time, "two")
    assert sorted(await asyncio.gather(one._attempt(), two._attempt())) == [False, True]


async def test_a_leader_renews_and_stays(api: FakeApi, time: Time) -> None:
    one = replica(api, time, "one")
    await one.acquire()
    acquired = stored(api)["spec"]["acquireTime"]
    await held_until(one, time, 100)
    assert one.leads
    assert stored(api)["spec"]["acquireTime"] == acquired
    assert stored(api)["spec"]["leaseTransitions"] == 0
    assert time.now - one.seen <= one.period


async def test_a_leader_without_answers_resigns_before_another_may_lead(api: FakeApi, time: Time) -> None:
    one = replica(api, time, "one")
    await one.acquire()
    api.refuse = away
    with pytest.raises(LeaseLostError, match="not renewed in time"):
        await one.hold()
    assert not one.leads
    assert one.deadline - one.period <= time.now < 15 - one.period


async def test_a_short_outage_costs_nothing(api: FakeApi, time: Time) -> None:
    one = replica(api, time, "one")
    await one.acquire()
    time.at(4, lambda: setattr(api, "refuse", away))
    time.at(10, lambda: setattr(api, "refuse", lambda *_: None))
    await held_until(one, time, 60)
    assert one.leads


async def test_a_call_that_hangs_has_a_deadline(api: FakeApi) -> None:
    one = Lease(api, "ns", "one", deadline=0.1, period=0.02)  # type: ignore[arg-type]
    await one.acquire()

    async def hangs(*_: Any) -> Object:
        await asyncio.Event().wait()
        return {}

    api.replace = hangs  # type: ignore[method-assign]
    async with asyncio.timeout(5):
        with pytest.raises(LeaseLostError):
            await one.hold()


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param({"holderIdentity": "two"}, id="another holds it"),
        pytest.param({"holderIdentity": ""}, id="another had it and gave it back"),
        pytest.param({}, id="nobody's"),
    ],
)
async def test_a_leader_that_was_deposed_ends(api: FakeApi, time: Time, spec: Object) -> None:
    one = replica(api, time, "one")
    await one.acquire()
    store(api, **spec)
    with pytest.raises(LeaseLostError):
        await one.hold()
    assert time.now <= 2 * one.period
    assert stored(api)["spec"].get("holderIdentity") == spec.get("holderIdentity"), "it takes nothing back"


async def test_an_edit_by_hand_costs_nothing(api: FakeApi, time: Time) -> None:
    one = replica(api, time, "one")
    await one.acquire()
    time.at(10, lambda: api.store({**stored(api), "metadata": {**stored(api)["metadata"], "labels": {"a": "b"}}}))
    await held_until(one, time, 60)
    assert stored(api)["metadata"]["labels"] == {"a": "b"}
    assert stored(api)["spec"]["leaseTransitions"] == 0


async def test_a_deleted_lease_is_made_again(api: FakeApi, time: Time) -> None:
    one = replica(api, time, "one")
    await one.acquire()
    time.at(10, lambda: api.objects.pop(("Lease", "ns", "mms-operator")))
    await held_until(one, time, 60)
    assert stored(api)["spec"]["holderIdentity"] == "one"


async def test_a_leader_that_stops_gives_the_lease_back(api: FakeApi, time: Time) -> None:
    one, two = replica(api, time, "one"), replica(api, time, "two")
    await one.acquire()
    assert not await two._attempt()
    await one.release()
    assert not one.leads
    assert stored(api)["spec"]["holderIdentity"] == ""
    assert await two._attempt()
    assert stored(api)["spec"]["leaseTransitions"] == 1
    assert stored(api)["spec"]["leaseDurationSeconds"] == 15


async def test_a_renewal_that_was_cut_off_does_not_keep_the_lease(api: FakeApi, time: Time) -> None:
    one = replica(api, time, "one")
    await one.acquire()
    store(api, **{**stored(api)["spec"], "renewTime": "written, but the answer was lost"})
    await one.release()
    assert stored(api)["spec"]["holderIdentity"] == ""


async def test_nothing_of_anothers_is_given_back(api: FakeApi, time: Time) -> None:
    one, two = replica(api, time, "one"), replica(api, time, "two")
    await one.release()
    assert api.calls == [], "it had none"
    await one.acquire()
    store(api, holderIdentity="two")
    await one.release()
    await two.release()
    assert stored(api)["spec"]["holderIdentity"] == "two"


@pytest.mark.parametrize("error", [OSError("no answer"), ApiError(500, "InternalError", "no")])
async def test_a_release_that_fails_is_no_failure(api: FakeApi, time: Time, error: Exception) -> None:
    one = replica(api, time, "one")
    await one.acquire()

    def fails(*_: str) -> None:
        raise error

    api.refuse = fails
    await one.release()
    assert not one.leads


async def test_a_standby_without_answers_waits(api: FakeApi, time: Time) -> None:
    api.refuse = away
    time.at(30, lambda: setattr(api, "refuse", lambda *_: None))
    one = replica(api, time, "one")
    await one.acquire()
    assert time.now == 30


async def held_until(lease: Lease, time: Time, when: float) -> None:
    class Enough(BaseException):
        pass

    def enough() -> None:
        raise Enough

    time.at(when, enough)
    with pytest.raises(Enough):
        await lease.hold()
