"""The init container: brings an artifact into the pod, verifies it and writes Triton's model repository.

    python -m mms_workloads.serve.fetch [--artifact]

Of a service that follows a running training it brings the training's parameters instead (live_fetch.py).
With --artifact it brings the artifact and leaves what is served as it is: the agent runs it so for the next one.
Nothing that does not match the digest gets past it: the manifest must have the artifact's digest, each file the size
and SHA-256 that the manifest says. How it failed is in the termination log; the exit code says whether another try can
help.
A second run in the same pod verifies what is there and fetches only what is missing or wrong.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import signal
import sys
from typing import IO, TYPE_CHECKING, Self

import structlog
from pydantic import ValidationError

from mms_workloads import contract, logs, pod, store
from mms_workloads.contract import (
    ArtifactManifest,
    Batching,
    FileEntry,
    Golden,
    Outcome,
    PrecisionReport,
    PretrainedModel,
    Reason,
    Reference,
    ServeFile,
    Store,
)
from mms_workloads.serve import generations, live_fetch, repository, vectors_file, versions
from mms_workloads.serve.artifact import PRECISION_FILE
from mms_workloads.serve.generations import Generation, Generations
from mms_workloads.serve.layout import MODELS_FILE, Layout, read_layout, read_models, read_serve_file
from mms_workloads.serve.vectors_file import ArtifactError
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mms_workloads.serve.repository import Models

MANIFEST = "manifest.json"
GOLDEN = "golden.json"
WORDS = "wordEmbedding"
REPOSITORY = "tritonRepository"
REQUIRED = (vectors_file.WEIGHTS, vectors_file.VOCABULARY, GOLDEN)  # of a wordEmbedding artifact
SERVED = (contract.PIPELINE, GOLDEN)  # of the other kinds
RESERVED = {
    MANIFEST,
    MODELS_FILE,
    PRECISION_FILE,
    "variant.json",
    "model.int8.onnx",
    *vectors_file.MADE,
}  # names of what is made in the pod
CHUNK_BYTES = 1 << 20
MANIFEST_BYTES = 16 << 20  # no manifest is larger: the limit keeps a wrong URI from filling the memory

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")  # no folders, nothing hidden

log = structlog.get_logger()


def main(environment: Mapping[str, str] = os.environ, arguments: Sequence[str] = ()) -> int:
    # As process 1 of its container Python would ignore SIGTERM: the pod's end would wait for the kubelet's patience.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        layout = read_layout(environment)
        serve = read_serve_file(environment)
        if serve.live:
            _only_fp32(serve, WORDS)
            manifest = live_fetch.fetch(serve, serve.live, layout, environment)
        else:
            manifest = fetch(serve, layout)
        if serve.reference is not None:
            _fetch_reference(serve.reference, layout)
        if "--artifact" not in arguments:
            prepare_pod(manifest, serve.artifact.digest, layout, serve.batching)
    except JobError as error:
        log.error(  # noqa: TRY400 - the user's mistake needs no traceback
            "fetch failed", reason=error.reason, message=error.message, retryable=error.retryable
        )
        pod.write_outcome(
            pod.termination_log(environment),
            Outcome(result="Failed", reason=error.reason, message=error.message, retryable=error.retryable),
        )
        return contract.EXIT_RETRY if error.retryable else contract.EXIT_PERMANENT
    log.info("fetched", digest=serve.artifact.digest, version=manifest.version, folder=str(layout.models))
    return contract.EXIT_DONE


def fetch(serve: ServeFile, layout: Layout) -> ArtifactManifest:
    """Makes the pod's volume hold the artifact, verified, and what models map. Raises JobError."""
    digest = serve.artifact.digest
    if serve.pretrained is not None:
        return _adopt(serve, serve.pretrained, layout)
    data = _read_manifest(serve)
    manifest = parse_manifest(data, digest, serve.storage.uri)
    folder = layout.artifact(digest)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, entry in sorted(manifest.files.items()):
            _fetch_file(store.child(serve.storage, name), name, entry, folder / name)
        (folder / MANIFEST).write_bytes(data)
        models = _make(digest, manifest, folder, serve)
        (folder / MODELS_FILE).write_text(models.model_dump_json())
        _write_precision(manifest, folder, serve)
    except OSError as error:
        raise JobError(
            Reason.INTERNAL,
            f"cannot write to {layout.models}: {error}: its volume needs room for the artifact's files and, of word "
            "vectors, for the vectors a second time",
            retryable=True,
        ) from error
    return manifest


def _adopt(serve: ServeFile, asked: PretrainedModel, layout: Layout) -> ArtifactManifest:
    """The same of a model that was not trained here. Raises JobError."""
    from mms_workloads.serve import pretrained  # noqa: PLC0415 - word vectors do without its libraries

    folder = layout.artifact(serve.artifact.digest)
    try:
        manifest, models = pretrained.fetch(serve, asked, folder)
        (folder / MODELS_FILE).write_text(models.model_dump_json())
        _write_precision(manifest, folder, serve)
        pretrained.settle(folder)
    except OSError as error:
        raise _full(layout.models, error) from error
    return manifest


def _write_precision(manifest: ArtifactManifest, folder: Path, serve: ServeFile) -> None:
    """Raises JobError, OSError."""
    (folder / PRECISION_FILE).unlink(missing_ok=True)
    if serve.precision.wanted == "FP32":
        return
    if manifest.kind in {WORDS, REPOSITORY}:
        _only_fp32(serve, manifest.kind)
        found = PrecisionReport(chosen="FP32", message=f"there is no other for {manifest.kind}")
    else:
        from mms_workloads.serve import precision  # noqa: PLC0415 - quantising is rare

        trusted = serve.pretrained is not None and serve.pretrained.trusted
        found = precision.apply(folder, serve.precision, trusted=trusted)
    log.info("precision", **found.model_dump())
    (folder / PRECISION_FILE).write_text(found.model_dump_json())


def _only_fp32(serve: ServeFile, kind: str) -> None:
    """Raises JobError where another precision is asked for."""
    if (wanted := serve.precision.wanted) not in {"Auto", "FP32"}:
        raise JobError(
            Reason.MODEL_LOAD_FAILED, f"server.precision {wanted} is not for {kind}: set FP32 or Auto, or leave it out"
        )


def _fetch_reference(reference: Reference, layout: Layout) -> None:
    """Its manifest and golden set, to compare with. Without them there is less to say of a rollout, and no harm."""
    digest, folder = reference.artifact.digest, layout.artifact(reference.artifact.digest)
    if (folder / GOLDEN).exists() or reference.pretrained:
        return
    try:
        data = store.read_bytes(store.child(reference.storage, MANIFEST), 0, MANIFEST_BYTES)
        manifest = parse_manifest(data, digest, reference.storage.uri)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).write_bytes(data)
        _fetch_file(store.child(reference.storage, GOLDEN), GOLDEN, manifest.files[GOLDEN], folder / GOLDEN)
    except (JobError, OSError) as error:
        log.warning("no comparison with what is served", digest=digest, error=str(error))


def parse_manifest(data: bytes, digest: str, uri: str) -> ArtifactManifest:
    """The manifest, when its bytes have the digest, this release knows its version and its names are safe.

    Raises JobError.
    """
    found = "sha256:" + hashlib.sha256(data).hexdigest()
    if found != digest:
        raise _corrupt(
            uri, MANIFEST, f"expected digest {digest}, found {found}", "give the digest that the training reports"
        )
    try:
        document = json.loads(data)
        version = document.get("contractVersion", contract.CONTRACT_VERSION) if isinstance(document, dict) else None
        if isinstance(version, int) and version > contract.CONTRACT_VERSION:
            raise JobError(
                Reason.MODEL_LOAD_FAILED,
                f"{uri}/{MANIFEST}: contract version {version} is newer than {contract.CONTRACT_VERSION}, the newest "
                "that this release serves: upgrade it",
            )
        manifest = ArtifactManifest.model_validate(document)
    except (ValueError, ValidationError) as error:
        raise _corrupt(uri, MANIFEST, f"not an artifact's manifest: {error}") from error
    for name in manifest.files:
        if not _FILE_NAME.fullmatch(name) or name in RESERVED:
            raise _corrupt(uri, MANIFEST, f"file name {name!r} is refused: files lie in the artifact's folder itself")
    for name in REQUIRED if manifest.kind == WORDS else SERVED:
        if name not in manifest.files:
            raise _corrupt(uri, MANIFEST, f"names no {name}, which a {manifest.kind} artifact has")
    return manifest


def _read_manifest(serve: ServeFile) -> bytes:
    try:
        return store.read_bytes(store.child(serve.storage, MANIFEST), 0, MANIFEST_BYTES)
    except JobError as error:
        if error.reason == Reason.DATA_NOT_FOUND:
            raise JobError(
                Reason.ARTIFACT_NOT_FOUND,
                f"there is no {MANIFEST} in {serve.storage.uri}: check the artifact's URI, or run the training again",
            ) from error
        raise _about_an_artifact(error) from error


def _fetch_file(source: Store, name: str, entry: FileEntry, target: Path) -> None:
    if target.exists() and _sha256(target) == entry.sha256:
        return
    part = target.with_name(f".{name}.part")
    try:
        with store.open_read(source) as reader:
            size, found = _copy(reader, part, entry.size)
    except JobError as error:
        if error.reason == Reason.DATA_NOT_FOUND:
            raise _corrupt_file(source.uri, "the file is missing") from error
        raise _about_an_artifact(error) from error
    if size != entry.size:
        part.unlink()
        more = "more" if size > entry.size else str(size)
        raise _corrupt_file(source.uri, f"expected {entry.size} bytes, found {more}")
    if found != entry.sha256:
        part.unlink()
        raise _corrupt_file(source.uri, f"expected sha256:{entry.sha256}, found sha256:{found}")
    part.replace(target)


def _copy(reader: IO[bytes], part: Path, size: int) -> tuple[int, str]:
    """Copies at most one chunk more than `size` bytes; how many it were and their SHA-256."""
    hasher, copied = hashlib.sha256(), 0
    with _local(part) as writer:
        while copied <= size and (chunk := reader.read(CHUNK_BYTES)):
            hasher.update(chunk)
            copied += len(chunk)
            writer.write(chunk)
    return copied, hasher.hexdigest()


class _local:  # noqa: N801 - a context manager
    """A local file whose errors are not taken for the store's."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb", buffering=0)
        self.path = path

    def __enter__(self) -> Self:
        return self

    def write(self, data: bytes) -> None:
        try:
            self.file.write(data)
        except OSError as error:
            raise _full(self.path.parent, error) from error

    def __exit__(self, *_: object) -> None:
        self.file.close()


def prepare_pod(manifest: ArtifactManifest, digest: str, layout: Layout, batching: Batching) -> None:
    """Writes what the pod's other containers begin with: the model repository, what is served, the control key.

    Raises JobError.
    """
    first = Generation(digest=digest, version=manifest.version, folder=str(layout.artifact(digest)))
    try:
        if not _serves_later(layout, digest):
            generations.write(layout.generations, Generations(serving=digest, held=[first]))
        folder = layout.artifact(digest)
        _write_repository(layout, batching, read_models(folder / MODELS_FILE), folder / "files")
        if not layout.control_key.exists():
            part = layout.control_key.with_name(".control-key.part")
            part.touch(mode=0o600)
            part.write_text(secrets.token_hex(32))
            part.replace(layout.control_key)
    except OSError as error:
        raise _full(layout.models, error) from error


def _serves_later(layout: Layout, digest: str) -> bool:
    """Whether the pod has later parameters of the run that it is to follow, from before its containers were new."""
    try:
        before = generations.read(layout.generations)
    except (OSError, ValueError):
        return False
    serving = before.of(before.serving)
    ours = serving is not None and contract.live_run(serving.digest) == digest
    return serving is not None and ours and (layout.models / serving.folder / vectors_file.UNIT_VECTORS).exists()


def _make(digest: str, manifest: ArtifactManifest, folder: Path, serve: ServeFile) -> Models:
    """What models map, from the verified files; which models those are."""
    try:
        Golden.model_validate_json((folder / GOLDEN).read_bytes())
        if manifest.kind == WORDS:
            vectors_file.prepare(folder)
            vectors_file.load(folder, unit=True)
            return repository.word_models()
        from mms_workloads.serve import pipeline_models  # noqa: PLC0415 - word vectors do without its libraries

        return pipeline_models.of(folder, serve)
    except (ArtifactError, ValidationError, ValueError) as error:
        raise JobError(
            Reason.ARTIFACT_CORRUPT,
            f"artifact {digest} is what was published but cannot be served: {error}: train again",
        ) from error


def _write_repository(layout: Layout, batching: Batching, models: Models, own: Path) -> None:
    """own: where the files of models are that are served as they are."""
    target = layout.repository
    part = target.with_name(".repository.part")
    shutil.rmtree(part, ignore_errors=True)
    for model in models.models:
        if model.code is None:
            shutil.copytree(own / model.name, part / model.name)
        else:
            versions.write(part / model.name / str(repository.MODEL_VERSION), model)
    for name, text in repository.configs(layout.generations, batching, models).items():
        (part / name).write_text(text, encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    part.replace(target)
    generations.write(layout.running, models)
    generations.write(layout.batching, batching)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _corrupt(uri: str, name: str, what: str, remedy: str = "") -> JobError:
    return _corrupt_file(f"{uri.rstrip('/')}/{name}", what, remedy)


def _corrupt_file(uri: str, what: str, remedy: str = "") -> JobError:
    remedy = remedy or "restore the file or train again"
    return JobError(Reason.ARTIFACT_CORRUPT, f"{uri}: {what}: {remedy}")


def _full(folder: Path, error: OSError) -> JobError:
    return JobError(Reason.INTERNAL, f"cannot write to {folder}: {error}: its volume needs more room", retryable=True)


def _about_an_artifact(error: JobError) -> JobError:
    """The store's words for data, in those for an artifact."""
    reason = Reason.STORAGE_DENIED if error.reason == Reason.DATA_UNREADABLE else error.reason
    return JobError(reason, error.message, retryable=error.retryable)


if __name__ == "__main__":
    logs.configure()
    sys.exit(main(arguments=sys.argv[1:]))
