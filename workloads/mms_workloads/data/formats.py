"""What files of a data set hold, by their names. Pure."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, cast
from urllib.parse import unquote

from mms_workloads.contract import Reason
from mms_workloads.data.blocks import COMPRESSED, compressed
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


def place(uri: str) -> str:
    """The URI as people write it: a web server's names are percent-encoded."""
    return unquote(uri) if uri.startswith(("http://", "https://")) else uri


def stem(uri: str) -> str:
    """What a file of sound is named by: a/b of a/b.WAV.gz."""
    name = place(uri)
    for packed in (*COMPRESSED, *SOUND):
        if name.lower().endswith(packed):
            name = name[: -len(packed)]
    return name


def twins(uris: Iterable[str]) -> Counter[str]:
    """How many files of sound have a name, whatever their folders."""
    return Counter(_name(uri) for uri in uris if suffix(uri) in SOUND)


def hidden(uri: str) -> bool:
    """By the name alone: files that belong to a file system or a tool, such as .DS_Store and _SUCCESS.

    Cameras write _DSC0001.jpg.
    """
    name = uri.rpartition("/")[2]
    return name.startswith(".") or (name.startswith("_") and suffix(uri) not in (*IMAGES, *SOUND))


def shown(files: Sequence[Found]) -> list[Found]:
    """Those that are data: neither hidden, nor below a folder that is, but for folders in which all of them are.

    Transcripts of sounds are shown with them.
    """
    root = _folder([f.uri for f in files])
    sounds = {f.uri.rpartition(".")[0] for f in files if suffix(f.uri) in SOUND}

    def is_shown(uri: str) -> bool:
        if any(part.startswith(".") for part in uri[len(root) :].split("/")):
            return False
        return not hidden(uri) or (uri.endswith(TRANSCRIPT) and uri.removesuffix(TRANSCRIPT) in sounds)

    return [f for f in files if is_shown(f.uri)]


def _folder(uris: Sequence[str]) -> str:
    """The deepest one that has all of them."""
    folders = [uri.split("/")[:-1] for uri in uris]
    return "/".join(parts[0] for parts in itertools.takewhile(lambda p: len(set(p)) == 1, zip(*folders, strict=False)))


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


def empty_records(chosen: RecordFormat, uris: Sequence[str], sizes: Sequence[int]) -> list[int]:
    """The numbers of files without a byte that should be a record each."""
    media = {"ImageFolder": IMAGES, "WAV": SOUND}.get(chosen, ())
    return [i for i, size in enumerate(sizes) if not size and suffix(uris[i]) in media and not compressed(uris[i])]


def by_folders(chosen: RecordFormat) -> bool:
    """Whether files lie class by class: as they are a block would have one class, and what is held out some of them."""
    return chosen == "ImageFolder"


def mixed(files: Sequence[Found]) -> list[Found]:
    """In an order that does not depend on their folders, always the same."""
    return sorted(files, key=lambda f: hashlib.sha256(f.uri.encode()).digest())


class Companions:
    """Which files must be known to read others. Made once of all files, since there may be very many."""

    def __init__(self, chosen: RecordFormat, uris: Sequence[str]) -> None:
        self._uris = uris if chosen == "WAV" else ()
        self._numbers = {uri: i for i, uri in enumerate(self._uris)}
        self._tables = {i for i, uri in enumerate(self._uris) if suffix(uri) in TABLES and not hidden(uri)}
        self._twins: dict[str, list[int]] = {}  # the first two files of sound of each name
        for i, uri in enumerate(self._uris if self._tables else ()):
            if suffix(uri) in SOUND and len(both := self._twins.setdefault(_name(uri), [])) < 2:  # noqa: PLR2004 - see above
                both.append(i)

    def of(self, files: Iterable[int]) -> set[int]:
        """Their numbers: tables and transcripts of sound, and where several files have a name another one of them: a
        table that has no more than the name does not tell which it means.
        """
        found = set(self._tables)
        for i in files if self._uris else ():
            uri = self._uris[i]
            if suffix(uri) in SOUND:
                beside = self._numbers.get(uri.rpartition(".")[0] + TRANSCRIPT)
                found |= {beside} if beside is not None else set()
                found.update(self._twins.get(_name(uri), ()))
        return found


def _name(sound: str) -> str:
    return stem(sound).rpartition("/")[2]
