"""What files of a data set hold, by their names. Pure."""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, cast

from mms_workloads.contract import Reason
from mms_workloads.data.blocks import COMPRESSED
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mms_workloads.contract import RecordFormat, Task
    from mms_workloads.store import Found

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".npy")
SOUND = (".wav",)
_SUFFIXES: dict[str, RecordFormat] = {
    ".jsonl": "JSONLines",
    ".ndjson": "JSONLines",
    ".csv": "CSV",
    ".tsv": "CSV",
    ".parquet": "Parquet",
    ".tar": "WebDataset",
    ".wav": "WAV",
    **dict.fromkeys(IMAGES, "ImageFolder"),
}
TABS = ".tsv"
SEALED = ".mms"  # an encrypted block
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")
TRANSCRIPT = ".txt"
NAMED = 3  # files in a message


def of_records(task: Task) -> bool:
    """Whether the task learns from records; else it reads running text."""
    return task.wordEmbedding is None and task.languageModel is None


def suffix(uri: str) -> str:
    """Of the plain file, in small letters: .csv of a/b.CSV.gz, .tsv of a/0.tsv.mms."""
    name = uri.rpartition("/")[2].lower()
    for packed in (SEALED, *COMPRESSED):
        name = name.removesuffix(packed)
    return PurePosixPath(name).suffix


def hidden(uri: str) -> bool:
    """Files that belong to a file system or a tool: .DS_Store, _SUCCESS."""
    return uri.rpartition("/")[2].startswith((".", "_"))


def detect(uris: Iterable[str]) -> RecordFormat:
    """Raises JobError: DataInvalid when the names speak for several formats."""
    uris = [uri for uri in uris if not hidden(uri)]
    found: dict[str, list[str]] = {}
    for uri in uris:
        found.setdefault(_SUFFIXES.get(suffix(uri), "Text"), []).append(uri)
    beside = {"WAV": {"Text", "CSV", "JSONLines"}, "ImageFolder": {"Text"}}
    for media, others in beside.items():
        if media in found and set(found) <= {media, *others}:
            return cast("RecordFormat", media)
    if len(found) > 1:
        what = "; ".join(f"{name}: {', '.join(files[:NAMED])}" for name, files in sorted(found.items()))
        raise JobError(
            Reason.DATA_INVALID, f"the files are of several formats ({what}): set data.format, or narrow data.uri"
        )
    return cast("RecordFormat", next(iter(found), "Text"))


def whole(chosen: RecordFormat) -> bool:
    """Whether a file's records can be told apart only from its start on."""
    return chosen in {"CSV", "WebDataset"}


def by_folders(chosen: RecordFormat) -> bool:
    """Whether files lie class by class: as they are a block would have one class, and what is held out some of them."""
    return chosen == "ImageFolder"


def mixed(files: Sequence[Found]) -> list[Found]:
    """In an order that does not depend on their folders, always the same."""
    return sorted(files, key=lambda f: hashlib.sha256(f.uri.encode()).digest())


def companions(chosen: RecordFormat, uris: Sequence[str], files: Iterable[int]) -> set[int]:
    """The numbers of the files that must be known to read these: transcripts and tables of sound."""
    if chosen != "WAV":
        return set()
    numbers = {uri: i for i, uri in enumerate(uris)}
    beside = {numbers.get(uris[i].rpartition(".")[0] + TRANSCRIPT) for i in files if suffix(uris[i]) in SOUND}
    tables = {i for i, uri in enumerate(uris) if suffix(uri) in TABLES and not hidden(uri)}
    return tables | {i for i in beside if i is not None}
