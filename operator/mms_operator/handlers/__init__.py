"""kopf's part: it watches, and each event goes into the cache and makes the keys that it concerns due.

The handlers are stateless and watch-only, so that kopf writes nothing on any object: no finalizer, no annotation, no
event. They are registered by a function, so that each operator, and each test, has its own registry.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import kopf

from mms_operator.engine import kubeapi
from mms_operator.engine.health import WATCH_CLIENT_SECONDS, WATCH_SERVER_SECONDS
from mms_operator.engine.resources import WHOLE, selector

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    import aiohttp
    from kubernetes.aio.client.configuration import Configuration

    from mms_operator.engine.intake import Intake
    from mms_operator.engine.resources import Resource


_LOOK_SECONDS = 1.0
_LOGIN_SECONDS = 10.0  # a new session after a refused one takes less


def register(registry: kopf.OperatorRegistry, intake: Intake) -> None:
    """One handler for each kind that is read whole. Of the others, the engine watches the metadata."""
    for resource in WHOLE:
        kopf.on.event(resource.group, resource.version, resource.plural, registry=registry)(_handler(resource, intake))


def _handler(resource: Resource, intake: Intake) -> Callable[..., Awaitable[None]]:
    async def observe(event: dict[str, Any], **_: Any) -> None:
        intake.observe(resource, event["type"], event["object"])

    return observe


class Watches:
    """kopf, with a registry and credentials of its own."""

    def __init__(
        self, configuration: Configuration, intake: Intake, observe: Callable[[kubeapi.Call, int], None]
    ) -> None:
        self._configuration = configuration
        self._observe = observe
        self._session: aiohttp.ClientSession | None = None
        self._registry = kopf.OperatorRegistry()
        register(self._registry, intake)
        kopf.on.login(registry=self._registry, errors=kopf.ErrorsMode.PERMANENT)(self._login)

    async def run(self, namespaces: Sequence[str], started: Callable[[], object]) -> None:
        """Watches until it is cancelled; none of `namespaces` means all. Raises RuntimeError when kopf has ended.

        kopf takes SIGTERM and SIGINT for its own, and on one waits seconds for tasks that are none of its: `started` is
        called when the signals can be taken back.

        When one of its tasks fails, kopf closes its session and may then wait for its other tasks for ever: so it is
        the closed session that is looked for.
        """
        settings = kopf.OperatorSettings()
        configure(settings)
        ready = asyncio.Event()
        work = kopf.operator(
            registry=self._registry,
            settings=settings,
            standalone=True,
            clusterwide=not namespaces,
            namespaces=namespaces,
            ready_flag=ready,
        )
        task = asyncio.create_task(work)
        starting = asyncio.create_task(ready.wait())
        closed = 0.0
        try:
            await asyncio.wait({task, starting}, return_when=asyncio.FIRST_COMPLETED)
            started()
            while not task.done():
                await asyncio.wait({task}, timeout=_LOOK_SECONDS)
                closed = closed + _LOOK_SECONDS if self._session and self._session.closed else 0.0
                if closed > _LOGIN_SECONDS:
                    raise RuntimeError("kopf has stopped watching")
            await task
            raise RuntimeError("kopf has ended")
        finally:
            starting.cancel()
            task.cancel()

    async def _login(self, **_: Any) -> kopf.AiohttpSession:
        """A session made like all others: same credentials, counted alike."""
        self._session = kubeapi.session(self._configuration, self._observe)
        return kopf.AiohttpSession(server=self._configuration.host, aiohttp_session=self._session)


class _NoDiffBase(kopf.DiffBaseStorage):
    """Of watch-only handlers nothing is compared: the copy of every object that kopf would make for it is left out."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        raise NotImplementedError("watch-only handlers store nothing")


def configure(settings: kopf.OperatorSettings) -> None:
    settings.peering.standalone = True  # the Lease elects
    settings.scanning.disabled = True  # no rights on namespaces and CRDs are needed
    settings.posting.enabled = False
    settings.queueing.worker_limit = None
    settings.queueing.idle_timeout = 0.5
    settings.watching.server_timeout = WATCH_SERVER_SECONDS
    settings.watching.client_timeout = WATCH_CLIENT_SECONDS
    settings.watching.chunk_size = 500
    settings.persistence.diffbase_storage = _NoDiffBase()
    for resource in WHOLE:
        if only := selector(resource):
            settings.watching.label_selectors[resource.group, resource.version, resource.plural] = only
