"""torchvision, and what stands on it (timm): import this first.

torchvision on PyPI is built for CUDA. Beside a CPU build of PyTorch its C++ library does not load, and then torchvision
itself does not, for want of operators of which it registers the shapes when it is imported. They are declared here; who
calls one is told that it is not there.

This is the only module that relies on what is not PyTorch's public interface, nor torchvision's: where that library
lies (LIBRARY), and which operators torchvision cannot be imported without (OPERATORS). tests/unit/test_torch_names.py
says when a release changes them.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

LIBRARY = "_C*.so"  # in torchvision's folder
OPERATORS = ("nms", "qnms")
_BOXES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def _declare_missing() -> None:
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        return
    for library in sorted(Path(found.origin).parent.glob(LIBRARY)):
        try:
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
        except OSError:
            continue
        return
    for name in OPERATORS:
        torch.library.define(f"torchvision::{name}", _BOXES)


_declare_missing()
