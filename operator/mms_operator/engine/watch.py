"""Watches the kinds of which metadata is all that is read: Secrets, ConfigMaps, Services and the like.

kopf watches whole objects. What is inside a Secret must not even reach this process, and at a thousand trainings
nothing but the metadata of six thousand such objects is worth reading.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from mms_operator.engine.health import WATCH_SERVER_SECONDS
from mms_operator.engine.kubeapi import ApiError
from mms_operator.engine.resources import selector

if TYPE_CHECKING:
    from mms_operator.engine.intake import Intake
    from mms_operator.engine.kubeapi import KubeApi
    from mms_operator.engine.metrics import Metrics
    from mms_operator.engine.resources import Resource
    from mms_operator.engine.sweep import Sweeper

PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds after the first of several failures, and at most
GONE = 410

log = structlog.get_logger()


@dataclass(frozen=True)
class MetadataWatches:
    api: KubeApi
    intake: Intake
    sweeper: Sweeper
    metrics: Metrics

    async def run(self) -> None:
        """Watches, from the versions that the sweeper has filled the cache with, until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            for resource in self.sweeper.resources:
                if resource.metadata_only:
                    for namespace in self.sweeper.namespaces:
                        group.create_task(self._follow(resource, namespace))

    async def _follow(self, resource: Resource, namespace: str | None) -> None:
        version, failures = self.sweeper.filled[resource.kind, namespace], 0
        while True:
            began = time.monotonic()
            try:
                events = self.api.watch(resource, namespace, selector(resource), version, WATCH_SERVER_SECONDS)
                async for kind, obj in events:
                    failures = 0
                    version = int(obj["metadata"]["resourceVersion"])
                    if kind != "BOOKMARK":
                        self.intake.observe(resource, kind, obj)
            except (ApiError, OSError) as error:
                self.metrics.errors.labels("watch").inc()
                log.warning("watch ended", resource=resource.plural, error=str(error))
                if time.monotonic() - began > LONGEST_PAUSE:
                    failures = 0  # it was a watch, of which nothing was heard any more
                await asyncio.sleep(_pause(failures))
                failures += 1
                version = await self._again(resource, namespace, version, error)
            else:
                failures = 0
                # Something between here and the API server may end every watch at once.
                await asyncio.sleep(max(began + PAUSE - time.monotonic(), 0.0))

    async def _again(self, resource: Resource, namespace: str | None, version: int, error: Exception) -> int:
        """The version to go on from. One that the API server has forgotten takes a list."""
        if not isinstance(error, ApiError) or error.status != GONE:
            return version
        try:
            return await self.sweeper.sweep_one(resource, namespace)
        except (ApiError, OSError):
            return version


def _pause(failures: int) -> float:
    """Seconds: all watches fail at the same time, and are not to come back so."""
    longest = min(PAUSE * 2.0 ** min(failures, 10), LONGEST_PAUSE)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
