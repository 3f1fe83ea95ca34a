"""Inputs of clients from a model's process to its agent, and from there, sealed, to another pod's; without a Triton."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from mms_workloads.contract import ClientInput, GoldenCase, InputOrders, InputPeer
from mms_workloads.serve import frames, repository
from mms_workloads.serve.asking import AnswerError
from mms_workloads.serve.boxes import BoxError, Key
from mms_workloads.serve.inputs import FRESH_SECONDS, Inputs, compared
from mms_workloads.serve.layout import Layout
from mms_workloads.serve.repository import Model, Models, Tensor
from mms_workloads.serve.tap import Tap

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

STABLE, NEXT = "sha256:a", "sha256:b"
MODELS = repository.word_models()
WORD = np.array([[b"gold"]], dtype=object)
EMBED = Models(
    models=[Model(name="embed", code=("m", "C"), outputs=[Tensor(name="VECTORS", datatype="FP32", shape=[-1])])]
)


class FakeTriton:
    """Answers each artifact's words."""

    def __init__(self, **words: list[str] | AnswerError) -> None:
        self.words, self.models = words, MODELS.names
        self.asked: list[tuple[GoldenCase, str]] = []

    async def ask(self, case: GoldenCase, digest: str, version: int | None = None) -> dict[str, Any]:
        assert version is None, "no file says which"
        self.asked.append((case, digest))
        found = self.words[digest[-1]]
        if isinstance(found, AnswerError):
            raise found
        return {"WORDS": {"data": found}}


class Pod:
    """An agent's part of one, with the processes of a model."""

    def __init__(self, root: Path, serves: str, triton: FakeTriton, models: Models = MODELS) -> None:
        root.mkdir()
        self.orders: InputOrders | None = None
        self.serves, self.triton, self.path = serves, triton, root / frames.SOCKET
        self.inputs = Inputs(Layout(root), triton, models.models, lambda: self.orders)  # type: ignore[arg-type]
        self.app = web.Application()
        self.app.add_routes([web.post("/v1/inputs", self.inputs.take)])

    @asynccontextmanager
    async def running(self) -> AsyncIterator[TestClient[Any, Any]]:
        async with TestClient(TestServer(self.app)) as client:
            yield client
        await self.inputs.end()

    async def hear(self, orders: InputOrders | None) -> None:
        self.orders = orders
        await self.inputs.keep(self.serves)

    @property
    def told(self) -> Any:
        return self.inputs.report()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - of a thread, and of what it causes
            await asyncio.sleep(0.01)


async def give(tap: Tap, tensors: dict[str, Any]) -> None:
    await until(lambda: tap.wanted)
    tap.offer(tensors)


def orders(**more: Any) -> InputOrders:
    return InputOrders(stable=STABLE, next=NEXT, perSecond=50, **more)


def test_a_box_is_for_one_pod_and_of_one() -> None:
    sender, reader, other = Key(), Key(), Key()
    box = sender.seal(reader.public, b"gold")
    assert b"gold" not in box
    assert reader.open(box, {sender.public}) == b"gold"
    for key, given, senders in (
        (other, box, {sender.public}),
        (reader, box, {other.public}),
        (reader, box[:-1] + bytes([box[-1] ^ 1]), {sender.public}),
        (reader, other.public.encode()[:32] + box[32:], {sender.public, other.public}),
        (reader, b"", {sender.public}),
    ):
        with pytest.raises(BoxError):
            key.open(given, senders)
    with pytest.raises(BoxError):
        sender.seal("no key", b"gold")


def test_which_models_can_be_compared() -> None:
    assert compared(MODELS.models) == {"neighbours": ["WORDS"], "analogies": ["WORDS"]}
    assert compared(EMBED.models) == {}


async def test_from_one_pod_to_another(tmp_path: Path) -> None:
    """What a client asked is answered by both; what differs is counted; one row of a request is an input."""
    first = Pod(tmp_path / "first", STABLE, FakeTriton(a=["x", "y"]))
    second = Pod(tmp_path / "second", NEXT, FakeTriton(b=["x", "y"]))
    tap = Tap(first.path, "neighbours")
    try:
        async with first.running(), second.running() as client:
            await first.hear(orders())
            await second.hear(orders())
            assert not first.path.exists(), "nobody is there to compare"
            await second.hear(orders(senders=[first.told.key]))
            peer = InputPeer(host="127.0.0.1", port=client.port or 0, key=second.told.key)
            await first.hear(orders(to=[peer]))
            await give(tap, {"WORDS": np.array([[b"gold"], [b"iron"]], dtype=object)})
            await until(lambda: second.told.compared == 1)
            ((asked, by),) = first.triton.asked
            assert (by, asked.tensors["WORDS"].shape, asked.outputs) == (STABLE, [1, 1], {"WORDS": []})
            ((case, by),) = second.triton.asked
            assert (by, case.tensors, case.outputs) == (NEXT, asked.tensors, {"WORDS": ["x", "y"]})
            second.triton.words["b"] = ["v", "w"]
            await give(tap, {"WORDS": WORD})
            await until(lambda: second.told.compared == 2)
            second.triton.words["b"] = AnswerError("unknown word gold", 404)
            await give(tap, {"WORDS": WORD})
            await until(lambda: second.told.compared == 3)
            assert (second.told.differing, second.told.reference) == (2, STABLE)
            second.triton.words["b"] = AnswerError("it is not there", 503)
            await give(tap, {"WORDS": WORD})
            await until(lambda: "status 503" in second.told.message)
            assert second.told.compared == 3, "it says nothing of the version"
            await give(tap, {"WORDS": np.array([[b"x" * frames.INPUT_BYTES]], dtype=object)})
            await until(lambda: first.told.large == 1)
            await second.hear(None)
            await give(tap, {"WORDS": WORD})
            await until(lambda: "status 404" in first.told.message)
            assert "gold" not in first.told.message
            await first.hear(None)
            await until(lambda: not tap.wanted)
            assert (first.told, first.path.exists()) == (None, False)
    finally:
        await asyncio.to_thread(tap.close)


async def test_a_pod_that_holds_both(tmp_path: Path) -> None:
    pod = Pod(tmp_path / "pod", NEXT, FakeTriton(a=["x"], b=["y"]))
    tap = Tap(pod.path, "neighbours")
    try:
        async with pod.running():
            await pod.hear(orders(both=True))
            await give(tap, {"WORDS": WORD})
            await until(lambda: pod.told.compared == 1)
            assert [by for _, by in pod.triton.asked] == [STABLE, NEXT]
            assert pod.told.differing == 1
            pod.triton.words["a"] = AnswerError("it is not held", 503)
            await give(tap, {"WORDS": WORD})
            await until(lambda: "status 503" in pod.told.message)
            assert pod.told.compared == 1
    finally:
        await asyncio.to_thread(tap.close)


async def test_what_is_not_taken(tmp_path: Path) -> None:
    pod, sender = Pod(tmp_path / "pod", NEXT, FakeTriton(b=["x"])), Key()
    case = GoldenCase(model="neighbours", outputs={"WORDS": ["x"]})

    def box(to: str, key: Key = sender, **more: Any) -> bytes:
        about: dict[str, Any] = {"id": "1", "time": time.time(), "stable": STABLE, "next": NEXT, "case": case, **more}
        return key.seal(to, ClientInput(**about).model_dump_json().encode())

    async with pod.running() as client:

        async def status(body: bytes) -> int:
            async with client.post("/v1/inputs", data=body) as answer:
                return answer.status

        assert await status(b"") == 404
        await pod.hear(orders(senders=[sender.public]))
        to = pod.told.key
        assert await status(box(to)) == 204
        assert await status(box(to)) == 403, "it has been opened before"
        assert await status(box(to, Key(), id="2")) == 403
        assert await status(b"gold") == 403
        assert await status(box(to, id="3", time=time.time() - 2 * FRESH_SECONDS)) == 403
        assert await status(box(to, id="4", next="sha256:z")) == 409
        await pod.hear(InputOrders(stable=STABLE, next=NEXT, perSecond=0.01, senders=[sender.public]))
        seen = [await status(box(to, id=f"more {n}")) for n in range(4)]
        assert 429 in seen, "so many a second and no more"
        assert pod.told.compared == 1 + seen.count(204)


async def test_a_model_whose_answers_cannot_be_compared_says_so(tmp_path: Path) -> None:
    pod = Pod(tmp_path / "pod", STABLE, FakeTriton(), EMBED)
    async with pod.running():
        await pod.hear(orders(to=[InputPeer(host="127.0.0.1", key="k")]))
        assert "leave spec.rollout.analysis.liveInputs out" in pod.told.message
        assert not pod.path.exists()
