"""Connections that are held and passed through: real sockets on loopback."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from mms_operator.activator import asking
from mms_operator.activator import doors as module
from mms_operator.activator.holding import HELD_BYTES, KEEP_ALIVE
from tests.unit.activator.backends import HOST, Backend, agent_that, closed, free_pair, pod, port_of, waiting
from tests.unit.activator.test_table import service

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mms_operator.activator.doors import Doors


async def test_a_connection_is_held_until_there_is_a_pod(doors: Doors) -> None:
    reader, writer = await asyncio.open_connection(HOST, port_of(doors))
    writer.write(b"hello")
    await waiting(doors, 1)
    async with Backend() as backend:
        doors.pods_changed(doors.table.put_slice(pod(backend.port)))
        assert await reader.readexactly(5) == b"hello"
        await waiting(doors, 0)
        writer.write(b" again")
        assert await reader.readexactly(6) == b" again"
        writer.write_eof()
        assert await reader.read() == b"END"  # half of the connection goes on
        await closed(writer)
        async with asyncio.timeout(5):  # nothing is left of it
            await asyncio.gather(*doors._tasks)
        assert 'passing{namespace="a",name="x"' in doors.metrics()
        assert doors.metrics().splitlines()[3].endswith(" 0")


async def test_a_pod_is_ready_when_its_agent_says_so(doors: Doors) -> None:
    """The kubelet looks later, and the API server hears of it later still."""
    told = asyncio.Queue[int]()
    status = 503

    async def answer(request: web.Request) -> web.Response:
        if request.path == "/elsewhere":
            return web.Response()
        told.put_nowait(status)
        return web.Response(status=status, headers={"Location": "/elsewhere"})

    async with Backend() as backend, agent_that(answer) as agent:
        assert agent.port
        doors.pods_changed(doors.table.put_slice(pod(backend.port, agent.port)))
        reader, writer = await asyncio.open_connection(HOST, port_of(doors))
        writer.write(b"hello")
        for wrong in (503, 302):
            status = wrong
            for _ in range(3):
                async with asyncio.timeout(5):  # it is asked again and again, unless it counts as ready
                    while await told.get() != wrong:
                        pass
        assert not backend.writers
        status = 200
        assert await reader.readexactly(5) == b"hello"
        await waiting(doors, 0)
        await closed(writer)


async def test_who_is_asked_while_somebody_waits(doors: Doors) -> None:
    asked = 0

    async def answer(_: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.Response()

    async with Backend() as backend, agent_that(answer) as agent:
        assert agent.port
        doors.pods_changed(doors.table.put_slice(pod(backend.port, agent.port, terminating=True)))
        _, writer = await asyncio.open_connection(HOST, port_of(doors))
        await waiting(doors, 1)
        await asyncio.sleep(5 * asking.PERIOD_SECONDS)
        assert (asked, backend.writers) == (0, [])
        await closed(writer)
        await waiting(doors, 0)
        doors.pods_changed(doors.table.put_slice(pod(backend.port, agent.port)))
        async with asyncio.timeout(5):
            await asyncio.gather(*doors._tasks)  # nobody waits: nobody asks
        assert asked == 0


async def test_much_goes_through_in_both_directions_at_once(doors: Doors) -> None:
    sent = os.urandom(8 << 20)
    async with Backend() as backend:
        doors.pods_changed(doors.table.put_slice(pod(backend.port)))
        reader, writer = await asyncio.open_connection(HOST, port_of(doors) + 1)

        async def send() -> None:
            writer.write(sent)
            await writer.drain()
            writer.write_eof()

        _, got = await asyncio.gather(send(), reader.read(-1))
        assert got == sent + b"END"
        await closed(writer)


async def test_more_than_is_kept_stays_with_the_client(doors: Doors) -> None:
    sent = os.urandom(4 << 20)
    reader, writer = await asyncio.open_connection(HOST, port_of(doors))
    writer.write(sent)
    await waiting(doors, 1)
    async with Backend() as backend:
        doors.pods_changed(doors.table.put_slice(pod(backend.port)))
        assert await reader.readexactly(len(sent)) == sent
        await closed(writer)


async def test_who_hangs_up_waits_no_more(doors: Doors) -> None:
    _, writer = await asyncio.open_connection(HOST, port_of(doors))
    await waiting(doors, 1)
    await closed(writer)
    await waiting(doors, 0)


@pytest.mark.parametrize("reset", [False, True])
async def test_who_has_sent_much_and_hangs_up_waits_no_more(
    doors: Doors, monkeypatch: pytest.MonkeyPatch, reset: bool
) -> None:
    """He is not read any more, so that only the kernel knows."""
    monkeypatch.setattr(module, "HUNG_UP_SECONDS", 0.01)
    _, writer = await asyncio.open_connection(HOST, port_of(doors))
    writer.write(b"x" * 3 * HELD_BYTES)
    await writer.drain()
    await waiting(doors, 1)
    _, other = await asyncio.open_connection(HOST, port_of(doors))
    other.write(b"x" * 3 * HELD_BYTES)
    await waiting(doors, 2)
    while not all(len(one.kept) == HELD_BYTES for one in doors._clients):  # noqa: ASYNC110 - no event tells of it
        await asyncio.sleep(0)
    if reset:
        writer.transport.abort()
    else:
        await closed(writer)
    await waiting(doors, 1)
    assert not any(one.hung_up() for one in doors._clients), "the other one waits on"
    await closed(other)
    await waiting(doors, 0)


async def test_a_pod_that_refuses_is_asked_again(doors: Doors) -> None:
    port = free_pair()
    doors.pods_changed(doors.table.put_slice(pod(port)))
    reader, writer = await asyncio.open_connection(HOST, port_of(doors))
    writer.write(b"x")
    await waiting(doors, 1)
    async with Backend(port):
        assert await reader.readexactly(1) == b"x"
        await closed(writer)


async def test_a_pod_that_dies_ends_its_connections(doors: Doors) -> None:
    async with Backend() as backend:
        doors.pods_changed(doors.table.put_slice(pod(backend.port)))
        reader, writer = await asyncio.open_connection(HOST, port_of(doors))
        writer.write(b"x")
        await reader.readexactly(1)
        for transport in list(backend.writers):
            transport.transport.abort()
        assert await reader.read() == b""
        await closed(writer)


async def test_who_is_gone_without_a_word_is_noticed_on_either_side(doors: Doors) -> None:
    """A node that loses its power says nothing, and neither would a connection on which nothing is to be sent."""
    reader, writer = await asyncio.open_connection(HOST, port_of(doors))
    writer.write(b"x")
    await waiting(doors, 1)
    (client,) = doors._clients
    async with Backend() as backend:
        doors.pods_changed(doors.table.put_slice(pod(backend.port)))
        await reader.readexactly(1)
        assert client.other is not None
        for side in (client, client.other):
            options = {one: side.transport.get_extra_info("socket").getsockopt(*one) for one in KEEP_ALIVE}
            assert options == KEEP_ALIVE
        await closed(writer)


async def test_a_port_stays_for_a_while_when_it_is_not_wanted(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    port = port_of(doors)
    doors.table.remove_service(service("x", port))
    await doors.update()
    _, writer = await asyncio.open_connection(HOST, port)
    await closed(writer)
    monkeypatch.setattr(module, "CLOSE_SECONDS", -1.0)
    await doors.update()
    with pytest.raises(OSError, match=r"refused|Connect"):
        await asyncio.open_connection(HOST, port)


@pytest.fixture
def close_at_once(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Awaitable[None]]:
    async def close() -> None:
        monkeypatch.setattr(module, "CLOSE_SECONDS", -1.0)
        doors.table.remove_service(service("x", port_of(doors)))
        await doors.update()
        assert not doors._doors

    return close


async def test_who_waits_behind_a_port_that_is_closed_is_let_through(
    doors: Doors, close_at_once: Callable[[], Awaitable[None]]
) -> None:
    """As when a service is scaled by hand from now on, and its first pod takes longer than the port is kept."""
    reader, writer = await asyncio.open_connection(HOST, port_of(doors))
    writer.write(b"hello")
    await waiting(doors, 1)
    await close_at_once()
    async with Backend() as backend:
        doors.pods_changed(doors.table.put_slice(pod(backend.port)))
        assert await asyncio.wait_for(reader.readexactly(5), 5) == b"hello"
        await closed(writer)


async def test_draining_waits_for_those_behind_a_port_that_is_closed(
    doors: Doors, close_at_once: Callable[[], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUIET_SECONDS", -1.0)
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.001)
    async with Backend() as backend:
        doors.pods_changed(doors.table.put_slice(pod(backend.port)))
        reader, writer = await asyncio.open_connection(HOST, port_of(doors))
        writer.write(b"x")
        await reader.readexactly(1)
        await close_at_once()
        draining = asyncio.create_task(doors.drain(30.0))
        await asyncio.sleep(0)
        assert not draining.done()
        writer.write(b"y")
        assert await reader.readexactly(1) == b"y"
        await closed(writer)
        async with asyncio.timeout(5):
            await draining


async def test_a_port_that_moves_stays_for_a_while_too(doors: Doors) -> None:
    old, new = port_of(doors), free_pair()
    doors.table.put_service(service("x", new))
    await doors.update()
    assert (await doors.report(-1)).services["a/x"].port == new
    async with Backend() as backend:
        doors.pods_changed(doors.table.put_slice(pod(backend.port)))
        for port in (old, new):
            reader, writer = await asyncio.open_connection(HOST, port)
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            await closed(writer)


async def test_services_that_change_while_ports_are_opened(doors: Doors) -> None:
    """Lists of two namespaces come at the same time."""

    async def listed(number: int) -> None:
        for name in range(5):
            doors.table.put_service(service(f"{number}-{name}", free_pair()))
            await doors.update()

    await asyncio.gather(*(listed(number) for number in range(4)))
    assert len((await doors.report(-1)).services) == 21


async def test_a_pod_that_hangs_up_at_once_is_not_taken(doors: Doors) -> None:
    async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await closed(writer)

    server = await asyncio.start_server(refuse, HOST, 0)
    doors.pods_changed(doors.table.put_slice(pod(server.sockets[0].getsockname()[1])))
    reader, writer = await asyncio.open_connection(HOST, port_of(doors))
    assert await asyncio.wait_for(reader.read(), 5) == b""  # joined before, or given up: it ends either way
    await closed(writer)
    server.close()
    await server.wait_closed()


async def test_draining_waits_for_those_who_are_there(doors: Doors) -> None:
    async with Backend() as backend:
        doors.pods_changed(doors.table.put_slice(pod(backend.port)))
        reader, writer = await asyncio.open_connection(HOST, port_of(doors))
        writer.write(b"x")
        await reader.readexactly(1)
        draining = asyncio.create_task(doors.drain(30.0))
        await asyncio.sleep(0)
        assert (await doors.report(-1)).draining
        writer.write(b"y")
        assert await reader.readexactly(1) == b"y"
        assert not draining.done()
        draining.cancel()
        await closed(writer)


async def test_news_are_told_at_once_and_old_ones_not_again(doors: Doors) -> None:
    first = await doors.report(-1)
    asked = asyncio.create_task(doors.report(first.number))
    await asyncio.sleep(0)
    assert not asked.done()
    _, writer = await asyncio.open_connection(HOST, port_of(doors))
    report = await asyncio.wait_for(asked, 1.0)
    assert report.services["a/x"].connections == 1
    await closed(writer)
