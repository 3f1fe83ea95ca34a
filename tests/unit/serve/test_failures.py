"""Requests at which a model fails are known to the agent, whatever else is in their batch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from mms_workloads.serve import failures
from mms_workloads.serve.failures import Failures
from tests.unit.serve.program_pods import MODEL, Pod, file_of
from tests.unit.serve.serving_pod import wait
from tests.unit.serve.triton_home import triton_home

if TYPE_CHECKING:
    from pathlib import Path

PIPELINE = {"task": "imageClassification", "labels": ["dark", "light"], "image": {"height": 4, "width": 4}}
PROGRAM = """
import numpy as np

def load(folder):
    def answer(feeds):
        light = feeds["pixels"].mean(axis=(1, 2, 3))
        if light.max() > 0.7:
            raise ZeroDivisionError("it is too bright")
        return {"logits": np.stack([-light, light], axis=1)}
    return answer
"""


def test_they_are_counted_over_the_ends_of_processes(tmp_path: Path) -> None:
    path = tmp_path / "generations.json"
    assert failures.total(path) == 0
    Failures(path, "classify_0_0", 1).add(2)
    Failures(path, "classify_0_0", 1).add(1)
    Failures(path, "classify_0_1", 1).add(4)
    Failures(path, "classify_0_0", 2).add(8)
    assert failures.total(path) == 15


def test_a_network_that_fails_of_some(tmp_path: Path) -> None:
    pod = Pod(tmp_path / "pod", triton_home())
    folder = pod.root / "b"
    folder.mkdir()
    (folder / "pipeline.json").write_text(json.dumps(PIPELINE))
    (folder / "model.py").write_text(PROGRAM)
    pod.more = file_of(pod.root, "b")
    try:
        pod.start_all()
        wait(lambda: pod.readyz()[0] == 200)
        with triton.InferenceServerClient(f"127.0.0.1:{pod.ports[1]}") as client:
            for level in (0.2, 0.9, 0.2, 0.9, 0.9):
                pixels = triton.InferInput("PIXELS", [1, 3, 4, 4], "FP32")
                pixels.set_data_from_numpy(np.full((1, 3, 4, 4), level, np.float32))
                if level < 0.7:
                    client.infer(MODEL, [pixels])
                    continue
                with pytest.raises(InferenceServerException, match=r"failed at this request \(ZeroDivisionError\)"):
                    client.infer(MODEL, [pixels])
        wait(lambda: pod.served()["counters"]["failed"] == 3)
        found = pod.served()
        assert found["counters"]["requests"] - found["own"]["requests"] == 5
        assert found["own"]["failed"] == 0
    finally:
        pod.stop()
