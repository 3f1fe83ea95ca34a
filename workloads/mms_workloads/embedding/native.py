"""The native library of word vectors (workloads/native/embedding).

abi.h there is the reference: what is declared here has the same names.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_bool, c_char_p, c_double, c_float, c_int32, c_int64, c_uint64, c_void_p
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mms_workloads import libraries

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ABI_VERSION = 5
LIBRARY = Path(__file__).with_name("libmms_embedding.so")
OK = 0
LINE = 16  # floats of a cache line
WIDEST = 100  # window that the kernels have room for


class Words(Structure):
    _fields_ = (
        ("vectors", c_void_p),
        ("contexts", c_void_p),
        ("vector_places", c_void_p),
        ("context_places", c_void_p),
        ("vector_touches", c_void_p),
        ("context_touches", c_void_p),
        ("subword_starts", c_void_p),
        ("subwords", c_void_p),
        ("keep", c_void_p),
        ("noise", c_void_p),
        ("tree_starts", c_void_p),
        ("tree_nodes", c_void_p),
        ("tree_codes", c_void_p),
        ("words", c_int64),
        ("stride", c_int64),
        ("window", c_int32),
        ("fixed", c_int32),
        ("negatives", c_int32),
        ("bag", c_int32),
    )


class Pass(Structure):
    _fields_ = (
        ("tokens", c_void_p),
        ("count", c_int64),
        ("seed", c_uint64),
        ("first_rate", c_float),
        ("last_rate", c_float),
        ("replay", c_int32),
        ("threads", c_int32),
        ("words", c_int64),
        ("pairs", c_int64),
        ("measured", c_int64),
        ("loss", c_double),
    )


lib = libraries.load(
    LIBRARY,
    "the native kernels of word vectors",
    {
        "mms_embedding_abi_version": (c_int32, ()),
        "mms_embedding_kernels": (c_char_p, ()),
        "mms_embedding_kernels_choose": (c_bool, (c_char_p,)),
        "mms_embedding_train": (c_int32, (POINTER(Words), POINTER(Pass))),
        "mms_embedding_changes": (c_double, (c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p)),
        "mms_embedding_settle": (
            None,
            (c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p, c_void_p),
        ),
    },
    version=ABI_VERSION,
)


def kernels() -> str:
    """The instructions in use: avx512, avx2, neon or scalar."""
    name: bytes = lib.mms_embedding_kernels()
    return name.decode()


def choose(name: str) -> None:
    """Raises ValueError for instructions that this processor lacks."""
    if not lib.mms_embedding_kernels_choose(name.encode()):
        raise ValueError(f"this processor has no {name}")


def train(words: Words, one: Pass) -> None:
    """Raises MemoryError; ValueError for a window that is too wide."""
    if not 0 < words.window <= WIDEST:
        raise ValueError(f"a window of {words.window} words to each side: 1 to {WIDEST} are possible")
    if lib.mms_embedding_train(ctypes.byref(words), ctypes.byref(one)) != OK:
        raise MemoryError


def changes(
    base: NDArray[np.float32], working: NDArray[np.float32], rows: NDArray[np.int64], out: NDArray[np.float32]
) -> float:
    """Writes working[rows] - base[rows] into out [n, d]; returns the sum of its squares. base, working: as `matrix`."""
    count, columns = out.shape
    squares: float = lib.mms_embedding_changes(
        at(base), at(working), at(rows), count, columns, stride(base, working), at(out)
    )
    return squares


def settle(
    base: NDArray[np.float32],
    working: NDArray[np.float32],
    rows: NDArray[np.int64],
    change: NDArray[np.float32],
    scale: NDArray[np.float32],
) -> None:
    """base[rows] += scale[:, None] * change, and the same in working; to the same bits on all processors."""
    count, columns = change.shape
    lib.mms_embedding_settle(
        at(base), at(working), at(rows), count, columns, stride(base, working), at(change), at(scale)
    )


def stride(*matrices: NDArray[np.float32]) -> int:
    """Floats from a row to the next. Raises ValueError where rows are not on cache lines, in all matrices alike."""
    strides = {one.strides[0] for one in matrices}
    if len(strides) > 1 or any(one.strides[0] % (4 * LINE) or one.ctypes.data % (4 * LINE) for one in matrices):
        raise ValueError("rows are not on cache lines, in both matrices alike: train a copy of the parameters")
    return int(strides.pop()) // 4


def at(array: NDArray[Any]) -> int:
    return int(array.ctypes.data)
