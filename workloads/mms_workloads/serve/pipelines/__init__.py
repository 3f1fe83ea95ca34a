"""A model as clients see it: what they have (an image file, a text, a sound, or tensors) in, what they want out.

`open` reads pipeline.json of an artifact's folder and the network that it names; `Served.answer` prepares what was
sent, runs the network and makes the answer. Triton's processes do the same as a training that writes its golden set:
this package needs neither Triton nor, for ONNX, PyTorch.
"""

from __future__ import annotations

from mms_workloads.serve.pipelines.networks import NetworkError
from mms_workloads.serve.pipelines.served import Served, golden_case, open, valid  # noqa: A004 - as gzip.open
from mms_workloads.serve.pipelines.tensors import FailedError, RequestError, Signature

__all__ = ["FailedError", "NetworkError", "RequestError", "Served", "Signature", "golden_case", "open", "valid"]
