"""Namespaces that may not be read."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import pytest

from mms_operator.engine import reach
from mms_operator.engine.kubeapi import ApiError, KubeApi
from tests.unit.engine.fake_api import FakeApi

if TYPE_CHECKING:
    from collections.abc import Callable


def refuses(status: int, *namespaces: str) -> Callable[[str, str, str], None]:
    def refuse(_: str, __: str, namespace: str) -> None:
        if namespace in namespaces:
            raise ApiError(status, "Refused", "no")

    return refuse


async def test_those_that_may_be_read_are_told_apart() -> None:
    api = FakeApi()
    api.refuse = refuses(403, "b")
    assert await reach.parted(cast("KubeApi", api), ("a", "b", "c")) == (("a", "c"), ("b",))
    assert await reach.parted(cast("KubeApi", api), ()) == ((), ())


@pytest.mark.parametrize("status", [404, 500])
async def test_what_is_no_matter_of_rights_is_told(status: int) -> None:
    api = FakeApi()
    api.refuse = refuses(status, "b")
    with pytest.raises(ApiError):
        await reach.parted(cast("KubeApi", api), ("a", "b"))


async def test_one_that_returns() -> None:
    api = FakeApi()
    api.refuse = refuses(403, "a", "b")
    waiting = asyncio.create_task(reach.returned(cast("KubeApi", api), ("a", "b"), 0.001))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    api.refuse = refuses(500, "a")  # an API server in trouble is no reason to end
    await asyncio.sleep(0.02)
    assert not waiting.done()
    api.refuse = refuses(403, "a")
    assert await asyncio.wait_for(waiting, 5) == "b"
