"""From a key to an applied plan, against an API server of a few dicts."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from mms_operator.api import names
from mms_operator.engine import reconcile as module
from mms_operator.engine.apply import Applier
from mms_operator.engine.cache import Cache
from mms_operator.engine.kubeapi import ApiError
from mms_operator.engine.metrics import Metrics
from mms_operator.engine.queue import WorkQueue
from mms_operator.engine.reconcile import Planner, Reconciler
from mms_operator.engine.resources import POD, SECRET, TRAINING, Key
from mms_operator.engine.sweep import Sweeper
from mms_operator.plan.types import Event, Held, Images, MasterCall, ObservedService, ObservedTraining, Plan, Settings
from mms_workloads.contract import AgentReport, Desired
from tests.unit.engine.fake_api import FakeApi, training

if TYPE_CHECKING:
    from collections.abc import Callable

Object = dict[str, Any]
WORDS = Key(names.TRAINING, "ns", "words")
SERVED = Key(names.SERVICE, "ns", "served")
STATUS = {"phase": "Pending", "observedGeneration": 1}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Polls:
    def __init__(self) -> None:
        self.followed: list[Key] = []
        self.dropped: list[Key] = []

    def follow(self, key: Key, *_: Any) -> None:
        self.followed.append(key)

    def drop(self, key: Key) -> None:
        self.dropped.append(key)

    def error(self, *_: Any) -> None:
        return None

    def silence(self, *_: Any) -> None:
        return None

    def report(self, *_: Any) -> None:
        return None

    def confirmed(self, *_: Any) -> None:
        return None


class Agents:
    def __init__(self) -> None:
        self.followed: list[Key] = []
        self.dropped: list[Key] = []
        self.said: dict[str, AgentReport] = {}

    def follow(self, key: Key, _: Plan) -> None:
        self.followed.append(key)

    def drop(self, key: Key) -> None:
        self.dropped.append(key)

    def interval(self, _: Key) -> None:
        return None

    def reports(self, _: Key) -> dict[str, AgentReport]:
        return self.said


class Activators:
    def __init__(self) -> None:
        self.followed: list[Key] = []
        self.dropped: list[Key] = []
        self.said: Held | None = None

    def follow(self, key: Key, _: Object) -> None:
        self.followed.append(key)

    def drop(self, key: Key) -> None:
        self.dropped.append(key)

    def held(self, *_: Any) -> Held | None:
        return self.said


class World:
    def __init__(self) -> None:
        self.api, self.cache, self.metrics, self.polls = FakeApi(), Cache(), Metrics(), Polls()
        self.agents, self.activators = Agents(), Activators()
        self.queue: WorkQueue[Key] = WorkQueue(Clock(), jitter=lambda: 0.0)
        applier = Applier(self.api, self.cache, self.metrics, self.queue.add)  # type: ignore[arg-type]
        self.observed: list[Any] = []
        self.plan: Callable[[], Plan] = lambda: Plan(status=STATUS)
        self.secrets: frozenset[str] = frozenset()

        def plan(_: Object, observed: Any, *__: Any) -> Plan:
            self.observed.append(observed)
            return self.plan()

        planner = Planner(plan, lambda _: self.secrets)
        self.reconciler = Reconciler(
            self.api,  # type: ignore[arg-type]
            self.cache,
            self.queue,
            applier,
            self.polls,  # type: ignore[arg-type]
            self.agents,  # type: ignore[arg-type]
            self.activators,  # type: ignore[arg-type]
            {names.TRAINING: planner, names.SERVICE: planner},
            Settings(Images("w", "s")),
            self.metrics,
        )

    def see(self, obj: Object) -> Object:
        stored = self.api.store(obj)
        self.cache.put(stored["kind"], stored)
        return stored

    async def work(self, key: Key = WORDS) -> str:
        """The result that was counted."""
        before = self.results()
        self.api.calls.clear()
        await self.reconciler.work(key)
        (result,) = [name for name, count in self.results().items() if count != before.get(name, 0)]
        return result

    def results(self) -> dict[str, float]:
        return {
            sample.labels["result"]: sample.value
            for metric in self.metrics.reconciles.collect()
            for sample in metric.samples
            if sample.name == "mms_reconciles_total"
        }

    def ready(self) -> set[Key]:
        self.queue.promote()
        return set(self.queue._ready)

    def events(self) -> list[str]:
        return [found["reason"] for found in self.api.objects.values() if found["kind"] == "Event"]


@pytest.fixture
def world() -> World:
    world = World()
    world.see(training())
    return world


def child(kind: str, name: str, uid: str = "uid-words", **metadata: Any) -> Object:
    owner = {"apiVersion": names.API_VERSION, "kind": names.TRAINING, "name": "words", "uid": uid, "controller": True}
    return {"kind": kind, "metadata": {"name": name, "namespace": "ns", "ownerReferences": [owner], **metadata}}


async def test_a_look_after_a_write_and_none_without(world: World) -> None:
    assert await world.work() == "applied"
    assert world.queue.next_due() == module.SETTLE_SECONDS
    world.queue = world.reconciler.queue = WorkQueue(Clock())
    assert await world.work() == "unchanged"
    assert world.queue.next_due() is None
    assert world.polls.followed == [WORDS, WORDS]


async def test_the_plan_says_when_to_look_again(world: World) -> None:
    await world.work()
    world.queue = world.reconciler.queue = WorkQueue(Clock())
    world.plan = lambda: Plan(status=STATUS, requeue_after=7.0)
    await world.work()
    assert world.queue.next_due() == 7.0


@pytest.mark.parametrize("deleted", [False, True], ids=["it is gone", "it is being deleted"])
async def test_what_is_gone_is_forgotten(world: World, deleted: bool) -> None:
    if deleted:
        leaving = training()
        leaving["metadata"] |= {"deletionTimestamp": "2026-01-01T00:00:00Z"}
        world.see(leaving)
    else:
        world.cache.remove(*WORDS)
    assert await world.work() == "gone"
    assert world.polls.dropped == [WORDS]
    assert world.api.calls == []
    assert world.observed == []


async def test_what_is_held_is_planned_until_it_is_let_go(world: World) -> None:
    leaving = training()
    leaving["metadata"] |= {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [names.FINALIZER]}
    world.see(leaving)
    assert await world.work() == "applied"
    assert (len(world.observed), world.polls.dropped) == (1, [])
    world.plan = lambda: Plan(status=STATUS, finalizer=False)
    assert await world.work() == "applied"
    assert world.api.writes() == ["finalizers ModelTraining/words"]
    assert await world.work() == "gone"
    assert world.polls.dropped == [WORDS]


async def test_only_its_own_children_are_observed(world: World) -> None:
    world.see(child("Pod", "mine"))
    world.see(child("Pod", "predecessors", uid="another"))
    world.see({"kind": "Pod", "metadata": {"name": "x", "namespace": "ns", "labels": {names.LABEL_TRAINING: "words"}}})
    await world.work()
    (observed,) = world.observed
    assert isinstance(observed, ObservedTraining)
    assert [pod["metadata"]["name"] for pod in observed.pods] == ["mine"]


@pytest.mark.parametrize(
    ("ends", "expires"),
    [
        pytest.param({"ca": "01", "master-tls": "03", "worker-tls": "02"}, "2027-01-01", id="the first end counts"),
        pytest.param({"ca": "01", "master-tls": "03"}, None, id="one is missing"),
        pytest.param({"ca": "01", "master-tls": "03", "worker-tls": None}, None, id="one does not say"),
        pytest.param({"ca": "01", "master-tls": "03", "worker-tls": "other"}, None, id="one is another's"),
        pytest.param({"ca": "01", "master-tls": "03", "worker-tls": "soon"}, None, id="one says what is no time"),
    ],
)
async def test_certificates(world: World, ends: dict[str, str | None], expires: str | None) -> None:
    for name, day in ends.items():
        annotations = {names.ANNOTATION_EXPIRES: f"2027-01-{day if day != 'other' else '05'}T00:00:00+00:00"}
        uid = "another" if day == "other" else "uid-words"
        world.see(child("Secret", f"words-{name}", uid=uid, annotations=annotations if day else {}))
    await world.work()
    found = world.observed[0].certificates_expire
    assert (found.isoformat()[:10] if found else None) == expires


@pytest.mark.parametrize("there", [False, True])
async def test_shards_have_certificates_where_the_spec_has_shards(world: World, there: bool) -> None:
    world.see(training() | {"spec": {"sync": {"mode": "ParameterServer"}}})
    for name in ("ca", "master-tls", "worker-tls", *(["shard-tls"] if there else [])):
        world.see(child("Secret", f"words-{name}", annotations={names.ANNOTATION_EXPIRES: "2027-01-01T00:00:00+00:00"}))
    await world.work()
    assert (world.observed[0].certificates_expire is not None) == there


async def test_a_service_observes_its_training_deployment_and_pods(world: World) -> None:
    served = training("served") | {"kind": names.SERVICE, "spec": {"model": {"trainingRef": {"name": "words"}}}}
    world.see(served)
    owner = {"apiVersion": names.API_VERSION, "kind": names.SERVICE, "name": "served", "controller": True}
    world.see(child("Deployment", "old", ownerReferences=[{**owner, "uid": "another"}]))
    world.see(child("Deployment", "served", ownerReferences=[{**owner, "uid": "uid-served"}]))
    world.see({"kind": "Pod", "metadata": {"name": "x", "namespace": "ns", "labels": {names.LABEL_SERVICE: "served"}}})
    report = AgentReport(digest="d", version=1, models=[], phase="Verified", goldenCases=1, goldenRight=1)
    world.agents.said = {"uid-x": report}
    await world.work(SERVED)
    (observed,) = world.observed
    assert isinstance(observed, ObservedService)
    assert observed.agents == {"uid-x": report}
    assert world.agents.followed == [SERVED]
    assert observed.training
    assert observed.training["metadata"]["uid"] == "uid-words"
    assert [one["metadata"]["name"] for one in observed.deployments] == ["served"]
    assert [pod["metadata"]["name"] for pod in observed.pods] == ["x"]


async def test_what_a_plan_remembers_is_given_to_the_next_one(world: World) -> None:
    world.see(training("served") | {"kind": names.SERVICE, "spec": {"model": {}}})
    world.activators.said = Held(("10.0.0.9",), 20_000, waiting=1)
    memory: Any = object()
    world.plan = lambda: Plan(status=STATUS, scaling=memory)
    await world.work(SERVED)
    await world.work(SERVED)
    first, second = world.observed
    assert (first.scaling, second.scaling) == (None, memory)
    assert second.activator == world.activators.said
    assert world.activators.followed == [SERVED, SERVED]


async def test_of_a_secret_the_names_of_its_keys_are_kept_for_a_while(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(module.time, "monotonic", clock)
    world.secrets = frozenset({"keys"})
    await world.work()
    assert world.observed[-1].secrets["keys"].keys is None
    world.api.store({"kind": "Secret", "metadata": {"name": "keys", "namespace": "ns"}, "data": {"a": "c2VjcmV0"}})
    await world.work()
    assert world.observed[-1].secrets["keys"].keys is None
    assert ("get", "Secret", "keys") not in world.api.calls
    clock.now += module.SECRET_SECONDS
    await world.work()
    assert world.observed[-1].secrets["keys"].keys == frozenset({"a"})
    assert "c2VjcmV0" not in repr(vars(world.reconciler))


async def test_a_newer_training_is_read_and_all_that_follow_it_hear_of_it(world: World) -> None:
    world.see(training("served") | {"kind": names.SERVICE, "spec": {"model": {"trainingRef": {"name": "words"}}}})
    world.api.store(training() | {"spec": {"changed": True}})
    assert await world.work() == "overtaken"
    assert world.ready() == {WORDS, SERVED}
    cr = world.cache.get(WORDS)
    assert cr
    assert cr["spec"] == {"changed": True}
    assert await world.work() == "applied"
    assert world.events() == []


async def test_a_training_that_is_gone_is_no_failure(world: World) -> None:
    world.see(training("served") | {"kind": names.SERVICE, "spec": {"model": {"trainingRef": {"name": "words"}}}})
    del world.api.objects[WORDS]
    assert await world.work() == "gone"
    assert world.cache.get(WORDS) is None
    assert world.ready() == {WORDS, SERVED}


async def test_failures_back_off_and_are_forgotten_on_success(world: World) -> None:
    def fails() -> Plan:
        raise ValueError("a fault")

    world.plan = fails
    delays = []
    for _ in range(3):
        assert await world.work() == "error"
        delays.append(world.queue.next_due())
        world.queue.take()
        world.queue._due.clear()
    assert delays == [0.25, 0.5, 1.0]
    assert world.metrics.registry.get_sample_value("mms_errors_total", {"what": "ValueError"}) == 3
    assert world.events() == ["ReconcileFailed"]
    cr = world.cache.get(WORDS)
    assert cr
    assert {each["reason"] for each in cr["status"]["conditions"]} == {"ReconcileFailed"}
    world.plan = lambda: Plan(status=STATUS)
    assert await world.work() == "applied"
    assert WORDS not in world.queue._failures


@pytest.mark.parametrize(
    ("verb", "kind", "error", "reasons"),
    [
        pytest.param(
            "status", names.TRAINING, ApiError(422, "Invalid", "no"), ["StatusNotWritten"], id="status refused"
        ),
        pytest.param("status", names.TRAINING, OSError("no answer"), [], id="no answer"),
        pytest.param("apply", "ConfigMap", ApiError(403, "Forbidden", "no"), ["Starting", "ApplyFailed"], id="object"),
        pytest.param("apply", "ConfigMap", OSError("no answer"), [], id="no answer for an object"),
        pytest.param("get", "Secret", ApiError(403, "Forbidden", "no"), ["ReconcileFailed"], id="a Secret"),
    ],
)
async def test_whatever_is_refused_is_retried_and_told_once(
    world: World, verb: str, kind: str, error: Exception, reasons: list[str]
) -> None:
    configmap = {"kind": "ConfigMap", "metadata": {"name": "job"}}
    world.secrets = frozenset({"keys"})
    started = [Event("Normal", "Starting", "")]
    world.plan = lambda: Plan(
        status=STATUS, waves=((configmap,),), events=(started.pop(),) if started and kind == "ConfigMap" else ()
    )

    def refuse(*called: str) -> None:
        if called[:2] == (verb, kind):
            raise error

    world.api.refuse = refuse
    for _ in range(3):
        assert await world.work() == "error"
    assert world.events() == reasons
    assert world.queue.next_due() is not None


async def test_a_status_that_cannot_be_written_either_is_no_second_failure(world: World) -> None:
    def fails() -> Plan:
        raise ValueError("a fault")

    def refuse(*_: str) -> None:
        raise ApiError(500, "InternalError", "no")

    world.plan, world.api.refuse = fails, refuse
    assert await world.work() == "error"


async def test_cancelling_is_no_failure(world: World) -> None:
    hangs = asyncio.Event()

    async def status(*_: Any) -> Object:
        await hangs.wait()
        return {}

    world.api.write_status = status  # type: ignore[method-assign]
    task = asyncio.create_task(world.reconciler.work(WORDS))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.results() == {}


async def test_a_master_is_followed_only_when_the_plan_was_applied(world: World) -> None:
    world.plan = lambda: Plan(
        status={**STATUS, "run": 1, "attempt": 1}, master=MasterCall("10.0.0.1", "words-master", Desired(workers=1))
    )
    world.api.store(training() | {"spec": {"changed": True}})
    assert await world.work() == "overtaken"
    assert world.polls.followed == []


@pytest.fixture
def sweeper(world: World) -> Sweeper:
    return Sweeper(world.api, world.cache, world.queue, world.metrics)  # type: ignore[arg-type]


async def test_filling_reads_all_there_is(sweeper: Sweeper) -> None:
    world = World()
    sweeper = Sweeper(world.api, world.cache, world.queue, world.metrics)  # type: ignore[arg-type]
    world.api.store(training())
    world.api.store(child("Pod", "p"))
    world.api.store(child("Secret", "s"))
    await sweeper.fill()
    assert world.ready() == {WORDS}
    assert {entry.name for entry in world.cache.children(WORDS)} == {"p", "s"}
    assert set(sweeper.filled.values()) == {world.api.version}


async def test_a_sweep_that_finds_nothing_does_nothing(world: World, sweeper: Sweeper) -> None:
    world.see(child("Pod", "p"))
    await sweeper.sweep()
    assert world.ready() == set()
    assert {verb for verb, *_ in world.api.calls} == {"list"}


@pytest.mark.parametrize(("resource", "reads"), [(POD, 1), (SECRET, 0), (TRAINING, 1)], ids=str)
async def test_a_sweep_finds_what_was_missed(world: World, sweeper: Sweeper, resource: Any, reads: int) -> None:
    world.api.store(training() if resource == TRAINING else child(resource.kind, "missed"))
    await sweeper.sweep_one(resource, None)
    assert world.ready() == {WORDS}
    assert world.metrics.registry.get_sample_value("mms_swept_total") == 1
    assert [verb for verb, *_ in world.api.calls].count("get") == reads, "of some kinds the list says all"


async def test_a_sweep_finds_what_is_gone(world: World, sweeper: Sweeper) -> None:
    world.see(child("Pod", "p"))
    del world.api.objects["Pod", "ns", "p"]
    await sweeper.sweep_one(POD, "elsewhere")
    assert world.cache.entry("Pod", "ns", "p") is not None, "it was not looked for there"
    await sweeper.sweep_one(POD, "ns")
    assert world.cache.entry("Pod", "ns", "p") is None
    assert world.ready() == {WORDS}


async def test_what_came_after_the_list_is_not_taken_for_gone(world: World, sweeper: Sweeper) -> None:
    listed = world.api.list

    async def behind(*args: Any, **kwargs: Any) -> Any:
        async for chunk, version in listed(*args, **kwargs):
            late = world.see(child("Pod", "late"))  # the watch is faster than the answer to the list
            assert int(late["metadata"]["resourceVersion"]) > version
            yield chunk, version

    world.api.list = behind  # type: ignore[method-assign]
    await sweeper.sweep_one(POD, None)
    assert world.cache.entry("Pod", "ns", "late") is not None


async def test_an_api_server_that_went_back_in_time_ends_the_process(world: World, sweeper: Sweeper) -> None:
    """Nothing that is read after etcd has been restored would be newer than what is known."""
    await sweeper.fill()
    await sweeper.sweep_one(POD, None)
    world.api.store(child("Pod", "p"))
    await sweeper.sweep_one(POD, None)
    world.api.version -= 1
    with pytest.raises(RuntimeError, match="gone back in time with pods"):
        await sweeper.sweep_one(POD, None)


async def test_a_sweep_that_fails_is_counted_and_the_next_one_comes(world: World, sweeper: Sweeper) -> None:
    def refuse(*_: str) -> None:
        raise OSError("no answer")

    world.api.refuse = refuse
    sweeping = asyncio.create_task(sweeper.run(0.001, 0.001))
    try:
        async with asyncio.timeout(5):
            while not world.metrics.registry.get_sample_value("mms_errors_total", {"what": "sweep"}):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            world.api.refuse = lambda *_: None
            world.api.store(child("Pod", "missed"))
            while not world.ready():  # noqa: ASYNC110
                await asyncio.sleep(0.001)
    finally:
        sweeping.cancel()
        await asyncio.gather(sweeping, return_exceptions=True)
