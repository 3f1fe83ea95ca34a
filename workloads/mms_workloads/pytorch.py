"""Imports PyTorch without the shape functions of its compilers, a third of the processor time that it takes.

A pod that takes a lost one's place is ready by so much sooner. They say what an operation would return for tensors
without content, and training computes with real ones. A compiler that is imported later gets them first; for tensors on
device "meta" import torch._meta_registrations. This module is to be imported before torch.
"""

from __future__ import annotations

import importlib
import sys
import types
from importlib.abc import MetaPathFinder
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# Private to PyTorch: `import torch` loads them last, for their effect alone. A test says when a release changes that.
SHAPE_FUNCTIONS = ("torch._meta_registrations", "torch.distributed._meta_registrations")
_COMPILERS = {"torch._dynamo", "torch._prims", "torch._inductor"}  # take for granted that they are there


class _BeforeCompilers(MetaPathFinder):
    """Finds nothing itself."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None) -> None:
        del path, target
        if fullname in _COMPILERS:
            sys.meta_path.remove(self)
            for name in SHAPE_FUNCTIONS:
                importlib.import_module(name)


if "torch" not in sys.modules:
    sys.modules.update({name: types.ModuleType(name) for name in SHAPE_FUNCTIONS})
    try:
        import torch  # noqa: F401 - the purpose
    finally:
        for name in SHAPE_FUNCTIONS:
            sys.modules.pop(name, None)
    sys.meta_path.insert(0, _BeforeCompilers())
