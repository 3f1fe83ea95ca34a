"""Small ONNX networks whose answers are known, and artifacts' folders around them."""

from __future__ import annotations

import io
import wave
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from mms_workloads.contract import AudioInput, ImageInput, Pipeline, TextInput

if TYPE_CHECKING:
    from pathlib import Path

WORDS = ("[PAD]", "[UNK]", "good", "bad", "film", "Ada", "Paris")


def png(pixels: np.ndarray) -> bytes:
    """uint8 [H, W, C]."""
    out = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(out, "PNG")
    return out.getvalue()


def of_one_colour(colour: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "PNG")
    return out.getvalue()


def request(*values: bytes | str) -> np.ndarray:
    """[n, 1]."""
    return np.array([[one] for one in values], np.object_)


def colours(folder: Path) -> Pipeline:
    """Classifies an image by its strongest channel: logits are ten times the means of the channels."""
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, 4, 4])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])
    nodes = [
        helper.make_node("ReduceMean", ["pixels", "axes"], ["means"], keepdims=0),
        helper.make_node("Mul", ["means", "ten"], ["logits"]),
    ]
    _save(folder, nodes, [pixels], [logits], axes=np.array([2, 3], np.int64), ten=np.array(10, np.float32))
    pipeline = Pipeline(
        task="imageClassification", labels=["red", "green", "blue"], image=ImageInput(height=4, width=4)
    )
    return _written(folder, pipeline)


def dense(folder: Path, *, wide: int = 512, labels: int = 4) -> Pipeline:
    """Classifies an image by two layers of random weights."""
    random = np.random.default_rng(6)
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, 16, 16])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", labels])
    nodes = [
        helper.make_node("Flatten", ["pixels"], ["flat"]),
        helper.make_node("MatMul", ["flat", "first"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["positive"]),
        helper.make_node("MatMul", ["positive", "second"], ["logits"]),
    ]
    first, second = (random.normal(0, 0.1, size).astype(np.float32) for size in ((768, wide), (wide, labels)))
    _save(folder, nodes, [pixels], [logits], first=first, second=second)
    names = [f"label {place}" for place in range(labels)]
    return _written(folder, Pipeline(task="imageClassification", labels=names, image=ImageInput(height=16, width=16)))


def sharpened(folder: Path, labels: int = 4) -> Pipeline:
    """Classifies an image by a convolution and a layer of random weights."""
    random = np.random.default_rng(6)
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, 16, 16])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", labels])
    nodes = [
        helper.make_node("Conv", ["pixels", "kernel"], ["edges"]),
        helper.make_node("Relu", ["edges"], ["positive"]),
        helper.make_node("Flatten", ["positive"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    kernel, weights = (random.normal(0, 0.1, size).astype(np.float32) for size in ((8, 3, 3, 3), (8 * 14 * 14, labels)))
    _save(folder, nodes, [pixels], [logits], kernel=kernel, weights=weights)
    names = [f"label {place}" for place in range(labels)]
    return _written(folder, Pipeline(task="imageClassification", labels=names, image=ImageInput(height=16, width=16)))


def boxes(folder: Path, places: np.ndarray, scores: np.ndarray, given: ImageInput) -> Pipeline:
    """Answers each image with the same boxes [q, 4] and scores [q, labels]."""
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, given.height, given.width])
    found = [
        helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["n", *places.shape]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", *scores.shape]),
    ]
    nodes = [
        helper.make_node("ReduceSum", ["pixels", "axes"], ["sums"], keepdims=0),
        helper.make_node("Mul", ["sums", "zero"], ["zeros"]),
        helper.make_node("Reshape", ["zeros", "shape"], ["rows"]),
        helper.make_node("Add", ["rows", "places"], ["boxes"]),
        helper.make_node("Add", ["rows", "likely"], ["scores"]),
    ]
    _save(
        folder, nodes, [pixels], found,
        axes=np.array([1, 2, 3], np.int64), zero=np.array(0, np.float32), shape=np.array([-1, 1, 1], np.int64),
        places=places.astype(np.float32), likely=scores.astype(np.float32),
    )  # fmt: skip
    labels = [f"thing {one}" for one in range(scores.shape[1])]
    return _written(folder, Pipeline(task="objectDetection", labels=labels, image=given))


def words(
    folder: Path, task: str = "textClassification", labels: tuple[str, ...] = ("negative", "positive")
) -> Pipeline:
    """Reads the words of WORDS; each has a vector of `labels` numbers, which are added up (or not, of a tagger)."""
    _tokenizer(folder)
    rows = np.zeros((len(WORDS), len(labels)), np.float32)
    rows[2, -1], rows[3, 0], rows[5, -1], rows[6, 0] = 2, 2, 3, 3
    tokens, mask = (helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "L"]) for name in ("tokens", "mask"))
    name = "embedding" if task == "textEmbedding" else "logits"
    shape = ["n", "L", len(labels)] if task == "tokenClassification" else ["n", len(labels)]
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["rows"]),
        helper.make_node("Cast", ["mask"], ["kept"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["kept", "last"], ["wide"]),
        helper.make_node("Mul", ["rows", "wide"], ["logits" if len(shape) == 3 else "each"]),
    ]
    if len(shape) == 2:
        nodes.append(helper.make_node("ReduceSum", ["each", "axes"], [name], keepdims=0))
    found = helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    more = {} if len(shape) == 3 else {"axes": np.array([1], np.int64)}
    _save(folder, nodes, [tokens, mask], [found], table=rows, last=np.array([-1], np.int64), **more)
    return _written(folder, Pipeline(task=task, labels=list(labels), text=TextInput(maxLength=16)))


def sounds(folder: Path, labels: tuple[str, ...] = ("", "a", "b", " ")) -> Pipeline:
    """CTC of sound at 4 samples a step: a step of about 0 is blank, of k / 10 the label k."""
    audio = helper.make_tensor_value_info("audio", TensorProto.FLOAT, ["n", "S"])
    lengths = helper.make_tensor_value_info("lengths", TensorProto.INT64, ["n"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", "T", len(labels)])
    centres = np.arange(len(labels), dtype=np.float32) / 10
    nodes = [
        helper.make_node("Shape", ["audio"], ["sides"], end=1),
        helper.make_node("Concat", ["sides", "four"], ["shape"], axis=0),
        helper.make_node("Cast", ["lengths"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "zero"], ["nothing"]),
        helper.make_node("Reshape", ["nothing", "column"], ["zeros"]),
        helper.make_node("Add", ["audio", "zeros"], ["same"]),
        helper.make_node("Reshape", ["same", "shape"], ["steps"]),
        helper.make_node("ReduceMean", ["steps", "axes"], ["means"], keepdims=1),
        helper.make_node("Sub", ["means", "centres"], ["away"]),
        helper.make_node("Abs", ["away"], ["distance"]),
        helper.make_node("Mul", ["distance", "steep"], ["logits"]),
    ]
    _save(
        folder, nodes, [audio, lengths], [logits],
        four=np.array([-1, 4], np.int64), zero=np.array(0, np.float32), column=np.array([-1, 1], np.int64),
        axes=np.array([2], np.int64), centres=centres, steep=np.array(-100, np.float32),
    )  # fmt: skip
    return _written(folder, Pipeline(task="speechRecognition", labels=list(labels), audio=AudioInput(sampleRate=8000)))


def painter(folder: Path) -> Pipeline:
    """Images of 4 x 4: noise, scaled down, around 0.25 for the label 0 and 0.75 for 1."""
    noise = helper.make_tensor_value_info("noise", TensorProto.FLOAT, ["n", 1, 4, 4])
    label = helper.make_tensor_value_info("label", TensorProto.INT64, ["n"])
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 1, 4, 4])
    nodes = [
        helper.make_node("Gather", ["levels", "label"], ["level"]),
        helper.make_node("Mul", ["noise", "little"], ["rough"]),
        helper.make_node("Add", ["rough", "level"], ["pixels"]),
    ]
    levels = np.array([0.25, 0.75], np.float32).reshape(2, 1, 1, 1)
    _save(folder, nodes, [noise, label], [pixels], levels=levels, little=np.array(0.05, np.float32))
    image = ImageInput(channels=1, height=4, width=4)
    return _written(folder, Pipeline(task="imageGeneration", labels=["dark", "light"], image=image))


def mover(folder: Path) -> Pipeline:
    """Whether the last of three frames is brighter than the first."""
    frames = helper.make_tensor_value_info("frames", TensorProto.FLOAT, ["n", 3, 1, 4, 4])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])
    nodes = [
        helper.make_node("ReduceMean", ["frames", "axes"], ["means"], keepdims=0),
        helper.make_node("MatMul", ["means", "change"], ["logits"]),
    ]
    change = np.array([[9, -9], [0, 0], [-9, 9]], np.float32)
    _save(folder, nodes, [frames], [logits], axes=np.array([2, 3, 4], np.int64), change=change)
    image = ImageInput(channels=1, height=4, width=4)
    labels = ["darker", "brighter"]
    return _written(folder, Pipeline(task="videoUnderstanding", labels=labels, image=image, frames=3))


def gif(frames: list[np.ndarray]) -> bytes:
    """Of uint8 [H, W, 1]."""
    out = io.BytesIO()
    first, *rest = (Image.fromarray(one[:, :, 0]) for one in frames)
    first.save(out, "GIF", save_all=True, append_images=rest, duration=40)
    return out.getvalue()


def wav(samples: np.ndarray, rate: int) -> bytes:
    """Of float32 [S], -1 to 1."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).round().astype("<i2").tobytes())
    return out.getvalue()


def _tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: row for row, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


def _save(folder: Path, nodes: list, inputs: list, outputs: list, **constants: np.ndarray) -> None:
    given = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "network", inputs, outputs, given)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "model.onnx")


def _written(folder: Path, pipeline: Pipeline) -> Pipeline:
    (folder / "pipeline.json").write_text(pipeline.model_dump_json())
    return pipeline
