"""pipeline.json of an artifact: what a network is for, what its tensors are, and how what a client sends becomes them.

The tensors of each task, by the names that the network gives them. n: the batch; C, H, W: channels, height and width.

    imageClassification  pixels float32 [n, C, H, W] -> logits float32 [n, labels]
    objectDetection      pixels float32 [n, C, H, W] -> boxes float32 [n, q, 4], scores float32 [n, q, labels]
    imageGeneration      noise float32 [n, C, H, W], label int64 [n] -> pixels float32 [n, C, H, W], 0 to 1
    videoUnderstanding   frames float32 [n, T, C, H, W] -> logits float32 [n, labels]
    textClassification   tokens, mask int64 [n, L] -> logits float32 [n, labels]
    tokenClassification  tokens, mask int64 [n, L] -> logits float32 [n, L, labels]
    textMatching         tokens, mask int64 [n, L] -> sentence float32 [n, d] of length 1, calibration float32 [n, 2]
    textEmbedding        tokens, mask int64 [n, L] -> embedding float32 [n, d]
    speechRecognition    audio float32 [n, S], lengths int64 [n] -> logits float32 [n, T, labels]: CTC, labels[0] blank
    voiceActivity        audio float32 [n, S] -> probability float32 [n, S / chunk]
    textRecognition      pixels float32 [n, C, H, W] -> logits float32 [n, T, labels]: CTC as above
    languageModel        tokens int64 [n, L] -> logits float32 [n, L, V]: bytes, of which there are 256; or the tokens
                         of the artifact's tokenizer.json, where there is one
    tensors              whatever `inputs` and `outputs` say, [n, ...] each

boxes: left, top, right, bottom, as parts of the width and height. mask: 1 for a token, 0 for what fills the batch up.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mms_workloads.contract.base import CONTRACT_VERSION, Contract, NonNegativeInt, PositiveInt

PIPELINE = "pipeline.json"
NETWORK = "model.onnx"
TOKENIZER = "tokenizer.json"  # of the library tokenizers

ModelTask = Literal[
    "imageClassification",
    "objectDetection",
    "imageGeneration",
    "videoUnderstanding",
    "textClassification",
    "tokenClassification",
    "textMatching",
    "textEmbedding",
    "speechRecognition",
    "voiceActivity",
    "textRecognition",
    "languageModel",
    "tensors",
]
Positive = Annotated[float, Field(gt=0)]


class ImageInput(Contract):
    """How an image becomes float32 [C, H, W]: resized, (value / 255 - mean) / std of each channel.

    Stretch: to height x width whatever its shape. Crop: the shorter side to it, the middle is cut out. Pad: the longer
    side to it, the rest is grey. PadEnd: the same, at the left and top, and the rest is black. Line: to the height, its
    width as its shape wants; what is missing to width, at the right, is 0 after the normalisation, and a longer line is
    wider.
    """

    channels: Literal[1, 3] = 3
    height: PositiveInt
    width: PositiveInt
    resize: Literal["Stretch", "Crop", "Pad", "PadEnd", "Line"] = "Stretch"
    interpolation: Literal["Bilinear", "Bicubic"] = "Bilinear"
    cropPart: Annotated[float, Field(gt=0, le=1)] = 1.0  # of the side, with Crop: the shorter one is resized to more
    order: Literal["RGB", "BGR"] = "RGB"
    mean: list[float] = [0.0]  # one for all channels, or one for each
    std: list[Positive] = [1.0]


class TextInput(Contract):
    """tokenizer.json cuts the text; what is longer than maxLength tokens loses its end."""

    maxLength: PositiveInt = 128
    tokenizer: str = TOKENIZER


class AudioInput(Contract):
    """One channel of float32, -1 to 1, at this rate; sound of another rate is resampled."""

    sampleRate: PositiveInt = 16_000
    maxSeconds: Positive = 30.0
    chunk: PositiveInt | None = None  # samples that each output of voiceActivity is of
    context: NonNegativeInt = 0  # samples before a chunk that the network sees with it
    normalise: bool = False  # to mean 0 and variance 1, each sound by itself


class Statistics(Contract):
    """Of the images that it was trained on, as they were before they were resized, by channel: requests that are far
    from them are anomalous. Of a video all pixels of all frames are one image's.
    """

    mean: list[float]  # of the values 0 to 1, over pixels
    std: list[float]
    imageMean: list[float]  # the mean of each image's means, and how they spread
    imageMeanStd: list[float]
    imageStd: list[float]  # the mean of each image's standard deviations, and how they spread
    imageStdStd: list[float]


class Flow(Contract):
    """Noise becomes an image by Euler's method along velocities that the network tells: float32 [n, C, H, W], of
    x float32 [n, C, H, W], time float32 [n], 0 to 1, and label int64 [n]; the label after the last one stands for none.

    guidance: how far velocities lean to the label, 1 for as they were learnt (Ho and Salimans, 2022).
    """

    steps: PositiveInt = 16
    guidance: Annotated[float, Field(ge=0)] = 1.0


class Match(Contract):
    """What the nearness of two texts is told as: calibration[0] * cosine + calibration[1] is the logit of a
    probability, or a part of the way from least to most, or the cosine.
    """

    score: Literal["Cosine", "Probability", "Number"] = "Cosine"
    least: float = 0.0
    most: float = 1.0
    vectors: str | None = None  # a file: safetensors with `vectors` float32 [N, d] of texts that are searched
    texts: str | None = None  # a file: a JSON list of the N texts


class TensorSpec(Contract):
    """A tensor of a network of any kind. Of ONNX the file says datatype and shape where this does not.

    FP32 stands for numbers with a fraction of any width, INT64 and INT32 for whole ones and truth values, BYTES for
    strings in UTF-8.
    """

    name: Annotated[str, Field(min_length=1, max_length=256)]
    datatype: Literal["FP32", "INT64", "INT32", "BYTES"] | None = None
    shape: list[Annotated[int, Field(ge=-1)]] | None = None  # without the rows; -1: any
    least: float | None = None  # of an input: a row with a value below is no valid input
    most: float | None = None


class Pipeline(Contract):
    """One of image, text and audio is set; none for a network that takes tensors only."""

    contractVersion: Literal[1] = CONTRACT_VERSION
    task: ModelTask
    runtime: Literal["ONNX", "TorchScript", "TorchExport", "Transformers", "Python"] = "ONNX"
    network: str = NETWORK  # a file of the artifact
    tensors: dict[str, str] = {}  # names that the network has for those above, where they are others
    labels: list[str] = []
    image: ImageInput | None = None
    text: TextInput | None = None
    audio: AudioInput | None = None
    frames: PositiveInt | None = None  # of a video
    match: Match | None = None  # textMatching
    flow: Flow | None = None  # imageGeneration: the network tells velocities, on the way from noise to an image
    scoreThreshold: Annotated[float, Field(ge=0, le=1)] = (
        0.3  # objectDetection: boxes that are less likely are left out
    )
    overlapThreshold: Annotated[float, Field(ge=0, le=1)] = 0.5  # of two that overlap more one stays
    boxes: Literal["Parts", "YOLO"] = "Parts"  # YOLO: one output [n, 4 + labels, q], centres and sizes in pixels
    scores: Literal["Logits", "Probabilities"] = "Logits"  # what logits are, where softmax has been applied
    statistics: Statistics | None = None
    inputs: list[TensorSpec] = []  # of task tensors
    outputs: list[TensorSpec] = []
    rows: Annotated[int, Field(ge=1, le=256)] | None = None  # of task tensors: that the network takes at once, at most
