"""Any served model asked about values that people type: `TEXT=a good film`, `IMAGE=@photograph.jpg`, `x=[1, 2, 3]`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tritonclient.utils import triton_to_np_dtype

from mms_workloads.serve import query
from mms_workloads.serve.query import InvalidQueryError, NotReadyError
from mms_workloads.serve.repository import MODELS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from mms_workloads.serve.access import Access

FILE = "@"  # before a path


@dataclass(frozen=True, slots=True)
class Answer:
    """outputs: of one row, [1, ...] each."""

    model: str
    outputs: dict[str, NDArray[Any]]


def ask(url: str, values: Mapping[str, str], model: str | None = None, access: Access = query.ANYBODY) -> Answer:
    """values: of the model's inputs by name. model: None for the one that the service has.

    Text is itself; numbers are JSON, nested as the tensor is, without the rows; @PATH is a file: its bytes, or the
    array of an .npy. Raises QueryError.
    """
    with query.client(url, access=access) as there:
        named = model or _only(there, url)
        inputs = there.inputs(named)
        told = ", ".join(f"{name} ({datatype} {shape[1:]})" for name, (datatype, shape) in inputs.items())
        if not values:
            raise InvalidQueryError(f"model {named} takes {told}: give NAME=VALUE")
        if strange := sorted(values.keys() - inputs.keys()):
            raise InvalidQueryError(f"{strange[0]}: no input of model {named}: it has {told}")
        given = {name: _tensor(name, value, *inputs[name]) for name, value in values.items()}
        return Answer(named, there.ask(named, given))


def _only(there: query.Client, url: str) -> str:
    """The name of the model that is ready."""
    from mms_workloads.serve.pipelines import tasks  # noqa: PLC0415 - what prepares images and sound comes with it

    found = next((name for name in tasks.models() if there.ready(name)), None)
    if found is None and there.ready(MODELS[0]):
        raise InvalidQueryError(f"{url} serves word vectors, of which {', '.join(MODELS)} can be asked: name the model")
    if found is None:
        raise NotReadyError(f"{url}: no model is ready by a name that is known: name the model, or look at conditions")
    return found


def _tensor(name: str, value: str, datatype: str, shape: list[int]) -> NDArray[Any]:
    """[1, ...]. Raises InvalidQueryError."""
    if datatype == "BYTES":
        return _strings(name, value, shape)
    kind = triton_to_np_dtype(datatype)
    try:
        found = np.load(value[1:], allow_pickle=False) if value.startswith(FILE) else np.array(json.loads(value))
    except OSError as error:
        raise InvalidQueryError(f"{name}: {error}") from error
    except ValueError as error:
        raise InvalidQueryError(
            f"{name}: {value[:80]}: give {datatype} as JSON, such as 3 or [1, 2], or {FILE} and an .npy"
        ) from error
    if found.dtype.kind not in "biuf":
        raise InvalidQueryError(f"{name}: {value[:80]}: its rows must be of numbers, and of the same length")
    found = found.reshape(1, *(found.shape or (1,))) if found.ndim < len(shape) else found
    return np.ascontiguousarray(found, kind)


def _strings(name: str, value: str, shape: list[int]) -> NDArray[np.object_]:
    if value.startswith(FILE):
        try:
            return np.array([[Path(value[1:]).read_bytes()]], np.object_)
        except OSError as error:
            raise InvalidQueryError(f"{name}: {error}") from error
    if shape[1:] == [1]:
        return np.array([[value.encode()]], np.object_)
    try:
        texts = json.loads(value)
    except ValueError as error:
        raise InvalidQueryError(f"{name}: {value[:80]}: give several texts as a JSON list") from error
    return np.array([[str(text).encode() for text in (texts if isinstance(texts, list) else [texts])]], np.object_)
