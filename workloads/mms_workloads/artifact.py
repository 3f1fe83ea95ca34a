"""The artifact of a wordEmbedding run: written file by file, read back, and made valid by its manifest at the end.

<storage>/artifact/: model.safetensors, vocabulary.txt, golden.json, evaluation.json, manifest.json.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import TYPE_CHECKING

import torch

from mms_workloads import store as stores
from mms_workloads.contract import (
    ArtifactManifest,
    ArtifactRef,
    Golden,
    GoldenCase,
    Provenance,
    Reason,
)
from mms_workloads.embedding.evaluation import unit_rows
from mms_workloads.store import JobError
from mms_workloads.sync import checkpoints
from mms_workloads.train.checkpoint import write_tensors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from mms_workloads.embedding.skipgram import Parameters
    from mms_workloads.pod import Pod
    from mms_workloads.sync.plan import Plan

FOLDER = "artifact"
GOLDEN_NEIGHBOURS = 8  # cases of `neighbours`
GOLDEN_VECTORS = 4  # cases of `vectors`: two by word, two by number
GOLDEN_K = 10
# Neighbours whose scores are closer could come in either order on another machine's arithmetic.
GOLDEN_GAP = 1e-4


def publish(
    pod: Pod, parameters: Parameters, plan: Plan, evaluation: Evaluation, still_asked: Callable[[], bool]
) -> ArtifactRef | None:
    """Writes the artifact; on return it is durable and was read back. Raises JobError.

    An intact artifact of the same run that is there already, from a worker that was lost after writing it, is replaced.
    None when this worker is not `still_asked` for it just before the manifest would make it valid: then another one
    writes the artifact, or has done so and the master has told its digest.
    """
    job = pod.job
    target = stores.child(job.storage, FOLDER)
    with stores.scratch_folder(pod.scratch, "artifact-") as folder:
        files = _write_files(folder, parameters, plan, evaluation)
        entries = {name: checkpoints.file_entry(path) for name, path in files.items()}
        for name, path in files.items():
            stores.upload(stores.child(target, name), path)
        for name, entry in entries.items():
            checkpoints.verify(stores.child(target, name), entry)
    manifest = ArtifactManifest(
        kind="wordEmbedding",
        version=job.job.run,
        files=entries,
        metrics=evaluation.metrics,
        provenance=Provenance(
            job=job.job,
            createdAt=checkpoints.now(),
            mmsVersion=_version(),
            seed=job.optimizer.seed,
            workers=job.workers,
            data=list(plan.files),
            jobFileDigest=pod.job_digest,
        ),
    )
    data = manifest.model_dump_json(indent=1, exclude_none=True).encode()
    if not still_asked():
        return None
    file = stores.child(target, checkpoints.MANIFEST)
    stores.write_bytes(file, data)
    if stores.read_bytes(file) != data:
        raise JobError(Reason.STORAGE_UNREACHABLE, f"{file.uri} reads back differently", retryable=True)
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    return ArtifactRef(uri=target.uri, digest=digest, version=job.job.run, metrics=evaluation.metrics)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """evaluation.json: metrics with how they were measured."""

    metrics: dict[str, float]
    vocabulary: int
    words: int
    blocks: int
    heldOutBlocks: list[int]
    method: str


def golden(vectors: Tensor, words: tuple[str, ...]) -> Golden:
    """Requests with their right answers: neighbours of frequent and of rarer words, vectors by word and by number."""
    units = unit_rows(vectors)
    cases: list[GoldenCase] = []
    # From the most frequent words down to the middle of the vocabulary, evenly on a logarithmic scale.
    span = max(2, len(words) // 2)
    spread = sorted({min(len(words) - 1, int(span ** (i / 63)) - 1) for i in range(64)})
    by_number = False
    for number in spread:
        case = _neighbours(units, words, number, by_number=by_number)
        if case:
            cases.append(case)
            by_number = not by_number
        if len(cases) == GOLDEN_NEIGHBOURS:
            break
    picks = spread[:: max(1, len(spread) // GOLDEN_VECTORS)][:GOLDEN_VECTORS]
    for index, number in enumerate(picks):
        inputs: dict[str, list[str] | list[int] | list[float]] = (
            {"WORDS": [words[number]]} if index % 2 == 0 else {"IDS": [number]}
        )
        cases.append(GoldenCase(model="vectors", inputs=inputs, outputs={"VECTORS": vectors[number].tolist()}))
    return Golden(cases=cases)


def _neighbours(units: Tensor, words: tuple[str, ...], number: int, *, by_number: bool) -> GoldenCase | None:
    """None when the order of the answer hangs by rounding."""
    k = min(GOLDEN_K, len(words) - 1)
    scores = units @ units[number]
    scores[number] = -2.0  # a word is not its own neighbour
    best = scores.topk(min(k + 1, len(words)))
    gaps = best.values[:-1] - best.values[1:]
    if bool((gaps < GOLDEN_GAP).any()):
        return None
    inputs: dict[str, list[str] | list[int] | list[float]] = (
        {"IDS": [number]} if by_number else {"WORDS": [words[number]]}
    )
    return GoldenCase(
        model="neighbours",
        inputs={**inputs, "K": [k]},
        outputs={"WORDS": [words[i] for i in best.indices[:k].tolist()], "SCORES": best.values[:k].tolist()},
    )


def _write_files(folder: Path, parameters: Parameters, plan: Plan, evaluation: Evaluation) -> dict[str, Path]:
    tensors = {"vectors": parameters.vectors.contiguous(), "contexts": parameters.contexts.contiguous()}
    if not all(bool(torch.isfinite(t).all()) for t in tensors.values()):
        raise JobError(
            Reason.INTERNAL, "the parameters are not finite: lower optimizer.learningRate and start another run"
        )
    write_tensors(tensors, folder / "model.safetensors")
    (folder / "vocabulary.txt").write_text(plan.vocabulary.text(), encoding="utf-8")
    cases = golden(tensors["vectors"], plan.vocabulary.words)
    (folder / "golden.json").write_text(cases.model_dump_json(indent=1), encoding="utf-8")
    (folder / "evaluation.json").write_text(json.dumps(asdict(evaluation), indent=1), encoding="utf-8")
    return {path.name: path for path in sorted(folder.iterdir())}


def _version() -> str:
    try:
        return metadata.version("massive-model-serving")
    except metadata.PackageNotFoundError:
        return "unknown"
