"""What was last seen of the objects that concern the operator: trimmed, indexed by owner, never older than before.

Secrets, ConfigMaps and the like are kept as names, owners and hashes only; pods and deployments without what no planner
reads. Bodies are kept as JSON: a quarter of the memory of dicts, and a reader cannot change them.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json, to_json

from mms_operator.api import names
from mms_operator.api.names import Phase
from mms_operator.engine import ownership
from mms_operator.engine.resources import CHILDREN, OWNERS, POD, Key
from mms_operator.plan.training.pretrained import reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from mms_operator.plan.types import Object

_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_OWNER_KINDS = frozenset(resource.kind for resource in OWNERS)
_BODIES = _OWNER_KINDS | {"Pod", "Deployment"}
_EDITED = frozenset(resource.kind for resource in CHILDREN if resource != POD)  # what is applied; a pod is only created
_TOMBSTONES = 4096


@dataclass(slots=True, frozen=True)
class Entry:
    kind: str
    namespace: str
    name: str
    uid: str
    version: int  # resourceVersion: comparable within a kind
    owner: Key | None
    owner_uid: str | None  # of the controller, whoever it is
    hash: str | None
    expires: str | None
    deleting: bool
    body: bytes | None
    fields: bytes | None = None  # digest of the fields that are ours by server-side apply
    applied_fields: bytes | None = None  # the same when it had just been applied, or was first seen

    owned: bytes | None = None  # fieldsV1 of what was seen for the first time, until it is compared with a plan

    @property
    def intact(self) -> bool:
        """Whether nobody has changed or removed a field that was applied: whoever does takes it from its owner."""
        return self.fields == self.applied_fields

    def object(self) -> Object:
        """The trimmed object; only of custom resources, pods and deployments."""
        if self.body is None:
            raise ValueError(f"of {self.kind} only metadata is kept")
        found: Object = from_json(self.body)
        return found


class Cache:
    """`storage_uri` says where a training writes; two trainings with the same answer are in conflict."""

    def __init__(self, storage_uri: Callable[[Object], str | None] = lambda _: None) -> None:
        self._storage_uri = storage_uri
        self._entries: dict[tuple[str, str, str], Entry] = {}
        self._children: dict[Key, dict[tuple[str, str, str], Entry]] = defaultdict(dict)
        self._storage: dict[str, dict[Key, tuple[str, bool, str]]] = defaultdict(dict)  # URI -> (creation, uid) of each
        self._uri: dict[Key, str] = {}
        self._followers: dict[Key, set[Key]] = defaultdict(set)  # training -> what refers to it
        self._follows: dict[Key, Key] = {}
        self._pins: dict[str, dict[Key, frozenset[str]]] = defaultdict(dict)  # by namespace: artifacts that each needs
        self._tombstones: OrderedDict[str, int] = OrderedDict()  # uids that were deleted: a late answer revives none
        self.deletions = 0  # how many there were; in the tombstones the number of each

    def put(self, kind: str, obj: Object, *, applied: bool = False, began: int = 0) -> frozenset[Key]:
        """Takes in what was seen. Gives the keys that it is news to: none if as new or newer is known.

        `applied`: it is the answer to a server-side apply of ours, so that all its fields are as planned. `began`:
        `deletions` when the read began that it is the answer to. What was called deleted before lives, then: it had
        lost the label by which it is watched.
        """
        metadata = obj["metadata"]
        place = (kind, metadata.get("namespace", ""), metadata["name"])
        known = self._entries.get(place)
        version = int(metadata["resourceVersion"])
        if (deletion := self._tombstones.get(metadata["uid"])) is not None:
            if deletion > began:
                return frozenset()
            del self._tombstones[metadata["uid"]]
        if known is not None and known.version >= version:
            if applied and known.version == version:  # its watch event was faster
                self._replace(replace(known, applied_fields=known.fields, owned=None))
            return frozenset()
        entry = _entry(place, version, obj)
        if applied or (known is not None and known.owned is None):
            entry = replace(entry, owned=None)
        if not applied and known is not None and (known.uid, known.hash) == (entry.uid, entry.hash):
            entry = replace(entry, applied_fields=known.applied_fields)
        concerned = self._unlink(known) if known else set()
        self._entries[place] = entry
        return frozenset(concerned | self._link(entry, obj))

    def is_as_planned(self, entry: Entry, planned: Object) -> bool:
        """Whether an object that was applied with the plan's hash still has what was applied.

        Of what was edited while nobody watched only its owners tell: whoever changes a field takes it over.
        """
        if entry.owned is None or not entry.intact:
            return entry.intact
        if not ownership.covers(from_json(entry.owned), planned):
            return False
        self._replace(replace(entry, owned=None))
        return True

    def remove(self, kind: str, namespace: str, name: str, uid: str | None = None) -> frozenset[Key]:
        """Forgets an object (only the one with `uid`, where given). Gives the keys that it is news to."""
        if uid:
            self.deletions += 1
            self._tombstones[uid] = self.deletions
            while len(self._tombstones) > _TOMBSTONES:
                self._tombstones.popitem(last=False)
        place = (kind, namespace, name)
        known = self._entries.get(place)
        if known is None or (uid is not None and known.uid != uid):
            return frozenset()
        del self._entries[place]
        concerned = self._unlink(known)
        if kind in _OWNER_KINDS:
            self._pins[namespace].pop(Key(*place), None)
            concerned.add(Key(*place))
            concerned |= self._followers.get(Key(*place), set())
        return frozenset(concerned)

    def entry(self, kind: str, namespace: str, name: str) -> Entry | None:
        return self._entries.get((kind, namespace, name))

    def get(self, key: Key) -> Object | None:
        """A custom resource."""
        entry = self._entries.get(key)
        return entry.object() if entry else None

    def children(self, owner: Key) -> list[Entry]:
        """What belongs to a key, of any incarnation of it: compare `owner_uid`."""
        return list(self._children.get(owner, {}).values())

    def entries(self, kind: str) -> Iterator[Entry]:
        return (entry for entry in list(self._entries.values()) if entry.kind == kind)

    def owners(self) -> Iterator[Key]:
        """All custom resources."""
        return (Key(*place) for place in list(self._entries) if place[0] in _OWNER_KINDS)

    def artifacts(self, namespace: str) -> frozenset[str]:
        """URIs of the artifacts that services of a namespace serve or name, or that runs there started from."""
        return frozenset().union(*self._pins.get(namespace, {}).values())

    def storage_owner(self, key: Key) -> str | None:
        """namespace/name of the oldest training that writes where `key` does, if that is another.

        Of two of the same second the one that has started, then the one with the lower uid.
        """
        sharing = self._storage.get(self._uri.get(key, ""), {})
        mine = sharing.get(key)
        first = min(((rank, other) for other, rank in sharing.items() if other != key), default=None)
        return f"{first[1].namespace}/{first[1].name}" if first and mine and first[0] < mine else None

    def __len__(self) -> int:
        return len(self._entries)

    def _replace(self, entry: Entry) -> None:
        """Puts an entry in the place of one that differs in nothing that is indexed."""
        place = (entry.kind, entry.namespace, entry.name)
        self._entries[place] = entry
        if entry.owner is not None:
            self._children[entry.owner][place] = entry

    def _link(self, entry: Entry, obj: Object) -> set[Key]:
        if entry.owner is not None:
            self._children[entry.owner][entry.kind, entry.namespace, entry.name] = entry
            return {entry.owner}
        if entry.kind not in _OWNER_KINDS:
            return set()
        key = Key(entry.kind, entry.namespace, entry.name)
        if entry.kind == names.TRAINING:
            self._follow(key, reference(obj))
            self._pins[entry.namespace][key] = _started_from(obj)
            uri = self._storage_uri(obj)
            if uri:
                self._uri[key] = uri
                started = bool((obj.get("status") or {}).get("startTime"))
                self._storage[uri][key] = (obj["metadata"]["creationTimestamp"], not started, entry.uid)
            return {key} | self._followers.get(key, set()) | set(self._storage.get(uri or "", {}))
        name = (obj.get("spec", {}).get("model", {}).get("trainingRef") or {}).get("name")
        self._follow(key, name)
        pins = _pins(obj)
        if pins == self._pins[entry.namespace].get(key, frozenset()):
            return {key}
        self._pins[entry.namespace][key] = pins
        return {key, self._follows[key]} if name else {key}

    def _follow(self, key: Key, training: str | None) -> None:
        """What the training comes to is news to the key."""
        if training:
            self._follows[key] = Key(names.TRAINING, key.namespace, training)
            self._followers[self._follows[key]].add(key)

    def _unlink(self, entry: Entry) -> set[Key]:
        """Takes the entry out of the indexes; gives the keys that may stand differently without it."""
        if entry.owner is not None:
            siblings = self._children[entry.owner]
            siblings.pop((entry.kind, entry.namespace, entry.name), None)
            if not siblings:
                del self._children[entry.owner]
            return {entry.owner}
        key = Key(entry.kind, entry.namespace, entry.name)
        if (training := self._follows.pop(key, None)) is not None:
            self._followers[training].discard(key)
            if not self._followers[training]:
                del self._followers[training]
        if (uri := self._uri.pop(key, None)) is not None:
            sharing = self._storage[uri]
            sharing.pop(key, None)
            if not sharing:
                del self._storage[uri]
            return set(sharing)
        return set()


def _entry(place: tuple[str, str, str], version: int, obj: Object) -> Entry:
    kind, namespace, name = place
    metadata = obj["metadata"]
    annotations = metadata.get("annotations") or {}
    owner, owner_uid = _owner(kind, namespace, metadata)
    owned = _owned(metadata) if kind in _EDITED else None
    fields = hashlib.sha256(owned).digest()[:8] if owned else None
    return Entry(
        kind=kind,
        namespace=namespace,
        name=name,
        uid=metadata["uid"],
        version=version,
        owner=owner,
        owner_uid=owner_uid,
        hash=annotations.get(names.ANNOTATION_HASH),
        expires=annotations.get(names.ANNOTATION_EXPIRES),
        deleting="deletionTimestamp" in metadata,
        body=to_json(trim(kind, obj)) if kind in _BODIES else None,
        fields=fields,
        applied_fields=fields,
        owned=owned,
    )


def _started_from(training: Object) -> frozenset[str]:
    """The artifact that a run which is not at its end began with: its pods may read it again."""
    status = training.get("status") or {}
    found = (status.get("pretrained") or {}).get("uri")
    return frozenset([found]) if found and status.get("phase") not in {Phase.COMPLETE, Phase.FAILED} else frozenset()


def _pins(service: Object) -> frozenset[str]:
    """URIs of the artifacts that a service names in its spec, of all versions in its status, and of the one before."""
    status = service.get("status") or {}
    named = (service.get("spec", {}).get("model") or {}).get("artifact")
    found = [named] if named else []
    found += (status.get("versions") or {}).values()
    # The last one that was served is what answers, and its forerunner what a rollback without a number goes to.
    found += [one for one in status.get("history") or () if one.get("outcome") == "Served"][:2]
    return frozenset(one["uri"] for one in found if one and "uri" in one)


def _owned(metadata: dict[str, Any]) -> bytes | None:
    for manager in metadata.get("managedFields") or ():
        if manager.get("manager") == names.FIELD_MANAGER and manager.get("operation") == "Apply":
            return to_json(manager.get("fieldsV1"))
    return None


def _owner(kind: str, namespace: str, metadata: dict[str, Any]) -> tuple[Key | None, str | None]:
    """The key that an object belongs to: its controller, or (a deployment's pods) the one that its label names."""
    if kind in _OWNER_KINDS:
        return None, None
    reference = controller(metadata)
    if reference and reference.get("apiVersion", "").startswith(f"{names.GROUP}/"):
        return Key(reference["kind"], namespace, reference["name"]), reference["uid"]
    labels = metadata.get("labels") or {}
    uid = reference["uid"] if reference else None
    for label, owner in ((names.LABEL_SERVICE, names.SERVICE), (names.LABEL_TRAINING, names.TRAINING)):
        if label in labels:
            return Key(owner, namespace, labels[label]), uid
    return None, uid


def controller(metadata: dict[str, Any]) -> dict[str, Any] | None:
    """The owner reference that is the controller's."""
    references: Iterable[dict[str, Any]] = metadata.get("ownerReferences") or ()
    return next((reference for reference in references if reference.get("controller")), None)


def trim(kind: str, obj: Object) -> Object:
    """The part of an object that planners read."""
    metadata = {key: value for key, value in obj["metadata"].items() if key != "managedFields"}
    if annotations := metadata.get("annotations"):
        metadata["annotations"] = {key: value for key, value in annotations.items() if key != _LAST_APPLIED}
    trimmed = {**obj, "kind": kind, "metadata": metadata}
    if kind == "Pod":
        spec = obj.get("spec", {})
        trimmed["spec"] = {"nodeName": spec["nodeName"]} if "nodeName" in spec else {}
    elif kind == "Deployment":
        spec = obj.get("spec", {})
        trimmed["spec"] = {**spec, "template": {"metadata": spec.get("template", {}).get("metadata", {})}}
    return trimmed
