"""KServe's own clients at work, by a Python that has them: a target in JSON comes in, what is wrong goes out.

    python kserve_asks.py < target.json

{"rest", "grpc", "models": [{"name", "version", "tolerance", "max_batch", "examples": [[inputs, outputs]]}]}, a tensor
being {"name", "datatype", "shape", "data"} -> {check: {model: [problem]}}. It imports nothing of the project.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from typing import TYPE_CHECKING, Any

import grpc  # type: ignore[import-untyped]
import httpx  # type: ignore[import-not-found]
import numpy as np
from kserve import (  # type: ignore[import-not-found]
    InferenceGRPCClient,
    InferenceRESTClient,
    InferInput,
    InferRequest,
    RESTConfig,
)
from kserve.protocol.infer_type import RequestedOutput  # type: ignore[import-not-found]

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    Check = Callable[["Asked", dict[str, Any]], Awaitable[list[str]]]

DTYPES = {"BYTES": np.object_, "INT32": np.int32, "INT64": np.int64, "FP32": np.float32}
NO_MODEL = "no-such-model"
ID = "42"
CHECKS: dict[str, Check] = {}


class Asked:
    """The clients, without retries: an answer must come at once."""

    def __init__(self, target: dict[str, Any]) -> None:
        self.url = target["rest"]
        self.rest = InferenceRESTClient(RESTConfig(protocol="v2", retries=0))
        self.grpc = InferenceGRPCClient(target["grpc"], retries=0)

    async def close(self) -> None:
        await self.rest.close()
        await self.grpc.close()


def check(name: str) -> Callable[[Check], Check]:
    def register(one: Check) -> Check:
        CHECKS[name] = one
        return one

    return register


def request(model: dict[str, Any], example: Sequence[Any], *, binary: bool, **more: Any) -> InferRequest:
    inputs = []
    for one in example[0]:
        made = InferInput(one["name"], one["shape"], one["datatype"])
        made.set_data_from_numpy(array(one), binary_data=binary)
        inputs.append(made)
    return InferRequest(more.pop("name", model["name"]), inputs, request_id=ID, **more)


def array(tensor: dict[str, Any]) -> Any:
    data = [item.encode() for item in tensor["data"]] if tensor["datatype"] == "BYTES" else tensor["data"]
    return np.array(data, DTYPES[tensor["datatype"]]).reshape(tensor["shape"])


def wrong(answer: Any, wanted: Sequence[dict[str, Any]], model: dict[str, Any]) -> list[str]:
    """What is wrong with the outputs of an answer."""
    found = {one.name: one for one in answer.outputs}
    problems = [] if answer.id == ID else ["not the id that was sent"]
    if answer.model_name != model["name"]:
        problems.append(f"model_name {answer.model_name!r}")
    if found.keys() != {one["name"] for one in wanted}:
        return [*problems, f"outputs {sorted(found)}"]
    for want in wanted:
        have = found[want["name"]]
        if (have.datatype, list(have.shape)) != (want["datatype"], want["shape"]):
            problems.append(f"{want['name']}: {have.datatype} {have.shape}, not {want['datatype']} {want['shape']}")
            continue
        values = [item.decode() if isinstance(item, bytes) else item for item in have.as_numpy().ravel().tolist()]
        if want["datatype"] == "FP32":
            same = np.allclose(values, want["data"], rtol=0, atol=model["tolerance"])
        else:
            same = values == want["data"]
        if not same:
            problems.append(f"{want['name']}: not the right values\n{values}, not {want['data']}")
    return problems


def over(example: Sequence[Any], count: int) -> list[Any]:
    """The inputs with so many rows."""
    inputs = []
    for one in example[0]:
        width = len(one["data"]) // one["shape"][0]
        data = (one["data"] * count)[: count * width]
        inputs.append({**one, "shape": [count, *one["shape"][1:]], "data": data})
    return [inputs, example[1]]


@check("kserve.rest.live")
async def rest_live(asked: Asked, _: dict[str, Any]) -> list[str]:
    return [] if await asked.rest.is_server_live(asked.url) is True else ["is_server_live is not true"]


@check("kserve.rest.ready")
async def rest_ready(asked: Asked, _: dict[str, Any]) -> list[str]:
    return [] if await asked.rest.is_server_ready(asked.url) is True else ["is_server_ready is not true"]


@check("kserve.rest.model-ready")
async def rest_model_ready(asked: Asked, model: dict[str, Any]) -> list[str]:
    found = [await asked.rest.is_model_ready(asked.url, name) for name in (model["name"], NO_MODEL)]
    return [] if found == [True, False] else [f"is_model_ready {found}"]


@check("kserve.rest.infer.json")
async def rest_json(asked: Asked, model: dict[str, Any]) -> list[str]:
    problems = []
    for example in model["examples"]:
        answer = await asked.rest.infer(asked.url, request(model, example, binary=False), model["name"])
        problems += wrong(answer, example[1], model)
    return problems


@check("kserve.rest.infer.binary")
async def rest_binary(asked: Asked, model: dict[str, Any]) -> list[str]:
    problems = []
    for example in model["examples"]:
        outputs = [RequestedOutput(one["name"], {"binary_data": True}) for one in example[1]]
        asks = request(model, example, binary=True, request_outputs=outputs)
        problems += wrong(await asked.rest.infer(asked.url, asks, model["name"]), example[1], model)
    return problems


@check("kserve.rest.infer.dict")
async def rest_dict(asked: Asked, model: dict[str, Any]) -> list[str]:
    """A request that is a dictionary, as one writes it by hand."""
    example = model["examples"][0]
    asks = {"id": ID, "inputs": example[0], "outputs": [{"name": example[1][0]["name"]}]}
    return wrong(await asked.rest.infer(asked.url, asks, model["name"]), example[1][:1], model)


@check("kserve.rest.errors")
async def rest_errors(asked: Asked, model: dict[str, Any]) -> list[str]:
    example = model["examples"][0]
    more = over(example, model["max_batch"] + 1)
    problems = []
    for name, asks, status in ((NO_MODEL, example, 404), (model["name"], more, 400)):
        try:
            await asked.rest.infer(asked.url, request(model, asks, binary=False, name=name), name)
        except httpx.HTTPStatusError as error:
            if error.response.status_code != status:
                problems.append(f"HTTP {error.response.status_code}, not {status}\n{error}")
        else:
            problems.append(f"no error, not {status}")
    return problems


@check("kserve.rest.error-messages")
async def rest_messages(asked: Asked, model: dict[str, Any]) -> list[str]:
    """The client shows the message of an error object only when its type is application/json."""
    try:
        await asked.rest.infer(asked.url, request(model, model["examples"][0], binary=False, name=NO_MODEL), NO_MODEL)
    except httpx.HTTPStatusError as error:
        return [] if NO_MODEL in str(error).partition(",")[0] else [f"the message is lost\n{error}"]
    return ["no error"]


@check("kserve.grpc.live")
async def grpc_live(asked: Asked, _: dict[str, Any]) -> list[str]:
    return [] if await asked.grpc.is_server_live() is True else ["is_server_live is not true"]


@check("kserve.grpc.ready")
async def grpc_ready(asked: Asked, _: dict[str, Any]) -> list[str]:
    return [] if await asked.grpc.is_server_ready() is True else ["is_server_ready is not true"]


@check("kserve.grpc.model-ready")
async def grpc_model_ready(asked: Asked, model: dict[str, Any]) -> list[str]:
    found = [await asked.grpc.is_model_ready(model["name"])]
    try:
        found.append(await asked.grpc.is_model_ready(NO_MODEL))
    except grpc.RpcError as error:
        found.append(error.code() != grpc.StatusCode.NOT_FOUND)
    return [] if found == [True, False] else [f"is_model_ready {found}"]


@check("kserve.grpc.infer.typed")
async def grpc_typed(asked: Asked, model: dict[str, Any]) -> list[str]:
    return await _over_grpc(asked, model, binary=False)


@check("kserve.grpc.infer.raw")
async def grpc_raw(asked: Asked, model: dict[str, Any]) -> list[str]:
    return await _over_grpc(asked, model, binary=True)


async def _over_grpc(asked: Asked, model: dict[str, Any], *, binary: bool) -> list[str]:
    problems = []
    for example in model["examples"]:
        answer = await asked.grpc.infer(request(model, example, binary=binary))
        problems += wrong(answer, example[1], model)
        if answer.model_version != model["version"]:
            problems.append(f"model_version {answer.model_version!r}")
    return problems


@check("kserve.grpc.errors")
async def grpc_errors(asked: Asked, model: dict[str, Any]) -> list[str]:
    example = model["examples"][0]
    more = over(example, model["max_batch"] + 1)
    problems = []
    for name, asks, code in ((NO_MODEL, example, "NOT_FOUND"), (model["name"], more, "INVALID_ARGUMENT")):
        try:
            await asked.grpc.infer(request(model, asks, binary=True, name=name))
        except grpc.RpcError as error:
            if error.code().name != code:
                problems.append(f"{error.code().name}, not {code}\n{error.details()}")
        else:
            problems.append(f"no error, not {code}")
    return problems


async def results(target: dict[str, Any]) -> dict[str, dict[str, list[str]]]:
    found: dict[str, dict[str, list[str]]] = {name: {} for name in CHECKS}
    asked = Asked(target)
    try:
        for name, one in CHECKS.items():
            for model in target["models"]:
                try:
                    found[name][model["name"]] = await one(asked, model)
                except Exception as error:  # noqa: BLE001 - whatever the client raises is what its user sees
                    found[name][model["name"]] = [f"{type(error).__name__}\n{error}"]
    finally:
        await asked.close()
    return found


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    json.dump(asyncio.run(results(json.load(sys.stdin))), sys.stdout)
