"""Triton over HTTP on the pod's loopback: the protocol's JSON, by aiohttp.

The agent is beside every model. tritonclient, with gRPC, protobuf and numpy, would be half of its memory.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mms_workloads.serve.golden import Tensor

OK, CLIENT_ERRORS = 200, 400
NO_ANSWER = 0


class AnswerError(Exception):
    """Triton answered with an error, or (status NO_ANSWER) not at all."""

    def __init__(self, message: str, status: int = NO_ANSWER, *, late: bool = False) -> None:
        super().__init__(message)
        self.message, self.status, self.late = message, status, late


class Http:
    """Connections to one Triton. `headers` unlock its model control. Every call raises AnswerError.

    keep: whether a connection is for more than one request. A Triton that ends waits for those that are kept.
    """

    def __init__(self, url: str, headers: Mapping[str, str], *, keep: bool) -> None:
        connector = aiohttp.TCPConnector(limit=0, force_close=not keep)
        self._session = aiohttp.ClientSession(url, connector=connector, headers=dict(headers))

    async def close(self) -> None:
        await self._session.close()

    async def get(self, path: str, seconds: float) -> bytes:
        return await self._call("GET", path, None, seconds)

    async def post(self, path: str, body: bytes, seconds: float) -> bytes:
        return await self._call("POST", path, body, seconds)

    async def ask(self, path: str, question: Question, seconds: float) -> bytes:
        own = {} if question.header is None else {"Inference-Header-Content-Length": str(question.header)}
        return await self._call("POST", path, question.body, seconds, own)

    async def _call(
        self, method: str, path: str, body: bytes | None, seconds: float, headers: Mapping[str, str] | None = None
    ) -> bytes:
        try:
            async with self._session.request(
                method, path, data=body, headers=headers, timeout=aiohttp.ClientTimeout(total=seconds)
            ) as response:
                answer = await response.read()
        except TimeoutError as error:
            raise AnswerError(f"no answer within {seconds:.0f} s", late=True) from error
        except (aiohttp.ClientError, OSError) as error:
            raise AnswerError(str(error) or type(error).__name__) from error
        if response.status != OK:
            raise AnswerError(_message(answer), response.status)
        return answer


@dataclass(frozen=True)
class Question:
    """The body of an inference; header: the length of its JSON where tensors in binary follow."""

    body: bytes
    header: int | None = None


def question(
    inputs: Sequence[Tensor], outputs: Sequence[str] = (), parameters: Mapping[str, str] | None = None
) -> Question:
    """outputs: those that are wanted; none: all. A tensor with `raw` goes as it is, behind the JSON.

    Triton: extension_binary_data.md.
    """
    raw = b"".join(one["raw"] for one in inputs if "raw" in one)
    given = [_in_binary(one) if "raw" in one else one for one in inputs]
    body: dict[str, Any] = {"inputs": given}
    if outputs:
        body["outputs"] = [{"name": name} for name in outputs]
    if parameters:
        body["parameters"] = parameters
    text = json.dumps(body).encode()
    return Question(text + raw, len(text) if raw else None)


def _in_binary(tensor: Tensor) -> Tensor:
    told = {key: value for key, value in tensor.items() if key != "raw"}
    return {**told, "parameters": {"binary_data_size": len(tensor["raw"])}}


def outputs_of(answer: bytes) -> dict[str, Tensor]:
    """By name. Raises AnswerError for what is no answer: a NaN is none in JSON."""
    try:
        return {one["name"]: one for one in json.loads(answer)["outputs"]}
    except (ValueError, KeyError, TypeError) as error:
        raise AnswerError(f"the answer cannot be read ({error}): {answer[:200].decode(errors='replace')}") from error


def parsed(answer: bytes) -> Any:
    """JSON. Raises AnswerError."""
    try:
        return json.loads(answer)
    except ValueError as error:
        raise AnswerError(f"the answer cannot be read ({error})") from error


def _message(answer: bytes) -> str:
    try:
        return str(json.loads(answer)["error"])
    except (ValueError, KeyError, TypeError):
        return answer[:200].decode(errors="replace")
