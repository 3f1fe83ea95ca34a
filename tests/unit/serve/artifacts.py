"""Made-up artifacts of random vectors whose golden cases are computed apart from the code under test."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save_file

from mms_workloads.embedding import graph

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

FILES = ("model.safetensors", "vocabulary.txt", "golden.json", "evaluation.json")


@dataclass(frozen=True)
class Built:
    folder: Path
    digest: str
    words: list[str]
    vectors: np.ndarray


def words_of(size: int) -> list[str]:
    return ["höhe" if row == 1 else f"word{row}" for row in range(size)]


def cosine_neighbours(vectors: np.ndarray, row: int, k: int) -> list[tuple[int, float]]:
    """By the definition, one word at a time, in float64."""
    matrix = vectors.astype(np.float64)
    scores = matrix @ matrix[row] / (np.linalg.norm(matrix, axis=1) * np.linalg.norm(matrix[row]))
    order = [int(other) for other in np.argsort(-scores, kind="stable") if other != row][:k]
    return [(other, float(scores[other])) for other in order]


def golden_of(words: list[str], vectors: np.ndarray, rows: tuple[int, ...] = (0, 1, 7), k: int = 5) -> dict[str, Any]:
    best = [cosine_neighbours(vectors, row, k) for row in rows]
    asked = [words[row] for row in rows]
    return {
        "contractVersion": 1,
        "absoluteTolerance": 1e-4,
        "cases": [
            {
                "model": "vectors",
                "inputs": {"WORDS": asked},
                "outputs": {"VECTORS": vectors[list(rows)].ravel().tolist()},
            },
            {
                "model": "neighbours",
                "inputs": {"WORDS": asked, "K": [k]},
                "outputs": {
                    "WORDS": [words[other] for found in best for other, _ in found],
                    "SCORES": [score for found in best for _, score in found],
                },
            },
            {
                "model": "neighbours",
                "inputs": {"IDS": list(rows), "K": [k] * len(rows)},
                "outputs": {"WORDS": [words[other] for found in best for other, _ in found]},
            },
        ],
        "comparisons": [
            {
                "model": "neighbours",
                "inputs": {"WORDS": [words[row]], "K": [k]},
                "outputs": {"WORDS": [words[other] for other, _ in cosine_neighbours(vectors, row, k)]},
            }
            for row in range(20)
        ],
    }


def build(
    folder: Path,
    size: int = 200,
    dimensions: int = 8,
    seed: int = 0,
    version: int = 3,
    *,
    neighbours: bool = False,
    given: NDArray[np.float32] | None = None,
) -> Built:
    """neighbours: with their graph. given: the vectors, in place of random ones of that size."""
    folder.mkdir(parents=True, exist_ok=True)
    made = np.random.default_rng(seed).normal(size=(size, dimensions)) if given is None else given
    vectors, size = made.astype(np.float32), len(made)
    words = words_of(size)
    save_file({"vectors": vectors, "contexts": np.zeros_like(vectors)}, folder / "model.safetensors")
    (folder / "vocabulary.txt").write_text("".join(f"{word}\t{size - row}\n" for row, word in enumerate(words)))
    (folder / "golden.json").write_text(json.dumps(golden_of(words, vectors)))
    (folder / "evaluation.json").write_text("{}")
    names = FILES
    if neighbours:
        graph.build(vectors, folder / graph.FILE, threads=1)
        names += (graph.FILE,)
    return Built(folder, seal(folder, version=version, names=names), words, vectors)


def seal(folder: Path, *, version: int = 3, names: Sequence[str] = FILES, **changes: Any) -> str:
    """Writes the manifest of these files; the artifact's digest."""
    files = {}
    for name in names:
        data = (folder / name).read_bytes()
        files[name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    manifest = {
        "contractVersion": 1,
        "kind": "wordEmbedding",
        "version": version,
        "files": files,
        "metrics": {},
        "provenance": {
            "job": {"namespace": "default", "name": "words", "uid": "u", "run": version},
            "createdAt": "2026-01-01T00:00:00Z",
            "mmsVersion": "0",
            "seed": 1,
            "workers": 2,
            "data": [],
            "jobFileDigest": "sha256:0",
        },
    }
    return write_manifest(folder, {**manifest, **changes})


def write_manifest(folder: Path, manifest: dict[str, Any]) -> str:
    data = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(data)
    return "sha256:" + hashlib.sha256(data).hexdigest()


def serve_file(path: Path, folder: Path, digest: str) -> Path:
    """serve.json of a service that serves the folder."""
    uri = f"file://{folder}"
    path.write_text(
        json.dumps(
            {
                "contractVersion": 1,
                "namespace": "default",
                "name": "words",
                "artifact": {"uri": uri, "digest": digest, "version": 3},
                "storage": {"uri": uri},
            }
        )
    )
    return path


def tensors(outputs: Mapping[str, NDArray[Any]]) -> dict[str, dict[str, Any]]:
    """As Triton's JSON has them."""
    kinds = {"f": "FP32", "i": "INT64", "O": "BYTES", "U": "BYTES", "S": "BYTES"}
    return {
        name: {
            "name": name,
            "datatype": kinds[array.dtype.kind],
            "shape": list(array.shape),
            "data": [one.decode() if isinstance(one, bytes) else one for one in array.ravel().tolist()],
        }
        for name, array in outputs.items()
    }
