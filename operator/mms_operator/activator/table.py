"""Which services there are, on which ports, and which of their pods are ready: from the API server's objects. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mms_operator.api import names

Object = dict[str, Any]
PORTS = ("http", "grpc")  # in the order of the activator's ports


@dataclass
class Table:
    """Objects by kind and namespace/name; what planners and proxies need of them."""

    ports: dict[str, int] = field(default_factory=dict)  # of services, by namespace/name
    _slices: dict[str, tuple[str, dict[str, tuple[tuple[str, int], ...]]]] = field(default_factory=dict)

    def put_service(self, obj: Object) -> None:
        key = _key(obj)
        port = ((obj.get("status") or {}).get("autoscaling") or {}).get("activatorPort")
        wanted = (obj.get("spec") or {}).get("autoscaling", {}).get("mode", "Off") != "Off"
        if port and wanted:
            self.ports[key] = port
        else:
            self.ports.pop(key, None)

    def remove_service(self, obj: Object) -> None:
        self.ports.pop(_key(obj), None)

    def put_slice(self, obj: Object) -> None:
        labels = obj["metadata"].get("labels") or {}
        name = labels.get(names.LABEL_SERVICE_NAME)
        if name is None or labels.get(names.LABEL_SLICE_MANAGED_BY) == names.ACTIVATOR:
            return
        addresses = [
            address for one in obj.get("endpoints") or () if _is_ready(one) for address in one["addresses"][:1]
        ]
        ports = {one.get("name"): one["port"] for one in obj.get("ports") or () if one.get("port")}
        found = {port: tuple((address, ports[port]) for address in addresses) for port in PORTS if port in ports}
        self._slices[_key(obj)] = (f"{obj['metadata']['namespace']}/{name}", found)

    def remove_slice(self, obj: Object) -> None:
        self._slices.pop(_key(obj), None)

    def backends(self, service: str, port: str) -> list[tuple[str, int]]:
        """Addresses of the ready pods."""
        return sorted(
            {one for owner, found in self._slices.values() if owner == service for one in found.get(port, ())}
        )

    def forget_services(self, namespace: str, there: set[str]) -> None:
        """After a list of a namespace, or (empty) of all: what is not in it is gone."""
        self.ports = {key: port for key, port in self.ports.items() if key in there or not _inside(key, namespace)}

    def forget_slices(self, namespace: str, there: set[str]) -> None:
        self._slices = {
            key: found for key, found in self._slices.items() if key in there or not _inside(key, namespace)
        }


def _inside(key: str, namespace: str) -> bool:
    return not namespace or key.startswith(f"{namespace}/")


def _is_ready(endpoint: Object) -> bool:
    conditions = endpoint.get("conditions") or {}
    return conditions.get("ready") is not False


def _key(obj: Object) -> str:
    return f"{obj['metadata']['namespace']}/{obj['metadata']['name']}"
