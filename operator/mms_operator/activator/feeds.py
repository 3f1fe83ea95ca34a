"""From the API server's objects to the table, and from there to the doors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mms_operator.activator.table import key_of
from mms_operator.api import names

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mms_operator.activator.doors import Doors

Object = dict[str, Any]


@dataclass
class _Feed:
    """barred: the namespace may not be read, and the others are served all the same."""

    doors: Doors
    namespace: str  # empty: all
    read = False
    barred = False

    def refused(self) -> None:
        self.barred = bool(self.namespace)


@dataclass
class Services(_Feed):
    """The ModelServices: their ports."""

    selector = ""

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
        self.read, self.barred = True, False
        self.doors.table.forget_services(self.namespace, set(map(key_of, objects)))
        for one in objects:
            self.doors.table.put_service(one)
        await self.doors.update()

    async def seen(self, obj: Object, *, gone: bool) -> None:
        table = self.doors.table
        (table.remove_service if gone else table.put_service)(obj)
        await self.doors.update()


@dataclass
class Slices(_Feed):
    """The EndpointSlices of their pods, which have their Services' labels."""

    selector = names.LABEL_SERVICE

    @property
    def path(self) -> str:
        return f"/apis/discovery.k8s.io/v1{_inside(self.namespace)}/endpointslices"

    @staticmethod
    def needed(obj: Object) -> Object:
        metadata = {key: obj["metadata"].get(key) for key in ("namespace", "name", "labels")}
        return {"metadata": metadata, "endpoints": obj.get("endpoints"), "ports": obj.get("ports")}

    async def listed(self, objects: list[Object]) -> None:
        self.read, self.barred = True, False
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


def all_read(read: Sequence[Services | Slices]) -> bool:
    """Whether all is known that may be."""
    return any(feed.read for feed in read) and all(feed.read or feed.barred for feed in read)


def _inside(namespace: str) -> str:
    return f"/namespaces/{namespace}" if namespace else ""
