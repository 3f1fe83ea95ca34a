"""Namespaces of an installation that it may not read: the others are served all the same.

Whoever deletes a namespace takes the Role with it that the installation has there.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mms_operator.engine.kubeapi import ApiError
from mms_operator.engine.resources import TRAINING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mms_operator.engine.kubeapi import KubeApi

FORBIDDEN = 403
LOOK_SECONDS = 60.0


async def parted(api: KubeApi, namespaces: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Those that can be read, and the others. Raises ApiError, OSError where that is no matter of rights."""
    readable = {namespace: await can_read(api, namespace) for namespace in namespaces}
    return tuple(n for n, can in readable.items() if can), tuple(n for n, can in readable.items() if not can)


async def can_read(api: KubeApi, namespace: str) -> bool:
    """Raises as `parted`."""
    try:
        async for _ in api.list(TRAINING, namespace, "", metadata=True, chunk=1):
            break
    except ApiError as error:
        if error.status != FORBIDDEN:
            raise
        return False
    return True


async def returned(api: KubeApi, namespaces: Iterable[str], seconds: float = LOOK_SECONDS) -> str:
    """Waits until one of them can be read; which."""
    waits = tuple(namespaces)
    while True:
        await asyncio.sleep(seconds)
        try:
            found, _ = await parted(api, waits)
        except (ApiError, OSError):
            continue  # whoever works with the API server says so
        if found:
            return found[0]
