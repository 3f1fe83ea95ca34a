"""Connections that are held and passed through: real sockets on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import TYPE_CHECKING, Any, Self

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from mms_cluster.ports import free_ports
from mms_operator.activator import asking
from mms_operator.activator import doors as module
from mms_operator.activator.doors import Doors
from mms_operator.activator.holding import HELD_BYTES, KEEP_ALIVE
from mms_operator.activator.table import Table
from mms_operator.api import names
from tests.unit.activator.test_table import service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

HOST = "127.0.0.1"


def free_pair() -> int:
    """A port that is free, and the next one."""
    while True:
        (port,) = free_ports(1)
        with socket.socket() as other, contextlib.suppress(OSError):
            other.bind((HOST, port + 1))
            return port


def pod(port: int, agent: int | None = None, **conditions: bool) -> dict[str, object]:
    """agent: its port; such a pod is not ready."""
    labels = {"kubernetes.io/service-name": "x"} | ({names.LABEL_AGENT: str(agent)} if agent else {})
    return {
        "metadata": {"namespace": "a", "name": "x-1", "labels": labels},
        "endpoints": [{"addresses": [HOST], "conditions": {"ready": agent is None, **conditions}}],
        "ports": [{"name": "http", "port": port}, {"name": "grpc", "port": port}],
    }


def agent_that(answer: Callable[[web.Request], Awaitable[web.Response]]) -> TestServer:
    app = web.Application()
    app.add_routes([web.get("/{any}", answer)])
    return TestServer(app, host=HOST)


@pytest.fixture
async def doors() -> AsyncIterator[Doors]:
    found = Doors(Table(), HOST)
    found.table.put_service(service("x", free_pair()))
    await found.update()
    yield found
    await found.close()


class Backend:
    """Answers what it hears, and END when it hears no more."""

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Self:
        self.server = await asyncio.start_server(self.echo, HOST, self.port)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        for writer in self.writers:
            await closed(writer)
        self.server.close()
        await self.server.wait_closed()

    async def echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
            writer.write(b"END")
        await closed(writer)


async def closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


def port_of(doors: Doors) -> int:
    return doors.table.ports["a/x"]


async def waiting(doors: Doors, wanted: int) -> None:
    report = await doors.report(-1)
    while report.services["a/x"].waiting != wanted:
        report = await doors.report(report.number)


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
