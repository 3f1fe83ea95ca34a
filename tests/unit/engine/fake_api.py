"""An API server of a few dicts, for what a real one cannot show: the order of calls, and failures at will."""

from __future__ import annotations

import asyncio
import copy
from typing import TYPE_CHECKING, Any

from mms_operator.api import names
from mms_operator.engine.kubeapi import ApiError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from mms_operator.engine.resources import Resource

Object = dict[str, Any]


class FakeApi:
    """`calls` are (verb, kind, name); `refuse` may raise, before anything else happens."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.calls: list[tuple[str, str, str]] = []
        self.refuse: Callable[[str, str, str], None] = lambda *_: None
        self.version = 100

    async def get(self, resource: Resource, namespace: str, name: str, *, metadata: bool = False) -> Object:
        await self._called("get", resource, name)
        obj = self._found(resource, namespace, name)
        return {"kind": "PartialObjectMetadata", "metadata": obj["metadata"]} if metadata else obj

    async def create(self, resource: Resource, namespace: str, obj: Object) -> Object:
        await self._called("create", resource, obj["metadata"]["name"])
        if (resource.kind, namespace, obj["metadata"]["name"]) in self.objects:
            raise ApiError(409, "AlreadyExists", "it is there")
        return self.store(obj)

    async def apply(self, resource: Resource, obj: Object, uid: str | None) -> Object:
        await self._called("apply", resource, obj["metadata"]["name"])
        present = self.objects.get((resource.kind, obj["metadata"]["namespace"], obj["metadata"]["name"]))
        if (present["metadata"]["uid"] if present else None) != uid:
            raise ApiError(409, "Conflict", "another, or none")
        return self.store(obj)

    async def write_status(self, resource: Resource, obj: Object, status: Object) -> Object:
        await self._called("status", resource, obj["metadata"]["name"])
        metadata = obj["metadata"]
        present = self._found(resource, metadata["namespace"], metadata["name"])
        if present["metadata"]["resourceVersion"] != metadata["resourceVersion"]:
            raise ApiError(409, "Conflict", "the object has been modified")
        return self.store({**present, "status": status})

    async def set_finalizers(self, resource: Resource, obj: Object, finalizers: list[str]) -> Object:
        metadata = obj["metadata"]
        await self._called("finalizers", resource, metadata["name"])
        present = self._found(resource, metadata["namespace"], metadata["name"])
        if present["metadata"]["resourceVersion"] != metadata["resourceVersion"]:
            raise ApiError(409, "Conflict", "the object has been modified")
        return self.store({**present, "metadata": {**present["metadata"], "finalizers": finalizers}})

    async def annotate(self, resource: Resource, namespace: str, name: str, uid: str, values: dict[str, str]) -> Object:
        await self._called("annotate", resource, name)
        found = self._found(resource, namespace, name)
        if found["metadata"]["uid"] != uid:
            raise ApiError(409, "Conflict", "another has its name")
        metadata = found["metadata"]
        return self.store(
            {**found, "metadata": {**metadata, "annotations": {**metadata.get("annotations", {}), **values}}}
        )

    async def scale(self, resource: Resource, obj: Object, replicas: int) -> None:
        metadata = obj["metadata"]
        await self._called("scale", resource, metadata["name"])
        present = self._found(resource, metadata["namespace"], metadata["name"])
        if present["metadata"]["resourceVersion"] != metadata["resourceVersion"]:
            raise ApiError(409, "Conflict", "the object has been modified")
        self.store({**present, "spec": {**present.get("spec", {}), "replicas": replicas}})

    async def replace(self, resource: Resource, obj: Object) -> Object:
        metadata = obj["metadata"]
        await self._called("replace", resource, metadata["name"])
        present = self._found(resource, metadata["namespace"], metadata["name"])
        if present["metadata"]["resourceVersion"] != metadata["resourceVersion"]:
            raise ApiError(409, "Conflict", "the object has been modified")
        return self.store(obj)

    async def delete(self, resource: Resource, namespace: str, name: str, uid: str, _: int | None = None) -> Object:
        await self._called("delete", resource, name)
        if self._found(resource, namespace, name)["metadata"]["uid"] != uid:
            raise ApiError(409, "Conflict", "another has its name")
        del self.objects[resource.kind, namespace, name]
        return {"kind": "Status", "metadata": {}}

    async def list(
        self, resource: Resource, namespace: str | None, _: str, *, metadata: bool, chunk: int = 500
    ) -> AsyncIterator[tuple[list[Object], int]]:
        del chunk
        await self._called("list", resource, namespace or "")
        found = [copy.deepcopy(obj) for (kind, *_), obj in self.objects.items() if kind == resource.kind]
        found = [obj for obj in found if namespace in (None, obj["metadata"]["namespace"])]
        yield [{"metadata": obj["metadata"]} for obj in found] if metadata else found, self.version

    def store(self, obj: Object) -> Object:
        """As if someone had written it. Gives what is stored."""
        metadata = obj["metadata"]
        place = (obj["kind"], metadata["namespace"], metadata["name"])
        self.version += 1
        kept = self.objects[place]["metadata"] if place in self.objects else {"uid": f"uid-{self.version}"}
        own = {**metadata, "uid": metadata.get("uid", kept["uid"]), "resourceVersion": str(self.version)}
        self.objects[place] = copy.deepcopy({**obj, "metadata": own})
        return copy.deepcopy(self.objects[place])

    def writes(self) -> list[str]:
        """What was written, in order, as `verb kind/name`."""
        verbs = {"create", "apply", "status", "finalizers", "annotate", "scale", "replace", "delete"}
        return [f"{verb} {kind}/{name}" for verb, kind, name in self.calls if verb in verbs]

    def _found(self, resource: Resource, namespace: str, name: str) -> Object:
        found = self.objects.get((resource.kind, namespace, name))
        if found is None:
            raise ApiError(404, "NotFound", f"{resource.plural} {name} not found")
        return copy.deepcopy(found)

    async def _called(self, verb: str, resource: Resource, name: str) -> None:
        await asyncio.sleep(0)
        self.calls.append((verb, resource.kind, "" if resource.kind == "Event" else name))
        self.refuse(verb, resource.kind, name)


def training(name: str = "words", **spec: Any) -> Object:
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.TRAINING,
        "metadata": {
            "name": name,
            "namespace": "ns",
            "uid": f"uid-{name}",
            "resourceVersion": "1",
            "generation": 1,
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {"data": {"uri": "s3://corpora/x"}, **spec},
    }
