"""The data set of a job: where it is, what its records look like, and how it is dealt out."""

from __future__ import annotations

from typing import Literal

from mms_workloads.contract.base import DATA_KEY_FILE, Contract, NonNegativeInt, PositiveInt, Store

RecordFormat = Literal["Text", "JSONLines", "CSV", "Parquet", "ImageFolder", "WebDataset", "WAV"]


class Fields(Contract):
    """Columns, keys or, of a WebDataset, suffixes. Absent: found by their usual names."""

    input: str | None = None
    pair: str | None = None  # of textMatching: the second text
    label: str | None = None


class Quality(Contract):
    maxBadRecords: NonNegativeInt = 100  # records that may be left out; with more the run fails


class Encryption(Contract):
    """The data set is what `mms data encrypt` wrote; the data key is in a file that the master alone has."""

    keyFile: str = DATA_KEY_FILE


Transform = Literal[
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


class Augmentation(Contract):
    """In data epoch e block b is seen under transforms[(b + e) mod their number]."""

    transforms: list[Transform] = []


class Data(Contract):
    """The data set; uri may hold * in its last parts. .gz, .xz, .bz2 and .zst are decompressed while read."""

    store: Store
    format: Literal["Auto"] | RecordFormat = "Auto"
    fields: Fields = Fields()
    quality: Quality = Quality()
    encryption: Encryption | None = None
    augmentation: Augmentation = Augmentation()
    sharding: Literal["Random", "Sequential"] = "Random"
    blockBytes: PositiveInt = 256 * 1024  # decompressed size of the unit that the master leases
    cacheBytes: PositiveInt | None = None  # of what was read and decompressed, on each worker's scratch volume
    blockSizes: Literal["Equal", "Varied"] = "Equal"  # Varied: half, once and one and a half times blockBytes in turn
