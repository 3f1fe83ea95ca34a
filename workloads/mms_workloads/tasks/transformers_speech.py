"""Networks of Transformers that tell what is said letter by letter (CTC): wav2vec2 and what followed it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mms_workloads.contract import SpeechRecognition
from mms_workloads.tasks import starting, transcripts, transformers_library
from mms_workloads.train import device

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mms_workloads.tasks.starting import Start

KIND = "speechRecognition"
# Others let what a sound is filled up with into its answer, or hear other things than samples.
KNOWN = ("wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat")
TAKING = ("wavlm",)  # torch.nn.functional.multi_head_attention_forward on the weights of its layers
RATE = 16_000


@dataclass(frozen=True, slots=True)
class Sound:
    """What a network is used to hear. normalise: to mean 0 and variance 1; stride: samples of a step."""

    rate: int
    normalise: bool
    stride: int


def sound(start: Start, spec: SpeechRecognition) -> Sound:
    """Raises JobError: the network is of another kind, or of another rate than the spec's."""
    config = starting.config(start)
    kind = config.get("model_type")
    if kind not in KNOWN:
        raise start.refuse(
            f"its network is of kind {kind}, and {KIND} learns letter by letter (CTC): give a folder of "
            f"{', '.join(KNOWN[:-1])} or {KNOWN[-1]}, or the artifact of a {KIND}. A folder of Whisper is served as it "
            "is by model.pretrained of a ModelService"
        )
    if kind in TAKING and start.method == "LoRA":
        raise start.refuse(
            f"the attention of {kind} takes its layers' weights without asking the layers, so adapters beside them "
            "would change nothing: set pretrained.method to Full or Head"
        )
    if start.kind is not None:
        heard = _read(start, "pipeline.json").get("audio") or {}
        rate, normalise = heard.get("sampleRate", RATE), heard.get("normalise", False)
    else:
        features = _read(start, "preprocessor_config.json")
        rate, normalise = features.get("sampling_rate", RATE), features.get("do_normalize", True)
    if rate != spec.sampleRate:
        raise start.refuse(f"its sound has {rate} samples a second: set task.{KIND}.sampleRate to that")
    return Sound(int(rate), bool(normalise), math.prod(config.get("conv_stride") or (5, 2, 2, 2, 2, 2, 2)))


def build(spec: SpeechRecognition, classes: Sequence[str], start: Start, seed: int) -> Letters:
    """The network with a head of these classes, of which those that it knew keep their rows. Raises JobError."""
    from mms_workloads import vision  # noqa: F401, PLC0415 - before transformers, which looks for torchvision

    # isort: split
    from transformers import AutoModelForCTC  # noqa: PLC0415

    sound(start, spec)
    network: Any
    network, unset = transformers_library.make(AutoModelForCTC, start, seed)
    made = Letters(network)
    if start.kind is not None:
        starting.load(made, start)
    with device.seeded(seed):
        network.lm_head = _head(network.lm_head, classes, _letters(start, network.config.pad_token_id))
    # Both draw outside of what a run seeds; data.augmentation has masks of time and frequency.
    network.config.update({"apply_spec_augment": False, "layerdrop": 0.0})
    network.config.update({"vocab_size": len(classes), "pad_token_id": 0})
    made.silent = silence(len(classes))
    starting.trained_parts(made, network.lm_head, start, seed, unset=unset)
    return made


class Letters(nn.Module):
    """audio float32 [n, S], lengths int64 [n] -> logits [n, T, labels]. A sound is told as if it were alone: what it is
    filled up with is not heard, and told as silence.
    """

    silent: Tensor

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        config = network.config
        self.kernels, self.strides = tuple(config.conv_kernel), tuple(config.conv_stride)
        self.least = 1  # samples of the first step
        for kernel, stride in zip(reversed(self.kernels), reversed(self.strides), strict=True):
            self.least = (self.least - 1) * stride + kernel
        self.own = Own()
        layer = network.base_model.feature_extractor.conv_layers[0]
        if isinstance(getattr(layer, "layer_norm", None), nn.GroupNorm):
            layer.layer_norm = OwnFramesNorm(layer.layer_norm, self.own)
        self.register_buffer("silent", silence(config.vocab_size), persistent=False)

    def forward(self, audio: Tensor, lengths: Tensor) -> Tensor:
        lengths = lengths.clamp(min=self.least)
        audio = nn.functional.pad(audio, (0, self.least))  # of a sound that is too short for a step there is one
        heard = torch.arange(audio.shape[1], device=audio.device) < lengths[:, None]
        self.own.frames = _steps(lengths, self.kernels[:1], self.strides[:1])
        logits = self.network(input_values=audio, attention_mask=heard.long()).logits
        own = torch.arange(logits.shape[1], device=audio.device) < self.steps(lengths)[:, None]
        return torch.where(own[:, :, None], logits, self.silent.to(logits.dtype))

    def steps(self, lengths: Tensor) -> Tensor:
        """Of sounds of so many samples."""
        return _steps(lengths.clamp(min=self.least), self.kernels, self.strides)


def _steps(lengths: Tensor, kernels: Sequence[int], strides: Sequence[int]) -> Tensor:
    for kernel, stride in zip(kernels, strides, strict=True):
        lengths = (lengths - kernel) // stride + 1
    return lengths


def silence(labels: int) -> Tensor:
    """Logits whose greatest is the blank's."""
    return nn.functional.one_hot(torch.tensor(0), labels).float()


class Own:
    """How many frames of the first convolution are each sound's own, for the time of a call."""

    frames: Tensor


class OwnFramesNorm(nn.Module):
    """A group norm of each channel over the frames that are a sound's own: float32 [n, C, T]."""

    def __init__(self, norm: nn.GroupNorm, own: Own) -> None:
        super().__init__()
        self.weight, self.bias, self.eps, self.own = norm.weight, norm.bias, norm.eps, own

    def forward(self, x: Tensor) -> Tensor:
        frames = self.own.frames[:, None, None]
        seen = (torch.arange(x.shape[2], device=x.device) < frames).to(x.dtype)
        mean = (x * seen).sum(dim=2, keepdim=True) / frames
        apart = (x - mean) * seen
        variance = apart.square().sum(dim=2, keepdim=True) / frames
        return apart * torch.rsqrt(variance + self.eps) * self.weight[:, None] + self.bias[:, None]


def _head(old: nn.Linear, classes: Sequence[str], known: Mapping[str, int]) -> nn.Linear:
    head = nn.Linear(old.in_features, len(classes))
    nn.init.normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    with torch.no_grad():
        for row, name in enumerate(classes):
            there = known.get(name)
            if there is not None and there < old.out_features:
                head.weight[row], head.bias[row] = old.weight[there], old.bias[there]
    return head


def _letters(start: Start, blank: int | None) -> dict[str, int]:
    """Of each class that the network knew, its row: of lower case where there are both."""
    from mms_workloads.tasks.speech_recognition import BLANK  # noqa: PLC0415 - that module uses this one

    if start.kind is not None:
        before = SpeechRecognition.model_validate(_read(start, "model.json"))
        return {name: row for row, name in enumerate((BLANK, *transcripts.letters(before.alphabet)))}
    words = {token: row for token, row in _read(start, "vocab.json").items() if isinstance(row, int)}
    space = _read(start, "tokenizer_config.json").get("word_delimiter_token", "|")
    found = {} if blank is None else {BLANK: blank}
    for token, row in sorted(words.items(), key=lambda one: one[0] != one[0].lower()):
        found.setdefault(" " if token == space else token.lower(), row)
    return found


def _read(start: Start, name: str) -> dict[str, Any]:
    """{} where there is no such file. Raises JobError."""
    assert start.folder is not None  # noqa: S101 - the caller has seen to it
    path = start.folder / name
    with starting.said(start):
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found
