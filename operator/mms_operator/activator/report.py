"""What an activator tells the operator: GET /v1/demand?after=<number> answers when something has changed since."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

PORT = 8082
WAIT_SECONDS = 10.0  # after which it answers anyway


class Demand(BaseModel):
    """Of a service. connections: that have come since the activator's start; waiting: that are held now."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    port: int
    connections: int
    waiting: int


class Report(BaseModel):
    """services: those that it listens for, by namespace/name. draining: it takes no connections any more."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    number: int
    draining: bool = False
    services: dict[str, Demand]
