"""Inputs of clients that both versions of a rollout answer: what an agent does with them, as its pod is told.

A pod of the stable version samples some (sampling.py), has its own Triton answer them once more, and sends them with
the answers, sealed (boxes.py), to a pod of the next version, whose agent asks its Triton and compares. Where a pod
holds both versions, as in a hot swap, it does both by itself. What is counted is told; the inputs are in memory, and
nowhere else: no file, no log, no message of an error has any of them.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import structlog
from aiohttp import web
from pydantic import ValidationError

from mms_workloads.contract import ClientInput, InputOrders, InputsReport
from mms_workloads.serve import comparing, generations
from mms_workloads.serve.asking import NO_ANSWER, AnswerError
from mms_workloads.serve.frames import FRAME_BYTES, SOCKET
from mms_workloads.serve.golden import GoldenError
from mms_workloads.serve.sampling import Sampler

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mms_workloads.contract import GoldenCase
    from mms_workloads.serve.boxes import Key
    from mms_workloads.serve.control import Triton
    from mms_workloads.serve.layout import Layout
    from mms_workloads.serve.repository import Model

ORDERS_FILE = "/etc/mms/inputs"  # InputOrders, or empty: the pod's annotation mms.dev/inputs
BOX_BYTES = 2 * FRAME_BYTES  # with the answer
TAKEN_AT_ONCE = 4  # boxes
READ_SECONDS = 10.0  # that one may take to come
FRESH_SECONDS = 60.0  # that two nodes' clocks, and the way of a box, may be apart
SEND_SECONDS = 70.0  # with the time that the other pod's Triton has to answer
UNAVAILABLE = 503

log = structlog.get_logger()


def read_orders(environment: Mapping[str, str] = os.environ) -> InputOrders | None:
    """None where nothing, or nothing clear, is said."""
    try:
        return InputOrders.model_validate_json(Path(environment.get("MMS_INPUTS_FILE", ORDERS_FILE)).read_bytes())
    except (OSError, ValidationError):
        return None


def compared(models: Sequence[Model]) -> dict[str, list[str]]:
    """The outputs that are compared, by the models that have some."""
    ours = (model for model in models if model.code is not None)
    found = {one.name: comparing.comparable({o.name: o.datatype for o in one.outputs}) for one in ours}
    return {name: outputs for name, outputs in found.items() if outputs}


class Inputs:
    """orders: what the pod is told now. models: those that run."""

    def __init__(
        self, layout: Layout, triton: Triton, models: Sequence[Model], orders: Callable[[], InputOrders | None]
    ) -> None:
        self._generations = layout.generations
        self._triton, self._outputs, self._read = triton, compared(models), orders
        self._sampler = Sampler(layout.models / SOCKET, self._use, self._too_large)
        self._orders: InputOrders | None = None
        self._serving: str | None = None
        self._key: Key | None = None
        self._told = InputsReport()
        self._session: aiohttp.ClientSession | None = None
        self._sent = 0
        self._busy = 0
        self._seen: dict[str, float] = {}  # boxes that were opened, until they are too old
        self._room, self._room_at = 1.0, time.monotonic()  # inputs that may be taken at once

    def report(self) -> InputsReport | None:
        return self._told if self._orders is not None else None

    async def keep(self, serving: str | None) -> None:
        """Does as the pod is told now. serving: the digest of what answers clients; None: nobody is to be asked."""
        orders = self._read() if serving is not None else None
        self._serving = serving
        if orders is None or self._orders is None or _pair(orders) != _pair(self._orders):
            self._told = InputsReport()
        self._orders = orders
        if orders is None:
            self._key = None
            await self._sampler.stop()
            return
        if self._key is None:
            from mms_workloads.serve.boxes import Key  # noqa: PLC0415 - megabytes that few pods need

            self._key = Key()
        self._told = self._told.model_copy(update={"key": self._key.public, "reference": orders.stable})
        self._sampler.per_second = orders.perSecond
        if not self._outputs:
            self._say(
                f"the answers of {', '.join(self._triton.models)} have nothing that can be compared, as words, labels "
                "and counts can: leave spec.rollout.analysis.liveInputs out"
            )
            return
        if not self._samples(orders):
            await self._sampler.stop()
            return
        try:
            await self._sampler.start()
        except OSError as error:
            self._say(f"the models cannot be asked for inputs: {error}")

    def _samples(self, orders: InputOrders) -> bool:
        if orders.both:
            return self._serving == orders.next
        return self._serving == orders.stable and bool(orders.to)

    async def end(self) -> None:
        await self.keep(None)
        if self._session is not None:
            await self._session.close()

    # ---- inputs of this pod's clients

    async def _use(self, case: GoldenCase) -> None:
        orders, outputs = self._orders, self._outputs.get(case.model)
        if orders is None or outputs is None or not self._samples(orders):
            return
        asked = case.model_copy(update={"outputs": {name: [] for name in outputs}})
        try:
            found = await self._triton.ask(asked, orders.stable, self._version(orders.stable))
        except AnswerError as error:
            self._say(f"the version before did not answer an input again: status {error.status}")
            return
        except GoldenError:
            return
        answered = case.model_copy(update={"outputs": {name: found[name]["data"] for name in outputs if name in found}})
        if orders.both:
            await self._compare(answered, orders.next)
        else:
            await self._send(answered, orders)

    def _too_large(self) -> None:
        self._told = self._told.model_copy(update={"large": self._told.large + 1})

    async def _send(self, case: GoldenCase, orders: InputOrders) -> None:
        assert self._key is not None  # noqa: S101 - it is there with the orders
        to = orders.to[self._sent % len(orders.to)]
        self._sent += 1
        sent = ClientInput(
            id=secrets.token_hex(16), time=time.time(), stable=orders.stable, next=orders.next, case=case
        )
        host = f"[{to.host}]" if ":" in to.host else to.host
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=SEND_SECONDS, sock_connect=2.0))
        try:
            box = self._key.seal(to.key, sent.model_dump_json().encode())
            async with self._session.post(f"http://{host}:{to.port}/v1/inputs", data=box) as answer:
                status = answer.status
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            self._say(f"the agent of the next version at {to.host} does not answer: {type(error).__name__}")
            return
        taken = status == web.HTTPNoContent.status_code
        self._say("" if taken else f"the agent of the next version at {to.host} did not take an input: status {status}")

    # ---- inputs of others

    async def take(self, request: web.Request) -> web.Response:
        """POST /v1/inputs: a box, of a pod that this one is told of. What it is about is compared, and nothing kept."""
        orders, key = self._orders, self._key
        if orders is None or key is None or not orders.senders or self._serving != orders.next:
            return web.Response(status=404)
        if self._busy >= TAKEN_AT_ONCE:
            return web.Response(status=UNAVAILABLE)
        self._busy += 1
        try:
            try:
                async with asyncio.timeout(READ_SECONDS):
                    box = await request.read()
                plain = key.open(box, orders.senders)
                found = ClientInput.model_validate_json(plain)
            except TimeoutError:
                return web.Response(status=408)
            except ValueError:
                return web.Response(status=403)
            if (found.stable, found.next) != _pair(orders):
                return web.Response(status=409)
            if not self._is_fresh(found):
                return web.Response(status=403)
            if not self._has_room(orders):
                return web.Response(status=429)
            await self._compare(found.case, orders.next)
            return web.Response(status=204)
        finally:
            self._busy -= 1

    def _is_fresh(self, found: ClientInput) -> bool:
        """And none that has been opened before: what is sent twice counts once."""
        now = time.time()
        self._seen = {one: at for one, at in self._seen.items() if abs(now - at) <= FRESH_SECONDS}
        if found.id in self._seen or abs(now - found.time) > FRESH_SECONDS:
            return False
        self._seen[found.id] = found.time
        return True

    def _has_room(self, orders: InputOrders) -> bool:
        now = time.monotonic()
        most = max(2.0, orders.perSecond)
        self._room = min(most, self._room + (now - self._room_at) * orders.perSecond)
        self._room_at = now
        if self._room < 1:
            return False
        self._room -= 1
        return True

    async def _compare(self, case: GoldenCase, digest: str) -> None:
        try:
            differs = comparing.differs(case, await self._triton.ask(case, digest, self._version(digest)))
        except AnswerError as error:
            if error.late or error.status in {NO_ANSWER, UNAVAILABLE}:
                self._say(f"the next version did not answer an input: status {error.status}")
                return
            differs = True  # what the version before answers
        except GoldenError:
            return
        if differs is None or self._orders is None or self._orders.next != digest:
            return
        known = self._told
        self._told = known.model_copy(
            update={"compared": known.compared + 1, "differing": known.differing + differs, "message": ""}
        )

    def _version(self, digest: str) -> int | None:
        """Which of the models' versions in Triton holds it. None: nobody knows, so the one that answers clients."""
        try:
            found = generations.read(self._generations).of(digest)
        except (OSError, ValueError):
            return None
        return found.triton if found else None

    def _say(self, message: str) -> None:
        if message and message != self._told.message:
            log.info("inputs of clients", message=message)
        self._told = self._told.model_copy(update={"message": message})


def _pair(orders: InputOrders) -> tuple[str, str]:
    return orders.stable, orders.next
