"""Artifacts with a pipeline in a serving pod, with a real Triton."""

from __future__ import annotations

import shutil
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from ctypes.util import find_library
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from mms_workloads.contract import InputOrders, Statistics
from tests.unit.serve import networks, pipeline_artifacts
from tests.unit.serve.networks import of_one_colour, request
from tests.unit.serve.serving_pod import ServingPod, wait
from tests.unit.serve.triton_home import triton_home

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.serve.artifacts import Built

pytestmark = [
    pytest.mark.skipif(
        shutil.which("python3.11") is None or find_library("python3.11") is None,
        reason="the backend's stub embeds Python 3.11",
    ),
]
RED, GREEN, BLUE = (of_one_colour(colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
USUAL = Statistics(
    mean=[0.3] * 3,
    std=[0.4] * 3,
    imageMean=[0.3] * 3,
    imageMeanStd=[0.2] * 3,
    imageStd=[0.0] * 3,
    imageStdStd=[0.02] * 3,
)


def ask(pod: ServingPod, model: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    """The ten lines of a client."""
    types = {"O": "BYTES", "f": "FP32", "i": "INT64"}
    with triton.InferenceServerClient(f"127.0.0.1:{pod.ports[1]}") as client:
        tensors = []
        for name, values in inputs.items():
            kind = "INT32" if values.dtype == np.int32 else types[values.dtype.kind]
            tensor = triton.InferInput(name, values.shape, kind)
            tensor.set_data_from_numpy(values)
            tensors.append(tensor)
        answer = client.infer(model, tensors)
        return {one.name: answer.as_numpy(one.name) for one in answer.get_response().outputs}


def pictures(folder: Path, labels: tuple[str, ...] = ("red", "green", "blue"), version: int = 1) -> Built:
    folder.mkdir()
    pipeline = networks.colours(folder).model_copy(update={"labels": list(labels), "statistics": USUAL})
    (folder / "pipeline.json").write_text(pipeline.model_dump_json())
    asked = [{"IMAGE": request(one), "K": np.array([[3]], np.int32)} for one in (RED, GREEN, BLUE)]
    return pipeline_artifacts.publish(folder, asked, version)


def test_images_are_served_batched_swapped_and_measured(tmp_path: Path) -> None:
    pod = ServingPod(tmp_path / "pod", triton_home(), built=pictures(tmp_path / "store", version=4))
    pod.more = {"measure": {"limitSeconds": 2}, "anomalies": "Count", "batching": {"instances": 2}}
    try:
        pod.start_all()
        wait(lambda: pod.readyz()[0] == 200)
        said = pod.served()
        assert (said["models"], said["goldenRight"]) == (["classify"], 3)
        assert said["measured"]["curve"][0]["rate"] > 1
        found = ask(pod, "classify", IMAGE=request(RED, BLUE), K=np.full((2, 1), 2, np.int32))
        assert found["LABELS"][:, 0].tolist() == [b"red", b"blue"]
        assert found["DIGEST"].tolist() == [[pod.digest.encode()]] * 2
        assert found["VERSION"].tolist() == [[4]] * 2
        with ThreadPoolExecutor(8) as clients:
            answers = clients.map(lambda one: ask(pod, "classify", IMAGE=request(one))["LABELS"], [RED, GREEN] * 20)
            assert [one.tolist() for one in answers] == [[[b"red"]], [[b"green"]]] * 20
        with pytest.raises(InferenceServerException, match=r"IMAGE\[0\]: 3 bytes that are no image"):
            ask(pod, "classify", IMAGE=request(b"abc"))
        odd = np.full((1, 3, 4, 4), 7, np.float32)
        with ThreadPoolExecutor(4) as clients:
            list(clients.map(lambda _: ask(pod, "classify", PIXELS=odd), range(20)))
        with urllib.request.urlopen(f"http://127.0.0.1:{pod.ports[2]}/metrics") as answer:
            counted = [line for line in answer.read().decode().splitlines() if line.startswith("mms_anomalous_rows{")]
        assert counted == ['mms_anomalous_rows{model="classify"} 20'], "of both processes together"

        other = pictures(tmp_path / "other", ("rot", "grün", "blau"), version=5)
        pod.want(other)
        wait(lambda: pod.served()["digest"] == other.digest)
        assert ask(pod, "classify", IMAGE=request(GREEN))["LABELS"].tolist() == [["grün".encode()]]

        pod.order(InputOrders(stable=pod.digest, next=other.digest, perSecond=20, both=True))
        wait(lambda: "inputs" in pod.served())

        def compared() -> bool:
            ask(pod, "classify", IMAGE=request(RED, GREEN), K=np.full((2, 1), 2, np.int32))
            return bool(pod.served()["inputs"]["compared"] >= 2)

        wait(compared)
        told = pod.served()["inputs"]
        assert told["differing"] == told["compared"], "of other labels"
        pod.order(None)

        (tmp_path / "texts").mkdir()
        networks.words(tmp_path / "texts")
        texts = pipeline_artifacts.publish(tmp_path / "texts", [{"TEXT": request("good")}])
        pod.want(texts)
        wait(lambda: pod.served().get("swap", {}).get("phase") == "Failed")
        assert "other tensors of classify" in pod.served()["swap"]["message"]
        assert ask(pod, "classify", IMAGE=request(RED))["LABELS"].tolist() == [[b"rot"]]
    finally:
        pod.stop()


def test_an_image_that_is_none_of_those_trained_on_is_refused(tmp_path: Path) -> None:
    pod = ServingPod(tmp_path / "pod", triton_home(), built=pictures(tmp_path / "store"))
    try:
        pod.start_all()
        wait(lambda: pod.readyz()[0] == 200)
        grey = np.random.default_rng(1).integers(0, 255, (8, 8, 3), np.uint8)
        with pytest.raises(InferenceServerException, match=r"contrast is .* standard deviations"):
            ask(pod, "classify", IMAGE=request(networks.png(grey)))
        with pytest.raises(InferenceServerException, match="not finite"):
            ask(pod, "classify", PIXELS=np.full((1, 3, 4, 4), np.nan, np.float32))
    finally:
        pod.stop()
