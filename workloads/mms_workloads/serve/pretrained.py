"""A model that was not trained here, brought into the pod as if it were an artifact.

Its files lie in adopting.FOLDER; beside them are pipeline.json, a golden set of its own first answers, and a manifest.
The golden set proves that Triton answers as the pipeline does, which is what a pod can know of a strange model.
"""

from __future__ import annotations

import hashlib
import math
import re
import shutil
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from mms_workloads import store
from mms_workloads.contract import (
    PIPELINE,
    ArtifactManifest,
    Batching,
    Golden,
    JobIdentity,
    PretrainedModel,
    Provenance,
    Reason,
    ServeFile,
)
from mms_workloads.serve import adopting, pipeline_models, pipelines, precision
from mms_workloads.serve.pipelines.predicting import Predict
from mms_workloads.serve.repository import Model, Models
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mms_workloads.contract import GoldenCase, Store
    from mms_workloads.serve.pipelines import Signature
    from mms_workloads.serve.pipelines.served import Served

MOST_FILES = 2000
CASES = 2
ABSOLUTE, RELATIVE = 1e-4, 1e-5  # between two answers to the same question
FILES = "files.sha256"  # of the artifact: a line for each file, as sha256sum writes it

_PART = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9._+@=-]{0,199}")


def fetch(serve: ServeFile, asked: PretrainedModel, folder: Path) -> tuple[ArtifactManifest, Models]:
    """Makes `folder` hold the model's files and what serves them. Raises JobError, OSError."""
    files = folder / adopting.FOLDER
    shutil.rmtree(files, ignore_errors=True)
    files.mkdir(parents=True)
    _download(serve.storage, files)
    listing = listing_of(files)
    found = digest_of(listing)
    if asked.digest is not None and found != asked.digest:
        raise JobError(
            Reason.ARTIFACT_CORRUPT,
            f"{serve.storage.uri}: its files have the digest {found}, and {asked.digest} is what this version began "
            "with, or spec.model.pretrained.digest: restore them, or give the digest of what is to be served",
        )
    (folder / FILES).write_text(listing)
    names = [line.partition("  ")[2] for line in listing.splitlines()]
    try:
        kind = adopting.format_of(asked, names)
        if kind == "TritonRepository":
            models, golden, task = _repository(serve, files)
        else:
            models, golden, task = _adopt(serve, asked, kind, folder)
    except JobError:
        raise
    except Exception as error:
        said = str(error) if isinstance(error, adopting.AdoptError) else f"{type(error).__name__}: {error}"
        raise JobError(Reason.MODEL_LOAD_FAILED, f"{serve.storage.uri}: {said}") from error
    (folder / "golden.json").write_text(golden.model_dump_json())
    manifest = _manifest(serve, task)
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return manifest, models


def _download(source: Store, files: Path) -> None:
    """Of a folder its files by their paths in it; of a file, it."""
    try:
        there = store.glob(source)
    except JobError as error:
        if error.reason == Reason.DATA_NOT_FOUND:
            message = f"there is no file at {source.uri}: check spec.model.pretrained.uri"
            raise JobError(Reason.ARTIFACT_NOT_FOUND, message) from error
        raise
    if len(there) > MOST_FILES:
        raise JobError(Reason.MODEL_LOAD_FAILED, f"{source.uri} has {len(there)} files: name the model's own folder")
    base = source.uri.rstrip("/")
    for one in there:
        name = one.uri[len(base) + 1 :] if one.uri.startswith(f"{base}/") else one.uri.rpartition("/")[2]
        parts = name.split("/")
        if any(part.startswith(".git") or part == ".cache" for part in parts):
            continue  # what a hub's client leaves beside the model
        if any(not _PART.fullmatch(part) or part in {".", ".."} for part in parts):
            raise JobError(Reason.ARTIFACT_CORRUPT, f"{source.uri}: file name {name!r} is refused")
        target = files.joinpath(*parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        store.download(store.at(source, one.uri), target)


def listing_of(files: Path) -> str:
    """As `find * -type f | LC_ALL=C sort | xargs sha256sum` writes it in the folder."""
    lines = []
    for file in files.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                lines.append((file.relative_to(files).as_posix(), hashlib.file_digest(stream, "sha256").hexdigest()))
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(lines, key=lambda line: line[0].encode()))


def digest_of(listing: str) -> str:
    return "sha256:" + hashlib.sha256(listing.encode()).hexdigest()


def _repository(serve: ServeFile, files: Path) -> tuple[Models, Golden, str]:
    """A Triton repository as it is: nothing is known of its models but their names. Raises AdoptError."""
    if serve.batching != Batching():
        raise adopting.AdoptError(
            "server.batching and server.instances are not for a Triton repository: leave them out, and write "
            "dynamic_batching and instance_group into its config.pbtxt"
        )
    if serve.anomalies == "Count":
        raise adopting.AdoptError(
            "server.anomalies Count is not for a Triton repository, whose requests nobody looks at: leave it out"
        )
    names = sorted(file.parent.name for file in files.glob("*/config.pbtxt"))
    if not names:
        raise adopting.AdoptError("no folder in it has a config.pbtxt: a Triton repository has one for each model")
    models = Models(models=[Model(name=name, code=None) for name in names])
    return models, Golden(cases=[], asItIs=True), "tritonRepository"


def _adopt(serve: ServeFile, given: PretrainedModel, kind: str, folder: Path) -> tuple[Models, Golden, str]:
    pipeline = adopting.pipeline_of(given, kind, folder / adopting.FOLDER)
    (folder / PIPELINE).write_text(pipeline.model_dump_json())
    served = pipelines.open(folder, anomalies="Off", trusted=given.trusted)
    # A precision is chosen by many questions; to prove the model few are enough, and each takes a start's time.
    count = CASES if serve.precision.wanted == "FP32" else precision.questions_needed(folder, pipeline)
    asked = served.steps.samples(count) if isinstance(served.steps, Predict) else samples(served, count)
    comparisons = [pipelines.golden_case(served, one) for one in asked]
    cases = comparisons[:CASES]
    models = pipeline_models.models_of(served.steps, serve, pipeline_models.program(pipeline, folder))
    return models, Golden(cases=cases, comparisons=comparisons, absoluteTolerance=_tolerance(cases)), pipeline.task


def settle(folder: Path) -> None:
    """The precision is chosen: of the golden set what proves it stays, which the agent holds in memory."""
    file = folder / "golden.json"
    golden = Golden.model_validate_json(file.read_bytes())
    file.write_text(golden.model_copy(update={"comparisons": golden.cases}).model_dump_json())


def _tolerance(cases: Sequence[GoldenCase]) -> float:
    """Of the largest number a part, as sums of FP32 in another order differ. Raises AdoptError."""
    numbers = [
        abs(one) for case in cases for values in case.outputs.values() for one in values if isinstance(one, float)
    ]
    if not all(map(math.isfinite, numbers)):
        raise adopting.AdoptError(
            "it answers inputs that were made up with NaN or infinity, so that nothing proves it: say in which range "
            "its inputs are, by least and most of pipeline.json's inputs"
        )
    return max([ABSOLUTE, *(RELATIVE * one for one in numbers)])


def samples(served: Served, count: int) -> list[dict[str, NDArray[np.generic]]]:
    """Requests that any model of the task can answer, each another one."""
    made: list[dict[str, NDArray[np.generic]]] = []
    generator = np.random.default_rng(1)
    signatures = {one.name: one for one in served.steps.inputs}
    labels = served.pipeline.labels
    for number in range(count):
        if "TEXT" in signatures:
            words = generator.choice(["The", "film", "was", "good", "in", "Paris", "and", "we", "liked", "it"], 8)
            made.append({"TEXT": np.array([[" ".join(words).encode()]], np.object_)})
        elif "SAMPLES" in signatures:
            seconds = np.arange(16_000, dtype=np.float32) / 16_000
            made.append({"SAMPLES": (0.3 * np.sin(2 * np.pi * generator.uniform(200, 800) * seconds))[None]})
        elif "LABEL" in signatures:
            label = {"LABEL": np.array([[labels[number % len(labels)].encode()]], np.object_)} if labels else {}
            made.append({"SEED": np.array([[number]], np.int64), **label})
        else:
            name = "FRAMES" if "FRAMES" in signatures else "PIXELS"
            made.append({name: _smooth(signatures[name], served, generator)})
    return made


def _smooth(signature: Signature, served: Served, generator: np.random.Generator) -> NDArray[np.float32]:
    """Values 0 to 1, such as an image out of focus has."""
    wide = served.pipeline.image.width if served.pipeline.image else 1
    shape = [wide if side < 0 else side for side in signature.shape]
    grid = generator.random((*shape[:-2], 4, 4), np.float32)
    rows = np.linspace(0, 3, shape[-2]).round().astype(int)
    columns = np.linspace(0, 3, shape[-1]).round().astype(int)
    return np.ascontiguousarray(grid[..., rows, :][..., columns][None])


def _manifest(serve: ServeFile, task: str) -> ArtifactManifest:
    """Of a model that no training here has made."""
    about = Provenance(
        job=JobIdentity(namespace=serve.namespace, name=serve.name, uid="", run=1),
        createdAt=datetime.now(UTC).isoformat(timespec="seconds"),
        mmsVersion="",
        seed=0,
        workers=1,
        data=[],
        jobFileDigest="",
    )
    values: Mapping[str, object] = {"kind": task, "version": 1, "files": {}, "metrics": {}, "provenance": about}
    return ArtifactManifest.model_validate(values)
