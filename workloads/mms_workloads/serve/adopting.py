"""A model that was not trained here: which format its files have, and the pipeline that serves it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mms_workloads.contract import PIPELINE, TOKENIZER, Pipeline
from mms_workloads.serve import own_tensors

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mms_workloads.contract import PretrainedModel

CODE = {"TorchScript", "TorchExport", "Python", "TritonRepository"}  # formats whose files are programs
FOLDER = "files"  # of the artifact, with what was fetched
TENSORS = "tensors"  # the task whose tensors are the network's own

_SUFFIXES = {".onnx": "ONNX", ".pt2": "TorchExport", ".pt": "TorchScript", ".ts": "TorchScript", ".jit": "TorchScript"}
_ARCHITECTURES = {
    "ForImageClassification": "imageClassification",
    "ForSequenceClassification": "textClassification",
    "ForTokenClassification": "tokenClassification",
    "ForObjectDetection": "objectDetection",
    "ForCTC": "speechRecognition",
    "WhisperForConditionalGeneration": "speechRecognition",
}
_OWN = {"inputs", "outputs", "rows"}  # fields of that task alone
_SHIFT = 1e-4  # of 1 / 255


class AdoptError(ValueError):
    """Files that cannot be served as they are; the message names the file and the remedy."""


def format_of(asked: PretrainedModel, names: Sequence[str]) -> str:
    """Of the files by their paths in the folder. Raises AdoptError."""
    if asked.format != "Auto":
        found: str | None = asked.format
    elif any(name.endswith("/config.pbtxt") for name in names):
        found = "TritonRepository"
    elif "config.json" in names:
        found = "Transformers"
    elif "model.py" in names:
        found = "Python"
    else:
        found = next((_SUFFIXES[ending] for ending in _SUFFIXES if any(name.endswith(ending) for name in names)), None)
    if found is None:
        raise AdoptError(
            f"none of {len(names)} files says what they are: there is no config.json, model.py, config.pbtxt in a "
            f"folder, or a file ending in {', '.join(_SUFFIXES)}: set spec.model.pretrained.format"
        )
    if found in CODE and not asked.trusted:
        raise AdoptError(
            f"format {found} runs code of the files in the pod: set spec.model.pretrained.trusted if you trust them"
        )
    return found


def pipeline_of(asked: PretrainedModel, kind: str, folder: Path) -> Pipeline:
    """What serves the files of `folder`, which is FOLDER of the artifact. Raises AdoptError, ValueError, OSError.

    What the spec says goes before pipeline.json of the folder, which goes before what the files say by themselves.
    """
    said: dict[str, Any] = {}
    if kind == "Transformers":
        said = _transformers(folder, (asked.pipeline or {}).get("task"))
    if (folder / PIPELINE).exists():
        said |= json.loads((folder / PIPELINE).read_text())
    said |= asked.pipeline or {}
    if "task" not in said:
        raise AdoptError(
            "nothing says what the model is for: add pipeline.json to its folder, or set "
            "spec.model.pretrained.pipeline; {task: tensors} serves the network's own tensors"
        )
    said["runtime"] = kind
    said["network"] = FOLDER if kind == "Transformers" else f"{FOLDER}/{said.get('network') or _network(kind, folder)}"
    if text := said.get("text"):
        said["text"] = {**text, "tokenizer": f"{FOLDER}/{text.get('tokenizer', TOKENIZER)}"}
    if said["task"] == TENSORS:
        if kind == "Transformers":
            raise AdoptError("task tensors is not for a folder of Transformers: export the network as ONNX")
        if kind == "ONNX":
            said |= own_tensors.of_onnx(folder.parent / said["network"], said)
    elif strange := sorted(name for name in _OWN if said.get(name)):
        raise AdoptError(f"pipeline.json: {strange[0]} belongs to task {TENSORS}, and this one's is {said['task']}")
    return Pipeline.model_validate(said)


def _network(kind: str, folder: Path) -> str:
    """The only file that can be it. Raises AdoptError."""
    endings = ["model.py"] if kind == "Python" else [ending for ending, one in _SUFFIXES.items() if one == kind]
    found = sorted(file.name for file in folder.iterdir() if file.name.endswith(tuple(endings)))
    if len(found) != 1:
        raise AdoptError(
            f"{len(found)} files end in {' or '.join(endings)}: name the network in pipeline.json"
            + (f": {', '.join(found[:5])}" if found else "")
        )
    return found[0]


def _transformers(folder: Path, task: str | None) -> dict[str, Any]:
    """Of config.json and the files beside it."""
    config = _read(folder / "config.json")
    if "architecture" in config:  # Transformers has architectures
        raise AdoptError(
            f"config.json: {config['architecture']} is a network of timm, which the serving image does not have: "
            "export it as ONNX with a pipeline.json, or fine-tune it by a ModelTraining with this folder as "
            "spec.pretrained, whose artifact is served"
        )
    if task is None and (folder / "modules.json").exists():
        task = "textEmbedding"
    named = (config.get("architectures") or [""])[0]
    if task is None:
        task = next((one for ending, one in _ARCHITECTURES.items() if named.endswith(ending)), None)
    if task is None:
        raise AdoptError(f"config.json: architecture {named or '(none)'} is not served: set pipeline.task")
    labels = {int(place): label for place, label in (config.get("id2label") or {}).items()}
    said: dict[str, Any] = {"task": task, "labels": [labels[place] for place in sorted(labels)]}
    if task in {"imageClassification", "objectDetection"}:
        said["image"] = image_input(_read(folder / "preprocessor_config.json"))
        if task == "objectDetection":
            said |= {"scoreThreshold": 0.5, "overlapThreshold": 1.0}  # each thing has one box
            said["image"] = {**said["image"], "resize": "Stretch"}  # boxes are parts of the image, whatever its shape
        return said
    if task == "speechRecognition":
        return {**said, **_speech(folder, config)}
    return {**said, "text": _text(folder, config)}


def _text(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    longest = config.get("max_position_embeddings", 512)
    for name, key in (("tokenizer_config.json", "model_max_length"), ("sentence_bert_config.json", "max_seq_length")):
        if (folder / name).exists():
            longest = min(longest, _read(folder / name).get(key) or longest)
    if config.get("model_type") in {"roberta", "xlm-roberta", "camembert"}:
        longest = min(longest, config["max_position_embeddings"] - 2)  # their places begin at 2
    if not (folder / TOKENIZER).exists():
        raise AdoptError(f"there is no {TOKENIZER}: save the tokenizer again with a recent Transformers")
    return {"maxLength": int(longest), "tokenizer": TOKENIZER}


def _speech(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    features = _read(folder / "preprocessor_config.json")
    rate = int(features.get("sampling_rate", 16_000))
    if config.get("model_type") == "whisper":
        return {"labels": [], "audio": {"sampleRate": rate, "maxSeconds": 30.0}}
    words = _read(folder / "vocab.json")
    special = _read(folder / "tokenizer_config.json")
    space = special.get("word_delimiter_token", "|")
    silent = {special.get(f"{name}_token") for name in ("pad", "unk", "bos", "eos")}
    blank = config.get("pad_token_id", 0)
    tokens = sorted(words, key=lambda word: int(words[word]))
    said = ["" if token in silent else " " if token == space else token for token in tokens]
    labels = ["", *(label for place, label in enumerate(said) if place != blank)]
    return {
        "labels": labels,
        "audio": {"sampleRate": rate, "maxSeconds": 60.0, "normalise": bool(features.get("do_normalize", True))},
    }


def image_input(given: dict[str, Any]) -> dict[str, Any]:
    """preprocessor_config.json of an image processor -> ImageInput. Raises AdoptError."""
    if given.get("do_rescale", True) and abs(given.get("rescale_factor", 1 / 255) * 255 - 1) > _SHIFT:
        raise AdoptError(f"preprocessor_config.json: rescale_factor {given['rescale_factor']}: 1 / 255 is served")
    size = given.get("size") or {"height": 224, "width": 224}
    size = {"height": size, "width": size} if isinstance(size, int) else size
    edge = size.get("shortest_edge")
    high, wide = size.get("height", edge), size.get("width", edge)
    if high is None or wide is None:
        raise AdoptError(f"preprocessor_config.json: size {size}: height and width, or shortest_edge, are served")
    found: dict[str, Any] = {"height": high, "width": wide, "resize": "Crop" if edge else "Stretch"}
    if given.get("do_center_crop"):
        crop = given.get("crop_size") or {"height": high, "width": wide}
        crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
        if not edge and (crop["height"], crop["width"]) != (high, wide):
            raise AdoptError("preprocessor_config.json: a crop of an image of another shape is not served")
        found |= {"height": crop["height"], "width": crop["width"], "cropPart": crop["height"] / high}
    if given.get("do_normalize", True):
        found |= {"mean": given.get("image_mean", [0.5] * 3), "std": given.get("image_std", [0.5] * 3)}
    return {**found, "interpolation": "Bicubic" if given.get("resample") == 3 else "Bilinear"}  # noqa: PLR2004 - Pillow's


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise AdoptError(f"there is no {path.name}: a Transformers folder of this kind has one")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
