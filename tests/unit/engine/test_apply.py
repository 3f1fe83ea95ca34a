"""How a plan is carried out, against an API server of a few dicts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mms_operator.api import names
from mms_operator.engine.apply import Applier, owned
from mms_operator.engine.cache import Cache
from mms_operator.engine.kubeapi import ApiError
from mms_operator.engine.metrics import Metrics
from mms_operator.engine.problems import ReconcileError
from mms_operator.engine.resources import Key
from mms_operator.plan.types import Annotation, Certificates, Deletion, Event, Plan
from tests.unit.engine.fake_api import FakeApi, training

Object = dict[str, Any]
WORDS = Key(names.TRAINING, "ns", "words")
STATUS = {
    "phase": "Pending",
    "observedGeneration": 1,
    "conditions": [
        {"type": "Ready", "status": "False", "reason": "Starting", "message": "", "lastTransitionTime": "then"}
    ],
}
STARTING = Event("Normal", "Starting", "it starts")


def obj(kind: str, name: str, **body: Any) -> Object:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, **body}


class World:
    """An applier, a server with one training, and a cache that has seen it."""

    def __init__(self) -> None:
        self.api, self.cache, self.metrics = FakeApi(), Cache(), Metrics()
        self.woken: list[Key] = []
        self.applier = Applier(self.api, self.cache, self.metrics, self.woken.append)  # type: ignore[arg-type]
        self.see(training())

    def see(self, written: Object) -> Object:
        stored = self.api.store(written)
        self.cache.put(stored["kind"], stored)
        return stored

    async def apply(self, plan: Plan) -> bool:
        self.api.calls.clear()
        cr = self.cache.get(WORDS)
        assert cr
        return await self.applier.apply(cr, plan)

    async def fails(self, plan: Plan) -> str:
        with pytest.raises(ReconcileError) as caught:
            await self.apply(plan)
        return caught.value.problem.reason

    def stored(self, kind: str, name: str) -> Object | None:
        return self.api.objects.get((kind, "ns", name))

    def events(self) -> list[tuple[str, str]]:
        return [(found["type"], found["reason"]) for found in self.api.objects.values() if found["kind"] == "Event"]

    def conditions(self) -> dict[str, tuple[str, str]]:
        cr = self.stored(*WORDS[::2])
        assert cr
        return {found["type"]: (found["status"], found["reason"]) for found in cr["status"]["conditions"]}

    def refuse(self, verb: str, kind: str, error: Exception) -> None:
        def check(*called: str) -> None:
            if called[:2] == (verb, kind):
                raise error

        self.api.refuse = check

    def allow(self) -> None:
        self.api.refuse = lambda *_: None


@pytest.fixture
def world() -> World:
    return World()


FORBIDDEN = ApiError(403, "Forbidden", "no")


async def test_the_order_is_status_certificates_waves_prune_deletions_finalizer_events(world: World) -> None:
    world.see(owned(training(), obj("ConfigMap", "left-over")))
    pod = world.see(owned(training(), obj("Pod", "old")))
    plan = Plan(
        status=STATUS,
        certificates=Certificates(training(), {}, ("words-master",), 30),
        waves=((obj("ConfigMap", "job"), obj("Service", "master")), (obj("Pod", "worker"),)),
        deletions=(Deletion("v1", "Pod", "ns", "old", pod["metadata"]["uid"]),),
        finalizer=True,
        events=(STARTING,),
    )
    assert await world.apply(plan)
    writes = world.api.writes()
    assert writes[0] == "status ModelTraining/words"
    assert sorted(writes[1:4]) == [f"apply Secret/words-{name}" for name in ("ca", "master-tls", "worker-tls")]
    assert sorted(writes[4:6]) == ["apply ConfigMap/job", "apply Service/master"]
    assert writes[6] == "create Pod/worker"
    assert sorted(writes[7:9]) == ["delete ConfigMap/left-over", "delete Pod/old"]
    assert writes[9:] == ["finalizers ModelTraining/words", "create Event/"]


async def test_what_is_as_planned_is_not_written_again(world: World) -> None:
    plan = Plan(status=STATUS, waves=((obj("ConfigMap", "job", data={"a": "b"}),), (obj("Pod", "worker"),)))
    assert await world.apply(plan)
    assert not await world.apply(plan)
    assert world.api.calls == []


def finalizers(world: World) -> list[str]:
    cr = world.stored(*WORDS[::2])
    assert cr
    found: list[str] = cr["metadata"].get("finalizers", [])
    return found


async def test_the_finalizer_is_set_and_removed_once_and_no_other_is_touched(world: World) -> None:
    theirs = training()
    theirs["metadata"]["finalizers"] = ["example.com/theirs"]
    world.see(theirs)
    for wanted, expected in (
        (True, ["example.com/theirs", names.FINALIZER]),
        (None, ["example.com/theirs", names.FINALIZER]),
        (False, ["example.com/theirs"]),
        (None, ["example.com/theirs"]),
    ):
        plan = Plan(status=STATUS, finalizer=wanted)
        assert await world.apply(plan) == (wanted is not None)
        assert finalizers(world) == expected
        assert not await world.apply(plan)
        assert world.api.calls == []


@pytest.mark.parametrize("status", [404, 409])
async def test_a_finalizer_of_what_has_changed_or_gone_is_no_failure(world: World, status: int) -> None:
    world.refuse("finalizers", names.TRAINING, ApiError(status, "Conflict", "another"))
    await world.apply(Plan(status=STATUS, finalizer=True, events=(STARTING,)))
    assert world.events() == [("Normal", "Starting")]
    world.allow()
    assert await world.apply(Plan(status=STATUS, finalizer=True))


async def test_a_finalizer_that_is_refused_is_told(world: World) -> None:
    world.refuse("finalizers", names.TRAINING, FORBIDDEN)
    assert await world.fails(Plan(status=STATUS, finalizer=True)) == "FinalizerNotWritten"
    assert world.conditions()["Ready"] == ("False", "FinalizerNotWritten")


def told(uid: str) -> Plan:
    return Plan(status=STATUS, annotations=(Annotation("ns", "p", uid, {"mms.dev/serve": "b"}),))


async def test_a_pod_is_annotated_and_the_next_plan_sees_it(world: World) -> None:
    pod = world.see(
        {"kind": "Pod", "metadata": {"name": "p", "namespace": "ns", "labels": {}, "annotations": {"a": "1"}}}
    )
    assert await world.apply(told(pod["metadata"]["uid"]))
    entry = world.cache.entry("Pod", "ns", "p")
    assert entry is not None
    assert entry.object()["metadata"]["annotations"] == {"a": "1", "mms.dev/serve": "b"}


async def test_replicas_are_set_and_the_next_plan_sees_them(world: World) -> None:
    assert await world.apply(Plan(status=STATUS, scale=4))
    assert world.api.writes() == ["status ModelTraining/words", "scale ModelTraining/words"]
    cr = world.cache.get(WORDS)
    assert cr
    assert cr["spec"]["replicas"] == 4


async def test_replicas_of_what_has_changed_meanwhile_are_left(world: World) -> None:
    await world.apply(Plan(status=STATUS))
    world.api.store(training())  # newer than what the plan was made from
    assert not await world.apply(Plan(status=STATUS, scale=4))


async def test_a_refused_scale_is_told(world: World) -> None:
    def refuse(verb: str, *_: str) -> None:
        if verb == "scale":
            raise FORBIDDEN

    world.api.refuse = refuse
    assert await world.fails(Plan(status=STATUS, scale=4)) == "ScaleRefused"


@pytest.mark.parametrize("there", [True, False])
async def test_a_pod_that_went_is_not_annotated_and_no_failure(world: World, there: bool) -> None:
    if there:
        world.see({"kind": "Pod", "metadata": {"name": "p", "namespace": "ns"}})
    await world.apply(told("of-the-one-before"))
    assert [call for call in world.api.calls if call[0] == "annotate"] == [("annotate", "Pod", "p")]
    if there:
        assert "annotations" not in (world.stored("Pod", "p") or {})["metadata"]


async def test_an_annotation_that_is_refused_is_told(world: World) -> None:
    pod = world.see({"kind": "Pod", "metadata": {"name": "p", "namespace": "ns"}})

    def refuse(verb: str, *_: str) -> None:
        if verb == "annotate":
            raise ApiError(403, "Forbidden", "no")

    world.api.refuse = refuse
    assert await world.fails(told(pod["metadata"]["uid"])) == "ApplyFailed"


async def test_what_differs_is_written(world: World) -> None:
    await world.apply(Plan(status=STATUS, waves=((obj("ConfigMap", "job", data={"a": "b"}),),)))
    assert await world.apply(Plan(status=STATUS, waves=((obj("ConfigMap", "job", data={"a": "c"}),),)))
    assert world.api.writes() == ["apply ConfigMap/job"]
    assert world.stored("ConfigMap", "job")["data"] == {"a": "c"}  # type: ignore[index]


async def test_a_pod_is_made_once_whatever_the_plan_says_later(world: World) -> None:
    await world.apply(Plan(status=STATUS, waves=((obj("Pod", "worker", spec={"a": 1}),),)))
    assert not await world.apply(Plan(status=STATUS, waves=((obj("Pod", "worker", spec={"a": 2}),),)))


async def test_a_pod_that_the_cache_does_not_have_yet_is_no_failure(world: World) -> None:
    world.api.store(owned(training(), obj("Pod", "worker")))
    assert await world.apply(Plan(status=STATUS, waves=((obj("Pod", "worker"),),)))
    assert world.cache.entry("Pod", "ns", "worker") is not None


@pytest.mark.parametrize("kind", ["ConfigMap", "Pod"])
@pytest.mark.parametrize(
    "owner", [pytest.param([], id="nobody's"), pytest.param([{"kind": "X", "name": "x", "uid": "x"}], id="another's")]
)
async def test_an_object_that_is_not_ours_is_left_alone(world: World, kind: str, owner: list[Object]) -> None:
    theirs = obj(kind, "job", data="theirs")
    theirs["metadata"] |= {"namespace": "ns", "ownerReferences": [{**ref, "controller": True} for ref in owner]}
    before = world.api.store(theirs)
    plan = Plan(status=STATUS, waves=((obj(kind, "job", data="ours"),), (obj("Pod", "after"),)))
    assert await world.fails(plan) == "NameTaken"
    assert world.stored(kind, "job") == before
    assert world.stored("Pod", "after") is None, "the later waves stand on the earlier ones"
    assert world.conditions()["Ready"] == ("False", "NameTaken")
    assert world.conditions()["Reconciling"] == ("True", "NameTaken")
    assert world.events() == [("Warning", "NameTaken")]


async def test_objects_of_a_deleted_one_of_the_same_name_are_waited_for(world: World) -> None:
    left = obj("ConfigMap", "job", data="theirs")
    predecessor = {"kind": names.TRAINING, "name": "words", "uid": "before", "controller": True}
    left["metadata"] |= {"namespace": "ns", "ownerReferences": [predecessor]}
    world.api.store(left)
    plan = Plan(status=STATUS, waves=((obj("ConfigMap", "job", data="ours"),),))
    assert await world.fails(plan) == "WaitingForDeletion"
    del world.api.objects["ConfigMap", "ns", "job"]
    assert await world.apply(plan)


async def test_an_object_that_went_unseen_is_made_again(world: World) -> None:
    plan = Plan(status=STATUS, waves=((obj("ConfigMap", "job", data={"a": "b"}),),))
    await world.apply(plan)
    del world.api.objects["ConfigMap", "ns", "job"]
    changed = Plan(status=STATUS, waves=((obj("ConfigMap", "job", data={"a": "c"}),),))
    assert await world.apply(changed)
    assert world.stored("ConfigMap", "job") is not None


async def test_a_problem_is_shown_once_and_taken_back(world: World) -> None:
    plan = Plan(status=STATUS, waves=((obj("ConfigMap", "job"),),), events=())
    world.refuse("apply", "ConfigMap", FORBIDDEN)
    assert await world.fails(plan) == "ApplyFailed"
    assert world.conditions()["Ready"] == ("False", "ApplyFailed")
    for _ in range(3):
        assert await world.fails(plan) == "ApplyFailed"
        assert world.api.writes() == ["apply ConfigMap/job"], "neither status nor event are written again"
    world.allow()
    assert await world.apply(plan)
    assert world.conditions() == {"Ready": ("False", "Starting")}
    assert world.events() == [("Warning", "ApplyFailed")]
    assert not await world.apply(plan)


async def test_that_a_problem_ended_counts_as_a_write_even_if_the_status_stays(world: World) -> None:
    plan = Plan(status=STATUS, waves=((obj("ConfigMap", "job"),),))
    world.refuse("apply", "ConfigMap", FORBIDDEN)
    await world.fails(plan)
    # What the status says of the problem is what the planner says of it, too.
    cr = world.cache.get(WORDS)
    assert cr
    world.allow()
    assert await world.apply(Plan(status=cr["status"], waves=plan.waves)), "the object was written"


async def test_another_message_of_the_same_problem_changes_the_condition_and_is_no_event(world: World) -> None:
    plan = Plan(status=STATUS, waves=((obj("ConfigMap", "job"),),))
    for message in ("one", "two"):
        world.refuse("apply", "ConfigMap", ApiError(403, "Forbidden", message))
        await world.fails(plan)
        cr = world.cache.get(WORDS)
        assert cr
        assert message in cr["status"]["conditions"][0]["message"]
    assert world.events() == [("Warning", "ApplyFailed")]


async def test_all_that_failed_in_a_wave_is_told(world: World) -> None:
    world.refuse("apply", "ConfigMap", FORBIDDEN)
    with pytest.raises(ReconcileError, match=r"ConfigMap one.*ConfigMap two"):
        await world.apply(Plan(status=STATUS, waves=((obj("ConfigMap", "one"), obj("ConfigMap", "two")),)))


async def test_the_events_of_a_transition_are_not_lost_with_a_failure(world: World) -> None:
    """The next plan sees the new status already, and asks for no event."""
    world.refuse("apply", "ConfigMap", FORBIDDEN)
    await world.fails(Plan(status=STATUS, waves=((obj("ConfigMap", "job"),),), events=(STARTING,)))
    assert world.events() == [("Normal", "Starting"), ("Warning", "ApplyFailed")]


async def test_without_a_status_there_is_no_event_and_nothing_else(world: World) -> None:
    world.refuse("status", names.TRAINING, ApiError(409, "Conflict", "modified"))
    with pytest.raises(ApiError, match="409"):
        await world.apply(Plan(status=STATUS, waves=((obj("ConfigMap", "job"),),), events=(STARTING,)))
    assert world.api.writes() == ["status ModelTraining/words"]


async def test_a_lost_event_is_counted_and_fails_nothing(world: World) -> None:
    world.refuse("create", "Event", FORBIDDEN)
    assert await world.apply(Plan(status=STATUS, events=(STARTING,)))
    assert world.metrics.registry.get_sample_value("mms_errors_total", {"what": "event"}) == 1


async def test_what_follows_an_object_is_woken_by_the_write_of_its_status(world: World) -> None:
    """The watch's event of the same version is no news to the cache any more."""
    served = {"metadata": {**training("served")["metadata"]}, "spec": {"model": {"trainingRef": {"name": "words"}}}}
    world.cache.put(names.SERVICE, served)
    await world.apply(Plan(status=STATUS))
    assert world.woken == [Key(names.SERVICE, "ns", "served")]


@pytest.mark.parametrize(
    ("kind", "prune", "gone"),
    [
        pytest.param("ConfigMap", True, True, id="an allowed kind"),
        pytest.param("Deployment", True, True, id="a deployment"),
        pytest.param("Secret", True, False, id="never a Secret"),
        pytest.param("Pod", True, False, id="never a pod"),
        pytest.param("ConfigMap", False, False, id="not where the plan does not know"),
    ],
)
async def test_prune(world: World, kind: str, prune: bool, gone: bool) -> None:
    world.see(owned(training(), obj(kind, "left-over")))
    await world.apply(Plan(status=STATUS, prune=prune))
    assert (world.stored(kind, "left-over") is None) == gone


async def test_prune_leaves_a_predecessors_children_alone(world: World) -> None:
    predecessor = training()
    predecessor["metadata"]["uid"] = "another"
    world.see(owned(predecessor, obj("ConfigMap", "left-over")))
    await world.apply(Plan(status=STATUS))
    assert world.stored("ConfigMap", "left-over") is not None


async def test_what_is_being_deleted_is_not_deleted_again(world: World) -> None:
    leaving = owned(training(), obj("Service", "left-over"))
    leaving["metadata"] |= {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["example.com/load-balancer"]}
    world.see(leaving)
    await world.apply(Plan(status=STATUS))
    assert world.api.writes() == ["status ModelTraining/words"]


async def test_nothing_is_pruned_while_something_fails(world: World) -> None:
    world.see(owned(training(), obj("ConfigMap", "left-over")))
    world.refuse("apply", "ConfigMap", FORBIDDEN)
    await world.fails(Plan(status=STATUS, waves=((obj("ConfigMap", "job"),),)))
    assert world.stored("ConfigMap", "left-over") is not None


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        pytest.param(ApiError(404, "NotFound", "gone"), None, id="gone already"),
        pytest.param(ApiError(409, "Conflict", "another"), None, id="another has its name"),
        pytest.param(FORBIDDEN, "DeleteFailed", id="forbidden"),
    ],
)
async def test_deletions(world: World, error: ApiError, reason: str | None) -> None:
    pod = world.see(owned(training(), obj("Pod", "old")))
    plan = Plan(status=STATUS, deletions=(Deletion("v1", "Pod", "ns", "old", pod["metadata"]["uid"]),))
    world.refuse("delete", "Pod", error)
    if reason:
        assert await world.fails(plan) == reason
        assert world.cache.entry("Pod", "ns", "old") is not None
    else:
        await world.apply(replace(plan, deletions=()))
        assert await world.apply(plan), "the next plan is one without it"
        assert world.cache.entry("Pod", "ns", "old") is None
        assert not await world.apply(plan)


@pytest.mark.parametrize("there", [True, False])
async def test_what_waits_for_a_deleted_one_is_woken(there: bool) -> None:
    """As a training does whose storage another holds: the watch's event is no news to the cache any more."""
    world, other = World(), Key(names.TRAINING, "ns", "other")
    world.cache = world.applier.cache = Cache(lambda _: "s3://b/x")
    words = world.see(training())
    world.see(training("other"))
    if not there:
        del world.api.objects[WORDS]
    gone = Deletion(names.API_VERSION, *WORDS, words["metadata"]["uid"])
    assert await world.apply(Plan(status=words.get("status") or {}, deletions=(gone,)))
    assert world.woken == [other]


async def test_a_namespace_that_ends_is_no_failure(world: World) -> None:
    world.refuse("apply", "ConfigMap", ApiError(403, "Forbidden", "it ends", ("NamespaceTerminating",)))
    await world.apply(Plan(status=STATUS, waves=((obj("ConfigMap", "job"),),)))
    assert world.events() == []


async def test_a_namespace_that_ends_takes_what_the_cache_still_has(world: World) -> None:
    plan = Plan(status=STATUS, waves=((obj("ConfigMap", "job", data={"a": "b"}),),))
    await world.apply(plan)
    del world.api.objects["ConfigMap", "ns", "job"]
    tries = iter([ApiError(404, "NotFound", "it is gone"), ApiError(403, "Forbidden", "", ("NamespaceTerminating",))])

    def check(verb: str, kind: str, _: str) -> None:
        if (verb, kind) == ("apply", "ConfigMap"):
            raise next(tries)

    world.api.refuse = check
    changed = obj("ConfigMap", "job", data={"a": "c"})
    assert not await world.apply(Plan(status=STATUS, waves=((changed,),)))
    assert next(tries, None) is None
    assert world.events() == []


async def test_no_answer_is_raised_as_it_is(world: World) -> None:
    world.refuse("apply", "ConfigMap", OSError("no answer"))
    with pytest.raises(OSError, match="no answer"):
        await world.apply(Plan(status=STATUS, waves=((obj("ConfigMap", "job"),),)))


async def test_certificates_that_cannot_be_made_are_a_problem(world: World) -> None:
    certificates = Certificates(training(), {}, ("not a name \N{SNOWMAN}",), 30)
    plan = Plan(status=STATUS, certificates=certificates, waves=((obj("Pod", "worker"),),))
    assert await world.fails(plan) == "CertificatesFailed"
    assert world.stored("Pod", "worker") is None


@pytest.mark.parametrize(
    ("wanted", "present"),
    [
        pytest.param({"a": 1, "b": None}, {"a": 1}, id="null is absent"),
        pytest.param({"a": 1, "b": []}, {"a": 1}, id="an empty list is absent"),
        pytest.param({"a": 1, "b": {"c": None}}, {"a": 1}, id="an object of nulls is absent"),
        pytest.param({"a": (1, 2)}, {"a": [1, 2]}, id="a tuple is a list"),
    ],
)
async def test_a_status_that_means_the_same_is_not_written(world: World, wanted: Object, present: Object) -> None:
    world.see({**training(), "status": present})
    assert not await world.apply(Plan(status=wanted))
    assert world.api.calls == []


async def test_a_status_that_is_stored_differently_is_not_written_for_ever(world: World) -> None:
    store = world.api.store
    world.api.store = lambda found: store(  # type: ignore[method-assign]
        {**found, "status": {"kept": found["status"]["kept"]}} if found["kind"] == names.TRAINING else found
    )
    assert await world.apply(Plan(status={"kept": 1, "pruned": 2}))
    assert not await world.apply(Plan(status={"kept": 1, "pruned": 2}))
    assert world.api.calls == []
    assert await world.apply(Plan(status={"kept": 2, "pruned": 2}))


def test_owned_names_owner_and_hash_and_leaves_the_plan_as_it_is() -> None:
    planned = obj("ConfigMap", "job", data={"a": "b"})
    planned["metadata"]["annotations"] = {"x": "y"}
    written = owned(training(), planned)
    (reference,) = written["metadata"]["ownerReferences"]
    assert reference["uid"] == "uid-words"
    assert reference["controller"] is True
    assert written["metadata"]["namespace"] == "ns"
    assert written["metadata"]["annotations"]["x"] == "y"
    assert planned == {
        **obj("ConfigMap", "job", data={"a": "b"}),
        "metadata": {"name": "job", "annotations": {"x": "y"}},
    }


def test_the_hash_is_of_all_that_is_written() -> None:
    def digest(cr: Object, planned: Object) -> str:
        value: str = owned(cr, planned)["metadata"]["annotations"][names.ANNOTATION_HASH]
        return value

    other = training()
    other["metadata"]["uid"] = "another"
    labelled = obj("ConfigMap", "job", data={"a": "b"})
    labelled["metadata"]["labels"] = {"a": "b"}
    first = digest(training(), obj("ConfigMap", "job", data={"a": "b"}))
    assert first == digest(training(), obj("ConfigMap", "job", data={"a": "b"}))
    assert len({first, digest(other, obj("ConfigMap", "job", data={"a": "b"})), digest(training(), labelled)}) == 3
