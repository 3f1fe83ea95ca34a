"""Which services there are, on which ports, and which of their pods are ready: from the API server's objects. Pure."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mms_operator.api import names

if TYPE_CHECKING:
    from collections.abc import Collection

Object = dict[str, Any]
PORTS = ("http", "grpc")  # in the order of the activator's ports


@dataclass(frozen=True)
class Part:
    """Of a service's pods. starting: addresses of those that are not ready, or are not known to be.

    agent: the port at which they say so themselves. None where more than that makes them ready.
    """

    ready: tuple[str, ...]
    starting: tuple[str, ...]
    ports: dict[str, int]  # by name
    agent: int | None


@dataclass
class Table:
    """By namespace/name. Methods give the services of which something else is known now."""

    ports: dict[str, int] = field(default_factory=dict)  # of services
    _services: dict[str, str] = field(default_factory=dict)  # by slice
    _of: dict[str, dict[str, Part]] = field(default_factory=lambda: defaultdict(dict))  # by service, then slice

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
        endpoints, agent = obj.get("endpoints") or (), labels.get(names.LABEL_AGENT, "")
        key, service = key_of(obj), f"{obj['metadata']['namespace']}/{name}"
        self._services[key] = service
        self._of[service][key] = Part(
            ready=tuple(one["addresses"][0] for one in endpoints if _is_ready(one)),
            starting=tuple(one["addresses"][0] for one in endpoints if _may_become_ready(one)),
            ports={one.get("name", ""): one["port"] for one in obj.get("ports") or () if one.get("port")},
            agent=int(agent) if agent.isdecimal() else None,
        )
        return {service}

    def remove_slice(self, obj: Object) -> set[str]:
        return self._forget(key_of(obj))

    def backends(self, service: str, port: str, answering: Collection[str] = ()) -> list[tuple[str, int]]:
        """Addresses and ports of the ready pods. answering: addresses of others that say they are."""
        mine = [part for part in self._parts(service) if port in part.ports]
        ready = {(one, part.ports[port]) for part in mine for one in part.ready}
        said = {(one, part.ports[port]) for part in mine for one in part.starting if one in answering}
        return sorted(ready | said)

    def agents(self, service: str) -> list[tuple[str, int]]:
        """Whom to ask whether a pod is ready that is not known to be."""
        mine = self._parts(service)
        return sorted({(one, part.agent) for part in mine if part.agent is not None for one in part.starting})

    def forget_services(self, namespace: str, there: set[str]) -> None:
        """After a list of a namespace, or (empty) of all: what is not in it is gone."""
        self.ports = {key: port for key, port in self.ports.items() if key in there or not _inside(key, namespace)}

    def forget_slices(self, namespace: str, there: set[str]) -> set[str]:
        gone = [key for key in self._services if key not in there and _inside(key, namespace)]
        return {service for key in gone for service in self._forget(key)}

    def _forget(self, key: str) -> set[str]:
        service = self._services.pop(key, "")
        if not service:
            return set()
        self._of[service].pop(key, None)
        if not self._of[service]:
            del self._of[service]
        return {service}

    def _parts(self, service: str) -> Collection[Part]:
        return self._of[service].values() if service in self._of else ()


def key_of(obj: Object) -> str:
    return f"{obj['metadata']['namespace']}/{obj['metadata']['name']}"


def _inside(key: str, namespace: str) -> bool:
    return not namespace or key.startswith(f"{namespace}/")


def _is_ready(endpoint: Object) -> bool:
    conditions = endpoint.get("conditions") or {}
    return conditions.get("ready") is not False


def _may_become_ready(endpoint: Object) -> bool:
    return not _is_ready(endpoint) and not endpoint["conditions"].get("terminating")
