"""Where watch events go: into the cache, and the keys that they concern into the queue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mms_operator.engine.cache import Cache
    from mms_operator.engine.health import Health
    from mms_operator.engine.queue import WorkQueue
    from mms_operator.engine.resources import Key, Resource
    from mms_operator.plan.types import Object


@dataclass(frozen=True)
class Intake:
    cache: Cache
    queue: WorkQueue[Key]
    health: Health

    def observe(self, resource: Resource, kind: str | None, obj: Object) -> None:
        """One event: `kind` is ADDED, MODIFIED, DELETED or, of the list at a watch's beginning, None."""
        self.health.observe_event(resource.group, resource.plural)
        if kind == "DELETED":
            metadata = obj["metadata"]
            namespace = metadata.get("namespace", "")
            concerned = self.cache.remove(resource.kind, namespace, metadata["name"], metadata["uid"])
        else:
            concerned = self.cache.put(resource.kind, obj)
        for key in concerned:
            self.queue.add(key)
