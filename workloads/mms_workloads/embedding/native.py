"""The native library of word vectors (workloads/native/embedding).

abi.h there is the reference: what is declared here has the same names.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_bool, c_char_p, c_double, c_float, c_int32, c_int64, c_uint64, c_void_p
from pathlib import Path

from mms_workloads import libraries

ABI_VERSION = 2
LIBRARY = Path(__file__).with_name("libmms_embedding.so")
OK = 0


class Words(Structure):
    _fields_ = (
        ("vectors", c_void_p),
        ("contexts", c_void_p),
        ("vector_touches", c_void_p),
        ("context_touches", c_void_p),
        ("subword_starts", c_void_p),
        ("subwords", c_void_p),
        ("keep", c_void_p),
        ("noise_share", c_void_p),
        ("noise_other", c_void_p),
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
    """Raises MemoryError."""
    if lib.mms_embedding_train(ctypes.byref(words), ctypes.byref(one)) != OK:
        raise MemoryError
