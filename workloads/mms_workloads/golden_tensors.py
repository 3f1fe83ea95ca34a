"""Tensors as golden cases have them."""

from __future__ import annotations

import base64
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from mms_workloads.contract import GoldenTensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

_DATATYPES = {"float32": "FP32", "int64": "INT64", "int32": "INT32", "object": "BYTES"}


def tensors(inputs: Mapping[str, NDArray[Any]]) -> dict[str, GoldenTensor]:
    return {name: tensor(np.asarray(values)) for name, values in inputs.items()}


def tensor(values: NDArray[Any]) -> GoldenTensor:
    """The bytes of Triton's binary form. Strings and bytes: of any dtype."""
    if values.dtype.kind in "SU":
        values = values.astype(np.object_)
    datatype = _DATATYPES[values.dtype.name]
    if datatype == "BYTES":
        items = [one.encode() if isinstance(one, str) else bytes(one) for one in values.ravel()]
        raw = b"".join(struct.pack("<I", len(one)) + one for one in items)
    else:
        raw = np.ascontiguousarray(values).tobytes()
    return GoldenTensor(datatype=datatype, shape=list(values.shape), raw=base64.b64encode(raw).decode())
