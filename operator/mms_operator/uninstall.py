"""`python -m mms_operator uninstall`: what the chart runs before an installation goes.

It takes the operator's finalizers off all trainings, so that they can be deleted when nobody is there who would let
them go. The operator would set them again: so the Lease is taken first, and kept until its pods are gone, too.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import structlog
from kubernetes.aio.config import ConfigException

from mms_operator import logs
from mms_operator.api import names
from mms_operator.engine import kubeapi
from mms_operator.engine.kubeapi import ApiError
from mms_operator.engine.lease import Lease
from mms_operator.engine.resources import TRAINING
from mms_operator.main import Scope

if TYPE_CHECKING:
    from mms_operator.plan.types import Object

LEASE_SECONDS = 30  # after the last renewal: Helm deletes the operator's Deployment within this
PARALLEL_WRITES = 16
FORBIDDEN, NOT_FOUND, CONFLICT = 403, 404, 409

log = structlog.get_logger()


async def run(scope: Scope, api: kubeapi.KubeApi) -> int:
    """How many trainings were let go. Raises OSError, ApiError."""
    identity = f"{socket.gethostname()}_uninstall"
    lease = Lease(api, scope.own_namespace, identity, scope.lease_name, duration=LEASE_SECONDS)
    await asyncio.sleep(await lease.seize())
    holding = asyncio.create_task(lease.hold())
    try:
        return await _let_go(api, scope.namespaces or (None,))
    finally:
        holding.cancel()
        await asyncio.wait({holding})


async def _let_go(api: kubeapi.KubeApi, namespaces: tuple[str | None, ...]) -> int:
    slots, found = asyncio.Semaphore(PARALLEL_WRITES), 0

    async def one(training: Object) -> None:
        async with slots:
            await _without_finalizer(api, training)

    for namespace in namespaces:
        try:
            async for chunk, _ in api.list(TRAINING, namespace, "", metadata=True):
                held = [training for training in chunk if _is_held(training)]
                await asyncio.gather(*map(one, held))
                found += len(held)
        except ApiError as error:
            if error.status == FORBIDDEN and namespace is not None:  # its Role is gone, as with the namespace itself
                log.error("a namespace may not be read: its trainings keep their finalizers", namespace=namespace)  # noqa: TRY400
            elif error.status != NOT_FOUND:  # the kind is not installed any more
                raise
    return found


async def _without_finalizer(api: kubeapi.KubeApi, training: Object) -> None:
    metadata = training["metadata"]
    while _is_held(training):
        kept = [one for one in training["metadata"]["finalizers"] if one != names.FINALIZER]
        try:
            await api.set_finalizers(TRAINING, training, kept)
        except ApiError as error:
            if error.status == NOT_FOUND:
                return
            if error.status != CONFLICT:
                raise
        else:
            log.info("let go", key=f"{metadata['namespace']}/{metadata['name']}")
            return
        try:
            training = await api.get(TRAINING, metadata["namespace"], metadata["name"], metadata=True)
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise
            return


def _is_held(training: Object) -> bool:
    return names.FINALIZER in (training["metadata"].get("finalizers") or ())


async def _main(scope: Scope) -> int:
    try:
        api = kubeapi.KubeApi(await kubeapi.load_configuration())
    except (OSError, ConfigException) as error:
        log.error("cannot start", error=str(error))  # noqa: TRY400 - the message says it all
        return 1
    try:
        found = await run(scope, api)
    except (OSError, ApiError) as error:
        log.error("finalizers stay", error=str(error))  # noqa: TRY400 - as above
        return 1
    finally:
        await api.close()
    log.info("done", trainings=found)
    return 0


def main() -> int:
    scope = Scope()
    logs.configure(scope.log_level)
    return asyncio.run(_main(scope))
