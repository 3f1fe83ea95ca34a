"""spec.data: the data set, what its records look like, and how it is dealt to the workers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mms_operator.api.types import URI_PATTERN, Model, StoreAccess

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
        description="How many bad records are left out, with their places and reasons in the workers' logs and the "
        "first in status.data. With more the run fails.",
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
    sharding: Literal["Random", "Sequential"] = Field(
        default="Random", description="The order in which blocks are dealt to the workers: a seeded shuffle, or as is."
    )
    blockSize: Size = Field(
        default="256Ki",
        description="The unit that is dealt to the workers, of the decompressed data. There should be some tens for "
        "each worker; a worker holds a few in memory.",
    )
