"""Clients that come by a Gateway (gateway.networking.k8s.io/v1): routes with weights, and copies of requests."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from mms_operator.api.types import Model, Name, rules

HOSTNAME_PATTERN = r"^(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
HEADER_PATTERN = r"^[A-Za-z0-9!#$%&'*+\-.^_`|~]+$"

Hostname = Annotated[str, Field(min_length=1, max_length=253, pattern=HOSTNAME_PATTERN)]


class Listener(Model):
    """A listener of a Gateway that a route is attached to."""

    name: Name = Field(description="Of the Gateway.")
    namespace: Name | None = Field(default=None, description="Of the Gateway. Absent: the service's own.")
    sectionName: Name | None = Field(default=None, description="Of the listener. Absent: all that let the route in.")
    hostnames: list[Hostname] = Field(
        default_factory=list, max_length=16, description="That clients ask for. Absent: the listener's."
    )


class Header(Model):
    """What a request says that is to be answered by the next version, whatever the weights."""

    name: str = Field(min_length=1, max_length=256, pattern=HEADER_PATTERN, description="Of the header.")
    value: str = Field(min_length=1, max_length=4096, description="That it has.")


class Shadow(Model):
    """Copies of requests, whose answers nobody gets, for the next version."""

    percent: int = Field(ge=1, le=100, description="Of all requests.")


def _differ(field: str) -> str:
    """Of a field that may be absent: on one side only is a difference, too."""
    http, grpc = f"self.http.{field}", f"self.grpc.{field}"
    return f"has({http}) != has({grpc}) || (has({http}) && {http} != {grpc})"


class Gateway(Model):
    """Routes that are kept beside the Service."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("has(self.http) || has(self.grpc)", "gateway needs at least one of http and grpc"),
            (
                (
                    "!has(self.http) || !has(self.grpc) || self.http.name != self.grpc.name || "
                    f"{_differ('sectionName')} || {_differ('hostnames')}"
                ),
                (
                    "http and grpc must differ in name, sectionName or hostnames: a listener takes one kind of route "
                    "for a hostname"
                ),
            ),
        )
    )

    http: Listener | None = Field(default=None, description="Makes an HTTPRoute.")
    grpc: Listener | None = Field(default=None, description="Makes a GRPCRoute.")
    nextHeader: Header | None = None
    shadow: Shadow | None = None
