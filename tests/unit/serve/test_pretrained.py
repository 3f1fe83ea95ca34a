"""What the fetch container makes of models that were not trained here."""

from __future__ import annotations

import json
import subprocess
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch

from mms_workloads.contract import Outcome, PrecisionReport
from mms_workloads.serve import fetch, pipelines, pretrained
from mms_workloads.serve.artifact import PRECISION_FILE, read_artifact
from mms_workloads.serve.layout import Layout, read_models
from tests.unit.serve import networks
from tests.unit.serve.networks import of_one_colour, request

if TYPE_CHECKING:
    from pathlib import Path

DIGEST = "sha256:" + "5" * 64
TIMM = '{"architecture": "resnet18", "num_classes": 1000, "pretrained_cfg": {"input_size": [3, 224, 224]}}'
COLOURS = {"task": "imageClassification", "labels": ["red", "green", "blue"], "image": {"height": 4, "width": 4}}


class Pod:
    """A pod's volume and its file; `source` is what is in the store."""

    def __init__(self, root: Path) -> None:
        self.root, self.source = root, root / "store"
        self.source.mkdir()
        self.layout = Layout(models=root / "models")

    def run(self, uri: str = "", server: dict[str, Any] | None = None, **asked: Any) -> Outcome | None:
        """server: fields of the pod's file."""
        uri = uri or self.source.as_uri()
        file = self.root / "serve.json"
        pin = {"uri": uri, "digest": DIGEST}
        said = {"namespace": "d", "name": "n", "artifact": pin, "storage": {"uri": uri}, "pretrained": asked}
        file.write_text(json.dumps({**said, **(server or {})}))
        return self.again()

    def again(self) -> Outcome | None:
        """Of the file as it is."""
        log = self.root / "termination-log"
        log.unlink(missing_ok=True)
        environment = {
            "MMS_SERVE_FILE": str(self.root / "serve.json"), "MMS_MODELS_DIR": str(self.layout.models),
            "MMS_TERMINATION_LOG": str(log),
        }  # fmt: skip
        code = fetch.main(environment)
        outcome = Outcome.model_validate_json(log.read_bytes()) if log.exists() else None
        assert (code == 0) == (outcome is None)
        return outcome

    @property
    def folder(self) -> Path:
        return self.layout.artifact(DIGEST)

    def red(self, *, trusted: bool = False) -> bytes:
        """What the pipeline says of a red image."""
        served = pipelines.open(self.folder, trusted=trusted)
        label: bytes = served.answer({"IMAGE": request(of_one_colour((255, 0, 0)))})["LABELS"][0, 0]
        return label


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    return Pod(tmp_path)


def test_an_onnx_file_with_its_pipeline_becomes_an_artifact(pod: Pod) -> None:
    networks.colours(pod.source)
    assert pod.run() is None
    artifact = read_artifact(pod.layout, DIGEST)
    assert artifact.manifest.kind == "imageClassification"
    assert len(artifact.golden.cases) == 2
    assert {case.model for case in artifact.golden.cases} == {"classify"}
    assert read_models(pod.layout.running).names == ("classify",)
    assert pod.red() == b"red"
    assert "triton_pipelines import Pipeline" in (pod.layout.repository / "classify" / "1" / "model.py").read_text()
    command = "find * -type f | LC_ALL=C sort | xargs sha256sum | sha256sum"
    said = subprocess.run(command, shell=True, cwd=pod.source, check=True, capture_output=True, text=True)
    assert artifact.files == f"sha256:{said.stdout.split()[0]}"
    assert pod.run(digest=artifact.files) is None


@pytest.mark.parametrize("make", [networks.dense, networks.sharpened])
@pytest.mark.parametrize("wanted", ["Auto", "FP32"])
def test_a_precision_is_chosen_by_many_questions(pod: Pod, wanted: str, make: Any) -> None:
    make(pod.source)
    assert pod.run() is None
    file = pod.root / "serve.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "precision": {"wanted": wanted, "maxLoss": 0.9}}))
    assert pod.again() is None
    golden = read_artifact(pod.layout, DIGEST).golden
    assert (len(golden.cases), len(golden.comparisons)) == (2, 2), "the agent holds what it needs"
    if wanted == "Auto":
        found = PrecisionReport.model_validate_json((pod.folder / PRECISION_FILE).read_bytes())
        assert found.questions == 20


@pytest.mark.parametrize("make", [networks.words, networks.sounds, networks.painter, networks.mover])
def test_made_up_questions_are_different(tmp_path: Path, make: Any) -> None:
    make(tmp_path)
    asked = pretrained.samples(pipelines.open(tmp_path), 20)
    assert len({str({name: value.tolist() for name, value in one.items()}) for one in asked}) == 20


def test_one_file_and_the_fields_of_the_spec(pod: Pod) -> None:
    networks.colours(pod.source)
    (pod.source / "pipeline.json").unlink()
    assert pod.run((pod.source / "model.onnx").as_uri(), pipeline=COLOURS) is None
    assert pod.red() == b"red"


def test_the_spec_goes_before_the_folder(pod: Pod) -> None:
    networks.colours(pod.source)
    assert pod.run(pipeline={"labels": ["rot", "grün", "blau"]}) is None
    assert pod.red() == b"rot"


def test_other_files_than_the_version_began_with_are_refused(pod: Pod) -> None:
    networks.colours(pod.source)
    outcome = pod.run(digest="sha256:" + "0" * 64)
    assert outcome is not None
    assert outcome.reason == "ArtifactCorrupt"
    assert "its files have the digest sha256:" in outcome.message
    assert not outcome.retryable


CODE = """
def load(folder):
    def answer(feeds):
        return {"logits": 10 * feeds["pixels"].mean(axis=(2, 3))}
    return answer
"""


class Colours(torch.nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return 10 * pixels.mean(dim=(2, 3))


def write(kind: str, folder: Path) -> None:
    (folder / "pipeline.json").write_text(json.dumps(COLOURS))
    if kind == "Python":
        (folder / "model.py").write_text(CODE)
    elif kind == "TorchExport":
        dynamic = {"pixels": {0: torch.export.Dim.DYNAMIC}}
        program = torch.export.export(Colours(), (torch.rand(2, 3, 4, 4),), dynamic_shapes=dynamic)
        torch.export.save(program, folder / "model.pt2")
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is of the past, and its files are there
            torch.jit.trace(Colours(), torch.rand(2, 3, 4, 4)).save(folder / "model.pt")


@pytest.mark.parametrize("kind", ["Python", "TorchExport", "TorchScript"])
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_code_runs_where_it_is_trusted(pod: Pod, kind: str) -> None:
    write(kind, pod.source)
    outcome = pod.run()
    assert outcome is not None
    assert f"format {kind} runs code of the files" in outcome.message
    assert "spec.model.pretrained.trusted" in outcome.message
    assert pod.run(trusted=True) is None
    assert pod.red(trusted=True) == b"red"
    assert read_models(pod.layout.running).models[0].parameters["trusted"] == "True"
    with pytest.raises(pipelines.NetworkError, match="not trusted"):
        pipelines.open(pod.folder)


def repository(folder: Path) -> None:
    (folder / "twice" / "1").mkdir(parents=True)
    (folder / "twice" / "config.pbtxt").write_text('name: "twice"\nbackend: "python"\n')
    (folder / "twice" / "1" / "model.py").write_text("class TritonPythonModel: ...\n")


def test_a_triton_repository_is_served_as_it_is(pod: Pod) -> None:
    repository(pod.source)
    assert pod.run(trusted=True) is None
    assert (pod.layout.repository / "twice" / "config.pbtxt").read_text().startswith('name: "twice"')
    assert (pod.layout.repository / "twice" / "1" / "model.py").exists()
    assert read_models(pod.layout.running).names == ("twice",)
    artifact = read_artifact(pod.layout, DIGEST)
    assert (artifact.manifest.kind, artifact.golden.asItIs) == ("tritonRepository", True)


@pytest.mark.parametrize(
    ("server", "message"),
    [
        ({"batching": {"instances": 2}}, "write dynamic_batching and instance_group into its config.pbtxt"),
        ({"batching": {"maxQueueDelayMicroseconds": 100}}, "server.batching and server.instances are not for"),
        ({"batching": {"preferredBatchSize": 8}}, "server.batching and server.instances are not for"),
        ({"anomalies": "Count"}, "server.anomalies Count is not for a Triton repository"),
        ({"precision": {"wanted": "INT8"}}, "server.precision INT8 is not for tritonRepository: set FP32 or Auto"),
        ({"precision": {"wanted": "BF16"}}, "server.precision BF16 is not for tritonRepository: set FP32 or Auto"),
        ({"precision": {"wanted": "Auto"}, "anomalies": "Off"}, None),
    ],
)
def test_what_a_triton_repository_ignores_is_refused(pod: Pod, server: dict[str, Any], message: str | None) -> None:
    repository(pod.source)
    outcome = pod.run(server=server, trusted=True)
    assert (outcome is None) == (message is None)
    if outcome is not None and message is not None:
        assert outcome.reason == "ModelLoadFailed"
        assert message in outcome.message


@pytest.mark.parametrize(
    ("files", "asked", "message"),
    [
        ({"weights.bin": "x"}, {}, "none of 1 files says what they are"),
        ({"model.onnx": "x"}, {}, "nothing says what the model is for"),
        ({"model.onnx": "x"}, {"pipeline": COLOURS}, "model.onnx"),
        ({"a.onnx": "x", "b.onnx": "x"}, {"pipeline": COLOURS}, "2 files end in .onnx: name the network"),
        ({"model.onnx": "x"}, {"pipeline": {"task": "textEmbedding"}}, "needs text"),
        ({"config.json": '{"architectures": ["LlamaForCausalLM"]}'}, {}, "LlamaForCausalLM is not served"),
        ({"config.json": TIMM}, {}, "resnet18 is a network of timm, which the serving image does not have: export it"),
        ({"config.json": TIMM}, {"pipeline": COLOURS}, "resnet18 is a network of timm"),
        ({"config.json": '{"architectures": ["ViTForImageClassification"]}'}, {}, "no preprocessor_config.json"),
    ],
)
def test_what_cannot_be_served_is_said(pod: Pod, files: dict[str, str], asked: dict[str, Any], message: str) -> None:
    for name, text in files.items():
        (pod.source / name).write_text(text)
    outcome = pod.run(**asked)
    assert outcome is not None
    assert outcome.reason == "ModelLoadFailed"
    assert message in outcome.message


def test_nothing_at_the_address(pod: Pod) -> None:
    outcome = pod.run((pod.root / "none").as_uri())
    assert outcome is not None
    assert outcome.reason == "ArtifactNotFound"


def test_a_name_that_leads_elsewhere_is_refused(pod: Pod) -> None:
    networks.colours(pod.source)
    (pod.source / "a b").write_text("x")
    outcome = pod.run()
    assert outcome is not None
    assert "file name 'a b' is refused" in outcome.message


def test_pickled_weights_are_not_read(pod: Pod) -> None:
    """Reading them would run what they say."""
    config = {"architectures": ["BertModel"], "model_type": "bert", "hidden_size": 8, "num_attention_heads": 2,
              "num_hidden_layers": 1, "intermediate_size": 8, "vocab_size": 9}  # fmt: skip
    (pod.source / "config.json").write_text(json.dumps(config))
    networks.words(pod.source)
    (pod.source / "model.onnx").unlink()
    (pod.source / "pipeline.json").unlink()
    torch.save({"x": torch.zeros(1)}, pod.source / "pytorch_model.bin")
    outcome = pod.run(pipeline={"task": "textEmbedding"})
    assert outcome is not None
    assert "safetensors" in outcome.message
