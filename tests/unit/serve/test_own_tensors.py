"""Networks of any kind, whose clients send and get the network's own tensors."""

from __future__ import annotations

import json
import shutil
import warnings
from ctypes.util import find_library
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException
from typer.testing import CliRunner

from mms_operator.cli import app
from mms_workloads.serve import pipelines
from mms_workloads.serve.layout import read_models
from tests.unit.serve.program_pods import Pod as TritonPod
from tests.unit.serve.program_pods import file_of
from tests.unit.serve.serving_pod import wait
from tests.unit.serve.test_pretrained import DIGEST, Pod
from tests.unit.serve.triton_home import triton_home

if TYPE_CHECKING:
    from pathlib import Path

OWN = {"task": "tensors"}
HOUSES = """
houses (double[n, 2] sizes, int64[n] rooms, string[n, 1] town) => (double[n] price, bool[n, 2] large, string[n, 1] at)
<double[2, 1] weights = {1000, 500}, int64[1] last = {1}, double[1] limit = {10}>
{
  each = MatMul(sizes, weights)
  sum = Squeeze(each, last)
  many = Cast<to = 11>(rooms)
  price = Add(sum, many)
  large = Greater(sizes, limit)
  at = Identity(town)
}
"""


def write(folder: Path, text: str, **said: Any) -> None:
    """The network of ONNX's textual form, and pipeline.json."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]>\n{text}')
    onnx.save(model, folder / "model.onnx")
    (folder / "pipeline.json").write_text(json.dumps({**OWN, **said}))


def asked(rows: int) -> dict[str, np.ndarray]:
    sizes = np.arange(2 * rows, dtype=np.float32).reshape(rows, 2) * 4
    towns = np.array([[f"höhe {row}".encode()] for row in range(rows)], np.object_)
    return {"sizes": sizes, "rooms": np.arange(rows, dtype=np.int64)[:, None], "town": towns}


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    return Pod(tmp_path)


def opened(pod: Pod, **more: Any) -> pipelines.Served:
    return pipelines.open(pod.layout.artifact(DIGEST), **more)


def test_an_onnx_file_says_what_its_tensors_are(pod: Pod) -> None:
    write(pod.source, HOUSES)
    assert pod.run() is None
    (model,) = read_models(pod.layout.running).models
    assert model.name == "predict"
    assert [(one.name, one.datatype, one.shape) for one in (*model.inputs, *model.outputs)] == [
        ("sizes", "FP32", [-1]), ("rooms", "INT64", [1]), ("town", "BYTES", [1]),
        ("price", "FP32", [1]), ("large", "INT32", [-1]), ("at", "BYTES", [1]),
    ]  # fmt: skip
    served = opened(pod)
    found = served.answer(asked(3))
    assert found["price"].tolist() == [[2000.0], [14001.0], [26002.0]]
    assert found["large"].tolist() == [[0, 0], [0, 1], [1, 1]]
    assert found["at"].tolist() == asked(3)["town"].tolist()
    together = served.answers([asked(1), asked(2)])
    assert [one["price"].tolist() for one in together if isinstance(one, dict)] == [[[2000.0]], [[2000.0], [14001.0]]]


def test_what_is_said_goes_before_the_file(pod: Pod) -> None:
    """Only the outputs that are named are computed; a row out of an input's range is no valid input."""
    sizes = {"name": "sizes", "least": 0, "most": 30}
    write(pod.source, HOUSES, inputs=[sizes], outputs=[{"name": "large"}])
    assert pod.run() is None
    (model,) = read_models(pod.layout.running).models
    assert [one.name for one in model.outputs] == ["large"]
    served = opened(pod)
    assert served.answer(asked(2)).keys() == {"large"}
    for value, why in ((31, "above 30"), (-1, "below 0"), (np.nan, "not finite")):
        wrong = asked(2)
        wrong["sizes"][1, 0] = value
        with pytest.raises(pipelines.RequestError, match=f"row 1 is no valid input of this model: sizes: .* {why}"):
            served.answer(wrong)
    counting = opened(pod, anomalies="Count")
    counting.answer(wrong)
    assert counting.odd == 1
    with pytest.raises(pipelines.RequestError, match=r"sizes: its shape is \[1, 3\]: it must be \[rows, 2\]"):
        served.answer({**asked(1), "sizes": np.zeros((1, 3), np.float32)})
    with pytest.raises(pipelines.RequestError, match="it is not UTF-8"):
        served.answer({**asked(1), "town": np.array([[b"\xff"]], np.object_)})


ONE = "one (float[1, 2] x) => (float[1, 2] y) { y = Abs(x) }"


def test_a_network_of_one_row_gets_one_at_a_time(pod: Pod) -> None:
    write(pod.source, ONE)
    assert pod.run() is None
    (model,) = read_models(pod.layout.running).models
    assert model.rows == 1
    found = opened(pod).answers([{"x": np.full((1, 2), -value, np.float32)} for value in (1, 2)])
    assert [one["y"].tolist() for one in found if isinstance(one, dict)] == [[[1, 1]], [[2, 2]]]


SUM = "sum (float[n, 2] x) => (float[n, 2] y) <int64[1] rows = {0}> { y = ReduceSum<keepdims = 1>(x, rows) }"
ABS = "abs (float[n, 2] x) => (float[n, 2] y) { y = Abs(x) }"


@pytest.mark.parametrize(
    ("text", "said", "message"),
    [
        (ONE.replace("[1,", "[3,"), {}, "it takes 3 rows and no other number"),
        ("all (float x) => (float y) { y = Abs(x) }", {}, "x has no rows"),
        (ABS.replace("y", "VERSION"), {}, "VERSION is an output of every model"),
        (ABS, {"outputs": [{"name": "z"}]}, "outputs: model.onnx has no z: there are y"),
        (ABS, {"inputs": [{"name": "x", "datatype": "FP64"}]}, "'FP32'"),
        (SUM, {}, "output y has the shape [1, 2] for 2 rows"),
        (ABS.replace("Abs(", "Log("), {"inputs": [{"name": "x", "most": -1}]}, "NaN or infinity"),
        (ABS, {"task": "imageClassification", "image": {"height": 4, "width": 4}, "rows": 2}, "rows belongs to task"),
        (
            "map (float[n, 2] x) => (seq(float[n, 2]) y) { y = SequenceConstruct(x) }", {},
            "y is seq(tensor(float)), which no client can send or get",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_said(pod: Pod, text: str, said: dict[str, Any], message: str) -> None:
    write(pod.source, text, **said)
    outcome = pod.run()
    assert outcome is not None
    assert outcome.reason == "ModelLoadFailed"
    assert message in outcome.message


class Ranked(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.sum(dim=1), (1 << 24) + 1 + x.argmax(dim=1, keepdim=True)


TENSORS = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [3]}],
    "outputs": [{"name": "sum", "datatype": "FP32", "shape": []}, {"name": "best", "datatype": "INT64", "shape": [1]}],
}
CODE = """
import numpy as np

def load(folder):
    return lambda feeds: {"sum": feeds["x"].sum(axis=1), "best": (1 << 24) + 1 + feeds["x"].argmax(axis=1)[:, None]}
"""


@pytest.mark.parametrize("kind", ["Python", "TorchExport", "TorchScript"])
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_code_says_what_its_tensors_are(pod: Pod, kind: str) -> None:
    """Whole numbers stay whole, beyond what FP32 can tell apart."""
    if kind == "Python":
        (pod.source / "model.py").write_text(CODE)
    elif kind == "TorchExport":
        dynamic = {"x": {0: torch.export.Dim.DYNAMIC}}
        torch.export.save(
            torch.export.export(Ranked(), (torch.rand(2, 3),), dynamic_shapes=dynamic), pod.source / "m.pt2"
        )
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is of the past, and its files are there
            torch.jit.trace(Ranked(), torch.rand(2, 3)).save(pod.source / "m.pt")
    outcome = pod.run(trusted=True, pipeline=OWN)
    assert outcome is not None
    assert "task tensors needs inputs, each with name, datatype and shape" in outcome.message
    assert pod.run(trusted=True, pipeline={**OWN, **TENSORS}) is None
    found = opened(pod, trusted=True).answer({"x": np.array([[1, 2, 3], [3, 2, 2]], np.float32)})
    assert found["sum"].tolist() == [[6], [7]]
    assert found["best"].tolist() == [[(1 << 24) + 3], [(1 << 24) + 1]]


def test_numbers_of_fewer_bits_must_be_near(pod: Pod) -> None:
    """Where nobody knows what an output is, its numbers are what may not change."""
    size = 64
    weights = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
    weights[0] *= 1e4  # what is left of the others in eight bits is nothing
    values = ", ".join(f"{value:.6f}" for value in weights.ravel())
    text = f"""linear (float[n, 1] large, float[n, {size - 1}] x) => (float[n, {size}] y)
    <float[{size}, {size}] weights = {{{values}}}>
    {{
      all = Concat<axis = 1>(large, x)
      y = MatMul(all, weights)
    }}"""
    write(pod.source, text, inputs=[{"name": "large", "least": 0, "most": 0}])
    file = pod.root / "serve.json"
    assert pod.run() is None
    asked = json.loads(file.read_text())
    file.write_text(json.dumps({**asked, "precision": {"wanted": "INT8"}}))
    outcome = pod.again()
    assert outcome is not None
    assert "INT8 answers 100.00% of 20 questions otherwise" in outcome.message


@pytest.mark.skipif(
    shutil.which("python3.11") is None or find_library("python3.11") is None,
    reason="the backend's stub embeds Python 3.11",
)
def test_triton_has_the_networks_own_tensors(tmp_path: Path) -> None:
    pod = TritonPod(tmp_path / "pod", triton_home())
    (pod.root / "a").mkdir()
    write(pod.root / "a", HOUSES, inputs=[{"name": "sizes", "least": 0}])
    pod.more = file_of(pod.root, "a")
    pod.start_all()
    try:
        wait(lambda: pod.readyz()[0] == 200)
        with triton.InferenceServerClient(f"127.0.0.1:{pod.ports[1]}") as client:
            given = []
            for name, values in asked(3).items():
                kind = {"f": "FP32", "i": "INT64", "O": "BYTES"}[values.dtype.kind]
                given.append(triton.InferInput(name, values.shape, kind))
                given[-1].set_data_from_numpy(values)
            answer = client.infer("predict", given)
            assert answer.as_numpy("price").tolist() == [[2000.0], [14001.0], [26002.0]]
            assert answer.as_numpy("at")[2, 0].decode() == "höhe 2"
            assert answer.as_numpy("DIGEST")[0, 0].decode().endswith("a")
            for url in (f"127.0.0.1:{pod.ports[1]}", f"http://127.0.0.1:{pod.ports[0]}"):
                typed = ["sizes=[8, 12]", "rooms=2", "town=höhe", "--url", url, "--json"]
                said = CliRunner().invoke(app, ["ask", "houses", *typed])
                told = json.loads(said.output)["outputs"]
                assert (told["price"], told["large"], told["at"]) == ([14002.0], [0, 1], ["höhe"])
            given[0].set_data_from_numpy(asked(3)["sizes"] - 1)
            with pytest.raises(
                InferenceServerException, match="row 0 is no valid input of this model: sizes: it has values below 0"
            ):
                client.infer("predict", given)
    finally:
        pod.stop()
