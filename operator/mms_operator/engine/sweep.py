"""Compares the cache with what the API server has: at the start to fill it, then every few minutes.

A watch that was interrupted never says what was deleted meanwhile. Only metadata is listed after the start; an object
that was missed is read one by one.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from mms_operator.engine.kubeapi import ApiError
from mms_operator.engine.resources import WATCHED, Key, selector

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mms_operator.engine.cache import Cache
    from mms_operator.engine.kubeapi import KubeApi
    from mms_operator.engine.metrics import Metrics
    from mms_operator.engine.queue import WorkQueue
    from mms_operator.engine.resources import Resource
    from mms_operator.plan.types import Object

SECONDS = 180.0
FIRST_SECONDS = 15.0  # after the watches have begun: what went between the first list and theirs
NOT_FOUND = 404

log = structlog.get_logger()


@dataclass
class Sweeper:
    """`namespaces` is (None,) for the whole cluster."""

    api: KubeApi
    cache: Cache
    queue: WorkQueue[Key]
    metrics: Metrics
    namespaces: Sequence[str | None] = (None,)
    resources: Sequence[Resource] = WATCHED
    filled: dict[tuple[str, str | None], int] = field(default_factory=dict)  # the versions of the last lists

    async def fill(self) -> None:
        """Reads everything; to be done before the first reconciliation."""
        for resource in self.resources:
            for namespace in self.namespaces:
                listed = self.api.list(resource, namespace, selector(resource), metadata=resource.metadata_only)
                async for chunk, version in listed:
                    self.filled[resource.kind, namespace] = version
                    for obj in chunk:
                        self.cache.put(resource.kind, obj)
        for key in self.cache.owners():
            self.queue.add(key)

    async def run(self, seconds: float = SECONDS, first: float = FIRST_SECONDS) -> None:
        """Sweeps until it is cancelled. A sweep that fails is counted and the next one is awaited."""
        pause = first
        while True:
            await asyncio.sleep(pause)
            pause = seconds
            try:
                await self.sweep()
            except (ApiError, OSError) as error:
                self.metrics.errors.labels("sweep").inc()
                log.warning("sweep failed", error=str(error))
            self.metrics.cached.set(len(self.cache))

    async def sweep(self) -> None:
        for resource in self.resources:
            for namespace in self.namespaces:
                await self.sweep_one(resource, namespace)

    async def sweep_one(self, resource: Resource, namespace: str | None) -> int:
        """Compares one kind; gives the version that it was compared with.

        Raises RuntimeError where the API server is behind what it has said before, as after etcd is restored from a
        copy: what the cache has would count as newer than all there is.
        """
        seen: set[tuple[str, str]] = set()
        missed: list[Object] = []
        version = 0
        async for chunk, version in self.api.list(resource, namespace, selector(resource), metadata=True):  # noqa: B007
            for obj in chunk:
                metadata = obj["metadata"]
                place = (metadata.get("namespace", ""), metadata["name"])
                seen.add(place)
                entry = self.cache.entry(resource.kind, *place)
                if entry is None or entry.version < int(metadata["resourceVersion"]):
                    missed.append(obj)
        if version < self.filled.get((resource.kind, namespace), 0):
            raise RuntimeError(f"the API server has gone back in time with {resource.plural}: all is to be read anew")
        self.filled[resource.kind, namespace] = version
        for obj in missed:
            await self._catch_up(resource, obj)
        for entry in self.cache.entries(resource.kind):
            ours = namespace is None or entry.namespace == namespace
            # What is newer than the list cannot be in it.
            if ours and (entry.namespace, entry.name) not in seen and entry.version <= version:
                self._news(resource, entry.name, self.cache.remove(entry.kind, entry.namespace, entry.name, entry.uid))
        return version

    async def _catch_up(self, resource: Resource, listed: Object) -> None:
        namespace, name = listed["metadata"].get("namespace", ""), listed["metadata"]["name"]
        try:
            obj = listed if resource.metadata_only else await self.api.get(resource, namespace, name)
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise
            return
        self._news(resource, name, self.cache.put(resource.kind, obj))

    def _news(self, resource: Resource, name: str, concerned: frozenset[Key]) -> None:
        if not concerned:
            return
        self.metrics.swept.inc()
        for key in concerned:
            log.info("the watch had missed an object", key=str(key), object=f"{resource.kind}/{name}")
            self.queue.add(key)
