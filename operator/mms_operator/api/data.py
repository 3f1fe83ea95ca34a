"""spec.data: the data set, what its records look like, and how it is dealt to the workers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mms_operator.api.types import URI_PATTERN, Model, Name, StoreAccess

BLOCK_BYTES = 256 << 10
BYTES_PATTERN = r"^[1-9][0-9]{0,5}(Ki|Mi|Gi)$"
_UNITS = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}

Size = Annotated[str, Field(pattern=BYTES_PATTERN, max_length=8)]


def in_bytes(size: str) -> int:
    """Of what BYTES_PATTERN matches: 4Mi."""
    return int(size[:-2]) * _UNITS[size[-2:]]


class DataFields(Model):
    """Which part of a record is what. Of CSV and Parquet columns, of JSON keys, of a WebDataset suffixes."""

    input: str | None = Field(
        default=None,
        min_length=1,
        max_length=128,
        description="What is learned from. Absent: text, image, audio, tokens, input or the like; of a WebDataset the "
        "suffix of images or sound, else .txt.",
    )
    pair: str | None = Field(
        default=None,
        min_length=1,
        max_length=128,
        description="textMatching: the second text. Absent: text2 beside text1, sentence2, question2, second, positive "
        "beside anchor, or answer.",
    )
    label: str | None = Field(
        default=None,
        min_length=1,
        max_length=128,
        description="What is learned. Absent: label, labels, class, tags, objects or the like, and none where there is "
        "none; of a WebDataset .cls, .json or .txt, and json.boxes is the key boxes of .json.",
    )


class DataQuality(Model):
    """A record is bad that cannot be read, or whose input or label is of another kind than most."""

    maxBadRecords: int = Field(
        default=100,
        ge=0,
        le=10_000,
        description="How many bad records are left out. Those that cannot be read or learned from are in the logs of "
        "the workers that met them, with places and reasons; the first of all in status.data. With more the run fails.",
    )


IMAGES = ("Identity", "Flip", "Crop", "Rotate", "Colour", "Noise", "Mixup")
SOUND = ("Identity", "Noise", "TimeMask", "FrequencyMask")
TEXT = ("Identity", "WordDropout", "WordSwap")


class DataAugmentation(Model):
    """Blocks are seen under transforms, dealt around the ring: block b under number b + e of them in data epoch e."""

    transforms: list[
        Literal[
            "Identity",
            "Flip",
            "Crop",
            "Rotate",
            "Colour",
            "Noise",
            "Mixup",
            "TimeMask",
            "FrequencyMask",
            "WordDropout",
            "WordSwap",
        ]
    ] = Field(
        min_length=1,
        max_length=16,
        description="In their order. Images: Flip (left to right), Crop, Rotate, Colour, Noise, and for "
        "imageClassification Mixup. Sound: Noise, TimeMask, FrequencyMask. Text: WordDropout, WordSwap. Identity is "
        "the block as it is; leave it out, and no block is seen so. Evaluation is of the data as it is.",
    )


class KeyReference(Model):
    name: Name = Field(description="Name of a Secret in the same namespace.")
    key: str = Field(
        default="key",
        min_length=1,
        max_length=253,
        pattern=r"^[-._a-zA-Z0-9]+$",
        description="Which of its entries holds the data key: 32 bytes, as they are, in hexadecimal or in base64.",
    )


class DataEncryption(Model):
    """The data set is what `mms data encrypt` wrote; data.uri is its folder."""

    keySecretRef: KeyReference = Field(
        description="The data key. It is mounted in the master's pod only; workers get keys of single blocks."
    )


class Data(StoreAccess):
    """The data set. The last parts of the URI may hold *; .gz, .xz, .bz2 and .zst are decompressed while read."""

    uri: str = Field(
        description="Where the data is, such as s3://corpora/wiki/*.txt.xz.", max_length=1024, pattern=URI_PATTERN
    )
    format: Literal["Auto", "Text", "JSONLines", "CSV", "Parquet", "ImageFolder", "WebDataset", "WAV"] = Field(
        default="Auto",
        description="What the files hold. Auto: by their names. ImageFolder: the folder's name is the class. "
        "WebDataset: tar, files with one stem are a record. WAV: with a .txt beside each, or a table of all. "
        "wordEmbedding and languageModel read Text.",
    )
    fields: DataFields = Field(default_factory=DataFields)
    quality: DataQuality = Field(default_factory=DataQuality)
    encryption: DataEncryption | None = Field(
        default=None, description="Of data that is encrypted at rest. Absent: it is not."
    )
    augmentation: DataAugmentation | None = Field(
        default=None, description="Of the records of tasks that learn from images, sound or text. Absent: none."
    )
    sharding: Literal["Random", "Sequential"] = Field(
        default="Random",
        description="Random: blocks are dealt to the workers in an order that the seed shuffles, and a round's samples "
        "are taken from several of them, shuffled; from one where sync.parameterServer.consistency is not Synchronous, "
        "so data that is stored class by class should be shuffled before. Sequential: as they are stored.",
    )
    blockSize: Size = Field(
        default="256Ki",
        description="The unit that is dealt to the workers, of the decompressed data. There should be some tens for "
        "each worker; a worker holds up to 16 in memory, and as many "
        "that it reads ahead. Encrypted data has the blocks that it was encrypted in.",
    )
    cacheSize: Size | None = Field(
        default=None,
        description="What a worker keeps on its scratch volume: of what it has read from an object store or the web, "
        "as stored, which other workers get from there; and of compressed files, decompressed, of which at least one "
        "is there even if it is larger. Absent: 2Gi of the former, and all of the latter.",
    )
    blockSizes: Literal["Equal", "Varied"] = Field(
        default="Equal", description="Varied: half, once and one and a half times blockSize in turn."
    )


def transforms_fit() -> list[tuple[str, str]]:
    """Rules (CEL) of a training's spec: transforms are of the task's medium."""
    media = {
        IMAGES: ("imageClassification",),
        tuple(name for name in IMAGES if name != "Mixup"): (
            "objectDetection",
            "imageGeneration",
            "videoUnderstanding",
        ),
        SOUND: ("speechRecognition",),
        TEXT: ("textClassification", "tokenClassification", "textMatching"),
        (): ("wordEmbedding", "languageModel"),
    }
    found = []
    for allowed, tasks in media.items():
        of_task = " || ".join(f"has(self.task.{task})" for task in tasks)
        fits = f"self.data.augmentation.transforms.all(t, t in {list(allowed)})" if allowed else "false"
        named = f"only {', '.join(allowed)}" if allowed else "no transforms: leave data.augmentation out"
        said = f"data.augmentation of {', '.join(tasks)} takes {named}"
        found.append((f"!({of_task}) || !has(self.data) || !has(self.data.augmentation) || {fits}", said))
    return found
