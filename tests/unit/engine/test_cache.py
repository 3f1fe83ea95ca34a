"""The cache: never older than before, indexed by owner, and without what nobody reads."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mms_operator.api import names
from mms_operator.engine import cache as module
from mms_operator.engine import ownership
from mms_operator.engine.cache import Cache, trim
from mms_operator.engine.resources import Key

Object = dict[str, Any]
WORDS = Key(names.TRAINING, "ns", "words")
SERVED = Key(names.SERVICE, "ns", "served")


def made(kind: str, name: str, version: int, uid: str = "", **metadata: Any) -> Object:
    return {
        "kind": kind,
        "metadata": {
            "namespace": "ns",
            "name": name,
            "uid": uid or f"uid-{name}",
            "resourceVersion": str(version),
            "creationTimestamp": "2026-01-01T00:00:00Z",
            **metadata,
        },
    }


def training(name: str = "words", version: int = 1, uri: str = "", **metadata: Any) -> Object:
    return {**made(names.TRAINING, name, version, **metadata), "spec": {"storage": {"uri": uri}}}


def service(name: str = "served", version: int = 1, refers_to: str = "words") -> Object:
    return {**made(names.SERVICE, name, version), "spec": {"model": {"trainingRef": {"name": refers_to}}}}


def owned_by(name: str = "words", kind: str = names.TRAINING, uid: str = "") -> list[Object]:
    reference = {"apiVersion": names.API_VERSION, "kind": kind, "name": name, "uid": uid or f"uid-{name}"}
    return [{**reference, "controller": True}]


def child(kind: str, name: str, version: int, **metadata: Any) -> Object:
    return made(kind, name, version, ownerReferences=owned_by(), **metadata)


@pytest.fixture
def cache() -> Cache:
    return Cache(lambda cr: cr["spec"]["storage"]["uri"] or None)


@pytest.mark.parametrize(
    ("versions", "kept"),
    [
        pytest.param([1, 2, 3], 3, id="in order"),
        pytest.param([3, 1, 2], 3, id="late answers"),
        pytest.param([9, 10], 10, id="versions are numbers"),
    ],
)
def test_nothing_older_replaces_what_is_known(cache: Cache, versions: list[int], kept: int) -> None:
    news = [bool(cache.put("Pod", child("Pod", "p", version))) for version in versions]
    entry = cache.entry("Pod", "ns", "p")
    assert entry
    assert entry.version == kept
    assert news == [version == max(versions[: n + 1]) for n, version in enumerate(versions)]


def test_the_same_version_is_no_news(cache: Cache) -> None:
    assert cache.put("Pod", child("Pod", "p", 5)) == {WORDS}
    assert cache.put("Pod", child("Pod", "p", 5)) == set()


def test_a_late_answer_does_not_bring_back_what_was_deleted(cache: Cache) -> None:
    cache.put("Pod", child("Pod", "p", 5))
    assert cache.remove("Pod", "ns", "p", "uid-p") == {WORDS}
    assert cache.put("Pod", child("Pod", "p", 6)) == set()
    assert cache.entry("Pod", "ns", "p") is None
    assert cache.put("Pod", child("Pod", "p", 7, uid="another")) == {WORDS}


def test_an_object_that_left_the_watch_by_losing_its_label_is_taken_back_when_it_is_read(cache: Cache) -> None:
    cache.remove("Secret", "ns", "s", "uid-s")
    began = cache.deletions
    assert cache.put("Secret", child("Secret", "s", 6), began=began) == {WORDS}
    cache.remove("Secret", "ns", "s", "uid-s")
    assert cache.put("Secret", child("Secret", "s", 7), began=began) == set(), "deleted after the read began"


def test_a_late_deletion_does_not_take_the_successor(cache: Cache) -> None:
    cache.put("Pod", child("Pod", "p", 9, uid="second"))
    assert cache.remove("Pod", "ns", "p", "first") == set()
    assert cache.entry("Pod", "ns", "p") is not None


def test_tombstones_are_bounded(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TOMBSTONES", 3)
    for n in range(10):
        cache.remove("Pod", "ns", f"p{n}", f"uid-p{n}")
    assert list(cache._tombstones) == ["uid-p7", "uid-p8", "uid-p9"]


@pytest.mark.parametrize(
    ("kind", "metadata", "owner", "uid"),
    [
        pytest.param("Pod", {"ownerReferences": owned_by()}, WORDS, "uid-words", id="controller"),
        pytest.param(
            "Pod",
            {
                "labels": {names.LABEL_SERVICE: "served"},
                "ownerReferences": [
                    {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": True}
                ],
            },
            SERVED,
            "r",
            id="a deployment's pod by its label",
        ),
        pytest.param("Pod", {"labels": {names.LABEL_TRAINING: "words"}}, WORDS, None, id="only a label"),
        pytest.param("Secret", {"labels": {"app": "x"}}, None, None, id="nobody's"),
        pytest.param(
            "Secret",
            {"ownerReferences": [{**owned_by()[0], "controller": False}]},
            None,
            None,
            id="an owner that is no controller",
        ),
    ],
)
def test_owner(cache: Cache, kind: str, metadata: Object, owner: Key | None, uid: str | None) -> None:
    assert cache.put(kind, made(kind, "x", 1, **metadata)) == ({owner} if owner else set())
    entry = cache.entry(kind, "ns", "x")
    assert entry
    assert (entry.owner, entry.owner_uid) == (owner, uid)
    if owner:
        assert [found.name for found in cache.children(owner)] == ["x"]


def test_children_follow_their_owner_reference(cache: Cache) -> None:
    cache.put("Pod", child("Pod", "p", 1))
    assert cache.put("Pod", made("Pod", "p", 2, ownerReferences=owned_by("other"))) == {
        WORDS,
        Key(names.TRAINING, "ns", "other"),
    }
    assert cache.children(WORDS) == []
    assert [entry.name for entry in cache.children(Key(names.TRAINING, "ns", "other"))] == ["p"]


def test_trainings_hear_of_the_one_that_they_start_from(cache: Cache) -> None:
    topics = Key(names.TRAINING, "ns", "topics")

    def starting(version: int, **pretrained: Any) -> Object:
        found = training("topics", version, uri="s3://m/topics")
        return {**found, "spec": {**found["spec"], "pretrained": pretrained}}

    assert cache.put(names.TRAINING, starting(1, trainingRef={"name": "words"})) == {topics}
    assert cache.put(names.TRAINING, training(version=2)) == {WORDS, topics}
    assert cache.remove(names.TRAINING, "ns", "words") == {WORDS, topics}
    assert cache.put(names.TRAINING, starting(3, uri="s3://m/x")) == {topics}
    assert cache.put(names.TRAINING, training(version=4)) == {WORDS}


def test_what_a_run_started_from_is_kept_until_its_end(cache: Cache) -> None:
    started = {"pretrained": {"uri": "s3://m/words/runs/1"}, "phase": "Running"}
    cache.put(names.TRAINING, {**training("topics", 1), "status": started})
    assert cache.artifacts("ns") == {"s3://m/words/runs/1"}
    assert cache.artifacts("other") == frozenset()
    cache.put(names.TRAINING, {**training("topics", 2), "status": {**started, "phase": "Complete"}})
    assert cache.artifacts("ns") == frozenset()
    cache.put(names.TRAINING, {**training("topics", 3), "status": {**started, "phase": "Suspended"}})
    assert cache.artifacts("ns") == {"s3://m/words/runs/1"}
    cache.remove(names.TRAINING, "ns", "topics")
    assert cache.artifacts("ns") == frozenset()


def test_services_hear_of_the_training_that_they_follow(cache: Cache) -> None:
    assert cache.put(names.SERVICE, service()) == {SERVED}
    assert cache.put(names.TRAINING, training(version=2)) == {WORDS, SERVED}
    cache.put(names.SERVICE, service(version=3, refers_to="other"))
    assert cache.put(names.TRAINING, training(version=4)) == {WORDS}
    assert cache.put(names.TRAINING, training("other", 5)) == {Key(names.TRAINING, "ns", "other"), SERVED}
    assert cache.remove(names.TRAINING, "ns", "other") == {Key(names.TRAINING, "ns", "other"), SERVED}
    cache.remove(names.SERVICE, "ns", "served")
    assert cache.put(names.TRAINING, training("other", 9)) == {Key(names.TRAINING, "ns", "other")}


def test_what_services_serve_or_name_is_known_by_namespace(cache: Cache) -> None:
    assert cache.artifacts("ns") == frozenset()
    versions = {"stable": {"uri": "s3://m/1"}, "next": None, "previous": {"uri": "s3://m/0"}}
    history = [
        {"uri": "s3://m/2", "outcome": "Aborted"}, {"uri": "s3://m/1", "outcome": "Served"},
        {"uri": "s3://m/before", "outcome": "Served"}, {"uri": "s3://m/long-ago", "outcome": "Served"},
    ]  # fmt: skip
    served = {**service(version=2), "status": {"versions": versions, "history": history}}
    named = {**made(names.SERVICE, "named", 1), "spec": {"model": {"artifact": {"uri": "s3://other/3"}}}}
    elsewhere = {**served, "metadata": {**served["metadata"], "namespace": "elsewhere", "uid": "uid-elsewhere"}}
    of_served = {"s3://m/0", "s3://m/1", "s3://m/before"}
    for seen in (service(), named, served):
        cache.put(names.SERVICE, seen)
    assert cache.artifacts("ns") == {*of_served, "s3://other/3"}
    cache.put(names.SERVICE, elsewhere)
    cache.remove(names.SERVICE, "ns", "named")
    assert cache.artifacts("ns") == of_served
    cache.remove(names.SERVICE, "ns", "served", "uid-served")
    assert cache.artifacts("ns") == frozenset()
    assert cache.artifacts("elsewhere") == of_served


def test_a_training_hears_of_what_is_served_of_it(cache: Cache) -> None:
    def serving(version: int, uri: str, replicas: int = 0) -> Object:
        stable = {"uri": uri, "replicas": replicas}
        return {**service(version=version), "status": {"versions": {"stable": stable}}}

    assert cache.put(names.SERVICE, service()) == {SERVED}
    assert cache.put(names.SERVICE, serving(2, "s3://m/1")) == {SERVED, WORDS}
    assert cache.put(names.SERVICE, serving(3, "s3://m/1", replicas=2)) == {SERVED}, "the artifact is the same"
    assert cache.put(names.SERVICE, serving(4, "s3://m/2")) == {SERVED, WORDS}


@pytest.mark.parametrize(
    ("trainings", "asked", "owner"),
    [
        pytest.param([("a", "2026-01-01T00:00:00Z", "s3://x")], "a", None, id="alone"),
        pytest.param(
            [("a", "2026-01-02T00:00:00Z", "s3://x"), ("b", "2026-01-01T00:00:00Z", "s3://x")],
            "a",
            "ns/b",
            id="younger",
        ),
        pytest.param(
            [("a", "2026-01-02T00:00:00Z", "s3://x"), ("b", "2026-01-01T00:00:00Z", "s3://x")], "b", None, id="oldest"
        ),
        pytest.param(
            [("a", "2026-01-01T00:00:00Z", "s3://x"), ("b", "2026-01-01T00:00:00Z", "s3://x")],
            "b",
            "ns/a",
            id="a tie goes by uid",
        ),
        pytest.param(
            [("a", "2026-01-02T00:00:00Z", "s3://x"), ("b", "2026-01-01T00:00:00Z", "s3://y")],
            "a",
            None,
            id="elsewhere",
        ),
        pytest.param([("a", "2026-01-02T00:00:00Z", ""), ("b", "2026-01-01T00:00:00Z", "")], "a", None, id="nowhere"),
    ],
)
def test_storage_owner(cache: Cache, trainings: list[tuple[str, str, str]], asked: str, owner: str | None) -> None:
    for name, created, uri in trainings:
        cache.put(names.TRAINING, training(name, 1, uri, creationTimestamp=created))
    assert cache.storage_owner(Key(names.TRAINING, "ns", asked)) == owner


def test_of_two_of_one_second_the_one_that_has_started_has_the_storage(cache: Cache) -> None:
    """Whatever their uids: it writes there already."""
    for name in ("a", "b"):
        cache.put(names.TRAINING, training(name, 1, "s3://x", creationTimestamp="2026-01-01T00:00:00Z"))
    started = training("b", 2, "s3://x", creationTimestamp="2026-01-01T00:00:00Z")
    cache.put(names.TRAINING, {**started, "status": {"startTime": "2026-01-01T00:00:00Z"}})
    assert cache.storage_owner(Key(names.TRAINING, "ns", "a")) == "ns/b"
    assert cache.storage_owner(Key(names.TRAINING, "ns", "b")) is None


def test_whoever_waits_for_a_storage_hears_that_it_is_free(cache: Cache) -> None:
    first, second = Key(names.TRAINING, "ns", "a"), Key(names.TRAINING, "ns", "b")
    cache.put(names.TRAINING, training("a", 1, "s3://x"))
    assert second in cache.put(names.TRAINING, training("b", 2, "s3://x"))
    assert cache.storage_owner(second) == "ns/a"
    assert cache.remove(names.TRAINING, "ns", "a") == {first, second}
    assert cache.storage_owner(second) is None
    cache.put(names.TRAINING, training("a", 3, "s3://x"))
    assert cache.put(names.TRAINING, training("a", 4, "s3://y")) == {first, second}


@pytest.mark.parametrize("kind", ["Secret", "ConfigMap", "Service", "NetworkPolicy", "PodDisruptionBudget"])
def test_of_some_kinds_no_body_is_kept(cache: Cache, kind: str) -> None:
    cache.put(kind, {**child(kind, "x", 1), "data": {"key": "c2VjcmV0"}, "spec": {"secret": "c2VjcmV0"}})
    entry = cache.entry(kind, "ns", "x")
    assert entry
    assert entry.body is None
    assert "c2VjcmV0" not in repr(entry)
    with pytest.raises(ValueError, match="only metadata"):
        entry.object()


@pytest.mark.parametrize(
    ("kind", "spec", "kept"),
    [
        pytest.param("Pod", {"nodeName": "n", "containers": [{"env": ["secret"]}]}, {"nodeName": "n"}, id="pod"),
        pytest.param("Pod", {"containers": []}, {}, id="pod without a node"),
        pytest.param(
            "Deployment",
            {"replicas": 2, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}}},
            {"replicas": 2, "template": {"metadata": {"labels": {"a": "b"}}}},
            id="deployment",
        ),
        pytest.param(names.TRAINING, {"task": {"x": 1}}, {"task": {"x": 1}}, id="training"),
    ],
)
def test_trim(kind: str, spec: Object, kept: Object) -> None:
    obj = {
        **made(kind, "x", 1, managedFields=[{}], annotations={"a": "b", module._LAST_APPLIED: "{}"}),
        "spec": spec,
        "status": {"phase": "Running"},
    }
    trimmed = trim(kind, obj)
    assert trimmed["spec"] == kept
    assert trimmed["status"] == {"phase": "Running"}
    assert trimmed["metadata"]["annotations"] == {"a": "b"}
    assert "managedFields" not in trimmed["metadata"]
    assert obj["spec"] == spec, "what was given is left as it is"


def test_a_reader_cannot_change_what_is_kept(cache: Cache) -> None:
    cache.put(names.TRAINING, training())
    first = cache.get(WORDS)
    assert first
    first["spec"]["storage"]["uri"] = "changed"
    assert cache.get(WORDS) == training()


def applied(version: int, fields: Object, digest: str = "h") -> Object:
    managers = [
        {"manager": "kubectl-edit", "operation": "Update", "fieldsV1": {"f:data": {"f:other": {}}}},
        {"manager": names.FIELD_MANAGER, "operation": "Apply", "fieldsV1": fields},
    ]
    annotations = {names.ANNOTATION_HASH: digest}
    return child("ConfigMap", "x", version, managedFields=managers, annotations=annotations)


FULL, PART = {"f:data": {"f:a": {}, "f:b": {}}}, {"f:data": {"f:b": {}}}


def intact(cache: Cache) -> bool:
    entry = cache.entry("ConfigMap", "ns", "x")
    assert entry
    assert cache.children(WORDS) == [entry], "both indexes hold the same"
    return entry.intact


def test_a_field_that_someone_else_took_shows(cache: Cache) -> None:
    cache.put("ConfigMap", applied(1, FULL), applied=True)
    cache.put("ConfigMap", applied(2, FULL))
    assert intact(cache)
    cache.put("ConfigMap", applied(3, PART))
    assert not intact(cache)
    cache.put("ConfigMap", applied(4, PART))
    assert not intact(cache), "until it is applied again"
    cache.put("ConfigMap", applied(5, FULL), applied=True)
    assert intact(cache)


def test_what_the_watch_says_before_the_answer_comes_is_the_same(cache: Cache) -> None:
    cache.put("ConfigMap", applied(1, FULL), applied=True)
    cache.put("ConfigMap", applied(2, PART))
    cache.put("ConfigMap", applied(3, FULL))
    assert intact(cache)
    cache.put("ConfigMap", applied(3, FULL), applied=True)
    assert intact(cache)


def test_an_application_that_changed_nothing_is_not_repeated_for_ever(cache: Cache) -> None:
    """As when an API server of another release counts the fields in another way."""
    cache.put("ConfigMap", applied(1, FULL), applied=True)
    cache.put("ConfigMap", applied(2, PART))
    assert not intact(cache)
    cache.put("ConfigMap", applied(2, PART), applied=True)
    assert intact(cache)


PLANNED = {"kind": "ConfigMap", "metadata": {"name": "x"}, "data": {"a": "1", "b": "2"}}


def planned(cache: Cache) -> bool:
    entry = cache.entry("ConfigMap", "ns", "x")
    assert entry
    return cache.is_as_planned(entry, PLANNED)


def test_what_was_edited_while_nobody_watched_shows(cache: Cache) -> None:
    whole, part = ({**fields, "f:metadata": {}} for fields in (FULL, PART))
    cache.put("ConfigMap", applied(1, part))
    assert not planned(cache)
    assert not planned(cache), "until it is applied again"
    cache.put("ConfigMap", applied(2, whole), applied=True)
    assert planned(cache)
    cache.put("ConfigMap", applied(3, part))
    assert not planned(cache)


def test_what_was_first_seen_whole_is_compared_once(cache: Cache) -> None:
    whole = {**FULL, "f:metadata": {}}
    cache.put("ConfigMap", applied(1, whole))
    cache.put("ConfigMap", applied(2, whole))
    assert planned(cache)
    entry = cache.entry("ConfigMap", "ns", "x")
    assert entry
    assert entry.owned is None
    assert intact(cache)
    cache.put("ConfigMap", applied(3, PART))
    assert not planned(cache)


@pytest.mark.parametrize(
    ("fields", "wanted", "whole"),
    [
        ({"f:spec": {"f:replicas": {}}}, {"spec": {"replicas": 0}}, True),
        ({"f:spec": {}}, {"spec": {"replicas": 0}}, True),  # the map is owned as a whole
        ({"f:spec": {"f:selector": {}}}, {"spec": {"replicas": 3}}, False),
        ({"f:spec": {"f:a": {}}}, {"spec": {"a": [{"b": 1}], "c": None, "d": {}, "e": []}}, True),
        ({"f:metadata": {"f:labels": {"f:x": {}}}}, {"metadata": {"name": "n", "labels": {"x": "1", "y": "2"}}}, False),
        ({}, {"apiVersion": "v1", "kind": "Service"}, True),
    ],
)
def test_all_that_is_planned_is_ours(fields: Object, wanted: Object, whole: bool) -> None:
    assert ownership.covers(fields, wanted) is whole


def test_other_content_has_other_fields(cache: Cache) -> None:
    cache.put("ConfigMap", applied(1, FULL, "one"), applied=True)
    cache.put("ConfigMap", applied(2, PART, "two"))
    assert intact(cache)


class Machine(RuleBasedStateMachine):
    """One server's history, told out of order, twice and in part: the cache never goes back in time."""

    NAMES = st.sampled_from(["a", "b", "c"])
    OWNERS = st.sampled_from(["words", "other"])

    def __init__(self) -> None:
        super().__init__()
        self.cache = Cache()
        self.version = 0
        self.live: dict[str, Object] = {}
        self.history: list[Object] = []
        self.told: dict[str, int] = {}  # name -> newest version that the cache was told of
        self.dead: set[str] = set()  # uids that the cache was told are gone

    @rule(name=NAMES, owner=OWNERS)
    def write(self, name: str, owner: str) -> None:
        self.version += 1
        uid = self.live[name]["metadata"]["uid"] if name in self.live else f"{name}-{self.version}"
        self.live[name] = made("Pod", name, self.version, uid=uid, ownerReferences=owned_by(owner))
        self.history.append(self.live[name])

    @rule(data=st.data())
    def tell(self, data: st.DataObject) -> None:
        if self.history:
            obj = data.draw(st.sampled_from(self.history))
            self.cache.put("Pod", obj)
            if obj["metadata"]["uid"] not in self.dead:
                name = obj["metadata"]["name"]
                self.told[name] = max(self.told.get(name, 0), int(obj["metadata"]["resourceVersion"]))

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        if name in self.live:
            uid = self.live.pop(name)["metadata"]["uid"]
            self.dead.add(uid)
            before = self.cache.entry("Pod", "ns", name)
            self.cache.remove("Pod", "ns", name, uid)
            if before is None or before.uid == uid:
                self.told.pop(name, None)

    @invariant()
    def holds_the_newest_that_it_was_told(self) -> None:
        held = {entry.name: entry.version for entry in self.cache.entries("Pod")}
        assert held == self.told

    @invariant()
    def holds_nothing_that_is_gone(self) -> None:
        assert not {entry.uid for entry in self.cache.entries("Pod")} & self.dead

    @invariant()
    def the_index_is_the_entries(self) -> None:
        indexed = [
            (owner.name, entry)
            for owner in (WORDS, Key(names.TRAINING, "ns", "other"))
            for entry in self.cache.children(owner)
        ]
        assert len(indexed) == len(self.cache)
        assert all(entry.owner and entry.owner.name == owner for owner, entry in indexed)
        assert all(self.cache._children.values()), "no empty rows are left behind"


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
