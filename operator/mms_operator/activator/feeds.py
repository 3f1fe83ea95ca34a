"""From the API server's objects to the table, and from there to the doors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mms_operator.activator.table import key_of
from mms_operator.api import names

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mms_operator.activator.doors import Doors

Object = dict[str, Any]


@dataclass
class Services:
    """The ModelServices of a namespace, or (empty) of all: their ports."""

    doors: Doors
    namespace: str
    selector = ""
    read = False

    @property
    def path(self) -> str:
        return f"/apis/{names.GROUP}/{names.VERSION}{_inside(self.namespace)}/{names.SERVICES}"

    @staticmethod
    def needed(obj: Object) -> Object:
        """What of it is read: thousands are listed at once."""
        spec, status = obj.get("spec") or {}, obj.get("status") or {}
        return {
            "metadata": {key: obj["metadata"][key] for key in ("namespace", "name")},
            "spec": {"autoscaling": {"mode": (spec.get("autoscaling") or {}).get("mode", "Off")}},
            "status": {"autoscaling": {"activatorPort": (status.get("autoscaling") or {}).get("activatorPort")}},
        }

    async def listed(self, objects: list[Object]) -> None:
        self.read = True
        self.doors.table.forget_services(self.namespace, set(map(key_of, objects)))
        for one in objects:
            self.doors.table.put_service(one)
        await self.doors.update()

    async def seen(self, obj: Object, *, gone: bool) -> None:
        table = self.doors.table
        (table.remove_service if gone else table.put_service)(obj)
        await self.doors.update()


@dataclass
class Slices:
    """The EndpointSlices of their pods, which have their Services' labels."""

    doors: Doors
    namespace: str
    selector = names.LABEL_SERVICE
    read = False

    @property
    def path(self) -> str:
        return f"/apis/discovery.k8s.io/v1{_inside(self.namespace)}/endpointslices"

    @staticmethod
    def needed(obj: Object) -> Object:
        metadata = {key: obj["metadata"].get(key) for key in ("namespace", "name", "labels")}
        return {"metadata": metadata, "endpoints": obj.get("endpoints"), "ports": obj.get("ports")}

    async def listed(self, objects: list[Object]) -> None:
        self.read = True
        table = self.doors.table
        changed = table.forget_slices(self.namespace, set(map(key_of, objects)))
        for one in objects:
            changed |= table.put_slice(one)
        self.doors.pods_changed(changed)

    async def seen(self, obj: Object, *, gone: bool) -> None:
        table = self.doors.table
        self.doors.pods_changed((table.remove_slice if gone else table.put_slice)(obj))


def feeds(doors: Doors, namespaces: Iterable[str]) -> list[Services | Slices]:
    """namespaces: none for all."""
    return [kind(doors, one) for one in [*namespaces] or [""] for kind in (Services, Slices)]


def _inside(namespace: str) -> str:
    return f"/namespaces/{namespace}" if namespace else ""
