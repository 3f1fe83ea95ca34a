"""How many connections are held, for how long, and how many are passed on at a time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from mms_operator.activator import doors as module
from mms_operator.activator.holding import HELD_BYTES
from tests.unit.activator.backends import HOST, Backend, closed, free_pair, pod, port_of, waiting
from tests.unit.activator.test_table import service

if TYPE_CHECKING:
    from mms_operator.activator.doors import Doors


async def test_not_all_who_wait_are_connected_at_the_same_time(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has seconds for it: of thousands none would be ready by then, and all would try again."""
    (door,) = doors._doors.values()
    door.connects = asyncio.Semaphore(3)
    clients = [await asyncio.open_connection(HOST, port_of(doors)) for _ in range(10)]
    await waiting(doors, len(clients))
    loop, at_once, most = asyncio.get_running_loop(), 0, 0
    connect = loop.create_connection

    async def counted(*arguments: Any) -> Any:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        try:
            await asyncio.sleep(0)
            return await connect(*arguments)
        finally:
            at_once -= 1

    monkeypatch.setattr(loop, "create_connection", counted)
    async with Backend() as backend:
        doors.pods_changed(doors.table.put_slice(pod(backend.port)))
        for reader, writer in clients:
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            await closed(writer)
    assert most == 3


async def test_nobody_is_held_for_ever(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HOLD_SECONDS", 0.05)
    reader, writer = await asyncio.open_connection(HOST, port_of(doors))
    assert await reader.read() == b""
    assert doors.expired == 1
    await closed(writer)


async def test_too_many_are_refused(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_HELD", 1)
    _, first = await asyncio.open_connection(HOST, port_of(doors))
    await waiting(doors, 1)
    reader, second = await asyncio.open_connection(HOST, port_of(doors))
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await reader.readexactly(1)
    assert doors.refused == 1
    await closed(first)
    await closed(second)


@pytest.mark.parametrize("limit", ["MOST_HELD", "MOST_FULL"])
async def test_no_service_keeps_another_one_asleep(doors: Doors, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    """However many of the one are held: the first of the other is."""
    monkeypatch.setattr(module, limit, 1)
    monkeypatch.setattr(module, "HUNG_UP_SECONDS", 0.01)
    doors.table.put_service(service("y", free_pair()))
    await doors.update()
    _, first = await asyncio.open_connection(HOST, port_of(doors))
    first.write(b"x" * 2 * HELD_BYTES)
    await waiting(doors, 1)
    while not doors._full:  # noqa: ASYNC110 - no event tells of it
        await asyncio.sleep(0)
    _, other = await asyncio.open_connection(HOST, doors.table.ports["a/y"])
    other.write(b"x" * 2 * HELD_BYTES)
    while len(doors._full) < 2:  # noqa: ASYNC110 - as above
        await asyncio.sleep(0)
    assert (await doors.report(-1)).services["a/y"].waiting == 1
    assert doors.refused == 0
    await closed(first)
    await closed(other)


async def test_too_many_that_have_sent_much_are_refused(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel keeps what is not read, in the memory of the pod."""
    monkeypatch.setattr(module, "MOST_FULL", 1)
    monkeypatch.setattr(module, "HUNG_UP_SECONDS", 0.01)
    writers = []

    async def send(count: int) -> asyncio.StreamReader:
        reader, writer = await asyncio.open_connection(HOST, port_of(doors))
        writer.write(b"x" * count)
        writers.append(writer)
        return reader

    await send(2 * HELD_BYTES)
    await waiting(doors, 1)
    while not doors._full:  # noqa: ASYNC110 - no event tells of it
        await asyncio.sleep(0)
    await send(HELD_BYTES - 1)
    await waiting(doors, 2)
    reader = await send(2 * HELD_BYTES)
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await reader.readexactly(1)
    assert doors.refused == 1
    await waiting(doors, 2)
    for writer in writers:
        await closed(writer)
    await waiting(doors, 0)
    assert not doors._full
