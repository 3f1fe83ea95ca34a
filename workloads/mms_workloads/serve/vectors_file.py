"""The files of served word vectors, mapped from disk: all models share one copy in the page cache. numpy only.

`prepare` makes, once, what `load` maps: so a model is loaded at once whatever its size, and its process holds no words.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mms_workloads import tensors
from mms_workloads.contract import WordEmbedding
from mms_workloads.embedding import graph

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

WEIGHTS = "model.safetensors"
VOCABULARY = "vocabulary.txt"
TASK = "model.json"
UNIT_VECTORS = "unit_vectors.npy"  # [V, d], in Fortran's order: a fifth less time for the product with one vector
WORD_INDEX = "word_index.npy"
MADE = (UNIT_VECTORS, WORD_INDEX)  # by `prepare`
_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER = re.compile(
    rb"\{'descr': '(?P<type><[a-z][0-9])', 'fortran_order': (?P<fortran>True|False), "
    rb"'shape': \((?P<rows>[0-9]+), (?P<columns>[0-9]+)\), \} *\n"
)

ROWS_AT_ONCE = 65_536


class ArtifactError(ValueError):
    """Files of an artifact that do not fit together; the message names the file."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Words by row and rows by word."""

    text: mmap.mmap  # vocabulary.txt
    begins: NDArray[np.int64]  # [V], of each word in the text
    ends: NDArray[np.int64]  # [V]
    hashes: NDArray[np.int64]  # [V], ascending
    owners: NDArray[np.int64]  # [V], the row of each hash's word

    def __len__(self) -> int:
        return len(self.begins)

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.object_]:
        """The words, bytes of UTF-8, in the same shape."""
        words = np.empty(rows.size, np.object_)
        words[:] = [self._word(row) for row in rows.ravel().tolist()]
        return words.reshape(rows.shape)

    def rows(self, words: Sequence[bytes]) -> NDArray[np.int64]:
        """The row of each word; -1: it is not there."""
        hashes = hashed(words)
        found = np.full(len(words), -1, np.int64)
        for number, place in enumerate(np.searchsorted(self.hashes, hashes).tolist()):
            while place < len(self) and self.hashes[place] == hashes[number]:
                row = int(self.owners[place])
                if self._word(row) == words[number]:
                    found[number] = row
                    break
                place += 1  # noqa: PLW2901 - words of one hash follow each other
        return found

    def _word(self, row: int) -> bytes:
        return self.text[self.begins[row] : self.ends[row]]


@dataclass(frozen=True, slots=True)
class Embedding:
    words: Vocabulary
    rows: NDArray[np.float32]  # [V, d]
    unit: bool  # whether all vectors are of length 1 (or 0)
    task: WordEmbedding
    ngrams: NDArray[np.float32] | None  # [buckets, d], of a task with subwords
    graph: Any | None = None  # of neighbours, where there are very many words


def load(directory: Path, *, unit: bool) -> Embedding:
    """Maps an artifact's vectors, or the same at length 1, after `prepare`. Raises ArtifactError, OSError."""
    with (directory / VOCABULARY).open("rb") as file:
        text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    words = Vocabulary(text, *np.asarray(mapped(directory / WORD_INDEX)))
    rows = mapped(directory / UNIT_VECTORS) if unit else map_tensor(directory / WEIGHTS, "vectors")
    if len(rows) != len(words):
        raise ArtifactError(f"{VOCABULARY} has {len(words)} words, {WEIGHTS} has {len(rows)} vectors")
    task = read_task(directory / TASK)
    try:
        neighbours = graph.load(directory / graph.FILE) if unit else None
    except ValueError as error:
        raise ArtifactError(str(error)) from error
    return Embedding(words, rows, unit, task, _map_ngrams(directory, task, rows.shape[1]), neighbours)


def mapped(path: Path) -> NDArray[Any]:
    """A matrix that `prepare` has made, mapped read-only. Raises ArtifactError, OSError.

    numpy.load reads the header as a Python literal, of which CPython before 3.11.5 may say "AST constructor recursion
    depth mismatch" (python/cpython#106905).
    """
    with path.open("rb") as file:
        magic = file.read(len(_MAGIC) + 2)
        head = file.read(int.from_bytes(magic[len(_MAGIC) :], "little"))
        start = file.tell()
    said = _HEADER.match(head)
    if not magic.startswith(_MAGIC) or said is None:
        raise ArtifactError(f"{path.name} is no matrix of the NPY format, version 1.0")
    shape = int(said["rows"]), int(said["columns"])
    order: Literal["F", "C"] = "F" if said["fortran"] == b"True" else "C"
    return np.memmap(path, np.dtype(said["type"].decode()), "r", start, shape, order)


def read_vocabulary(path: Path) -> list[bytes]:
    """The words in the order of their rows. Raises ArtifactError."""
    words = []
    # Only \n ends a line: a word may hold other characters that count as line breaks somewhere.
    for number, line in enumerate(path.read_bytes().removesuffix(b"\n").split(b"\n"), 1):
        word, tab, _ = line.rpartition(b"\t")
        if not tab or not word:
            raise ArtifactError(f"{path.name}: line {number} is not `word<TAB>count`")
        words.append(word)
    return words


def read_task(path: Path) -> WordEmbedding:
    """What the vectors were trained by; of an artifact that does not tell, the defaults. Raises ArtifactError."""
    try:
        return WordEmbedding.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return WordEmbedding()
    except ValueError as error:
        raise ArtifactError(f"{path.name}: not a task of word vectors: {error}") from error


def map_tensor(path: Path, name: str) -> NDArray[np.float32]:
    """A float32 matrix of a safetensors file, mapped read-only. Raises ArtifactError."""
    try:
        with path.open("rb") as file:
            place = tensors.places(file, path.stat().st_size)[name]
        place.check()
    except KeyError as error:
        raise ArtifactError(f"{path.name}: it has no tensor {name!r}") from error
    except ValueError as error:
        raise ArtifactError(f"{path.name}: {error}") from error
    if len(place.shape) != 2 or min(place.shape) < 1:  # noqa: PLR2004 - a matrix
        raise ArtifactError(f"{path.name}: tensor {name!r} is {list(place.shape)}, no matrix")
    return np.memmap(path, dtype="<f4", mode="r", offset=place.begin, shape=place.shape)


def prepare(directory: Path) -> int:
    """Writes what `load` maps beside the artifact's files. Returns d. Raises ArtifactError, OSError."""
    write_index(directory)
    return _write_unit_vectors(directory)


def hashed(words: Sequence[bytes]) -> NDArray[np.int64]:
    """[n]. Words are compared, so that two may have the same; of eight bytes that is rare."""
    return np.frombuffer(b"".join(hashlib.blake2b(word, digest_size=8).digest() for word in words), "<i8")


def write_index(directory: Path) -> int:
    """int64 [4, V]: the fields of Vocabulary after the text. Returns V. Raises ArtifactError."""
    words = read_vocabulary(directory / VOCABULARY)
    text = np.fromfile(directory / VOCABULARY, np.uint8)
    begins = np.concatenate([[0], np.flatnonzero(text == ord("\n")) + 1])[: len(words)]
    ends = begins + np.fromiter(map(len, words), np.int64, len(words))
    hashes = hashed(words)
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    same: dict[bytes, int] = {}
    for place in np.flatnonzero(ordered[1:] == ordered[:-1]).tolist():
        for row in order[place : place + 2].tolist():
            if same.setdefault(words[row], row) != row:
                raise ArtifactError(f"{VOCABULARY} has the word {shown(words[row])} twice")
    part = directory / f".{WORD_INDEX}.part"
    with part.open("wb") as file:
        np.save(file, np.stack([begins, ends, ordered, order]))
    part.replace(directory / WORD_INDEX)
    return len(words)


def _write_unit_vectors(directory: Path) -> int:
    """The vectors at length 1; a vector of zeros stays. Returns d.

    Raises ArtifactError, for n-grams that are not finite, too.
    """
    matrix = map_tensor(directory / WEIGHTS, "vectors")
    ngrams = _map_ngrams(directory, read_task(directory / TASK), matrix.shape[1])
    part = directory / f".{UNIT_VECTORS}.part"
    out = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=matrix.shape, fortran_order=True)
    for start, rows in _finite("vector", matrix):
        out[start : start + len(rows)] = unit_rows(rows)
    for _ in () if ngrams is None else _finite("n-gram", ngrams):
        pass
    out.flush()
    part.replace(directory / UNIT_VECTORS)
    return int(matrix.shape[1])


def unit_rows(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each at length 1; zeros stay."""
    lengths = np.linalg.norm(rows.astype(np.float64), axis=-1, keepdims=True)
    return (rows / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def shown(word: bytes) -> str:
    """As an error names it."""
    return json.dumps(word[:256].decode(errors="replace"), ensure_ascii=False)


def _map_ngrams(directory: Path, task: WordEmbedding, dimensions: int) -> NDArray[np.float32] | None:
    if task.subwords is None:
        return None
    ngrams = map_tensor(directory / WEIGHTS, "ngrams")
    if ngrams.shape != (task.subwords.buckets, dimensions):
        raise ArtifactError(
            f"{WEIGHTS}: tensor 'ngrams' is {list(ngrams.shape)}, and {TASK} says {task.subwords.buckets} buckets "
            f"of {dimensions} numbers"
        )
    return ngrams


def _finite(what: str, matrix: NDArray[np.float32]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Its rows in parts, each with the place of its first. Raises ArtifactError for one that is not finite."""
    for start in range(0, len(matrix), ROWS_AT_ONCE):
        rows = np.asarray(matrix[start : start + ROWS_AT_ONCE])
        if not np.isfinite(rows).all():
            row = start + int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
            raise ArtifactError(f"{WEIGHTS}: {what} {row} is not finite")
        yield start, rows
