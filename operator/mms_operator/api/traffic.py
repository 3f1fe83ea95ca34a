"""What stands between clients and Triton: a proxy beside it, where one is asked for or needed."""

from __future__ import annotations

from enum import StrEnum

from pydantic import ConfigDict, Field

from mms_operator.api.gateway import Gateway  # noqa: TC001 - pydantic reads it
from mms_operator.api.types import Model, SecretReference, rules

MAX_CONNECTION_AGE_SECONDS = 300


class Edge(StrEnum):
    NONE = "None"
    SIDECAR = "Sidecar"


class Tls(Model):
    secretRef: SecretReference = Field(
        description="A Secret of type kubernetes.io/tls: tls.crt, the certificate and those that signed it, and "
        "tls.key. It may change at any time: pods take it without a restart."
    )


class ApiKeys(Model):
    secretRef: SecretReference = Field(
        description="A Secret: each of its values is a key of at least 16 characters, which a client sends as "
        "`authorization: Bearer <key>`; what it is called is the client's name in logs and metrics. It may change at "
        "any time: pods take it without a restart."
    )


class LimitPer(StrEnum):
    CLIENT = "Client"
    POD = "Pod"


class Limits(Model):
    """What a pod takes on. Each pod counts for itself."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.burst) || has(self.requestsPerSecond)",
                "burst is what may come above requestsPerSecond: set requestsPerSecond, or leave burst out",
            ),
            (
                "has(self.requestsPerSecond) || has(self.concurrentRequests) || has(self.bodyBytes)",
                "limits needs at least one of requestsPerSecond, concurrentRequests and bodyBytes",
            ),
        )
    )
    requestsPerSecond: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Requests a second; a gRPC stream is one. More are answered 429, over gRPC RESOURCE_EXHAUSTED.",
    )
    burst: int | None = Field(
        default=None,
        ge=0,
        le=1_000_000,
        description="How many may come at once. Absent: as many as requestsPerSecond.",
    )
    concurrentRequests: int | None = Field(
        default=None,
        ge=1,
        le=65_535,
        description="Requests that are being answered at a time. More are answered as above.",
    )
    per: LimitPer = Field(
        default=LimitPer.CLIENT,
        description="Whose requests are counted together. Client: those of one API key or, without apiKeys, of one "
        "address. Pod: all.",
    )
    bodyBytes: int | None = Field(
        default=None,
        ge=1,
        le=2_147_483_647,
        description="Size of a request; of a gRPC stream, of all its messages. A larger one is answered 413, over gRPC "
        "RESOURCE_EXHAUSTED.",
    )


class Traffic(Model):
    """How clients reach the pods."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                (
                    "!has(self.edge) || self.edge != 'None' || "
                    "!(has(self.tls) || has(self.apiKeys) || has(self.limits) || has(self.maxConnectionAgeSeconds))"
                ),
                "tls, apiKeys, limits and maxConnectionAgeSeconds need the edge: set edge to Sidecar or leave it out",
            )
        )
    )
    edge: Edge | None = Field(
        default=None,
        description="Sidecar: nginx beside Triton, in each pod. None: clients ask Triton itself. Absent: Sidecar where "
        "another field of traffic needs it.",
    )
    tls: Tls | None = Field(default=None, description="HTTP and gRPC over TLS 1.2 and 1.3, and not otherwise.")
    apiKeys: ApiKeys | None = Field(
        default=None,
        description="Who may ask. Others are answered 401, over gRPC UNAUTHENTICATED; health can be asked without.",
    )
    gateway: Gateway | None = Field(
        default=None, description="Routes of a Gateway that is there. Absent: clients come by the Service alone."
    )
    limits: Limits | None = None
    maxConnectionAgeSeconds: int | None = Field(
        default=None,
        ge=1,
        le=86_400,
        description="With the edge: after which a connection ends with the request that it carries then, so that "
        "clients spread over new pods. Absent: 300.",
    )

    @property
    def sidecar(self) -> bool:
        """Whether there is an edge."""
        needed = (self.tls, self.apiKeys, self.limits, self.maxConnectionAgeSeconds)
        return self.edge is Edge.SIDECAR or any(field is not None for field in needed)

    @property
    def connection_age(self) -> int:
        """Seconds."""
        return self.maxConnectionAgeSeconds or MAX_CONNECTION_AGE_SECONDS
