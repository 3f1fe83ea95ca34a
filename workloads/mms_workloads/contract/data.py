"""The data set of a job: where it is, what its records look like, and how it is dealt out."""

from __future__ import annotations

from typing import Literal

from mms_workloads.contract.base import Contract, NonNegativeInt, PositiveInt, Store

RecordFormat = Literal["Text", "JSONLines", "CSV", "Parquet", "ImageFolder", "WebDataset", "WAV"]


class Fields(Contract):
    """Columns, keys or, of a WebDataset, suffixes. Absent: found by their usual names."""

    input: str | None = None
    label: str | None = None


class Quality(Contract):
    maxBadRecords: NonNegativeInt = 100  # records that may be left out; with more the run fails


class Data(Contract):
    """The data set; uri may hold * in its last parts. .gz, .xz, .bz2 and .zst are decompressed while read."""

    store: Store
    format: Literal["Auto"] | RecordFormat = "Auto"
    fields: Fields = Fields()
    quality: Quality = Quality()
    sharding: Literal["Random", "Sequential"] = "Random"
    blockBytes: PositiveInt = 256 * 1024  # decompressed size of the unit that the master leases
