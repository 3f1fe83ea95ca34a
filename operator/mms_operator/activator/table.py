"""Which services there are, on which ports, and which of their pods are ready: from the API server's objects. Pure."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from mms_operator.api import names

Object = dict[str, Any]
Backends = dict[str, tuple[tuple[str, int], ...]]  # addresses and ports, by the port's name
PORTS = ("http", "grpc")  # in the order of the activator's ports


@dataclass
class Table:
    """By namespace/name. Methods give the services of which something else is known now."""

    ports: dict[str, int] = field(default_factory=dict)  # of services
    _slices: dict[str, tuple[str, Backends]] = field(default_factory=dict)  # with the service that each is of
    _of: dict[str, dict[str, Backends]] = field(default_factory=lambda: defaultdict(dict))  # by service, then slice

    def put_service(self, obj: Object) -> None:
        port = ((obj.get("status") or {}).get("autoscaling") or {}).get("activatorPort")
        wanted = (obj.get("spec") or {}).get("autoscaling", {}).get("mode", "Off") != "Off"
        if port and wanted:
            self.ports[key_of(obj)] = port
        else:
            self.ports.pop(key_of(obj), None)

    def remove_service(self, obj: Object) -> None:
        self.ports.pop(key_of(obj), None)

    def put_slice(self, obj: Object) -> set[str]:
        labels = obj["metadata"].get("labels") or {}
        name = labels.get(names.LABEL_SERVICE_NAME)
        if name is None or labels.get(names.LABEL_SLICE_MANAGED_BY) == names.ACTIVATOR:
            return set()
        ready = [one for one in obj.get("endpoints") or () if _is_ready(one)]
        addresses = [address for one in ready for address in one["addresses"][:1]]
        ports = {one.get("name"): one["port"] for one in obj.get("ports") or () if one.get("port")}
        found = {port: tuple((address, ports[port]) for address in addresses) for port in PORTS if port in ports}
        key, service = key_of(obj), f"{obj['metadata']['namespace']}/{name}"
        self._slices[key] = (service, found)
        self._of[service][key] = found
        return {service}

    def remove_slice(self, obj: Object) -> set[str]:
        return self._forget(key_of(obj))

    def backends(self, service: str, port: str) -> list[tuple[str, int]]:
        """Addresses of the ready pods."""
        mine = self._of[service].values() if service in self._of else ()
        return sorted({one for found in mine for one in found.get(port, ())})

    def forget_services(self, namespace: str, there: set[str]) -> None:
        """After a list of a namespace, or (empty) of all: what is not in it is gone."""
        self.ports = {key: port for key, port in self.ports.items() if key in there or not _inside(key, namespace)}

    def forget_slices(self, namespace: str, there: set[str]) -> set[str]:
        gone = [key for key in self._slices if key not in there and _inside(key, namespace)]
        return {service for key in gone for service in self._forget(key)}

    def _forget(self, key: str) -> set[str]:
        service, _ = self._slices.pop(key, ("", {}))
        if not service:
            return set()
        self._of[service].pop(key, None)
        if not self._of[service]:
            del self._of[service]
        return {service}


def key_of(obj: Object) -> str:
    return f"{obj['metadata']['namespace']}/{obj['metadata']['name']}"


def _inside(key: str, namespace: str) -> bool:
    return not namespace or key.startswith(f"{namespace}/")


def _is_ready(endpoint: Object) -> bool:
    conditions = endpoint.get("conditions") or {}
    return conditions.get("ready") is not False
