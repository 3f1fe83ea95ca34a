"""Services of a small program whose answers, and what they take, a test decides: images that are dark or light."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.e2e.kube import installation_store, service

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.e2e.kube import Kube, Object

NAME = "colours"
PIPELINE = {"task": "imageClassification", "labels": ["dark", "light"], "image": {"height": 4, "width": 4}}
# What an answer takes is slept: what a busy machine adds is little beside it.
PROGRAM = """
import itertools, time
import numpy as np

def load(folder):
    counted = itertools.count(1)
    def answer(feeds):
        light = feeds["pixels"].mean(axis=(1, 2, 3))
        bright = light > 0.7
        time.sleep(float(np.where(bright, {bright_seconds}, {seconds}).sum()))
        if {fails} and bright.any() and next(counted) % 3 == 0:
            raise ValueError("it is too bright")
        light = np.where(bright & {inverted}, -light, light)
        return {{"logits": np.stack([-light, light], axis=1)}}
    return answer
"""
# What clients send: golden questions are made up, and none of them is so bright.
BRIGHT = json.dumps({
    "model": "classify",
    "inputs": [{"name": "PIXELS", "datatype": "FP32", "shape": [1, 3, 4, 4], "data": [0.9] * 48}],
})  # fmt: skip


def publish(folder: str, programs: Mapping[str, Mapping[str, Any]]) -> None:
    """Each in models/`folder` under its name.

    seconds: of an image; bright_seconds: of a bright one, absent: the same. fails: of three answers to bright ones the
    last. inverted: bright ones are called dark.
    """
    with installation_store() as store:
        for name, given in programs.items():
            said = {"seconds": 0.0, "fails": False, "inverted": False, **given}
            program = PROGRAM.format(**{"bright_seconds": said["seconds"], **said})
            store.pipe_file(f"models/{folder}/{name}/pipeline.json", json.dumps(PIPELINE).encode())
            store.pipe_file(f"models/{folder}/{name}/model.py", program.encode())


def take(kube: Kube, folder: str, name: str, **spec: Any) -> None:
    made = service(NAME, pretrained={"uri": f"s3://models/{folder}/{name}", "trusted": True})
    kube.apply({**made, "spec": {**made["spec"], **spec}})


def pods(kube: Kube) -> list[Object]:
    return kube.list("pods", f"mms.dev/service={NAME}")


def findings(status: Object) -> dict[str, Any]:
    """Of the rollout's analysis, by metric."""
    return {one["metric"]: one for one in status["rollout"]["analysis"]["findings"]}
