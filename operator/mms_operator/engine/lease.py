"""Leader election on a coordination.k8s.io/v1 Lease, by the rules of client-go.

A holder is believed for as long as its record keeps changing, by this process's own clock: clocks of machines differ.
Each call has a deadline, so that a hung connection cannot keep a leader in office beyond its lease, and a leader that
stops gives the Lease back, so that its successor need not wait.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import structlog

from mms_operator.api import names
from mms_operator.engine.kubeapi import ApiError
from mms_operator.engine.resources import LEASE

if TYPE_CHECKING:
    from collections.abc import Callable

    from mms_operator.engine.kubeapi import KubeApi
    from mms_operator.plan.types import Object

NOT_FOUND, CONFLICT = 404, 409

log = structlog.get_logger()


class LeaseLostError(Exception):
    """Another replica may be the leader now: write nothing more."""


@dataclass
class Lease:
    api: KubeApi
    namespace: str
    identity: str
    name: str = names.LEASE_NAME
    duration: int = 15  # seconds that others wait after the last renewal
    deadline: float = 10.0  # seconds without a renewal after which the leader resigns
    period: float = 2.0
    clock: Callable[[], float] = time.monotonic
    seen: float = field(default=float("-inf"), init=False)  # when the API server last answered
    leads: bool = field(default=False, init=False)
    _record: Object | None = field(default=None, init=False)
    _changed: float = field(default=0.0, init=False)

    async def acquire(self) -> None:
        """Returns when this replica is the leader."""
        while not await self._attempt():  # noqa: ASYNC110 - nothing here says when another's Lease ends
            await asyncio.sleep(self.period)
        self.leads = True
        log.info("leader", lease=f"{self.namespace}/{self.name}", identity=self.identity)

    async def seize(self) -> float:
        """Takes the Lease from whoever holds it; gives the seconds within which that one ends.

        For the end of an installation: two that do this to each other would never come to rest. Raises OSError,
        ApiError.
        """
        while True:
            try:
                record = await self.api.get(LEASE, self.namespace, self.name)
                spec = record.get("spec") or {}
                await self._write(record, self._spec((spec.get("leaseTransitions") or 0) + 1))
            except ApiError as error:
                if error.status == NOT_FOUND:
                    await self._create()
                    return 0.0
                if error.status != CONFLICT:
                    raise
                continue
            self.leads = True
            return self.deadline if spec.get("holderIdentity") else 0.0

    async def hold(self) -> None:
        """Renews until that fails for `deadline` seconds, then raises LeaseLostError."""
        renewed = self.clock()
        while True:
            await asyncio.sleep(self.period)
            if await self._attempt():
                renewed = self.clock()
            elif self._taken() or self.clock() - renewed > self.deadline - self.period:
                self.leads = False
                raise LeaseLostError(f"the Lease {self.namespace}/{self.name} was not renewed in time, or was taken")

    async def release(self) -> None:
        """Gives the Lease back, if it is held. What fails here costs the successor `duration` seconds, no more."""
        if not self.leads:
            return
        self.leads = False
        try:
            async with asyncio.timeout(self.period):
                # It is read again: a renewal that was cut off may have been written.
                record = await self.api.get(LEASE, self.namespace, self.name)
                if (spec := record.get("spec") or {}).get("holderIdentity") == self.identity:
                    spec = {**spec, "holderIdentity": "", "leaseDurationSeconds": 1}
                    await self.api.replace(LEASE, {**record, "spec": spec})
        except (ApiError, OSError) as error:
            log.warning("lease not released", error=str(error))

    async def _attempt(self) -> bool:
        """One try to get or to renew the Lease."""
        try:
            async with asyncio.timeout(self.period):
                return await self._renew() if self._mine() else await self._take()
        except ApiError as error:
            self.seen = self.clock()
            if error.status in (CONFLICT, NOT_FOUND):
                self._record = None  # someone wrote or deleted it: read it again
                return False
            log.warning("lease not renewed", error=str(error))
        except OSError as error:
            log.warning("lease not renewed", error=str(error) or type(error).__name__)
        return False

    async def _renew(self) -> bool:
        assert self._record is not None  # noqa: S101 - it is ours, so it is there
        return await self._write(self._record, {**self._record["spec"], "renewTime": _now()})

    async def _take(self) -> bool:
        try:
            record = await self.api.get(LEASE, self.namespace, self.name)
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise
            await self._create()
            return True
        self._observe(record)
        if self._mine():
            return await self._renew()
        spec = record.get("spec") or {}
        valid = self.clock() < self._changed + (spec.get("leaseDurationSeconds") or self.duration)
        if self.leads or (spec.get("holderIdentity") and valid):
            return False  # a leader that finds another's name, or none, was deposed meanwhile
        return await self._write(record, self._spec((spec.get("leaseTransitions") or 0) + 1))

    async def _create(self) -> None:
        body = {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.kind,
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": self._spec(0),
        }
        self._observe(await self.api.create(LEASE, self.namespace, body))

    async def _write(self, record: Object, spec: dict[str, Any]) -> bool:
        """Replaces the record; 409 if it is not what was read."""
        self._observe(await self.api.replace(LEASE, {**record, "spec": spec}))
        return True

    def _observe(self, record: Object) -> None:
        self.seen = self.clock()
        known = self._record["metadata"]["resourceVersion"] if self._record else None
        if record["metadata"]["resourceVersion"] != known:
            self._changed = self.clock()
        record["metadata"].pop("managedFields", None)
        self._record = record

    def _mine(self) -> bool:
        return self._record is not None and (self._record.get("spec") or {}).get("holderIdentity") == self.identity

    def _taken(self) -> bool:
        return self._record is not None and not self._mine()

    def _spec(self, transitions: int) -> dict[str, Any]:
        now = _now()
        return {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": self.duration,
            "acquireTime": now,
            "renewTime": now,
            "leaseTransitions": transitions,
        }


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
