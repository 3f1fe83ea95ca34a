"""Triton over HTTP on the pod's loopback, where many questions are asked: bodies are made once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import aiohttp
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from mms_workloads.contract import Measured
from mms_workloads.serve import golden, load, measuring

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mms_workloads.contract import Golden, GoldenCase, Load
    from mms_workloads.serve.layout import Layout

TIMEOUT = aiohttp.ClientTimeout(total=60)
METRICS_TIMEOUT = aiohttp.ClientTimeout(total=1)
_LENGTH = "Inference-Header-Content-Length"
OK = 200


class Asking:
    """Asks questions in turn, as fast as they are answered."""

    def __init__(self, session: aiohttp.ClientSession, url: str, cases: Sequence[GoldenCase]) -> None:
        self._session = session
        self._questions = [_question(url, case) for case in cases]

    @classmethod
    async def measure(
        cls, layout: Layout, cases: Golden, limit_seconds: float, counted: Callable[[int], None]
    ) -> Measured:
        """`counted` is told how many questions were asked."""
        if not cases.cases:
            return Measured(seconds=0.0, error="there is no golden question to ask")
        url = f"http://127.0.0.1:{layout.http_port}"
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=TIMEOUT) as session:
            asking, asked = cls(session, url, cases.cases), 0

            async def ask(number: int) -> None:
                nonlocal asked
                asked += 1
                await asking.ask(number)

            try:
                return await measuring.measure(ask, limit_seconds)
            finally:
                counted(asked)

    async def ask(self, number: int) -> None:
        """Raises InferenceServerException, aiohttp.ClientError, TimeoutError."""
        url, body, headers = self._questions[number % len(self._questions)]
        async with self._session.post(url, data=body, headers=headers) as response:
            answer = await response.read()
            if response.status != OK:
                raise InferenceServerException(answer[:200].decode(errors="replace"), str(response.status))


class Metrics:
    """What Triton's metrics say now."""

    def __init__(self, layout: Layout) -> None:
        self._url = f"http://127.0.0.1:{layout.metrics_port}/metrics"
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=METRICS_TIMEOUT)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session:
            await self._session.close()

    async def load(self) -> Load | None:
        """None where Triton does not answer."""
        if self._session is None:
            return None
        try:
            async with self._session.get(self._url) as response:
                return load.parse(await response.text()) if response.status == OK else None
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None


def _question(url: str, case: GoldenCase) -> tuple[str, bytes, dict[str, str]]:
    tensors = []
    for name, (datatype, array) in golden.inputs(case).items():
        tensor = triton.InferInput(name, list(array.shape), datatype)
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    body, length = triton.InferenceServerClient.generate_request_body(tensors)
    headers = {_LENGTH: str(length)} if length is not None else {}
    return f"{url}/v2/models/{case.model}/infer", body, headers
