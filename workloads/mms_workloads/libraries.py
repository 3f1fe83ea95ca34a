"""Loads the native libraries (workloads/native) by ctypes, whose calls release the interpreter's lock."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

Prototypes = dict[str, tuple[Any, tuple[Any, ...]]]  # by name: the type of the result, those of the arguments

REMEDY = (
    "It is made with the project: run scripts/setup in a working tree, or install the project's wheel. "
    "It exists for Linux on x86-64 and 64-bit ARM, with glibc 2.28 or later."
)


def load(path: Path, what: str, prototypes: Prototypes, *, version: int) -> ctypes.CDLL:
    """prototypes: first of the function that tells the version of the interface. Raises ImportError with a remedy."""
    try:
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in prototypes.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise ImportError(f"{what} cannot be loaded: {error}. {REMEDY}") from error
    if (found := getattr(library, next(iter(prototypes)))()) != version:
        raise ImportError(f"{path} has version {found} of the interface, and {version} is needed. {REMEDY}")
    return library
