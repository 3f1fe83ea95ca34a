"""Tasks whose networks learn from records: images, videos, texts, speech."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from mms_operator.api.types import FRACTION_PATTERN, URI_PATTERN, Model, Name, StoreAccess, decimal, rules

_ARCHITECTURE = Field(
    default="Small",
    max_length=100,
    pattern=r"^(Small|timm/[a-z0-9_.]{1,90}|torchvision/[a-z0-9_]{1,80})$",
    description="Small: a few convolutions, for images of few pixels. timm/NAME and torchvision/NAME: a model of that "
    "library, such as timm/efficientnet_lite0 or torchvision/resnet18, with pretrained weights or with layers that "
    "normalise no batches. What pretrained.uri brings has its own; weights of torchvision do not say it.",
)


def divided(task: str) -> tuple[str, str]:
    return (
        "self.dimensions % self.heads == 0",
        f"{task}.dimensions must be divisible by heads, since each head sees an equal part: change one of them",
    )


class Pixels(Model):
    height: int = Field(default=32, ge=4, le=4096, description="Pixels that an image is brought to.")
    width: int = Field(default=32, ge=4, le=4096, description="Pixels that an image is brought to.")
    channels: Literal[1, 3] = Field(default=3, description="1: grey. 3: red, green and blue.")


class ImageClassification(Pixels):
    """An image has one of the labels that the data set has."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!self.architecture.startsWith('torchvision/vit_') || self.height == self.width",
                "torchvision's ViT sees square images: set imageClassification.height and width to the same",
            )
        )
    )

    architecture: str = _ARCHITECTURE
    resize: Literal["Stretch", "Crop", "Pad"] = Field(
        default="Stretch",
        description="Stretch: to the size, whatever the shape. Crop: the middle, of the wanted shape. Pad: all of it, "
        "with grey beside it.",
    )


class ObjectDetection(Pixels):
    """Boxes and labels of the objects in an image: one stage without anchors, after FCOS (Tian et al., 2019)."""

    height: int = Field(default=64, ge=8, le=4096, description="Pixels that an image is brought to.")
    width: int = Field(default=64, ge=8, le=4096, description="Pixels that an image is brought to.")


class ImageGeneration(Pixels):
    """Images of a label, by conditional flow matching (Lipman et al., 2023)."""

    hidden: int = Field(default=64, ge=8, le=2048, multiple_of=8, description="Channels of the network.")
    steps: int = Field(default=16, ge=1, le=200, description="From noise to an image: more take longer, and err less.")


class VideoUnderstanding(Pixels):
    """A video has one of the labels."""

    frames: int = Field(default=8, ge=2, le=256, description="Frames that are looked at, evenly spaced.")


class Text(Model):
    architecture: Literal["Small", "Pretrained"] = Field(
        default="Small",
        description="Small: the words' vectors and a transformer encoder over them. Pretrained: that of "
        "pretrained.uri, a folder of Transformers.",
    )
    dimensions: int = Field(default=64, ge=8, le=4096, description="Small: width of the layers.")
    layers: int = Field(default=1, ge=0, le=48, description="Small: transformer blocks over the words' vectors.")
    heads: int = Field(default=4, ge=1, le=64, description="Small: attention heads; they divide dimensions.")
    maxLength: int = Field(default=128, ge=2, le=8192, description="Tokens of a text; a longer one loses its end.")
    maxVocabulary: int = Field(
        default=20_000, ge=2, le=1_000_000, description="Small: the most frequent words, which are known."
    )
    dropout: str = decimal("Small: part of the values left out while it learns.", FRACTION_PATTERN, default="0.1")


class TextClassification(Text):
    """A text has one of the labels: its topic, or how somebody liked a film."""

    model_config = ConfigDict(json_schema_extra=rules(divided("textClassification")))


class TokenClassification(Text):
    """Each word of a text has a tag: B-X and I-X for entities of kind X, O for none (IOB2)."""

    model_config = ConfigDict(json_schema_extra=rules(divided("tokenClassification")))


class TextMatching(Text):
    """How near two texts are in meaning: each becomes a vector, and their cosine is the score.

    Pairs with no label match: each first text is to be nearest to its own second one among those of a worker's batch.
    Labels 1 and 0 (true and false, yes and no) say whether they match; numbers say how much.
    """

    model_config = ConfigDict(json_schema_extra=rules(divided("textMatching")))

    search: int = Field(
        default=0,
        ge=0,
        le=200_000,
        description="Texts of the data set that the artifact holds: the service finds the nearest of them. 0: none.",
    )


class SpeechRecognition(Model):
    """What is said, letter by letter: a transformer encoder with CTC (Graves et al., 2006)."""

    model_config = ConfigDict(json_schema_extra=rules(divided("speechRecognition")))

    architecture: Literal["Small", "Pretrained"] = Field(
        default="Small",
        description="Small: a transformer encoder over the energies of the sound. Pretrained: that of pretrained, a "
        "folder of Transformers with a CTC network, such as wav2vec2 or HuBERT. Of the characters those that it knows "
        "keep what it has learnt of them.",
    )
    alphabet: str = Field(
        default=" 'abcdefghijklmnopqrstuvwxyz",
        min_length=1,
        max_length=20_000,
        description="The characters of transcripts; it is lower-cased as they are, and other characters are left out "
        "of them. A record of which nothing is left is a bad one.",
    )
    sampleRate: int = Field(
        default=16_000, ge=4000, le=48_000, description="Samples a second of the sound. Pretrained: the folder's own."
    )
    maxSeconds: str = decimal("Records that are longer count as bad ones.", default="10")
    dimensions: int = Field(default=144, ge=8, le=4096, description="Small: width of the layers.")
    layers: int = Field(default=4, ge=1, le=48, description="Small: transformer blocks.")
    heads: int = Field(default=4, ge=1, le=64, description="Small: attention heads; they divide dimensions.")
    dropout: str = decimal("Small: part of the values left out while it learns.", FRACTION_PATTERN, default="0.1")


class LoRA(Model):
    """Low-rank changes beside the layers, which stay as they are (Hu et al., 2022)."""

    rank: int = Field(default=8, ge=1, le=1024, description="Of the changes: more can express more.")
    alpha: int = Field(default=16, ge=1, le=4096, description="How much they count, over rank.")


WITH_FOLDERS = ("languageModel", "textClassification", "tokenClassification", "textMatching", "speechRecognition")


def pretrained_fits() -> list[tuple[str, str]]:
    """Rules (CEL) of a training's spec."""
    pretrained = " || ".join(
        f"(has(self.task.{t}) && self.task.{t}.architecture == 'Pretrained')" for t in WITH_FOLDERS
    )
    return [
        (
            "!has(self.pretrained) || !has(self.task.wordEmbedding)",
            "pretrained does not apply to task.wordEmbedding: leave it out",
        ),
        (
            (
                "!has(self.pretrained) || !has(self.task.languageModel) || "
                "(self.task.languageModel.architecture == 'Pretrained' && self.pretrained.method != 'Head')"
            ),
            (
                "pretrained with task.languageModel needs its architecture Pretrained, and method Full or LoRA, since "
                "its last layer is no new one: set these, or leave pretrained out"
            ),
        ),
        (
            f"has(self.pretrained) || !({pretrained})",
            "a task's architecture Pretrained needs pretrained: set it, or take architecture Small",
        ),
    ]


class PretrainedTraining(Model):
    name: Name = Field(description="A ModelTraining in the same namespace; its artifact at the start of the run.")


class Pretrained(StoreAccess):
    """What a run starts from."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "has(self.uri) != has(self.trainingRef)",
                "exactly one of uri and trainingRef must be set in pretrained",
            ),
            (
                "!has(self.digest) || has(self.uri)",
                "digest belongs to pretrained.uri: leave it out with trainingRef, whose artifact says its own",
            ),
            (
                "has(self.uri) || (!has(self.endpoint) && !has(self.region) && !has(self.secretRef))",
                "endpoint, region and secretRef belong to pretrained.uri: leave them out with trainingRef",
            ),
            ("!has(self.lora) || self.method == 'LoRA'", "lora is of method LoRA only: set that, or leave lora out"),
        )
    )
    uri: str | None = Field(
        default=None,
        description="A folder of Transformers (config.json, safetensors, tokenizer.json) or timm, one with weights of "
        "torchvision, or an artifact.",
        max_length=1024,
        pattern=URI_PATTERN,
    )
    digest: str | None = Field(
        default=None,
        description="Of an artifact: sha256 of its manifest.json, which must be this.",
        max_length=71,
        pattern=r"^sha256:[0-9a-f]{64}$",
    )
    trainingRef: PretrainedTraining | None = Field(
        default=None,
        description="An artifact of the same task, to train it further; or of wordEmbedding, whose words' vectors are "
        "then what a text task's network sees.",
    )
    method: Literal["Full", "LoRA", "Head"] = Field(
        default="Full",
        description="Full: all parameters are trained. LoRA: low-rank changes and the last layer. Head: the last layer "
        "alone. Layers that a folder has no weights for are trained whatever is set. Word vectors: Full trains them "
        "further, Head leaves them as they are.",
    )
    lora: LoRA | None = None
