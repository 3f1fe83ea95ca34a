"""The edge with a real nginx, before what stands in for Triton: who gets in, what drains, what changes meanwhile."""

from __future__ import annotations

import asyncio
import errno
import io
import ssl
import subprocess
import time
from collections import Counter
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

import aiohttp
import grpc
import pytest
from yarl import URL

from mms_workloads.serve import edge as edge_module
from mms_workloads.serve import edge_files
from mms_workloads.serve.edge import Edge
from tests.unit import nginx
from tests.unit.serve.authority import Authority
from tests.unit.serve.edge_here import EdgeHere, listens
from tests.unit.serve.stand_in import StandIn, standing_in

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

ALICE, BOB = "alice-0123456789", "bob-0123456789ab"
KEYS: dict[str, Any] = {"apiKeys": {"secretRef": {"name": "keys"}}}
TLS: dict[str, Any] = {"tls": {"secretRef": {"name": "tls"}}}


@asynccontextmanager
async def edge(
    root: Path, spec: dict[str, Any], tls: dict[str, bytes] | None = None, **keys: str
) -> AsyncIterator[tuple[EdgeHere, StandIn]]:
    async with standing_in() as triton:
        made = EdgeHere(root, triton.ports, spec)
        if tls:
            made.mount_tls(tls)
        if keys:
            made.mount_keys(**keys)
        await asyncio.to_thread(made.begin)
        try:
            yield made, triton
        finally:
            await asyncio.to_thread(made.kill)


def refused(made: EdgeHere, code: int) -> float:
    """How often the edge says that it refused somebody without a name."""
    name = f'mms_edge_refused_total{{code="{code}",client=""}}'
    lines = (made.get("/metrics") or "").splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


class Client:
    """Asks over both protocols with connections that are kept; answers are status codes."""

    def __init__(self, of: EdgeHere, key: str | None = None, ca: bytes | None = None, name: str = "localhost") -> None:
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._tls = ssl.create_default_context(cadata=ca.decode()) if ca else None
        self._base = f"{'https' if ca else 'http'}://{name}:{of.http}"
        self._session = aiohttp.ClientSession(headers=self._headers)
        target = f"{name}:{of.grpc}"
        self.channel = (
            grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(ca))
            if ca
            else grpc.aio.insecure_channel(target)
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        await self.channel.close()

    async def http(self, body: bytes = b"x", path: str = "/v2/models/neighbours/infer") -> int:
        async with self._session.post(
            URL(self._base + path, encoded=True), data=io.BytesIO(body), ssl=self._tls or True
        ) as answer:
            said = await answer.read()
            if answer.status == 200:
                assert said == body
            else:
                assert answer.content_type == "application/json", said
            return answer.status

    async def grpc(self, body: bytes = b"x", method: str = "/inference.GRPCInferenceService/ModelInfer") -> str:
        call = self.channel.unary_unary(method)
        metadata = [(name, value) for name, value in self._headers.items()]
        try:
            assert await call(body, metadata=metadata, timeout=20) == body
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "OK"

    async def both(self, body: bytes = b"x") -> tuple[int, str]:
        return await self.http(body), await self.grpc(body)


async def test_all_goes_through(tmp_path: Path) -> None:
    async with edge(tmp_path, {"edge": "Sidecar"}) as (made, triton), Client(made) as client:
        assert await client.both() == (200, "OK")
        assert await client.both(b"x" * 3_000_000) == (200, "OK")
        async with aiohttp.ClientSession() as session:
            headers = {"inference-header-content-length": "3", "a_b": "kept"}
            async with session.post(f"http://127.0.0.1:{made.http}/v2", data=b"abc", headers=headers) as answer:
                assert await answer.read() == b"abc"
        assert headers.items() <= triton.headers[-1].items()
        assert made.metric("mms_edge_current") == 1


async def test_keys(tmp_path: Path) -> None:
    """Rotated while it runs. Keys are told apart by case, and stand nowhere in what nginx reads."""
    async with edge(tmp_path, KEYS, alice=f"{ALICE}\n", short="tiny") as (made, triton):
        async with Client(made, ALICE) as alice, Client(made, BOB) as bob, Client(made) as nobody:
            assert await alice.both() == (200, "OK")
            assert await nobody.both() == (401, "UNAUTHENTICATED")
            assert "authorization" not in triton.headers[-1], "the key goes no further"
            async with Client(made, ALICE.upper()) as other:
                assert await other.both() == (401, "UNAUTHENTICATED")
            assert await nobody.http(path="/v2/models/neighbours/ready") == 200
            assert await nobody.grpc(method="/inference.GRPCInferenceService/ServerReady") == "OK"
            assert await nobody.http(path="/v2/models/neighbours/ready/infer") == 401
            made.mount_keys(bob=BOB)
            await until(lambda: made.metric("mms_edge_reloads_total") == 1)
            await until_async(lambda: answers(bob.both, (200, "OK")))
            await until_async(lambda: answers(alice.both, (401, "UNAUTHENTICATED")))
        read = "".join(path.read_text() for path in made.run.glob("current/*") if path.is_file())
        assert "bob" in read
        assert BOB not in read
        assert 'mms_edge_refused_total{code="401",client=""}' in (made.get("/metrics") or "")
        async with Client(made) as nobody:  # whatever the path is, its log is read on
            assert await nobody.http(path="/%ff") == 401
            before = refused(made, 401)
            assert await nobody.http(path="/%ff%fe") == 401
            await until(lambda: refused(made, 401) > before)
        assert made.get("/healthz") is not None
        assert "short: a key has at least 16" in made.log
        assert ALICE not in made.log


async def test_limits(tmp_path: Path) -> None:
    spec = {**KEYS, "limits": {"requestsPerSecond": 1, "burst": 3, "bodyBytes": 1000}}
    async with edge(tmp_path, spec, alice=ALICE, bob=BOB) as (made, _):
        async with Client(made, ALICE) as alice, Client(made, BOB) as bob, Client(made) as nobody:
            assert await alice.both(b"x" * 1001) == (413, "RESOURCE_EXHAUSTED")
            assert await nobody.both() == (401, "UNAUTHENTICATED"), "counted by nobody's limit"
            found = Counter(await asyncio.gather(*(alice.http() for _ in range(10))))
            assert found.keys() == {200, 429}
            assert found[200] <= 4
            assert await alice.grpc() == "RESOURCE_EXHAUSTED", "both protocols count together"
            assert await bob.both() == (200, "OK"), "each client for itself"
        await until(lambda: 'mms_edge_refused_total{code="429",client="alice"}' in (made.get("/metrics") or ""))
        await until(lambda: '"client": "alice"' in made.log)


@pytest.mark.parametrize("per", ["Client", "Pod"])
async def test_concurrent_requests(tmp_path: Path, per: str) -> None:
    """Without keys clients are addresses."""
    spec = {"limits": {"concurrentRequests": 2, "per": per}}
    async with edge(tmp_path, spec) as (made, triton):
        triton.seconds = 0.5
        async with Client(made) as client, Client(made) as other:
            found = await asyncio.gather(client.http(), client.grpc(), other.http(), other.grpc())
            assert Counter(map(str, found))["200"] + Counter(map(str, found))["OK"] == 2, found
            assert set(map(str, found)) <= {"200", "OK", "429", "RESOURCE_EXHAUSTED"}
            triton.seconds = 0.0
            assert await client.both() == (200, "OK")


async def test_tls(tmp_path: Path) -> None:
    """Another certificate is taken while clients ask; one that is no good leaves the last one."""
    first, second = Authority(), Authority()
    async with edge(tmp_path, TLS, tls=first.issue("localhost")) as (made, _):
        async with Client(made, ca=first.pem) as client, Client(made, ca=second.pem) as stranger:
            assert await client.both() == (200, "OK")
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await stranger.http()
            assert await stranger.grpc() == "UNAVAILABLE"
        made.mount_tls({**second.issue("localhost"), "tls.key": first.issue("localhost")["tls.key"]})
        await until(lambda: made.metric("mms_edge_failures_total") == 1)
        assert made.metric("mms_edge_current") == 0
        assert "key values mismatch" in made.log
        async with Client(made, ca=first.pem) as client:
            assert await client.both() == (200, "OK")
        made.mount_tls(second.issue("localhost"))
        await until(lambda: made.metric("mms_edge_current") == 1)

        async def taken() -> bool:
            async with Client(made, ca=second.pem) as client:
                try:
                    return await client.both() == (200, "OK")
                except aiohttp.ClientConnectorCertificateError:
                    return False

        await until_async(taken)


async def test_what_is_rotated_fails_no_request(tmp_path: Path) -> None:
    """Five certificates under two clients that keep their connections and ask without pause."""
    authority = Authority()
    async with edge(tmp_path, TLS, tls=authority.issue("localhost")) as (made, triton):
        triton.seconds = 0.01
        async with Client(made, ca=authority.pem) as client:
            stop, found = asyncio.Event(), Counter[Any]()

            async def ask(way: Any) -> None:
                while not stop.is_set():
                    found[await way()] += 1

            asking = [asyncio.create_task(ask(way)) for way in (client.http, client.grpc) for _ in range(3)]
            for number in range(1, 6):
                made.mount_tls(authority.issue("localhost"))
                await until(lambda number=number: made.metric("mms_edge_reloads_total") == number)
            stop.set()
            await asyncio.gather(*asking)
        assert found.keys() == {200, "OK"}
        assert found[200] > 50, found


async def test_the_end_is_graceful(tmp_path: Path) -> None:
    """What has begun is finished; a kept connection is told to close with its next answer, a channel to leave."""
    async with (
        edge(tmp_path, {"edge": "Sidecar"}) as (made, triton),
        Client(made) as client,
        aiohttp.ClientSession() as session,
    ):
        url = f"http://127.0.0.1:{made.http}/v2"
        async with session.post(url, data=b"x") as answer:
            assert answer.headers["connection"] == "keep-alive"
        assert await client.grpc() == "OK"
        triton.seconds = 2.0
        begun = [asyncio.create_task(client.http()), asyncio.create_task(client.grpc())]
        await until(lambda: len(triton.headers) == 4)
        began = time.monotonic()
        ending = asyncio.create_task(asyncio.to_thread(made.stop))
        await asyncio.sleep(0.5)  # nginx has been told
        triton.seconds = 0.0
        async with session.post(url, data=b"x") as answer:
            assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await asyncio.gather(*begun) == [200, "OK"]
        assert await ending == 0
        assert time.monotonic() - began < 15, "nothing was waited for but what had begun"


async def test_a_connection_has_an_age(tmp_path: Path) -> None:
    async with edge(tmp_path, {"maxConnectionAgeSeconds": 1}) as (made, _), aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{made.http}/v2"
        async with session.post(url, data=b"x") as answer:
            assert answer.headers["connection"] == "keep-alive"
        await asyncio.sleep(1.5)  # older than it may be
        async with session.post(url, data=b"x") as answer:
            assert (answer.status, answer.headers["connection"]) == (200, "close")


async def test_without_triton(tmp_path: Path) -> None:
    made = EdgeHere(tmp_path, (1, 1), {"edge": "Sidecar"})
    await asyncio.to_thread(made.begin)
    try:
        async with Client(made) as client:
            assert await client.both() == (502, "UNAVAILABLE")
    finally:
        made.kill()


async def test_nothing_to_begin_with(tmp_path: Path) -> None:
    """A first certificate that is no good: the reason is where the operator finds it."""
    authority = Authority()
    made = EdgeHere(tmp_path, (1, 1), TLS)
    made.mount_tls({**authority.issue("localhost"), "tls.crt": b"no certificate"})
    made.start()
    assert made.process is not None
    assert await asyncio.to_thread(made.process.wait, 20) == 75
    said = (tmp_path / "termination").read_text()
    assert '"EdgeInvalid"' in said
    assert "tls.crt" in said


async def test_a_restart_finds_what_served(tmp_path: Path) -> None:
    authority = Authority()
    async with edge(tmp_path, TLS, tls=authority.issue("localhost")) as (made, _):
        await asyncio.to_thread(made.stop)
        made.mount_tls({**authority.issue("localhost"), "tls.crt": b"no certificate"})
        await asyncio.to_thread(made.begin)
        async with Client(made, ca=authority.pem) as client:
            assert await client.both() == (200, "OK")
        assert made.metric("mms_edge_current") == 0


async def test_a_full_volume_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What served before serves on, and what is mounted is taken as soon as it can be written."""
    async with standing_in() as triton:
        made = EdgeHere(tmp_path, triton.ports, KEYS)
        made.mount_keys(alice=ALICE)
        one = Edge(str(nginx.program()), made.mounted, made.keys, made.run)
        await asyncio.to_thread(one.start)
        try:
            async with Client(made, BOB) as bob:
                await until(lambda: listens(made.http) and listens(made.grpc))
                made.mount_keys(alice=ALICE, bob=BOB)
                with monkeypatch.context() as full:
                    full.setattr(edge_files, "lay", no_space)
                    await asyncio.to_thread(one.look)
                    assert (one.lives, one.current, one.failures) == (True, False, 1)
                    assert await bob.both() == (401, "UNAUTHENTICATED")
                await asyncio.to_thread(one.look)
                assert (one.lives, one.current) == (True, True)
                for _ in range(200):  # a reload takes a moment
                    if (found := await bob.both()) == (200, "OK"):
                        break
                    await asyncio.sleep(0.05)
                assert found == (200, "OK")
        finally:
            await asyncio.to_thread(one.end)
            assert one.process is not None
            assert one.process.stdout is not None
            one.process.stdout.close()


async def test_a_certificate_is_taken_although_nginx_could_not_be_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Edge("nginx", *(tmp_path / name for name in ("mounted", "keys", "run")))
    one.run.mkdir()
    asked: list[str] = []

    def test(command: list[str], **_: object) -> Any:
        asked.append(command[0])
        if len(asked) == 1:
            raise subprocess.TimeoutExpired(command, 30)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(edge_module.subprocess, "run", test)
    monkeypatch.setattr(edge_files, "read", lambda *_: "what is mounted")
    monkeypatch.setattr(edge_files, "lay", lambda *_: [])
    one.look()
    assert (one.current, one.failures) == (False, 1)
    one.look()
    assert (one.current, one.reloads) == (True, 1)
    one.look()
    assert len(asked) == 2, "what is taken is not tested again"


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


async def answers(way: Any, expected: Any) -> bool:
    return bool(await way() == expected)


async def until(condition: Any, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline, "it did not come true in time"
        await asyncio.sleep(0.05)


async def until_async(condition: Any, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        await asyncio.sleep(0.05)
