"""Folders as Transformers' save_pretrained writes them, by that library's own classes. No code of a folder is run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers

from mms_workloads import vision  # noqa: F401 - before Transformers looks for torchvision
from mms_workloads.serve.pipelines.networks import NetworkError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from mms_workloads.contract import Pipeline
    from mms_workloads.serve.pipelines.networks import Network
    from mms_workloads.serve.pipelines.tensors import Arrays

POOLING = "1_Pooling/config.json"
SIGMOID = {"deformable_detr", "conditional_detr", "rt_detr", "rt_detr_v2", "d_fine"}  # detectors without "nothing"

_CLASSES = {
    "imageClassification": transformers.AutoModelForImageClassification,
    "textClassification": transformers.AutoModelForSequenceClassification,
    "tokenClassification": transformers.AutoModelForTokenClassification,
    "objectDetection": transformers.AutoModelForObjectDetection,
    "textEmbedding": transformers.AutoModel,
}


def load(pipeline: Pipeline, folder: Path, *, half: bool = False) -> Network:
    """half: in BF16, where the processor has it. Raises NetworkError, OSError."""
    return Half(_load(pipeline, folder)) if half else _load(pipeline, folder)


class Half:
    """The same network, whose products are computed in BF16."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        with torch.autocast("cpu", torch.bfloat16):
            return self._network.run(feeds)


def _load(pipeline: Pipeline, folder: Path) -> Network:
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if pipeline.task == "speechRecognition":
        return Ctc(pipeline, folder) if pipeline.labels else Whisper(folder)
    if pipeline.task not in _CLASSES:
        raise NetworkError(f"pipeline.json: task {pipeline.task} is not served from a Transformers folder")
    model = _model(_CLASSES[pipeline.task], folder)
    if pipeline.task == "textEmbedding":
        return Sentences(model, folder)
    return Detector(model) if pipeline.task == "objectDetection" else Classifier(model)


def _model(kind: Any, folder: Path) -> Any:
    model = kind.from_pretrained(folder, local_files_only=True, use_safetensors=True, trust_remote_code=False)
    return model.float().eval()


def _tensor(values: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


class Classifier:
    """Logits of images, texts or tokens."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        with torch.inference_mode():
            return {"logits": self._model(**given(feeds)).logits.float().numpy()}


def given(feeds: Arrays) -> dict[str, torch.Tensor]:
    """By the library's names."""
    if "pixels" in feeds:
        return {"pixel_values": _tensor(feeds["pixels"])}
    return {"input_ids": _tensor(feeds["tokens"]), "attention_mask": _tensor(feeds["mask"])}


class Detector:
    """DETR and what followed it: boxes as centres and sizes, the last label of some is "nothing"."""

    def __init__(self, model: Any) -> None:
        self._model, self._sigmoid = model, model.config.model_type in SIGMOID

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        with torch.inference_mode():
            found = self._model(**given(feeds))
            scores = found.logits.sigmoid() if self._sigmoid else found.logits.softmax(-1)[..., :-1]
            centres, half = found.pred_boxes[..., :2], found.pred_boxes[..., 2:] / 2
            boxes = torch.cat([centres - half, centres + half], -1).clamp(0, 1)
        return {"boxes": boxes.float().numpy(), "scores": scores.float().numpy()}


class Sentences:
    """sentence-transformers: the mean of the tokens' vectors, or the first, at length 1 where the folder says so."""

    def __init__(self, model: Any, folder: Path) -> None:
        self._model = model
        pooling, modules = folder / POOLING, folder / "modules.json"
        how = json.loads(pooling.read_text()) if pooling.exists() else {"pooling_mode_mean_tokens": True}
        self._first = bool(how.get("pooling_mode_cls_token"))
        if not self._first and not how.get("pooling_mode_mean_tokens"):
            raise NetworkError(f"{POOLING}: neither pooling_mode_mean_tokens nor pooling_mode_cls_token is set")
        kinds = [one["type"].rpartition(".")[2] for one in json.loads(modules.read_text())] if modules.exists() else []
        if strange := set(kinds) - {"Transformer", "Pooling", "Normalize"}:
            raise NetworkError(f"modules.json: {', '.join(sorted(strange))} is not served")
        self._unit = "Normalize" in kinds

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        with torch.inference_mode():
            asked = given(feeds)
            hidden = self._model(**asked).last_hidden_state
            mask = asked["attention_mask"].unsqueeze(-1).float()
            vectors = hidden[:, 0] if self._first else (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
            if self._unit:
                vectors = torch.nn.functional.normalize(vectors, dim=1)
        return {"embedding": vectors.float().numpy()}


class Ctc:
    """wav2vec2 and what followed it. The blank, which is the tokenizer's padding, is put first."""

    def __init__(self, pipeline: Pipeline, folder: Path) -> None:
        self._model = _model(transformers.AutoModelForCTC, folder)
        blank = self._model.config.pad_token_id
        self._order = [blank, *(one for one in range(len(pipeline.labels)) if one != blank)]
        self._masked = self._model.config.feat_extract_norm == "layer"  # others were trained without a mask
        self._least = 1  # samples of the first step
        layers = self._model.config.conv_kernel, self._model.config.conv_stride
        for kernel, stride in zip(*map(reversed, layers), strict=True):
            self._least = (self._least - 1) * stride + kernel

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """A sound that is too short for a step is filled up to one."""
        audio, lengths = feeds["audio"], np.maximum(feeds["lengths"], self._least)
        audio = np.pad(audio, [(0, 0), (0, max(0, self._least - audio.shape[1]))])
        steps = self._model._get_feat_extract_output_lengths(_tensor(lengths)).numpy()  # noqa: SLF001 - no other says it
        with torch.inference_mode():
            if self._masked:
                mask = (np.arange(audio.shape[1])[None] < lengths[:, None]).astype(np.int64)
                logits = self._model(_tensor(audio), attention_mask=_tensor(mask)).logits.float().numpy()
            else:  # what a sound is filled up with would change its answer
                rows = zip(audio, lengths, strict=True)
                alone = [self._model(_tensor(row[None, :length])).logits.float().numpy()[0] for row, length in rows]
                logits = np.zeros((len(alone), max(map(len, alone)), alone[0].shape[1]), np.float32)
                for row, found in enumerate(alone):
                    logits[row, : len(found)] = found
        return {"logits": logits[..., self._order], "steps": steps}


class Whisper:
    """Writes the text itself, from sound of at most 30 s."""

    def __init__(self, folder: Path) -> None:
        self._model = _model(transformers.AutoModelForSpeechSeq2Seq, folder)
        extractor: Any = transformers.AutoFeatureExtractor
        self._features = extractor.from_pretrained(folder, local_files_only=True)
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        rate = self._features.sampling_rate
        sounds = [row[:length] for row, length in zip(feeds["audio"], feeds["lengths"], strict=True)]
        found = self._features(sounds, sampling_rate=rate, return_tensors="pt")
        with torch.inference_mode():
            tokens = self._model.generate(input_features=found.input_features)
        texts = self._tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return {"text": np.array([text.strip().encode() for text in texts], np.object_)}
