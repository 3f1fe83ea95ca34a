"""Parameters of a running training as files that the models map, as they map an artifact's. numpy only.

    /models/artifact-<run>/       the run: vocabulary.txt, model.json, word_index.npy; its first parameters, golden.json
                                  and manifest.json, so that it can be held and proved as an artifact is
    /models/artifact-<run>-<n>/   later parameters: model.safetensors, unit_vectors.npy, and links to what stays

What is written is never written over: a batch that reads it is not disturbed, and its memory is free when the last one
lets go of it.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from mms_workloads import tensors
from mms_workloads.contract import (
    ArtifactManifest,
    Golden,
    GoldenCase,
    JobIdentity,
    Provenance,
    WordEmbedding,
)
from mms_workloads.serve import vectors_file
from mms_workloads.serve.vectors_file import TASK, UNIT_VECTORS, VOCABULARY, WEIGHTS, WORD_INDEX

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

STAYS = (VOCABULARY, TASK, WORD_INDEX)  # as long as the run's plan does
ROWS_AT_ONCE = 65_536  # a usual vocabulary at once: its columns are then in one piece
PROVED = 4  # words whose vectors are asked for
PROVED_K = 5


class UnfitError(ValueError):
    """Parameters that are not to be served; the message says why."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Comparisons of text that is not trained on: [n, 3] words, words near them, words that are not."""

    words: NDArray[np.int32]

    def quality(self, rows: NDArray[np.uint16]) -> float | None:
        """How often a word is more similar to the one near it: 0.5 by chance. None without a comparison.

        rows: bfloat16 [V, d]. What is not finite is similar to nothing. Raises UnfitError.
        """
        if not len(self.words):
            return None
        if self.words.min() < 0 or self.words.max() >= len(rows):
            raise UnfitError(f"the comparisons name words beyond the {len(rows)} that there are")
        asked, near, other = (widened(rows[self.words[:, place]]) for place in range(3))
        with np.errstate(invalid="ignore", over="ignore"):
            scores = [np.einsum("nd,nd->n", asked, one) / _lengths(one) for one in (near, other)]
        return float(np.mean((scores[0] > scores[1]) + 0.5 * (scores[0] == scores[1])))


def sample(body: bytes) -> Sample:
    """Of an answer. Raises UnfitError."""
    if len(body) % 12:
        raise UnfitError(f"{len(body)} bytes are no comparisons of three words")
    return Sample(np.frombuffer(body, "<i4").reshape(-1, 3))


def widened(rows: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bfloat16, as the upper halves of float32 numbers."""
    return (rows.astype(np.uint32) << 16).view(np.float32)


def matrix(body: memoryview, rows: int, columns: int) -> NDArray[np.uint16]:
    """bfloat16 [rows, columns] of an answer. Raises UnfitError."""
    if len(body) != 2 * rows * columns or not rows or not columns:
        raise UnfitError(f"{len(body)} bytes are no {rows} vectors of {columns} numbers")
    return np.frombuffer(body, "<u2").reshape(rows, columns)


def write_run(folder: Path, vocabulary: bytes, task: bytes) -> int:
    """What stays. Returns V. Raises OSError, vectors_file.ArtifactError, ValueError."""
    folder.mkdir(parents=True, exist_ok=True)
    WordEmbedding.model_validate_json(task)
    for name, content in ((VOCABULARY, vocabulary), (TASK, task)):
        part = folder / f".{name}.part"
        part.write_bytes(content)
        part.replace(folder / name)  # a model that maps the one before keeps it
    return vectors_file.write_index(folder)


def write_vectors(folder: Path, rows: NDArray[np.uint16]) -> None:
    """model.safetensors and unit_vectors.npy of a folder that has neither. rows: bfloat16 [V, d], in parts.

    Raises UnfitError where a number is not finite, OSError.
    """
    words, columns = rows.shape
    with (folder / WEIGHTS).open("wb") as weights, (folder / UNIT_VECTORS).open("wb") as units:
        weights.write(tensors.header({"vectors": (words, columns)}))
        head = {"descr": "<f4", "fortran_order": True, "shape": (words, columns)}
        np.lib.format.write_array_header_1_0(units, head)
        begin = units.tell()
        units.truncate(begin + 4 * words * columns)
        for first in range(0, words, ROWS_AT_ONCE):
            part = widened(rows[first : first + ROWS_AT_ONCE])
            lengths = _lengths(part)
            if not np.isfinite(lengths).all():
                row = first + int(np.flatnonzero(~np.isfinite(lengths))[0])
                raise UnfitError(f"the vector of word {row} is not finite")
            weights.write(part.data)
            part /= lengths[:, None]
            turned = np.ascontiguousarray(part.T)
            if len(part) == words:
                units.write(turned.data)
                break
            for column in range(columns):
                units.seek(begin + 4 * (column * words + first))
                units.write(turned[column].data)


def write_generation(folder: Path, run: Path, rows: NDArray[np.uint16]) -> None:
    """Parameters beside those that are there. Raises UnfitError, OSError; then nothing is left."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        for name in STAYS:
            os.link(run / name, folder / name)
        write_vectors(folder, rows)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def write_first(folder: Path, rows: NDArray[np.uint16], job: JobIdentity) -> ArtifactManifest:
    """A run's first parameters in its own folder, which `write_run` made. Raises UnfitError, OSError."""
    for name in (WEIGHTS, UNIT_VECTORS):
        (folder / name).unlink(missing_ok=True)
    write_vectors(folder, rows)
    made = manifest(job)
    (folder / "golden.json").write_text(proof(folder).model_dump_json())
    (folder / "manifest.json").write_text(made.model_dump_json())
    return made


def manifest(job: JobIdentity) -> ArtifactManifest:
    """Of parameters that no artifact holds: whose they are."""
    return ArtifactManifest(
        kind="wordEmbedding",
        version=job.run,
        files={},
        metrics={},
        provenance=Provenance(
            job=job,
            createdAt=datetime.now(UTC).isoformat(timespec="seconds"),
            mmsVersion="",
            seed=0,
            workers=1,
            data=[],
            jobFileDigest="",
        ),
    )


def proof(folder: Path) -> Golden:
    """Questions whose answers follow from a folder's own vectors: that the models answer from just these."""
    loaded = vectors_file.load(folder, unit=False)
    rows: NDArray[Any] = np.unique(np.linspace(0, len(loaded.words) - 1, PROVED).astype(np.int64))
    cases = [
        GoldenCase(
            model="vectors", inputs={"IDS": rows.tolist()}, outputs={"VECTORS": loaded.rows[rows].ravel().tolist()}
        )
    ]
    if len(loaded.words) > 1:
        asked = int(rows[-1])
        units = vectors_file.mapped(folder / UNIT_VECTORS)
        scores = np.array(units @ units[asked])
        scores[asked] = -np.inf
        k = min(PROVED_K, len(scores) - 1)
        best = np.sort(scores)[::-1][:k]
        inputs: dict[str, list[str] | list[int] | list[float]] = {"IDS": [asked], "K": [k]}
        cases.append(GoldenCase(model="neighbours", inputs=inputs, outputs={"SCORES": best.tolist()}))
    return Golden(cases=cases)


def _lengths(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of the rows; 1 for one of zeros."""
    with np.errstate(invalid="ignore", over="ignore"):
        lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows))  # NaN stays
    found: NDArray[np.float32] = np.where(lengths == 0, np.float32(1), lengths)
    return found
